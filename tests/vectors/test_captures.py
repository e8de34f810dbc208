# SPDX-License-Identifier: Apache-2.0
"""Captures of real guests, run again by today's code: the net for every change.

``tests/vectors/captures/README.md`` says how each was made, and what to do if a test fails
because what a guest is told has changed on purpose.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gzip
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from tests.e2e import sevlaunch

from hcalld.captures.events import Events
from hcalld.config import Profiles
from hcalld.core.call import Call
from hcalld.core.errors import HcallError
from hcalld.core.handlers import Model
from hcalld.core.outcome import Outcome
from hcalld.core.secret import Secret
from hcalld.crypto.locks import KeyInfo, Passphrase
from hcalld.families.registry import SERVED
from hcalld.replay.differences import Comparer, Difference
from hcalld.replay.guest import GuestPlayer
from hcalld.replay.incode import Replay
from hcalld.replay.link import Link
from hcalld.replay.score import Score, Where
from hcalld.replay.script import Script
from hcalld.runtime.server import Server
from hcalld.stores.memory import MemoryState, MemoryStore
from hcalld.testing.logs import capture_logs
from hcallproto.abi.families import pks, sev, svm, tpm
from hcallproto.abi.returns import H, SevCode, code_name
from hcallproto.abi.spec import Hcall, Level
from hcallproto.capture.reading import CaptureReader, exchanges
from hcallproto.conn.states import Role
from hcallproto.wire.encode import encode
from hcallproto.wire.frames import FRAME_TYPES

CAPTURES: Final = Path(__file__).with_name("captures")
NAMES: Final = ("debian", "secvar", "pkwm", "tpm", "svm", "sev")

USED: Final = {
    "debian": {"H_PKS_GET_CONFIG", "H_PKS_GEN_PASSWORD", "H_PKS_READ_OBJECT"},
    "secvar": {"H_PKS_SIGNED_UPDATE", "H_PKS_CONFIRM_OBJECT_FLUSHED", "H_PKS_READ_OBJECT"},
    "pkwm": {"H_PKS_GEN_KEY", "H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT"},
    "tpm": {"H_TPM_COMM"},
    "svm": {"UV_ESM", "H_SVM_INIT_START", "H_SVM_INIT_DONE", "H_SVM_PAGE_IN", "UV_SHARE_PAGE"},
    "sev": {
        *("KVM_SEV_LAUNCH_START", "KVM_SEV_LAUNCH_SECRET", "KVM_SEV_GET_ATTESTATION_REPORT"),
        *("KVM_SEV_DBG_DECRYPT", "KVM_SEV_SEND_START", "KVM_SEV_RECEIVE_FINISH"),
        *("SEV_PEK_CERT_IMPORT", "SEV_FACTORY_RESET"),
    },
}
"""Some of the calls that each is there for."""


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """Printing what a daemon logs takes longer than all else here."""
    with capture_logs():
        yield


def path_of(name: str) -> Path:
    return CAPTURES / f"{name}.pcapng.gz"


@functools.cache
def key_of(info: KeyInfo) -> Secret:
    """A capture's key; it takes its time, on purpose."""
    return Passphrase(Secret((CAPTURES / "passphrase").read_bytes().rstrip(b"\n"))).unlock(info)


class Unlocked:
    """Opens the captures of this directory."""

    def unlock(self, info: KeyInfo) -> Secret:
        """See Unlock."""
        return key_of(info)


def events(name: str, *, is_open: bool) -> Events:
    return Events([path_of(name).read_bytes()], Unlocked() if is_open else None)


@dataclasses.dataclass
class Played:
    """What came of a replay in process."""

    score: Score
    told: list[str]
    comparer: Comparer


def replay(name: str, *, is_open: bool = True) -> Played:
    """Play a capture against the code."""
    told: list[str] = []

    def tell(where: Where, difference: Difference) -> None:
        told.append(f"{where} {difference}")

    score = Score(tell)
    comparer = Comparer(is_blanked=not is_open)
    source = events(name, is_open=is_open)
    Replay(source.undecoded(), score, comparer, is_blanked=not is_open).run()
    assert source.problems == source.remarks == []
    return Played(score, told, comparer)


