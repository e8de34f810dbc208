# SPDX-License-Identifier: Apache-2.0
"""Connections of a daemon in this process, recorded, and played again in process."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import msgspec
import pytest
import trio
from tests.unit.hcalld.replay.recorder import Played, Recorder
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.faketpm import FakeTpm
from tests.unit.hcalld.runtime.ledger import Ledger
from tests.unit.hcalld.runtime.shim import OTHER_INSTANCE, Shim, hello
from tests.unit.hcalld.runtime.test_calls import Memory, memory, sharing_guest

from hcalld.captures.events import Event
from hcalld.core.call import Call
from hcalld.core.effects import Effect, Entropy, Flush, Now, ReadGuest, TpmTransmit
from hcalld.core.outcome import Outcome
from hcalld.faults.rules import Rule
from hcalld.replay import incode
from hcalld.replay.differences import Comparer
from hcalld.replay.ignoring import Ignored
from hcalld.replay.incode import Replay
from hcalld.replay.judging import Judge
from hcalld.replay.player import Player
from hcalld.replay.score import Score
from hcalld.replay.track import Inbound, Outbound, Track
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.capture import entries as e
from hcallproto.capture.blank import Blanker
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.records import Dropped, Start, Stop
from hcallproto.errors import CaptureDamage, CaptureError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

__all__ = ["memory"]

Handler = Callable[[Call, Ledger], Coroutine[Effect[Any], Any, Outcome]]


ANSWER = e.Answer(0, 1, 7, e.EffectKind.ENTROPY, b"")
TURN = e.Turn(0, 1, 7)
FRAME = Inbound(encode(f.Cancel(2, 0, 8, s.CancelReason.DEADLINE)), 0)
SENT = Outbound(encode(f.Reply(1, 0, 7, 0)), 0)


class Recorded(Daemon):
    """A daemon whose connections are recorded."""

    def __init__(self, nursery: trio.Nursery, **options: Any) -> None:
        super().__init__(nursery, strict=False, **options)
        self.recorder = Recorder()
        self.server.taps = self.recorder

    def play(self, *, stop: bool = False, ignored: Ignored | None = None) -> Played:
        """What comes of playing what was recorded so far."""
        return play(self.recorder.events, stop=stop, ignored=ignored)


def play(events: Any, **options: Any) -> Played:
    """Plays in a thread: the test's own event loop stands meanwhile."""
    done: list[Played | BaseException] = []

    def run() -> None:
        try:
            done.append(Played(events, **options))
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (result,) = done
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.fixture
async def daemon(
    nursery: trio.Nursery, logs: object, ledger_served: None
) -> AsyncIterator[Recorded]:
    daemon = Recorded(nursery)
    yield daemon
    daemon.close()


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hcall, Handler], None]:
    """Has another handler carry out a call."""

    def put(hcall: Hcall, handler: Handler) -> None:
        monkeypatch.setitem(ledger.HANDLERS.by_call, hcall, handler)

    return put


async def asks_entropy(call: Call, ledger: Ledger) -> Outcome:
    return Outcome(H.SUCCESS, ((4, int.from_bytes(await Entropy(4), "big")),))


async def asks_more_entropy(call: Call, ledger: Ledger) -> Outcome:
    return Outcome(H.SUCCESS, ((4, int.from_bytes((await Entropy(8))[:4], "big")),))


async def asks_entropy_and_time(call: Call, ledger: Ledger) -> Outcome:
    found = int.from_bytes(await Entropy(4), "big")
    await Now()
    return Outcome(H.SUCCESS, ((4, found),))


async def asks_the_time(call: Call, ledger: Ledger) -> Outcome:
    await Now()
    return Outcome(H.SUCCESS, ((4, 0),))


async def asks_nothing(call: Call, ledger: Ledger) -> Outcome:
    return Outcome(H.SUCCESS, ((4, 0),))


async def reads_memory(call: Call, ledger: Ledger) -> Outcome:
    await ReadGuest(0x100, 8)
    return Outcome(H.SUCCESS, ((4, 0),))


