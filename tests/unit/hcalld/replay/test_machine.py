# SPDX-License-Identifier: Apache-2.0
"""A captured daemon answers guests of all kinds."""

from __future__ import annotations

import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator

import pytest
import trio
from tests.unit.hcalld.replay.peers import (
    GET,
    READ_OBJECT,
    Capture,
    Told,
    call,
    greeted,
    hello,
    ram,
    reply,
    script,
    spec,
    welcome,
    written,
)

from hcalld.core.errors import ConfigError
from hcalld.replay.errors import ReplayError, Stopped
from hcalld.replay.ignoring import parse_ignored
from hcalld.replay.link import Link
from hcalld.replay.machine import HANDSHAKE_SECONDS, MachinePlayer, serve
from hcalld.replay.matching import WINDOW, Matcher
from hcallproto.abi.families import pks, svm, uv
from hcallproto.abi.returns import H
from hcallproto.conn.states import Role
from hcallproto.errors import CaptureError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s


class Stage:
    """A played machine, and a shim on the other side."""

    def __init__(
        self, player: MachinePlayer, matcher: Matcher, told: Told, shim: Link, raw: socket.socket
    ) -> None:
        self.player = player
        self.matcher = matcher
        self.told = told
        self.shim = shim
        self.raw = raw
        self.why: str | None = None
        self.error: Exception | None = None
        self.over = trio.Event()
        self.seq = 100

    async def greet(self, begin: f.Hello | None = None) -> f.Welcome:
        await self.shim.send(begin or hello())
        frame = await self.shim.receive()
        assert isinstance(frame, f.Welcome)
        await self.shim.send(f.Accept((), True, 0, 0))
        await self.shim.send(ram())
        return frame

    async def call(self, made: f.Call) -> f.Reply:
        await self.shim.send(made)
        frame = await self.shim.receive()
        assert isinstance(frame, f.Reply)
        assert (frame.vcpu, frame.reset, frame.seq) == (made.vcpu, made.reset, made.seq)
        return frame

    async def serve(self, link: Link) -> None:
        try:
            self.why = await self.player.serve(link)
        except (ReplayError, CaptureError, Stopped) as error:
            self.error = error
        self.over.set()


