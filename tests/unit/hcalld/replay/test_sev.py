# SPDX-License-Identifier: Apache-2.0
"""VMs with SEV: what is recorded of their platform, and that it is enough to play them again."""

from __future__ import annotations

import pathlib
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeGuard, TypeVar, cast

import pytest
import trio
from tests.e2e.sevlaunch import CALLS_AFTER_BEGUN, LAUNCH_CALLS, launch
from tests.unit.hcalld.replay.sevclients import clients
from tests.unit.hcalld.replay.test_code import Recorded, play
from tests.unit.hcalld.runtime.daemon import Daemon

from hcalld.captures.events import Event, Events
from hcalld.core.call import Call
from hcalld.core.effects import Entropy
from hcalld.core.outcome import Outcome
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE
from hcalld.domain.sev.changes import IdentityChanged
from hcalld.domain.sev.identity import pack_identity
from hcalld.domain.sev.vm import SevVm
from hcalld.families.sev.handlers import HANDLERS
from hcalld.families.sev.handlerset import change_platform, read_platform
from hcalld.guestowner.client import ConnectionFailed, SevClient
from hcalld.guestowner.platform import Platform
from hcalld.replay import machine
from hcalld.replay.blanked import CONTINUED
from hcalld.replay.differences import Comparer, Difference
from hcalld.replay.errors import ReplayError, Stopped
from hcalld.replay.guest import GuestPlayer
from hcalld.replay.link import Link
from hcalld.replay.machine import MachinePlayer
from hcalld.replay.matching import Matcher
from hcalld.replay.player import NOT_WHOLE
from hcalld.replay.script import Script
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.capture import entries as e
from hcallproto.capture.blank import Blanker
from hcallproto.conn.states import Role
from hcallproto.wire import frames as f
from hcallproto.wire.encode import encode

T = TypeVar("T")


@pytest.fixture
async def daemon(nursery: trio.Nursery, logs: object) -> AsyncIterator[Recorded]:
    daemon = Recorded(nursery)
    yield daemon
    daemon.close()


def answers(daemon: Recorded, kind: e.EffectKind) -> list[e.Answer]:
    told = [event.what for event in daemon.recorder.events]
    return [one for one in told if isinstance(one, e.Answer) and one.effect is kind]


# -- what is recorded -----------------------------------------------------------------------------


async def test_the_platform_is_told_once_until_it_changes(daemon: Recorded):
    await clients(daemon, launch)
    told = [one.value for one in answers(daemon, e.EffectKind.READ_PLATFORM)]
    # As it was, and with the guest; most commands have read one of these again.
    whole = [value for value in told if value is not None]
    assert len(whole) == 2 < len(told)
    assert told[0] is not None
    assert len(set(whole)) == len(whole)


async def test_each_connection_is_told_of_the_platform_anew(daemon: Recorded):
    def look(path: pathlib.Path) -> None:
        with SevClient(path) as first, SevClient(path) as second:
            for client in (first, second, first):
                Platform(client).status()

    await clients(daemon, look)
    first, second, again = answers(daemon, e.EffectKind.READ_PLATFORM)
    assert first.value == second.value is not None
    assert again.value is None


async def test_a_change_is_told_by_a_digest(daemon: Recorded):
    await clients(daemon, launch)
    (opened,) = answers(daemon, e.EffectKind.CHANGE_PLATFORM)
    assert opened.value is None
    assert isinstance(opened.asked, bytes)
    assert len(opened.asked) == e.DIGEST_SIZE


async def test_the_state_of_a_client_says_that_it_is_one(daemon: Recorded):
    await clients(daemon, launch)
    states = [one.what for one in daemon.recorder.events if isinstance(one.what, e.State)]
    assert [(one.partition, one.is_client, one.problem) for one in states] == [("sev-1", True, "")]


# -- playing it again -----------------------------------------------------------------------------


async def test_a_launch_is_the_same_again(daemon: Recorded):
    await clients(daemon, launch)
    played = play(daemon.recorder.events)
    assert played.told == []
    assert played.score.calls == played.score.equal == LAUNCH_CALLS
    assert not played.score.lacking