async def load_twice(shim: Shim) -> None:
    """Two calls that wait for memory at once; the later one is answered first."""
    first, second = [await shim.start(ledger.LOAD, n, 0x1000 * n, 8, vcpu=n) for n in (1, 2)]
    reads = {}
    for _ in range(2):
        read = await shim.expect(f.Read)
        reads[read.vcpu] = read
    await shim.answer_read(reads[2], b"second  ")
    assert (await shim.expect(f.Reply)).seq == second.seq
    await shim.answer_read(reads[1], b"first   ")
    assert (await shim.expect(f.Reply)).seq == first.seq


# -- the same ------------------------------------------------------------------------------------


async def test_replay_when_the_code_is_the_same_then_nothing_differs(daemon: Recorded):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 11)
    await load_twice(shim)
    for hcall in (ledger.NOTE, ledger.NOTE, ledger.FLUSH, ledger.GET, ledger.FLUSH_THEN_PUT):
        await shim.call(hcall, 1)
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    await shim.call(ledger.REFUSE, 1)
    await shim.call(ledger.BREAK, 1)
    await shim.close()
    await daemon.gone()
    played = daemon.play()
    assert played.told == []
    score = played.score
    assert (score.calls, score.compared, score.equal, score.differ) == (10, 10, 10, 0)
    assert not score.left_out


async def test_replay_when_two_guests_call_in_turns_then_each_has_its_own_state(daemon: Recorded):
    shims = [
        await daemon.guest(hello(name, instance=instance))
        for name, instance in (("one", bytes(16)), ("other", OTHER_INSTANCE))
    ]
    for turn in range(3):
        for number, shim in enumerate(shims):
            await shim.call(ledger.PUT, turn, turn + number)
            await shim.call(ledger.GET, turn)
    played = daemon.play()
    assert played.told == []
    assert (played.score.compared, dict(played.replay.guests)) == (12, {"one": 1, "other": 1})


async def test_replay_when_a_state_is_none_then_the_others_are_played_and_it_is_refused(
    daemon: Recorded,
):
    """Whoever has a public key can seal what he likes."""
    for name, instance in (("one", bytes(16)), ("other", OTHER_INSTANCE)):
        shim = await daemon.guest(hello(name, instance=instance))
        await shim.call(ledger.PUT, 1, 5)
    events = [
        one._replace(what=msgspec.structs.replace(one.what, profile=b"{}!"))
        if isinstance(one.what, e.State) and one.guest == "one"
        else one
        for one in daemon.recorder.events
    ]
    score = Score(lambda where, difference: None)
    replay = incode.Replay(events, score, Comparer())
    with pytest.raises(CaptureError, match="guest 'one' began with is what no hcalld wrote"):
        await trio.to_thread.run_sync(replay.run)
    assert (score.equal, score.left_out.total()) == (1, 1)