@contextlib.asynccontextmanager
async def staged(
    capture: Capture, *, is_strict: bool = False, stop: bool = False, **options: object
) -> AsyncIterator[Stage]:
    told = Told(stop=stop)
    matcher = Matcher(script(capture), is_strict=is_strict)
    player = MachinePlayer(
        matcher,
        told,
        **options,  # type: ignore[arg-type]
    )
    await player.begin()
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    stage = Stage(player, matcher, told, Link(ends[0], Role.SHIM), ends[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.serve, Link(ends[1], Role.DAEMON))
        yield stage
        await stage.shim.aclose()
        with trio.fail_after(20):
            await stage.over.wait()


def label(seq: int, text: bytes, status: int = 0, *, out: int = 0x4000, **args: int) -> f.Call:
    """A READ_OBJECT whose label came with it."""
    at = 0x3000 + seq * 64
    segment = f.Segment(0, at, s.SegmentStatus.OK, text)
    return call(
        READ_OBJECT, seq, segment, vcpu=0, label=at, label_size=len(text), out=out, out_size=64,
        **args,
    )  # fmt: skip


LABELLED = welcome(
    spec(READ_OBJECT, f.BufferSpec(5, s.BufferKind.SIZED, s.Direction.IN, 6, 255)), spec(GET)
)
ONE = call(GET, 1, vcpu=0, buffer=0x1000, buffer_size=64)


async def test_a_guest_is_greeted_as_the_captured_one_was() -> None:
    features = s.Feature.SHARED_RAM | s.Feature.SC2 | s.Feature.PAGE_STATES
    captured = welcome(spec(GET), spec(uv.ESM), spec(svm.RANDOM), features=features)
    secure = captured.announcement.calls[2]._replace(flags=s.CALL_FLAG_SECURE)
    calls = (*captured.announcement.calls[:2], secure)
    captured = captured._replace(announcement=captured.announcement._replace(calls=calls))
    async with staged(greeted(greeting=captured, begin=hello(features=features))) as stage:
        got = await stage.greet(hello(features=features)._replace(reset=0))
    assert got.features == s.Feature(0)
    assert got.announcement == f.Announcement((spec(GET),), ("hcall-pks",), ())


async def test_a_call_gets_its_answer_where_its_own_buffers_are() -> None:
    data, rest = bytes(range(40)), f.WriteSegment(0x1028, 24, None)
    capture = greeted(ONE, reply(ONE, 0, ((4, 9),), written(0x1000, data), rest))
    live = call(GET, 7, vcpu=2, buffer=0xF000_0000_0000_9000, buffer_size=64)
    async with staged(capture) as stage:
        await stage.greet()
        got = await stage.call(live)
    assert got == f.Reply(
        2, 0, 7, 0, ((4, 9),), (written(0x9000, data), f.WriteSegment(0x9028, 24, None))
    )
    assert stage.told.lines == []
    assert stage.why == ""
    assert stage.player.figures.answered == 1


async def test_answers_are_found_by_arguments_and_labels() -> None:
    calls = [label(1, b"first"), label(2, b"other"), label(3, b"first")]
    replies = [reply(one, 0, ((4, one.seq),)) for one in calls]
    frames = [frame for pair in zip(calls, replies, strict=True) for frame in pair]
    async with staged(greeted(*frames, greeting=LABELLED)) as stage:
        await stage.greet()
        got = [
            dict((await stage.call(label(10 + n, text))).registers)[4]
            for n, text in enumerate([b"other", b"first", b"first"])
        ]
        assert got == [2, 1, 3]
        # What has been given is gone.
        assert (await stage.call(label(20, b"first"))).status == H.FUNCTION


async def test_without_the_same_arguments_the_next_of_the_same_call_will_do() -> None:
    calls = [label(1, b"first"), label(2, b"other")]
    frames = [frame for one in calls for frame in (one, reply(one, 0, ((4, one.seq),)))]
    async with staged(greeted(*frames, greeting=LABELLED)) as stage:
        await stage.greet()
        got = await stage.call(label(10, b"third"))
        assert got.registers == ((4, 1),)
        got = await stage.call(label(11, b"a longer one"))
        assert got.registers == ((4, 2),)


async def no_answer(**options: object) -> tuple[f.Reply, Stage]:
    other = call(pks.GEN_PASSWORD, 1, vcpu=0)
    async with staged(greeted(other, reply(other)), **options) as stage:  # type: ignore[arg-type]
        await stage.greet()
        got = await stage.call(ONE)
    return got, stage


async def test_a_call_without_an_answer_is_told() -> None:
    got, stage = await no_answer()
    assert got.status == H.FUNCTION
    assert stage.told.lines == [
        "cpu0 #1 H_PKS_GET_CONFIG: call: the capture has none for "
        "H_PKS_GET_CONFIG(buffer=@0x1000 64 bytes), expected an answer"
    ]
    assert stage.player.figures.unknown == 1


async def test_what_it_is_answered_can_be_chosen() -> None:
    got, _ = await no_answer(unknown=int(H.BUSY))
    assert got.status == H.BUSY


async def test_it_can_be_ignored() -> None:
    got, stage = await no_answer(ignored=parse_ignored(["H_PKS_GET_CONFIG.call"]))
    assert got.status == H.FUNCTION
    assert stage.told.lines == []


async def test_it_can_end_the_replay() -> None:
    other = call(pks.GEN_PASSWORD, 1, vcpu=0)
    async with staged(greeted(other, reply(other)), stop=True) as stage:
        await stage.greet()
        await stage.shim.send(ONE)
        assert await stage.shim.receive() is None
    assert isinstance(stage.error, Stopped)


async def test_in_strict_order_only_the_next_answer_is_given() -> None:
    calls = [label(1, b"first"), label(2, b"other")]
    frames = [frame for one in calls for frame in (one, reply(one, 0, ((4, one.seq),)))]
    async with staged(greeted(*frames, greeting=LABELLED), is_strict=True) as stage:
        await stage.greet()
        assert (await stage.call(ONE)).status == H.FUNCTION
        assert (await stage.call(label(10, b"first"))).registers == ((4, 1),)
        assert (await stage.call(label(11, b"longer label"))).status == H.FUNCTION
        assert (await stage.call(label(12, b"other"))).registers == ((4, 2),)
        assert (await stage.call(label(13, b"other"))).status == H.FUNCTION
    assert len(stage.told.lines) == 3
    assert "expected H_PKS_READ_OBJECT" in stage.told.lines[1]


async def test_an_answer_without_room_is_cut_and_told() -> None:
    capture = greeted(ONE, reply(ONE, 0, (), written(0x1000, bytes(64))))
    async with staged(capture) as stage:
        await stage.greet()
        got = await stage.call(call(GET, 7, vcpu=0, buffer=0x2000, buffer_size=32))
    assert got.writes == (written(0x2000, bytes(32)),)
    assert stage.told.lines == [
        "cpu0 #7 H_PKS_GET_CONFIG: memory: no room for 32 bytes, expected room"
    ]


async def test_what_a_reply_wrote_elsewhere_has_no_place() -> None:
    capture = greeted(ONE, reply(ONE, 0, (), written(0x7000, bytes(8))))
    async with staged(capture) as stage:
        await stage.greet()
        got = await stage.call(call(GET, 7, vcpu=0, buffer=0x2000, buffer_size=64))
    assert got.writes == ()
    assert "no room for 8 bytes" in stage.told.lines[0]


async def test_much_that_nobody_asks_for_is_bounded() -> None:
    frames: list[f.Frame] = []
    for seq in range(1, WINDOW + 20):
        one = call(pks.GEN_PASSWORD, seq, vcpu=0)
        frames += [one, reply(one)]
    last = call(GET, WINDOW + 30, vcpu=0, buffer=0x1000, buffer_size=64)
    async with staged(greeted(*frames, last, reply(last))) as stage:
        await stage.greet()
        # It is further away than is looked.
        assert (await stage.call(ONE)).status == H.FUNCTION
        assert (await stage.call(call(pks.GEN_PASSWORD, 2, vcpu=0))).status == 0


async def test_a_reset_is_acknowledged_and_the_answers_go_on() -> None:
    two = call(GET, 2, vcpu=0, buffer=0x1000, buffer_size=64)
    capture = greeted(ONE, reply(ONE, 0, ((4, 1),)), two, reply(two, 0, ((4, 2),)))
    async with staged(capture) as stage:
        await stage.greet()
        assert (await stage.call(ONE)).registers == ((4, 1),)
        event = f.Event(s.EventKind.RESET, s.NO_VCPU, 5, 1)
        await stage.shim.send(event)
        assert await stage.shim.receive() == f.EventAck(event.kind, 5, 1)
        assert (await stage.call(two._replace(reset=1, seq=3))).registers == ((4, 2),)


async def test_a_cancelled_call_is_acknowledged_and_never_answered() -> None:
    from hcalld.replay.pace import Pace

    capture = greeted(ONE, reply(ONE))
    # A microsecond takes a thousand seconds.
    async with staged(capture, pace=Pace(1e-9)) as stage:
        await stage.greet()
        await stage.shim.send(ONE)
        await stage.shim.send(f.Cancel(0, 0, 1, s.CancelReason.DEADLINE))
        assert await stage.shim.receive() == f.Cancelled(0, 0, 1, s.Effect.NONE)


async def test_calls_of_several_vcpus_do_not_wait_for_one_another() -> None:
    from hcalld.replay.pace import Pace

    slow, quick = call(pks.GEN_PASSWORD, 1, vcpu=0), call(GET, 2, vcpu=1)
    capture = greeted(slow, has_end=False)
    capture.time_ns += 10**12
    capture.frame(quick)
    capture.frame(reply(quick))
    capture.frame(reply(slow))
    async with staged(capture, pace=Pace(1.0)) as stage:
        await stage.greet()
        await stage.shim.send(slow)
        await stage.shim.send(quick)
        got = await stage.shim.receive()
        assert isinstance(got, f.Reply)
        assert got.vcpu == 1


# -- hostile guests -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH_9.2\r\n" * 4, b"HCLP\0\x09" + bytes(60), b"HCLP\0\x01\0\0\xff\xff"]
)
async def test_garbage_ends_the_connection(data: bytes) -> None:
    async with staged(greeted(ONE, reply(ONE))) as stage:
        stage.raw.send(data)
        stage.raw.shutdown(socket.SHUT_WR)
        assert await stage.shim.receive() is None
    assert stage.why
    assert stage.error is None