async def test_two_vms_at_once_are_the_same_again(daemon: Recorded):
    """Each sees guests of the other on its platform."""
    begun = threading.Barrier(2)

    def both(path: pathlib.Path) -> None:
        other = threading.Thread(target=launch, args=(path,), kwargs={"begun": begun.wait})
        other.start()
        launch(path, begun=begun.wait)
        other.join()

    await clients(daemon, both)
    assert {event.guest for event in daemon.recorder.events} == {"sev-1", "sev-2"}
    played = play(daemon.recorder.events)
    assert played.told == []
    assert played.score.calls == played.score.equal == 2 * LAUNCH_CALLS


async def test_an_owner_who_comes_and_goes_is_the_same_again(daemon: Recorded):
    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            platform = Platform(client)
            platform.make_pdh()
            first = platform.export()
            platform.make_pek()
            assert platform.export() != first
            platform.factory_reset()

    await clients(daemon, story)
    played = play(daemon.recorder.events)
    assert played.told == []
    assert played.score.calls == played.score.equal
    assert len(answers(daemon, e.EffectKind.CHANGE_PLATFORM)) >= 3


# -- what is different shows ----------------------------------------------------------------------


async def measures_nothing(call: Call, vm: SevVm) -> Outcome:
    return Outcome(SevCode.SUCCESS)


async def test_a_handler_that_does_something_else_is_found_out(
    daemon: Recorded, monkeypatch: pytest.MonkeyPatch
):
    await clients(daemon, launch)
    monkeypatch.setitem(HANDLERS.by_call, sev.LAUNCH_UPDATE_VMSA, measures_nothing)
    told = "\n".join(play(daemon.recorder.events).told)
    assert "KVM_SEV_LAUNCH_MEASURE: uaddr" in told
    assert "KVM_SEV_LAUNCH_SECRET: status: SEV_RET_BAD_MEASUREMENT" in told


async def makes_another_pdh(call: Call, vm: SevVm) -> Outcome:
    entropy = await Entropy(KEY_ENTROPY_SIZE)
    view = await read_platform()
    changed = view.identity.with_new_pdh(entropy[::-1], view.version.api)
    await change_platform(IdentityChanged(pack_identity(changed)))
    return Outcome(SevCode.SUCCESS)


async def test_a_change_that_is_another_one_is_found_out(
    daemon: Recorded, monkeypatch: pytest.MonkeyPatch
):
    """The reply alone would not show it."""

    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            Platform(client).make_pdh()

    await clients(daemon, story)
    monkeypatch.setitem(HANDLERS.by_call, sev.PDH_GEN, makes_another_pdh)
    *_, told = play(daemon.recorder.events).told
    assert "SEV_PDH_GEN: effect: a change of the SEV platform, of " in told
    assert told.endswith("expected a change of the SEV platform to something else")


async def looks_at_the_platform(call: Call, vm: SevVm) -> Outcome:
    await read_platform()
    return Outcome(SevCode.SUCCESS)


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_platform_that_the_capture_does_not_tell_of_is_the_last_one(
    is_known: bool, daemon: Recorded, monkeypatch: pytest.MonkeyPatch
):
    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            platform = Platform(client)
            if is_known:
                platform.status()
            platform.make_pdh()

    await clients(daemon, story)
    monkeypatch.setitem(HANDLERS.by_call, sev.PDH_GEN, looks_at_the_platform)
    told = play(daemon.recorder.events).told
    assert "SEV_PDH_GEN: effect: the SEV platform, expected " in told[0]
    assert any("SEV_PDH_GEN: status: " in one for one in told) is not is_known


# -- in the middle --------------------------------------------------------------------------------


async def test_a_capture_that_begins_in_a_launch_does_not_end_it_and_leaves_it_out(
    nursery: trio.Nursery, logs: object
):
    daemon = Recorded(nursery)
    recorder, daemon.server.taps = daemon.recorder, None
    token = trio.lowlevel.current_trio_token()

    def begin() -> None:
        trio.from_thread.run_sync(daemon.server.begin_taps, recorder, trio_token=token)

    await clients(daemon, lambda path: launch(path, begun=begin))
    played = play(recorder.events)
    assert played.told == []
    (why,) = played.score.left_out
    assert why.startswith(f"{NOT_WHOLE}: the VM was one of SEV already")
    assert played.score.calls == played.score.left_out[why] == CALLS_AFTER_BEGUN
    assert played.score.lacking == {why}
    daemon.close()