@pytest.mark.parametrize("name", NAMES)
def test_every_reply_is_the_same_to_the_byte(name: str) -> None:
    played = replay(name)
    assert played.told == []
    assert played.score.left_out == {}
    assert played.score.equal == played.score.calls > 0


@pytest.mark.parametrize("name", NAMES)
def test_without_secrets_what_is_compared_is_the_same(name: str) -> None:
    played = replay(name, is_open=False)
    assert played.told == []
    assert played.score.compared + played.score.left_out.total() == played.score.calls > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_captures_hold_what_they_are_there_for(name: str) -> None:
    reader = CaptureReader([path_of(name).read_bytes()])
    calls = collections.Counter(
        one.hcall.name for _, one in exchanges(reader) if one.hcall is not None
    )
    assert set(calls) >= USED[name], calls
    assert reader.dropped == 0


def test_a_guests_memory_is_in_the_sealed_part_alone() -> None:
    """Guests of SEV write into their memory what their owner has sent them in secret."""
    shown = gzip.decompress(path_of("sev").read_bytes())
    whole = b"".join(
        event.data or encode(event.what)  # type: ignore[arg-type]  # only frames have one
        for event in events("sev", is_open=True)
        if type(event.what) in FRAME_TYPES
    )
    for secret in (sevlaunch.FIRMWARE[:64], sevlaunch.VMSAS[0][:64], sevlaunch.DEBUG):
        assert secret in whole
        assert secret not in shown
    # Encrypted memory and packets have the others only in a debugger's hands.
    assert sevlaunch.SECRET in whole
    assert sevlaunch.SECRET not in shown


# -- a live daemon ----------------------------------------------------------------------------


class Told:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def difference(self, where: str, difference: Difference) -> None:
        """See Report."""
        if not difference.by_nature:
            self.lines.append(f"{where} {difference}")


@pytest.mark.parametrize("is_open", [False, True], ids=["blanked", "whole"])
@pytest.mark.parametrize("name", ["debian", "secvar", "pkwm"])
async def test_a_live_daemon_gives_the_same_answers(
    name: str, is_open: bool, tmp_path: Path
) -> None:
    (tmp_path / "default.toml").write_bytes((CAPTURES / f"{name}.toml").read_bytes())
    state = MemoryState()
    server = Server(Profiles(tmp_path), lambda _: MemoryStore(state), strict=True)
    told = Told()
    async with trio.open_nursery() as nursery:

        async def connect() -> Link:
            ends = socket.socketpair()
            for end in ends:
                end.setblocking(False)
            nursery.start_soon(server.serve_socket, ends[1])
            return Link(ends[0], Role.SHIM)

        comparer = Comparer(is_blanked=not is_open, is_live=True)
        player = GuestPlayer(
            Script(events(name, is_open=is_open)), connect, comparer, told, is_blanked=not is_open
        )
        await player.play()
        nursery.cancel_scope.cancel()
    assert told.lines == []
    assert player.figures.calls > 0


# -- the net holds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hcall"),
    [
        ("debian", pks.READ_OBJECT),
        ("secvar", pks.SIGNED_UPDATE),
        ("pkwm", pks.UNWRAP_OBJECT),
        ("tpm", tpm.TPM_COMM),
        ("svm", svm.RANDOM),
        ("sev", sev.LAUNCH_UPDATE_DATA),
        ("sev", sev.SEND_CANCEL),
        ("sev", sev.FACTORY_RESET),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_another_return_code_is_noticed(
    name: str, hcall: Hcall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a change of one line in a handler."""
    (handlers,) = [one.handlers for one in SERVED if hcall in one.handlers.by_call]
    real = handlers.by_call[hcall]
    code = SevCode.INACTIVE if hcall.level is Level.COMMAND else H.ABORTED

    async def changed(call: Call, model: Model) -> Outcome:
        try:
            outcome: Outcome = await real(call, model)
        except HcallError as error:
            raise HcallError(code, error.why) from None
        return dataclasses.replace(outcome, code=code)

    by_call: Any = {**handlers.by_call, hcall: changed}
    monkeypatch.setattr(handlers, "by_call", by_call)
    told = replay(name).told
    assert told
    assert f"{hcall.name}: status: {code_name(code)}, expected " in told[0]