async def test_half_a_frame_ends_the_connection() -> None:
    async with staged(greeted(ONE, reply(ONE))) as stage:
        await stage.greet()
        stage.raw.send(b"HCLP\0\x09\0\0\0\0\0\xd0")
        stage.raw.shutdown(socket.SHUT_WR)
        with trio.fail_after(20):
            await stage.over.wait()
    assert "of a frame" in (stage.why or "")


async def test_two_calls_of_one_vcpu_are_a_breach() -> None:
    from hcallproto.wire.encode import encode

    async with staged(greeted(ONE, reply(ONE))) as stage:
        await stage.greet()
        two = ONE._replace(seq=2)
        stage.raw.send(encode(ONE) + encode(two))
        with trio.fail_after(20):
            await stage.over.wait()
    assert "has a live call" in (stage.why or "")


async def test_a_qemu_of_another_version_is_told() -> None:
    async with staged(greeted()) as stage:
        await stage.shim.send(hello()._replace(version_min=7, version_max=9))
        frame = await stage.shim.receive()
        assert isinstance(frame, f.Goodbye)
        assert frame.reason is s.GoodbyeReason.VERSION
    assert "speaks 7 to 9" in (stage.why or "")


async def test_a_silent_peer_is_turned_away(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    async with staged(greeted()) as stage:
        assert await stage.shim.receive() is None
    assert stage.why == f"no negotiation within {HANDSHAKE_SECONDS:.0f} s"


# -- captures that cannot be played ---------------------------------------------------------


async def test_no_greeting_no_replay() -> None:
    with pytest.raises(ReplayError, match="no guest has frames"):
        await MachinePlayer(Matcher(script(Capture())), Told()).begin()
    capture = Capture()
    capture.guest("lpar7")
    capture.frame(hello())
    with pytest.raises(ReplayError, match="no daemon says WELCOME"):
        await MachinePlayer(Matcher(script(capture)), Told()).begin()


@pytest.mark.parametrize(
    "frame",
    [
        f.Reply(0, 0, 1, 0, context=s.CONTEXT_MSR, msr=1 << 22, msr_mask=1 << 22),
        f.Reply(0, 0, 1, 0, pages=(f.PageRange(0, 4096, s.PageState.UNSHARED),)),
        f.Pages(0, 0, 1, 1, (f.PageRange(0, 4096, s.PageState.UNSHARED),)),
    ],
)
async def test_a_secure_vm_is_refused(frame: f.Frame) -> None:
    esm = call(uv.ESM, 1, vcpu=0)
    async with staged(greeted(esm, frame)) as stage:
        await stage.greet()
        await stage.shim.send(ONE)
        assert await stage.shim.receive() is None
    assert "became a secure VM" in str(stage.error)


async def test_after_damage_there_are_no_more_answers() -> None:
    capture = greeted(ONE, reply(ONE))
    capture.data = capture.data[:-10]
    async with staged(capture) as stage:
        await stage.greet()
        assert (await stage.call(ONE)).status == 0
        assert (await stage.call(ONE._replace(seq=2))).status == H.FUNCTION
    assert "all before that was played" in stage.matcher.problem


# -- listening ------------------------------------------------------------------------------


async def test_it_listens_until_the_guest_is_gone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "socket"
    said: list[str] = []
    matcher = Matcher(script(greeted(ONE, reply(ONE))))
    player = MachinePlayer(matcher, Told())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, player, path, said.append)
        with trio.fail_after(20):
            while not said:  # noqa: ASYNC110  # it says so once it listens
                await trio.sleep(0.001)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.setblocking(False)
            shim = Link(sock, Role.SHIM)
            stage = Stage(player, matcher, Told(), shim, sock)
            await stage.greet()
            assert (await stage.call(ONE)).status == 0
            await shim.send(f.ShimGoodbye(s.GoodbyeReason.SHUTDOWN, "power off"))
    assert said == [f"waiting for a guest at {path}", "the connection has ended"]
    assert not path.exists()


async def test_a_living_daemons_socket_is_left_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "socket"
    player = MachinePlayer(Matcher(script(greeted())), Told())
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        with pytest.raises(ConfigError, match="a living daemon listens here"):
            await serve(player, path, lambda _: None)
    assert path.exists()