async def test_replay_when_calls_were_sent_again_then_their_replies_are_the_recorded_ones(
    daemon: Recorded,
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    call = await shim.start(ledger.PUT, 2, 6)
    await shim.expect(f.Reply)
    await shim.close()
    again = await daemon.guest(hello(connection=1))
    await again.resend(call)
    await again.call(ledger.GET, 2)
    played = daemon.play()
    assert played.told == []
    assert played.score.equal == 4


async def test_replay_when_calls_were_cancelled_then_they_end_the_same(daemon: Recorded):
    shim = await daemon.guest()
    call = await shim.start(ledger.LOAD, 1, 0x1000, 8)
    await shim.expect(f.Read)
    await shim.send(f.Cancel(call.vcpu, 0, call.seq, s.CancelReason.DEADLINE))
    await daemon.settle()
    await shim.call(ledger.GET, 1, vcpu=1)
    assert daemon.play().told == []


async def test_replay_when_the_store_failed_then_it_fails_again(daemon: Recorded):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    daemon.faults.commit = "the disk is full"
    await shim.call(ledger.PUT, 2, 5)
    daemon.faults.commit, daemon.faults.load = "", "it cannot be read"
    await shim.call(ledger.GET, 1)
    daemon.faults.load, daemon.faults.flush = "", "it cannot be flushed"
    await shim.call(ledger.FLUSH, 1)
    played = daemon.play()
    assert played.told == []
    assert played.score.equal == 4


async def test_replay_when_rules_of_faults_were_met_then_they_are_met_again(real: Recorded):
    for rule in (
        Rule(call="H_PKS_GET_CONFIG", vcpu=1, returns="H_BUSY", times=1),
        Rule(call="H_PKS_GET_CONFIG", vcpu=2, delay_ms=20),
    ):
        real.server.faults.add(rule)
    shim = await real.guest()
    for vcpu in (2, 0, 1):
        await shim.start(pks.GET_CONFIG, 0x1000, 1024, vcpu=vcpu)
    replies = [await shim.expect(f.Reply) for _ in range(3)]
    assert {reply.vcpu for reply in replies if reply.status == H.BUSY} == {1}
    played = real.play()
    assert played.told == []
    assert played.score.equal == 3


async def test_replay_when_the_models_rested_then_they_are_loaded_again(daemon: Recorded):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    for _ in range(2):
        await daemon.server.sessions["lpar7"].rest_if_idle()
    await shim.call(ledger.GET, 1)
    assert any(isinstance(event.what, e.Rest) for event in daemon.recorder.events)
    assert daemon.play().told == []


async def test_replay_when_the_daemon_stopped_then_its_farewell_is_the_same(daemon: Recorded):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    daemon.server.sessions["lpar7"].stop("enough")
    await shim.expect_goodbye(s.GoodbyeReason.SHUTDOWN)
    await daemon.gone()
    assert daemon.play().told == []


async def test_replay_when_the_capture_begins_in_the_middle_then_it_begins_there(daemon: Recorded):
    daemon.server.taps = None
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    await shim.call(ledger.PUT, 2, 5)
    await load_twice(shim)
    daemon.server.begin_taps(daemon.recorder)
    await shim.call(ledger.GET, 1)
    await load_twice(shim)
    played = daemon.play()
    assert played.told == []
    assert played.score.equal == 3


async def test_replay_when_the_capture_began_while_a_call_waited_then_all_is_left_out(
    daemon: Recorded,
):
    daemon.server.taps = None
    shim = await daemon.guest()
    await shim.start(ledger.LOAD, 1, 0x1000, 8)
    await shim.expect(f.Read)
    daemon.server.begin_taps(daemon.recorder)
    await shim.call(ledger.GET, 1, vcpu=1)
    score = daemon.play().score
    assert (score.compared, sum(score.left_out.values())) == (0, 1)
    assert "waited when the capture began" in next(iter(score.left_out))


async def test_replay_when_two_calls_may_go_on_then_they_do_in_the_captured_order(daemon: Recorded):
    shim = await daemon.guest()
    for _ in range(12):
        for vcpu in (1, 2):
            await shim.start(ledger.LOAD, vcpu, 0x1000 * vcpu, 8, vcpu=vcpu)
        reads = [await shim.expect(f.Read) for _ in range(2)]
        # Which of them trio runs first is a matter of luck.
        await shim.send(
            *(
                f.ReadReply(read.vcpu, 0, read.seq, read.request, ((s.AccessStatus.OK, bytes(8)),))
                for read in reads
            )
        )
        for _ in range(2):
            await shim.expect(f.Reply)
    played = daemon.play()
    assert played.told == []
    assert played.score.equal == 24


@pytest.mark.parametrize("ahead", [1, 2, 3, 5])
async def test_replay_when_little_is_read_at_a_time_then_nothing_differs(
    daemon: Recorded, ahead: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(incode, "AHEAD", ahead)
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 11)
    await load_twice(shim)
    for hcall in (ledger.NOTE, ledger.FLUSH, ledger.GET, ledger.FLUSH_THEN_PUT, ledger.NOTE):
        await shim.call(hcall, 1)
    await shim.close()
    await daemon.gone()
    played = daemon.play()
    assert played.told == []
    assert played.score.equal == 8


@pytest.mark.parametrize(
    ("after", "goes_on"),
    [
        ((TURN,), True),
        ((FRAME, TURN), True),
        ((ANSWER, TURN), False),
        ((SENT, TURN), False),
        ((FRAME,), False),
        ((), True),  # nobody knows before more is read
    ],
)
def test_player_when_a_call_gave_way_after_an_answer_then_it_is_seen(
    after: tuple[Any, ...], goes_on: bool
):
    track = Track("lpar7", 0)
    track.events.extend((ANSWER, *after))
    player = Player(track, Judge(track, Comparer(), Score(lambda where, difference: None)))
    assert player.goes_on_for((1, 7)) is goes_on


# -- differences ---------------------------------------------------------------------------------


async def test_replay_when_a_handler_gives_another_code_then_call_and_field_are_named(
    daemon: Recorded, handle: Callable[[Hcall, Handler], None]
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    await shim.call(ledger.GET, 1)
    await shim.call(ledger.GET, 1, vcpu=2)
    await shim.call(ledger.PUT, 2, 5)

    async def another(call: Call, ledger: Ledger) -> Outcome:
        return Outcome(H.NOT_FOUND, ((4, 5),))

    handle(ledger.GET, another)
    played = daemon.play()
    status = "hcall 0xf004: status: H_NOT_FOUND, expected H_SUCCESS"
    assert played.told == [
        f"lpar7, connection 0, vcpu 0, call 2: {status}",
        f"lpar7, connection 0, vcpu 2, call 3: {status}",
    ]
    assert (played.score.equal, played.score.differ) == (2, 2)
    assert daemon.play(stop=True).told == played.told[:1]
    assert daemon.play(ignored=Ignored(frozenset({("", "status")}))).told == []


@pytest.mark.parametrize(
    ("handler", "difference"),
    [
        (asks_more_entropy, "effect: 8 bytes of entropy, expected 4 bytes of entropy"),
        (asks_the_time, "effect: the time, expected 4 bytes of entropy"),
        (asks_entropy_and_time, "effect: the time, expected nothing"),
        (asks_nothing, "effect: nothing, expected 4 bytes of entropy"),
    ],
)
async def test_replay_when_a_handler_asks_for_something_else_then_that_is_told(
    daemon: Recorded,
    handle: Callable[[Hcall, Handler], None],
    handler: Handler,
    difference: str,
):
    handle(ledger.GET, asks_entropy)
    shim = await daemon.guest()
    await shim.call(ledger.GET, 1)
    await shim.call(ledger.PUT, 1, 5)
    await shim.call(ledger.GET, 1)
    assert daemon.play().told == []
    handle(ledger.GET, handler)
    played = daemon.play()
    told = [line for line in played.told if "effect" in line]
    assert told == [
        f"lpar7, connection 0, vcpu 0, call {seq}: hcall 0xf004: {difference}" for seq in (1, 3)
    ]
    assert (played.score.equal, played.score.differ) == (1, 2)


def as_version_1(events: list[Event]) -> list[Event]:
    """Answers did not say what was asked then."""
    return [
        event._replace(what=msgspec.structs.replace(event.what, asked=None))
        if isinstance(event.what, e.Answer)
        else event
        for event in events
    ]


async def test_replay_when_shared_memory_is_read_elsewhere_then_both_places_are_told(
    daemon: Recorded, memory: Memory, handle: Callable[[Hcall, Handler], None]
):
    shim = await sharing_guest(daemon, memory)
    for _ in range(2):
        await shim.call(ledger.LARGE, 1, 0x1000, 64)
    await shim.call(ledger.REFUSE, 1)
    # It is not shared any more: the capture has no bytes.
    os.ftruncate(memory.fd, 0x1000)
    await shim.start(ledger.LARGE, 1, 0x1000, 64)
    await shim.answer_read(await shim.expect(f.Read), bytes(64))
    await shim.expect(f.Reply)
    assert daemon.play().told == []

    async def elsewhere(call: Call, model: Ledger) -> Outcome:
        data = await ReadGuest(call["buffer"] + 0x1000, call["buffer_size"])
        model.put(call["key"], data)
        return Outcome(H.SUCCESS, ((4, len(data)),))

    handle(ledger.LARGE, elsewhere)
    played = daemon.play()
    difference = (
        "hcall 0xf02c: effect: 64 bytes of shared RAM at 0x2000, "
        "expected 64 bytes of shared RAM at 0x1000"
    )
    assert [line for line in played.told if "effect" in line] == [
        f"lpar7, connection 0, vcpu 0, call {seq}: {difference}" for seq in (1, 2, 4)
    ]
    assert (played.score.calls, played.score.equal) == (4, 1)


async def test_replay_when_the_tpm_is_sent_another_command_then_that_is_told(
    nursery: trio.Nursery,
    logs: object,
    ledger_served: None,
    handle: Callable[[Hcall, Handler], None],
):
    """The TPM may say the same to both."""

    def sends(command: bytes) -> Handler:
        async def handler(call: Call, model: Ledger) -> Outcome:
            return Outcome(H.SUCCESS, ((4, len(await TpmTransmit(command))),))

        return handler

    daemon = Recorded(nursery, open_tpm=lambda profile: FakeTpm())
    handle(ledger.GET, sends(b"\x80\x01 a command"))
    shim = await daemon.guest()
    await shim.call(ledger.GET, 1)
    await shim.call(ledger.PUT, 1, 5)
    daemon.close()
    assert daemon.play().told == []
    handle(ledger.GET, sends(b"\x80\x01 b command"))
    assert [line for line in daemon.play().told if "effect" in line] == [
        "lpar7, connection 0, vcpu 0, call 1: hcall 0xf004: effect: the TPM's answer to a command "
        "of 12 bytes, expected the TPM's answer to another command"
    ]
    older = as_version_1(daemon.recorder.events)
    assert play(older).told == [], "of version 1 nobody knows"


async def test_replay_when_an_old_capture_has_another_size_then_that_is_told(
    daemon: Recorded, handle: Callable[[Hcall, Handler], None]
):
    handle(ledger.GET, asks_entropy)
    shim = await daemon.guest()
    await shim.call(ledger.GET, 1)
    older = as_version_1(daemon.recorder.events)
    assert play(older).told == []
    handle(ledger.GET, asks_more_entropy)
    assert play(older).told[0].endswith("effect: 8 bytes of entropy, expected 4 bytes of entropy")


async def test_replay_when_a_handler_waits_that_did_not_then_others_are_compared(
    daemon: Recorded, handle: Callable[[Hcall, Handler], None]
):
    shim = await daemon.guest()
    for hcall in (ledger.PUT, ledger.GET, ledger.PUT, ledger.GET):
        await shim.call(hcall, 1, 5)
    handle(ledger.GET, reads_memory)
    played = daemon.play()
    assert [line for line in played.told if "vcpu 0, call 2:" in line] == [
        "lpar7, connection 0, vcpu 0, call 2: hcall 0xf004: frame: READ, expected none here",
        "lpar7, connection 0, vcpu 0, call 2: hcall 0xf004: frame: none, expected REPLY",
    ]
    assert (played.score.equal, played.score.differ) == (2, 2)


async def test_replay_when_a_handler_no_longer_waits_then_others_are_compared(
    daemon: Recorded, handle: Callable[[Hcall, Handler], None]
):
    shim = await daemon.guest()
    await load_twice(shim)
    await shim.call(ledger.PUT, 9, 5)
    handle(ledger.LOAD, asks_nothing)
    played = daemon.play()
    kinds = [line.split(": ", 1)[1] for line in played.told]
    assert "hcall 0xf008: frame: REPLY, expected READ" in kinds
    assert played.score.calls == 3
    # PUT counts the entries, of which there are fewer now.
    assert played.score.differ == 3


async def test_replay_when_what_is_read_is_elsewhere_then_the_rest_is_compared(
    daemon: Recorded, handle: Callable[[Hcall, Handler], None]
):
    shim = await daemon.guest()
    await load_twice(shim)
    await shim.call(ledger.REFUSE, 9)

    async def elsewhere(call: Call, ledger: Ledger) -> Outcome:
        await ReadGuest(call["gpa"] + 8, call["size"] // 2)
        return Outcome(H.SUCCESS)

    handle(ledger.LOAD, elsewhere)
    played = daemon.play()
    assert any("hcall 0xf008: segments" in line for line in played.told)
    assert played.score.calls == 3
    assert played.score.equal == 1


async def test_replay_when_the_session_ends_early_then_that_is_told(
    daemon: Recorded, monkeypatch: pytest.MonkeyPatch
):
    from hcalld.runtime.session import Session

    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    await shim.call(ledger.PUT, 1, 5)

    def broken(session: Session, event: f.Event) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(Session, "_event", broken)
    played = daemon.play()
    assert "lpar7, connection 0 connection: end: internal error, expected none yet" in played.told
    assert played.score.left_out == {"the connection ended earlier than in the capture": 1}


async def test_replay_when_a_flush_is_new_then_it_is_told(
    daemon: Recorded, handle: Callable[[Hcall, Handler], None]
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)

    async def flushed(call: Call, model: Ledger) -> Outcome:
        await Flush()
        return await ledger.put(call, model)

    handle(ledger.PUT, flushed)
    assert daemon.play().told == [
        "lpar7, connection 0, vcpu 0, call 1: hcall 0xf000: effect: a flush, expected nothing"
    ]


# -- what cannot be replayed ---------------------------------------------------------------------


def without(events: list[Event], *kinds: type[Any]) -> list[Event]:
    return [event for event in events if not isinstance(event.what, kinds)]


async def test_replay_when_there_is_no_state_then_nothing_is_compared(daemon: Recorded):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    score = play(without(daemon.recorder.events, e.State)).score
    assert (score.calls, score.compared) == (1, 0)
    assert score.left_out == {"the capture has no state that the connection began with": 1}


async def test_replay_when_frames_are_missing_then_what_follows_is_left_out(daemon: Recorded):
    shim = await daemon.guest()
    for _ in range(4):
        await shim.call(ledger.PUT, 1, 5)
    events = daemon.recorder.events
    calls = [n for n, event in enumerate(events) if isinstance(event.what, f.Call)]
    events[calls[2] : calls[2] + 2] = [events[0]._replace(what=Dropped(frames=2))]
    played = play(events)
    assert played.told == []
    assert (played.score.equal, played.score.calls) == (2, 3)
    (why,) = played.score.left_out
    assert why.startswith("2 frames and 0 answers are missing")


async def test_replay_when_the_file_is_damaged_then_all_before_it_is_played(daemon: Recorded):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)

    def damaged() -> Iterator[Event]:
        yield from daemon.recorder.events
        raise CaptureDamage("at byte 99: damaged")

    with pytest.raises(CaptureDamage, match="at byte 99"):
        play(damaged())


async def test_replay_when_the_capture_ends_before_an_answer_then_it_is_left_out(daemon: Recorded):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 5)
    await shim.call(ledger.NOTE, 1)
    events = daemon.recorder.events
    while not isinstance(events[-1].what, f.Call):
        events.pop()
    played = play(events)
    assert played.told == []
    assert played.score.equal == 1
    assert played.score.left_out == {"the capture has no answer to them": 1}


# -- captures that anybody may have made ---------------------------------------------------------


async def test_replay_when_a_connection_that_is_over_goes_on_then_nothing_of_it_is_kept(
    daemon: Recorded, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(incode, "AHEAD", 8)
    shim = await daemon.guest()
    for _ in range(3):
        await shim.call(ledger.PUT, 1, 5)
    first = list(daemon.recorder.events)
    again = [event._replace(connection=1) for event in first]
    late = [event for event in first if event.direction is not Direction.UNKNOWN]
    played = play([*first, *again, *late * 9])
    assert played.told == []
    assert played.score.equal == 6
    assert played.score.left_out == {"they come after their connection's end": 27}
    assert played.score.lacking == set(played.score.left_out)
    assert [len(track.events) for track in played.replay._tracks.values()] == [0, 0]


class Counted(Track):
    """Counts how often somebody asks whose it is."""

    asked = 0

    @property
    def guest(self) -> str:
        Counted.asked += 1
        return self._name

    @guest.setter
    def guest(self, name: str) -> None:
        self._name = name


@pytest.mark.parametrize("guests", [1, 400])
async def test_replay_when_there_are_many_connections_then_each_is_looked_at_a_few_times(
    guests: int, daemon: Recorded, monkeypatch: pytest.MonkeyPatch
):
    await daemon.guest()
    hello = next(event for event in daemon.recorder.events if isinstance(event.what, f.Hello))
    monkeypatch.setattr(incode, "Track", Counted)
    monkeypatch.setattr(Counted, "asked", 0)
    monkeypatch.setattr(incode, "AHEAD", 16)
    play([hello._replace(guest=f"{n % guests}", connection=n) for n in range(400)])
    assert 400 < Counted.asked < 400 * 20


@pytest.mark.parametrize("kind", ["answers", "frames"])
async def test_replay_when_no_state_comes_then_what_is_kept_is_bounded(
    kind: str, daemon: Recorded, monkeypatch: pytest.MonkeyPatch
):
    await daemon.guest()
    events = daemon.recorder.events
    welcome = next(event for event in events if isinstance(event.what, f.Welcome))
    answer = e.Answer(0, 0, 0, e.EffectKind.ENTROPY, bytes(1 << 20))
    entry = events[0]._replace(what=answer)
    monkeypatch.setattr(incode, "AHEAD_BYTES", 8 << 20)
    replay: Replay
    kept = []

    def endless() -> Iterator[Event]:
        for number in range(200 if kind == "answers" else 40_000):
            one = entry if kind == "answers" else welcome
            yield one._replace(guest=f"{number % 5}", connection=number % 5)
            kept.append(sum(len(track.events) for track in replay._tracks.values()))

    replay = Replay(endless(), Score(lambda where, difference: None), Comparer())
    thread = threading.Thread(target=replay.run)
    thread.start()
    thread.join()
    assert len(kept) == (200 if kind == "answers" else 40_000)
    # Twice: what is kept before a piece is read, and the piece.
    assert max(kept) <= (18 if kind == "answers" else 2 * (8 << 10) + 10)


# -- without secrets -----------------------------------------------------------------------------


def blanked(events: list[Event]) -> list[Event]:
    """What a capture without secrets would have."""
    blankers: dict[int, Blanker] = {}
    found = []
    for event in events:
        what = event.what
        if isinstance(what, Start):
            event = event._replace(what=Start(**(_fields(what) | {"has_secrets": False})))
        elif not isinstance(what, Stop | tuple):
            continue
        elif isinstance(what, tuple):
            shown = blankers.setdefault(event.connection, Blanker()).blank(what)
            event = event._replace(what=shown, is_blanked=shown != what)
        found.append(event)
    return found


def _fields(start: Start) -> dict[str, Any]:
    return {name: getattr(start, name) for name in start.__struct_fields__}


@pytest.fixture
async def real(nursery: trio.Nursery, logs: object) -> AsyncIterator[Recorded]:
    """A daemon that serves what it always does."""
    daemon = Recorded(nursery)
    yield daemon
    daemon.close()


async def test_replay_when_secrets_are_blanked_then_they_are_left_out(real: Recorded):
    shim = await real.guest()
    config = [await shim.call(pks.GET_CONFIG, 0x1000, 1024) for _ in range(2)]
    assert [reply.status for reply in config] == [H.SUCCESS] * 2
    assert (await shim.call(pks.GEN_PASSWORD, 3, 0, 0x2000, 32)).status == H.SUCCESS
    await shim.call(pks.READ_OBJECT, 0, 0, 0, 0, 0)
    assert real.play().told == []
    played = play(blanked(real.recorder.events), is_blanked=True)
    assert played.told == []
    assert played.score.equal == 4
    assert list(played.comparer.left_out) == ["H_PKS_GEN_PASSWORD.password"]


async def test_replay_when_nothing_of_the_begin_is_known_then_all_is_left_out(real: Recorded):
    real.server.taps = None
    shim = await real.guest()
    real.server.begin_taps(real.recorder)
    await shim.call(pks.GET_CONFIG, 0x1000, 1024)
    score = play(blanked(real.recorder.events), is_blanked=True).score
    assert score.compared == 0
    assert score.left_out == {"what the partition held when the capture began is not known": 1}
