# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import hmac

import pytest
from tests.unit.hcalld.crypto.tpm_replay import Replay

from hcalld.core.effects import Now
from hcalld.core.errors import BackendUnavailable
from hcalld.crypto import tpm_session
from hcalld.crypto.tpm_session import (
    MAX_ATTEMPTS,
    PolicySession,
    execute,
    flush,
    kdfa,
    policy_of,
    policy_or,
    run,
    start_policy_session,
    with_flush,
)
from hcallproto.payloads.tpm import RC_RETRY, Cc, TpmFormatError, TpmRefusedError, u32

OK = bytes.fromhex("80010000000a00000000")
RETRY = bytes.fromhex("80010000000a") + RC_RETRY.to_bytes(4, "big")


class Scripted:
    """A TPM that gives these responses."""

    def __init__(self, *responses: bytes | Exception) -> None:
        self.responses = list(responses)
        self.sent: list[bytes] = []

    async def transmit(self, command: bytes) -> bytes:
        self.sent.append(command)
        response = self.responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response


async def waits() -> int:
    return await Now()


def test_run_when_steps_suspend_then_refused():
    with pytest.raises(RuntimeError, match="waits for something"):
        run(waits())


def test_execute_when_the_tpm_is_busy_then_the_command_is_sent_again():
    tpm = Scripted(RETRY, RETRY, OK)
    run(flush(tpm.transmit, 1))
    assert len(set(tpm.sent)) == 1
    assert len(tpm.sent) == 3


def test_execute_when_the_tpm_stays_busy_then_refused():
    tpm = Scripted(*[RETRY] * (MAX_ATTEMPTS + 1))
    with pytest.raises(TpmRefusedError, match="busy"):
        run(execute(tpm.transmit, Cc.POLICY_OR))
    assert len(tpm.sent) == MAX_ATTEMPTS


def test_policy_when_computed_then_as_the_specification_says():
    first = hashlib.sha256(bytes(32) + u32(0x16C) + u32(0x159)).digest()
    assert policy_of((Cc.POLICY_COMMAND_CODE, u32(0x159))) == first
    assert policy_or([first]) == hashlib.sha256(bytes(32) + u32(0x171) + first).digest()


def test_kdfa_when_256_bits_then_one_round_of_hmac():
    expected = hmac.digest(b"key", b"\0\0\0\1CFB\0newerolder\0\0\1\0", "sha256")
    assert kdfa(b"key", b"CFB", b"newer", b"older") == expected


# -- flushing -----------------------------------------------------------------------------------


async def fails(error: BaseException) -> None:
    raise error


def test_flush_when_the_work_fails_then_all_the_same():
    tpm = Scripted(OK)
    with pytest.raises(ValueError, match="work"):
        run(with_flush(tpm.transmit, 0x03000000, fails(ValueError("work"))))
    assert [command[6:] for command in tpm.sent] == [u32(Cc.FLUSH_CONTEXT) + u32(0x03000000)]


def test_flush_when_it_fails_too_then_the_first_error_is_told():
    tpm = Scripted(OSError("gone"))
    with pytest.raises(ValueError, match="work"):
        run(with_flush(tpm.transmit, 1, fails(ValueError("work"))))
    assert len(tpm.sent) == 1


def test_flush_when_it_alone_fails_then_that_is_told():
    async def works() -> int:
        return 5

    tpm = Scripted(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        run(with_flush(tpm.transmit, 1, works()))
    assert run(with_flush(Scripted(OK).transmit, 1, works())) == 5


def test_flush_when_the_work_is_given_up_then_nothing_is_sent():
    tpm = Scripted(OK)
    with pytest.raises(KeyboardInterrupt):
        run(with_flush(tpm.transmit, 1, fails(KeyboardInterrupt())))
    assert tpm.sent == []


# -- sessions -----------------------------------------------------------------------------------


def session_response(handle: int, nonce: bytes, extra: bytes = b"") -> bytes:
    body = u32(handle) + len(nonce).to_bytes(2, "big") + nonce + extra
    return b"\x80\x01" + u32(10 + len(body)) + u32(0) + body


def test_flush_when_the_tpm_is_gone_then_it_is_not_waited_for_again():
    tpm = Scripted(OK)
    with pytest.raises(BackendUnavailable, match="no answer"):
        run(with_flush(tpm.transmit, 1, fails(BackendUnavailable("no answer"))))
    assert tpm.sent == []


@pytest.mark.parametrize(
    ("response", "why", "flushes"),
    [
        (session_response(0x02000000, bytes(32)), "0x02000000 as a policy session", 0),
        (session_response(0x80000000, bytes(32)), "0x80000000 as a policy session", 0),
        (session_response(0x03000000, bytes(15)), "a nonce of 15 bytes", 1),
        (session_response(0x03000000, bytes(16), b"x"), "1 bytes too many", 1),
    ],
)
def test_session_when_the_tpm_gives_something_else_then_it_is_flushed(
    response: bytes, why: str, flushes: int
):
    tpm = Scripted(response, OK)
    with pytest.raises(TpmFormatError, match=why):
        run(start_policy_session(tpm.transmit, bytes(32)))
    assert len(tpm.sent) == 1 + flushes


async def begin(replay: Replay) -> PolicySession:
    return await start_policy_session(replay.transmit, (await replay.entropy(64))[:32])


def test_session_when_it_begins_then_it_is_flushed_at_will():
    replay = Replay("decrypt")
    session = run(begin(replay))
    assert session.handle >> 24 == 3
    run(session.flush())
    assert replay.flushed == [u32(session.handle)]
    assert len(session.nonce_tpm) >= tpm_session.MIN_NONCE_SIZE