async def test_a_capture_that_begins_before_anything_was_done_is_whole(
    nursery: trio.Nursery, logs: object
):
    daemon = Recorded(nursery)
    recorder, daemon.server.taps = daemon.recorder, None
    token = trio.lowlevel.current_trio_token()

    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            Platform(client).status()
            trio.from_thread.run_sync(daemon.server.begin_taps, recorder, trio_token=token)
            client.command(sev.INIT)

    await clients(daemon, story)
    played = play(recorder.events)
    assert (played.told, played.score.calls, played.score.equal) == ([], 1, 1)
    daemon.close()


# -- without secrets ------------------------------------------------------------------------------


def is_frame(what: object) -> TypeGuard[f.Frame]:
    return type(what) in f.FRAME_TYPES


async def test_blanked_frames_have_nothing_that_is_the_guests(daemon: Recorded):
    launched = await clients(daemon, launch)
    blanker = Blanker()
    frames = list(filter(is_frame, (event.what for event in daemon.recorder.events)))
    whole = b"".join(encode(frame) for frame in frames)
    blanked = b"".join(encode(blanker.blank(frame)) for frame in frames)
    for data in launched.guests:
        assert data in whole
        assert data not in blanked
    for key in launched.keys:
        assert key not in whole
    # Of what is the platform's, and of the owner's packets, everything is there.
    for data in launched.public:
        assert data in blanked


async def test_without_secrets_what_hangs_on_the_platform_is_left_out(daemon: Recorded):
    await clients(daemon, launch)
    blanker = Blanker()
    events = []
    for event in daemon.recorder.events:
        if is_frame(event.what):
            event = event._replace(what=blanker.blank(event.what))
        if not isinstance(event.what, e.Entry):
            events.append(event)
    played = play(events, is_blanked=True)
    assert played.told == []
    assert CONTINUED not in played.score.left_out
    assert any("SEV platform's keys" in why for why in played.score.left_out)


# -- to other programs ----------------------------------------------------------------------------


class Given:
    """A recording, in the place of a file."""

    def __init__(self, daemon: Recorded) -> None:
        self.problems: list[str] = []
        self._events = list(daemon.recorder.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)


def script(daemon: Recorded) -> Script:
    return Script(cast("Events", Given(daemon)), "sev-1")


async def play_guest(recorded: Recorded, daemon: Daemon, *, is_blanked: bool = False) -> Told:
    """The recorded program's commands, to a daemon."""
    daemon.server.taps = None
    told = Told()

    async def connect() -> Link:
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
        daemon.nursery.start_soon(daemon.server.serve_socket, ends[1])
        return Link(ends[0], Role.SHIM)

    comparer = Comparer(is_live=True, is_blanked=is_blanked)
    player = GuestPlayer(script(recorded), connect, comparer, told, is_blanked=is_blanked)
    try:
        await player.play()
    finally:
        with trio.fail_after(20):
            await daemon.gone()
    told.left_out = dict(comparer.left_out)
    return told


class Told:
    """See Report."""

    def __init__(self, *, is_stopped: bool = False) -> None:
        self._is_stopped = is_stopped
        self.lines: list[str] = []
        self.by_nature: list[str] = []
        self.left_out: dict[str, int] = {}

    def difference(self, where: str, difference: Difference) -> None:
        """See Report."""
        to = self.by_nature if difference.by_nature else self.lines
        to.append(f"{where} {difference}")
        if self._is_stopped:
            raise Stopped


async def test_a_platform_with_the_same_keys_gives_a_program_the_same_again(daemon: Recorded):
    await clients(daemon, launch)
    told = await play_guest(daemon, daemon)
    assert told.lines == []
    # The nonce of a measurement is another, and a packet is bound to its measurement.
    (measured,) = told.by_nature
    assert "KVM_SEV_LAUNCH_MEASURE: uaddr" in measured
    assert told.left_out == {"KVM_SEV_LAUNCH_SECRET (made for the captured run)": 1}


