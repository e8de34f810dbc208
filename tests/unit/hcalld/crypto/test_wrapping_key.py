# SPDX-License-Identifier: Apache-2.0
"""The wrapping key, against what a swtpm said; against a live one, see tests/vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.unit.hcalld.crypto.tpm_replay import KEY, KNOWN, Replay

from hcalld.core.secret import Secret
from hcalld.crypto import wrapping_key
from hcalld.crypto.tpm_session import TpmAuthenticationError, run
from hcalld.crypto.wrapping_key import (
    WrappingKey,
    WrappingKeyError,
    decrypt,
    provision,
    read_public,
)
from hcallproto.payloads.tpm import Cc, TpmError, TpmFormatError, TpmRefusedError, parse_public

NOT_THERE = bytes.fromhex("80010000000a0000018b")
REFUSED = bytes.fromhex("80010000000a00000101")


def test_policies_when_computed_then_they_are_those_of_skiboot():
    # opalcreate.c: policy_a_bin, policy_b_bin and policyor_ab_bin of PCR16ZERO.
    assert wrapping_key.POLICY_USE.hex() == (
        "8dbd2aa10f701b1eda230fa8a38803d342f3b48c2ffcbed56c04674c79dff00f"
    )
    assert wrapping_key.POLICY_CHANGE.hex() == (
        "9795d78f53de94401899cc2d5ba76007b3d4dad85bf95cabeeba04d0f98b502e"
    )
    assert wrapping_key.POLICY.hex() == (
        "e86c7354251aa8e6ce27fddc541946f48120ff95c3d7a4d343f463321bd3e55c"
    )
    assert wrapping_key.TEMPLATE.attributes == 0x00020C20
    assert wrapping_key.PARENT_TEMPLATE.attributes == 0x00030472


# -- use ----------------------------------------------------------------------------------------


def decrypting(replay: Replay) -> bytes:
    return run(decrypt(replay.transmit, KEY, KNOWN["lockbox"], replay.entropy))


def test_decrypt_when_the_tpm_answers_then_the_key_and_no_session_is_left():
    replay = Replay("decrypt")
    assert decrypting(replay) == KNOWN["symmetric_key"]
    assert replay.sent == [
        Cc.START_AUTH_SESSION,
        Cc.POLICY_COMMAND_CODE,
        Cc.POLICY_AUTH_VALUE,
        Cc.POLICY_OR,
        Cc.RSA_DECRYPT,
        Cc.FLUSH_CONTEXT,
    ]
    # As the firmware's, to the byte.
    assert [len(command) for command, _ in replay.exchanges] == [63, 18, 14, 86, 353, 14]
    assert KNOWN["symmetric_key"] not in b"".join(answer for _, answer in replay.exchanges)


@pytest.mark.parametrize(
    ("scenario", "sealed", "why", "is_session"),
    [
        ("wrong_lockbox", KNOWN["lockbox"][:-1] + b"\0", "0x101", False),
        ("wrong_password", KNOWN["lockbox"], "0x9a2", True),
    ],
)
def test_decrypt_when_the_tpm_refuses_then_its_code_is_told_and_the_session_flushed(
    scenario: str, sealed: bytes, why: str, is_session: bool
):
    replay = Replay(scenario)
    with pytest.raises(TpmRefusedError, match=why) as caught:
        run(decrypt(replay.transmit, KEY, sealed, replay.entropy))
    assert caught.value.is_about_session is is_session
    assert replay.sent[-1] is Cc.FLUSH_CONTEXT
    assert len(replay.flushed) == 1


@pytest.mark.parametrize("index", range(5))
def test_decrypt_when_any_answer_is_cut_or_too_long_then_refused_and_flushed(index: int):
    whole = Replay("decrypt").exchanges[index][1]
    for answer in (*(whole[:size] for size in range(len(whole))), whole + b"\0"):
        replay = Replay("decrypt")
        replay.alter(index, answer)
        with pytest.raises(TpmFormatError):
            decrypting(replay)
        assert len(replay.flushed) == (index > 0)


@pytest.mark.parametrize("index", range(6))
def test_decrypt_when_the_transport_fails_then_its_error_is_told_and_flush_is_tried(index: int):
    replay = Replay("decrypt")
    replay.alter(index, OSError("no answer"))
    with pytest.raises(OSError, match="no answer"):
        decrypting(replay)
    assert len(replay.flushed) == (index > 0)


def test_decrypt_when_a_bit_of_the_answer_is_flipped_then_never_another_key():
    index = Replay("decrypt").index_of(Cc.RSA_DECRYPT)
    whole = Replay("decrypt").exchanges[index][1]
    kinds: set[type[Exception]] = set()
    for bit in range(8 * len(whole)):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        replay = Replay("decrypt")
        replay.alter(index, bytes(altered))
        with pytest.raises(TpmError) as caught:
            decrypting(replay)
        kinds.add(type(caught.value))
        assert len(replay.flushed) == 1
    assert kinds == {TpmFormatError, TpmRefusedError, TpmAuthenticationError}


def test_decrypt_when_the_answer_is_not_encrypted_then_refused(monkeypatch: pytest.MonkeyPatch):
    # A TPM that knows the password may leave out the encryption; the HMAC is then right.
    monkeypatch.setattr("hcalld.crypto.tpm_session.hmac.compare_digest", lambda _a, _b: True)
    index = Replay("decrypt").index_of(Cc.RSA_DECRYPT)
    answer = Replay("decrypt").exchanges[index][1]
    place = answer.rindex(b"\x41\x00\x20")
    replay = Replay("decrypt")
    replay.alter(index, answer[:place] + b"\x01" + answer[place + 1 :])
    with pytest.raises(TpmAuthenticationError, match="not encrypted"):
        decrypting(replay)


# -- the public half ----------------------------------------------------------------------------


def test_public_when_read_then_it_is_the_key_that_is_known():
    public = run(read_public(Replay("read_public").transmit, KEY))
    assert public.key_size == 2048
    other = WrappingKey(Secret(b""), bytes(34))
    with pytest.raises(WrappingKeyError, match="another than the one known"):
        run(read_public(Replay("read_public").transmit, other))


def test_public_when_there_is_no_key_then_told():
    with pytest.raises(TpmRefusedError, match="no object has this handle"):
        run(read_public(Replay("absent").transmit, KEY))


def test_public_when_any_bit_is_flipped_then_refused():
    whole = Replay("read_public").exchanges[0][1]
    # Behind the name is only the qualified name, which is not used.
    for bit in range(8 * (len(whole) - 36)):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        replay = Replay("read_public")
        replay.alter(0, bytes(altered))
        with pytest.raises(TpmError):
            run(read_public(replay.transmit, KEY))


def test_public_when_it_is_no_key_then_refused(monkeypatch: pytest.MonkeyPatch):
    real = parse_public

    def even(area: bytes) -> Any:
        return dataclasses.replace(real(area), exponent=2)

    monkeypatch.setattr(wrapping_key, "parse_public", even)
    with pytest.raises(TpmFormatError, match="gives no RSA key"):
        run(read_public(Replay("read_public").transmit, KEY))


# -- provisioning -------------------------------------------------------------------------------


def test_provision_when_the_tpm_is_new_then_parent_and_key_are_made():
    replay = Replay("provision")
    made = run(provision(replay.transmit, replay.entropy))
    assert made.is_new
    assert made.key == KEY
    assert len(made.key.password) == 16
    assert b"\0" not in made.key.password.reveal()
    # What is loaded is flushed: a TPM has room for three.
    assert replay.sent.count(Cc.FLUSH_CONTEXT) == 2
    assert replay.sent.count(Cc.EVICT_CONTROL) == 2
    assert len(replay.sent) == len(replay.exchanges)


def test_provision_when_the_key_is_there_then_it_has_a_new_password():
    replay = Replay("provision_again")
    made = run(provision(replay.transmit, replay.entropy))
    assert not made.is_new
    assert made.key.name == KEY.name
    assert made.key.password == Secret(KNOWN["second_password"])
    assert Cc.CREATE not in replay.sent
    order = [code for code in replay.sent if code in (Cc.LOAD, Cc.EVICT_CONTROL)]
    assert order == [Cc.LOAD, Cc.EVICT_CONTROL, Cc.EVICT_CONTROL]


@pytest.mark.parametrize("scenario", ["provision", "provision_again"])
def test_provision_when_any_step_is_refused_then_told_and_nothing_stays_loaded(scenario: str):
    for index in range(len(Replay(scenario).exchanges)):
        replay = Replay(scenario)
        if replay.exchanges[index][0][6:10] == Cc.FLUSH_CONTEXT.to_bytes(4, "big"):
            continue
        replay.alter(index, REFUSED)
        with pytest.raises(TpmRefusedError, match="0x101"):
            run(provision(replay.transmit, replay.entropy))
        begun = sum(
            code in (Cc.CREATE_PRIMARY, Cc.LOAD, Cc.START_AUTH_SESSION)
            for code in replay.sent[:index]
        )
        assert len(replay.flushed) == begun


@pytest.mark.parametrize("scenario", ["provision", "provision_again"])
def test_provision_when_any_answer_is_cut_then_refused(scenario: str):
    for index, (command, whole) in enumerate(Replay(scenario).exchanges):
        code = Cc(int.from_bytes(command[6:10], "big"))
        for size in range(0, len(whole), 7):
            replay = Replay(scenario)
            replay.alter(index, whole[:size])
            with pytest.raises(TpmError):
                run(provision(replay.transmit, replay.entropy))
            assert code in replay.sent


def test_provision_when_the_parent_is_there_then_it_is_used():
    recorded = Replay("provision").exchanges
    primary = Replay("provision").index_of(Cc.CREATE_PRIMARY)
    replay = Replay("provision")
    # Without the three commands that make it.
    there = recorded[0][1][:6] + bytes(4)
    replay.exchanges = [
        recorded[0],
        (recorded[1][0], there),
        *recorded[primary + 3 :],
    ]
    assert run(provision(replay.transmit, replay.entropy)).is_new
    assert Cc.CREATE_PRIMARY not in replay.sent


def test_provision_when_another_key_is_at_the_handle_then_it_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(wrapping_key, "POLICY", bytes(32))
    replay = Replay("provision_again")
    with pytest.raises(WrappingKeyError, match="no wrapping key; remove it"):
        run(provision(replay.transmit, replay.entropy))
    assert replay.sent == [Cc.READ_PUBLIC]


def test_secrets_when_shown_then_they_are_not():
    made = run(provision(Replay("provision").transmit, Replay("provision").entropy))
    assert made.key.password.reveal().hex() not in repr(made)
    assert repr(made.key.password.reveal())[2:-1] not in repr(made)