async def test_a_platform_with_other_keys_is_told_from_one_that_is_broken(
    daemon: Recorded, nursery: trio.Nursery
):
    await clients(daemon, launch)
    other = Daemon(nursery)
    with pytest.raises(ReplayError, match="LAUNCH_START: what it brings was made for the captured"):
        await play_guest(daemon, other)
    other.close()


async def test_a_launch_without_its_memory_is_refused(daemon: Recorded):
    await clients(daemon, launch)
    with pytest.raises(ReplayError, match="LAUNCH_UPDATE_DATA: what is done with a guest of SEV"):
        await play_guest(daemon, daemon, is_blanked=True)


async def test_an_operator_needs_no_secrets(daemon: Recorded):
    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            Platform(client).export()

    await clients(daemon, story)
    assert (await play_guest(daemon, daemon, is_blanked=True)).lines == []


def joined(daemon: Recorded, guest: str | None = None) -> Script:
    return Script(cast("Events", Given(daemon)), guest, joins_clients=True)


async def play_machine(
    recorded: Recorded,
    story: Callable[[pathlib.Path], T],
    *,
    stay: bool = False,
    is_stopped: bool = False,
) -> tuple[MachinePlayer, Told, T]:
    """The recorded daemon's side, to a program."""
    told = Told(is_stopped=is_stopped)
    player = MachinePlayer(Matcher(joined(recorded)), told)
    with tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as folder:
        path = pathlib.Path(folder) / "sock"
        listening = trio.Event()

        async def serve() -> None:
            await machine.serve(player, path, lambda _: listening.set(), stay=stay)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await listening.wait()
            result = await trio.to_thread.run_sync(story, path)
            if stay:
                nursery.cancel_scope.cancel()
    return player, told, result


async def test_a_program_is_played_the_daemon_that_another_had(daemon: Recorded):
    """Its session is another, and the answers are those of the capture."""

    def story(path: pathlib.Path) -> int:
        launch(path)
        with SevClient(path) as client:
            return client.call(sev.GET_ID2.number).status

    await clients(daemon, launch)
    player, told, status = await play_machine(daemon, story, stay=True)
    assert player.figures.answered == LAUNCH_CALLS
    assert (player.figures.unknown, status) == (1, SevCode.EINVAL)
    blocks, unknown = told.lines
    # What is written of the blocks around what a debugger writes is nobody's buffer.
    assert "KVM_SEV_DBG_ENCRYPT: memory: no room for 32 bytes" in blocks
    assert "SEV_GET_ID2: call: the capture has none" in unknown


async def test_a_program_with_two_connections_is_played_both_at_once(daemon: Recorded):
    """As QEMU has: one for its sev-device, and one for its VM."""

    def story(path: pathlib.Path) -> list[object]:
        with SevClient(path) as device, SevClient(path) as vm:
            platform = Platform(device)
            before = platform.status()
            vm.command(sev.INIT)
            vm.command(sev.LAUNCH_START)
            return [before, platform.status(), platform.export(), vm.command(sev.GUEST_STATUS)]

    result = await clients(daemon, story)
    # It ends when the program does.
    player, told, played = await play_machine(daemon, story)
    assert (played, told.lines, player.figures.unknown) == (result, [], 0)


async def test_programs_of_two_platforms_are_told_apart(daemon: Recorded):
    def story(path: pathlib.Path) -> None:
        for name in ("one", "", "two"):
            with SevClient(path, name) as client:
                Platform(client).status()

    await clients(daemon, story)
    with pytest.raises(ReplayError, match="more than one guest is in it, 'one' and 'sev'"):
        await Matcher(joined(daemon)).begin()
    for chosen in ("sev", "two", "two-1"):
        matcher = Matcher(joined(daemon, chosen))
        await matcher.begin()
        assert not matcher.problem


async def test_a_replay_that_stops_at_a_difference_ends_with_it(daemon: Recorded):
    """In whichever of its connections the program made the call."""

    def story(path: pathlib.Path) -> None:
        with SevClient(path) as client:
            Platform(client).status()

    def another(path: pathlib.Path) -> None:
        with SevClient(path) as client, pytest.raises(ConnectionFailed):
            client.call(sev.GET_ID2.number)

    await clients(daemon, story)
    with pytest.RaisesGroup(Stopped):
        await play_machine(daemon, another, is_stopped=True)
