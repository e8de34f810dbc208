# SPDX-License-Identifier: Apache-2.0
"""A captured guest plays its calls to daemons of all kinds."""

from __future__ import annotations

import socket

import pytest
import trio
from tests.unit.hcalld.replay.peers import (
    GET,
    INSTANCE,
    READ_OBJECT,
    WRAP,
    Capture,
    FakeDaemon,
    Told,
    answering,
    call,
    greeted,
    hello,
    play,
    ram,
    reply,
    spec,
    welcome,
    written,
)

from hcalld.replay.differences import Comparer
from hcalld.replay.errors import ReplayError, Stopped
from hcalld.replay.guest_frames import Identity
from hcalld.replay.ignoring import parse_ignored
from hcalld.replay.link import Link
from hcallproto.abi.families import pks, tpm, uv
from hcallproto.abi.returns import H
from hcallproto.capture.records import Dropped, Stop
from hcallproto.errors import CaptureError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

A = call(GET, 1, vcpu=0, buffer=0x1000, buffer_size=520)
B = call(READ_OBJECT, 2, vcpu=1, out=0x4000, out_size=64)
C = call(GET, 3, vcpu=0, buffer=0x1000, buffer_size=32)


async def nothing(daemon: FakeDaemon, frame: f.Frame) -> None:
    """Of no frame."""


async def test_the_same_answers_do_not_differ() -> None:
    replies = [reply(A), reply(B, H.NOT_FOUND), reply(C)]
    capture = greeted(A, replies[0], B, replies[1], C, replies[2])
    player, told = await play(capture, FakeDaemon(answering(replies)))
    assert told.lines == []
    assert player.figures.calls == 3


async def test_another_answer_is_named() -> None:
    capture = greeted(A, reply(A), B, reply(B, H.NOT_FOUND))
    daemon = FakeDaemon(answering([reply(A), reply(B, H.BUSY)]))
    _, told = await play(capture, daemon)
    assert told.lines == ["lpar7 cpu1 #2 H_PKS_READ_OBJECT: status: H_BUSY, expected H_NOT_FOUND"]


async def test_what_is_ignored_is_not_told() -> None:
    capture = greeted(B, reply(B, H.NOT_FOUND))
    comparer = Comparer(parse_ignored(["H_PKS_READ_OBJECT.status"]), is_live=True)
    _, told = await play(capture, FakeDaemon(answering([reply(B)])), comparer=comparer)
    assert told.lines == []


async def test_calls_that_were_under_way_at_once_are_again() -> None:
    """This daemon answers the first only once it has the second."""

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if len(daemon.frames(f.Call)) == 2:
            await daemon.send(reply(B))
            await daemon.send(reply(A))

    capture = greeted(A, B, reply(B), reply(A))
    player, told = await play(capture, FakeDaemon(answer), deadline=20.0)
    assert told.lines == []
    assert player.figures.calls == 2


async def test_a_call_waits_for_the_answers_before_it() -> None:
    seen = []

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if frame == A._replace(segments=()):
            # Long enough for a guest that does not wait.
            await trio.sleep(0.05)
        seen.append(len(daemon.frames(f.Call)))
        assert isinstance(frame, f.Call)
        await daemon.send(reply(frame))

    await play(greeted(A, reply(A), B, reply(B)), FakeDaemon(answer))
    assert seen == [1, 2]


async def test_the_guest_says_who_it_is() -> None:
    begin = hello(features=s.Feature.SHARED_RAM, connection=3)
    capture = Capture()
    capture.guest("lpar7")
    shared = welcome(spec(GET), features=s.Feature.SHARED_RAM)
    for frame in (begin, shared, f.Accept((), True, 0, 0), ram(is_shared=True)):
        capture.frame(frame)
    capture.record(Stop(why="the end"))
    identity = Identity(name="other", uuid=b"u" * 16, instance=b"i" * 16)
    # Buffers that need no shared memory are no difference.
    register = f.BufferSpec(4, s.BufferKind.FIXED, s.Direction.IN, 0, 16)
    daemon = FakeDaemon(nothing, welcome(spec(GET, register)))
    _, told = await play(capture, daemon, identity=identity)
    said, _, memory = daemon.received
    assert said == begin._replace(
        features=s.Feature(0), name="other", uuid=b"u" * 16, instance=b"i" * 16, connection=0
    )
    assert memory == ram()
    assert told.lines == []


async def test_each_qemu_is_an_instance_that_counts_its_connections() -> None:
    capture = Capture()
    for number, instance in enumerate((INSTANCE, INSTANCE, b"another instance")):
        # The same guest, on interfaces of its own each time.
        one = greeted(begin=hello(instance=instance, connection=7))
        marked = one.data.replace(b"connection of lpar7", b"connection of lpar%d" % number)
        capture.data += marked if number else b""
        capture.data = capture.data if number else marked
    daemon = FakeDaemon(nothing)
    await play(capture, daemon)
    hellos = daemon.frames(f.Hello)
    assert [one.connection for one in hellos] == [0, 1, 0]
    first, again, other = (one.instance for one in hellos)
    assert first == again != other
    assert INSTANCE not in (first, other)


async def test_calls_that_the_daemon_does_not_take_are_not_made() -> None:
    capture = greeted(A, reply(A), B, reply(B))
    daemon = FakeDaemon(answering([reply(B)]), welcome(spec(READ_OBJECT)))
    _, told = await play(capture, daemon)
    assert "lpar7 cpu0 #1 H_PKS_GET_CONFIG: call: not announced, expected announced" in told.lines
    assert len(daemon.frames(f.Call)) == 1


# -- memory ---------------------------------------------------------------------------------


async def test_what_the_daemon_reads_is_what_the_capture_has() -> None:
    asked = []

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if isinstance(frame, f.Call):
            segments = ((0x2000, 4), (0x3000, 4), (0x5000, 4), (1 << 30, 4))
            await daemon.send(f.Read(0, 0, 1, 9, segments))
        elif isinstance(frame, f.ReadReply):
            asked.append(frame.segments)
            await daemon.send(reply(A))

    capture = greeted(
        A,
        f.Read(0, 0, 1, 1, ((0x2000, 4),)),
        f.ReadReply(0, 0, 1, 1, ((s.AccessStatus.OK, b"abcd"),)),
        f.Read(0, 0, 1, 2, ((0x3000, 4),)),
        f.ReadReply(0, 0, 1, 2, ((s.AccessStatus.NOT_RAM, b""),)),
        reply(A),
    )
    player, told = await play(capture, FakeDaemon(answer))
    assert told.lines == []
    ok = s.AccessStatus.OK
    assert asked == [
        (
            (ok, b"abcd"),
            (s.AccessStatus.NOT_RAM, b""),
            (ok, bytes(4)),
            (s.AccessStatus.NOT_RAM, b""),
        )
    ]
    assert player.figures.unknown_bytes == 4


async def test_what_was_written_is_read() -> None:
    read = []

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        match frame:
            case f.Call(seq=1):
                await daemon.send(reply(A, 0, (), written(0x1000, b"abcd")))
            case f.Call():
                await daemon.send(f.Read(1, 0, 2, 5, ((0x1000, 6),)))
            case f.ReadReply():
                read.append(frame.segments)
                await daemon.send(reply(B))

    capture = greeted(A, reply(A, 0, (), written(0x1000, b"abcd")), B, reply(B))
    player, told = await play(capture, FakeDaemon(answer))
    assert told.lines == []
    assert read == [((s.AccessStatus.OK, b"abcd\0\0"),)]
    assert player.figures.unknown_bytes == 2


async def test_writes_before_the_reply_are_part_of_the_answer() -> None:
    segment = written(0x1000, bytes(range(32)))

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if isinstance(frame, f.Call):
            await daemon.send(f.Write(0, 0, 1, 1, (segment,)))
        elif isinstance(frame, f.WriteReply):
            assert frame.status is s.AccessStatus.OK
            await daemon.send(reply(A))

    _, told = await play(greeted(A, reply(A, 0, (), segment)), FakeDaemon(answer))
    assert told.lines == []
    other = segment._replace(data=bytes(32))
    _, told = await play(greeted(A, reply(A, 0, (), other)), FakeDaemon(answer))
    assert "lpar7 cpu0 #1 H_PKS_GET_CONFIG: flags: 01, expected 00" in told.lines


async def test_a_write_to_what_is_no_ram_is_refused() -> None:
    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if isinstance(frame, f.Call):
            await daemon.send(f.Write(0, 0, 1, 1, (written(0, b"a"), written(1 << 40, b"b"))))
        elif isinstance(frame, f.WriteReply):
            assert (frame.status, frame.bad_segment) == (s.AccessStatus.NOT_RAM, 1)
            await daemon.send(reply(A, H.PARAMETER))

    _, told = await play(greeted(A, reply(A, H.PARAMETER)), FakeDaemon(answer))
    assert told.lines == []


async def test_states_of_pages_that_are_no_ram_are_refused() -> None:
    features = s.Feature.SC2 | s.Feature.PAGE_STATES
    esm = call(uv.ESM, 1, vcpu=0)
    pages = tuple(f.PageRange(gpa, 4096, s.PageState.UNSHARED) for gpa in (0, 1 << 40))

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if isinstance(frame, f.Call):
            await daemon.send(f.Pages(0, 0, 1, 1, pages[: daemon.count]))
        elif isinstance(frame, f.PagesReply):
            is_good = daemon.count == 1
            assert frame.bad_range == (0 if is_good else 1)
            assert (frame.status is s.AccessStatus.OK) == is_good
            await daemon.send(reply(esm))

    greeting = welcome(spec(uv.ESM), features=features)
    for count, done in ((1, "0x0+0x1000 UNSHARED"), (2, "none")):
        capture = greeted(esm, reply(esm), begin=hello(features=features), greeting=greeting)
        daemon = FakeDaemon(answer, greeting)
        daemon.count = count
        comparer = Comparer(is_live=True)
        _, told = await play(capture, daemon, comparer=comparer, is_blanked=False)
        assert told.lines == (
            [] if done == "none" else [f"lpar7 cpu0 #1 UV_ESM: pages: {done}, expected none"]
        )


# -- what is made anew ----------------------------------------------------------------------


async def test_tokens_are_passed_on() -> None:
    first = call(pks.SIGNED_UPDATE, 1, vcpu=0, token=0)
    again = call(pks.SIGNED_UPDATE, 2, vcpu=0, token=0x1111)
    busy = H.LONG_BUSY_ORDER_1_MSEC
    capture = greeted(first, reply(first, busy, ((4, 0x1111),)), again, reply(again, 0, ((4, 0),)))
    daemon = FakeDaemon(answering([reply(first, busy, ((4, 0x2222),)), reply(again, 0, ((4, 0),))]))
    player, told = await play(capture, daemon)
    assert told.lines == []
    assert len(told.by_nature) == player.figures.by_nature == 1
    _, second = daemon.frames(f.Call)
    assert second.by_number()[11] == 0x2222


async def test_wrapped_keys_are_passed_on() -> None:
    into = f.BufferSpec(6, s.BufferKind.SIZED, s.Direction.IN, 7, 4096)
    old, new = b"o" * 1040, b"n" * 1040
    wrap = call(WRAP, 1, vcpu=0, out=0x8000, out_size=2048)
    unwrap = call(
        pks.UNWRAP_OBJECT,
        2,
        f.Segment(0, 0x9000, s.SegmentStatus.OK, old),
        vcpu=0,
        **{"in": 0x9000, "in_size": 1040},
    )
    greeting = welcome(spec(WRAP), spec(pks.UNWRAP_OBJECT, into))
    capture = greeted(
        wrap, reply(wrap, 0, (), written(0x8000, old)), unwrap, reply(unwrap), greeting=greeting
    )
    daemon = FakeDaemon(
        answering([reply(wrap, 0, (), written(0x8000, new)), reply(unwrap)]), greeting
    )
    player, told = await play(capture, daemon)
    assert told.lines == []
    _, second = daemon.frames(f.Call)
    assert second.segments[0].data == new
    assert player.figures.replaced == 1


@pytest.mark.parametrize("size", [1, 15, 16, 32])
async def test_a_key_that_is_read_is_the_one_that_was_made(size: int) -> None:
    old, new = b"o" * size, b"n" * size
    made = call(pks.GEN_KEY, 1, vcpu=0, out=0x4000, out_size=size)
    read = call(READ_OBJECT, 2, vcpu=0, out=0x5000, out_size=64)
    capture = greeted(
        made,
        reply(made, 0, (), written(0x4000, old)),
        read,
        reply(read, 0, (), written(0x5000, old)),
    )
    for answer, lines in ((new, 0), (b"x" * size, 1)):
        daemon = FakeDaemon(
            answering(
                [
                    reply(made, 0, (), written(0x4000, new)),
                    reply(read, 0, (), written(0x5000, answer)),
                ]
            )
        )
        comparer = Comparer(is_live=True)
        _, told = await play(capture, daemon, comparer=comparer, is_blanked=False)
        assert len(told.lines) == lines


async def test_passwords_are_passed_on() -> None:
    old, new = bytes(64), b"n" * 64
    gen = call(pks.GEN_PASSWORD, 1, vcpu=0, consumer=3, password=0x2000, password_size=64)
    head = bytes([1, 3]) + bytes(12) + b"\0\x40"
    at = f.BufferSpec(4, s.BufferKind.PAGE_BOUNDED, s.Direction.IN, 0, 80)
    auth = f.Segment(0, 0x3000, s.SegmentStatus.OK, head + old + b"rest")
    reads = [call(READ_OBJECT, seq, auth, vcpu=0, auth=0x3000) for seq in (2, 3, 4)]
    greeting = welcome(spec(pks.GEN_PASSWORD), spec(READ_OBJECT, at))
    capture = greeted(
        gen,
        reply(gen, 0, (), written(0x2000, old)),
        reads[0],
        reply(reads[0]),
        reads[1],
        reply(reads[1], H.AUTHORITY),
        reads[2],
        reply(reads[2], H.AUTHORITY, ((5, 0x80_0000),)),
        greeting=greeting,
    )
    replies = [
        reply(gen, 0, (), written(0x2000, new)),
        reply(reads[0]),
        reply(reads[1], H.AUTHORITY),
        reply(reads[2], H.AUTHORITY, ((5, 0x80_0000),)),
    ]
    daemon = FakeDaemon(answering(replies), greeting)
    _, told = await play(capture, daemon)
    assert told.lines == []
    _, right, wrong, by_policy = daemon.frames(f.Call)
    assert right.segments[0].data == by_policy.segments[0].data == head + new + b"rest"
    # Its password may have been the wrong one: it was blanked. Zeros may be the right one.
    assert wrong.segments[0].data == head + b"\xff" * 64 + b"rest"


# -- events and the end ---------------------------------------------------------------------


async def test_a_reset_is_told_and_acknowledged() -> None:
    event = f.Event(s.EventKind.RESET, s.NO_VCPU, 7, 1)
    after = call(GET, 2, vcpu=0, reset=1)

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if isinstance(frame, f.Event):
            await daemon.send(f.EventAck(frame.kind, frame.request, frame.reset))
        elif isinstance(frame, f.Call):
            await daemon.send(reply(frame))

    capture = greeted(A, event, f.EventAck(event.kind, 7, 1), after, reply(after))
    player, told = await play(capture, FakeDaemon(answer))
    assert told.lines == []
    assert player.figures.calls == 2


async def test_a_cancelled_call_is_cancelled_again() -> None:
    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if isinstance(frame, f.Cancel):
            await daemon.send(f.Cancelled(0, 0, 1, s.Effect.NONE))

    capture = greeted(
        A, f.Cancel(0, 0, 1, s.CancelReason.DEADLINE), f.Cancelled(0, 0, 1, s.Effect.MAY_REMAIN)
    )
    _, told = await play(capture, FakeDaemon(answer))
    assert told.lines == ["lpar7 cpu0 #1 H_PKS_GET_CONFIG: effect: NONE, expected MAY_REMAIN"]


async def test_a_daemon_that_is_too_quick_to_be_cancelled_acknowledges() -> None:
    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if isinstance(frame, f.Call):
            await daemon.send(reply(frame))
        elif isinstance(frame, f.Cancel):
            await daemon.send(f.Cancelled(0, 0, 1, s.Effect.DONE))

    capture = greeted(
        A,
        f.Cancel(0, 0, 1, s.CancelReason.DEADLINE),
        f.Cancelled(0, 0, 1, s.Effect.DONE),
        B,
        reply(B),
    )
    player, told = await play(capture, FakeDaemon(answer))
    assert told.lines == []
    assert player.figures.calls == 2


async def test_the_connections_end_ends_it() -> None:
    capture = greeted(A, reply(A))
    capture.frame(B)
    player, told = await play(capture, FakeDaemon(answering([reply(A)])))
    assert (told.lines, player.figures.calls) == ([], 1)


# -- hostile daemons ------------------------------------------------------------------------


async def test_a_silent_daemon_ends_it() -> None:
    _, told = await play(greeted(A, reply(A), B, reply(B)), FakeDaemon(nothing), deadline=0.05)
    assert told.lines == [
        "lpar7 cpu0 #1 REPLY: connection: nothing comes from the daemon any more, expected open"
    ]


async def test_a_daemon_that_never_greets_ends_it() -> None:
    class Silent(FakeDaemon):
        async def _serve(self, link: Link) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await link.aclose()

    _, told = await play(greeted(A, reply(A)), Silent(nothing), deadline=0.05)
    assert told.lines == [
        "lpar7 WELCOME: connection: nothing comes from the daemon any more, expected open"
    ]


async def test_one_late_answer_is_told_and_the_call_cancelled() -> None:
    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        match frame:
            case f.Call(seq=1):
                # It lives, but does not answer.
                await daemon.send(f.Read(0, 0, 1, 1, ((0, 4),)))
            case f.Call():
                await daemon.send(reply(frame))
            case f.Cancel():
                await daemon.send(f.Cancelled(frame.vcpu, 0, frame.seq, s.Effect.NONE))

    daemon = FakeDaemon(answer)
    capture = greeted(A, reply(A), C, reply(C))
    _, told = await play(capture, daemon, deadline=0.2)
    assert told.lines == ["lpar7 cpu0 #1 H_PKS_GET_CONFIG: reply: none in time, expected in time"]
    assert len(daemon.frames(f.Cancel)) == 1
    assert len(daemon.frames(f.Call)) == 2


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(64), "a breach of the protocol"),
        (b"HCLP\0\x0a\0\0\xff\xff\xff\xff" + bytes(64), "a breach of the protocol"),
    ],
)
async def test_garbage_ends_it(data: bytes, text: str) -> None:
    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        await daemon.send_bytes(data)

    _, told = await play(greeted(A, reply(A)), FakeDaemon(answer))
    (line,) = told.lines
    assert text in line


async def test_half_a_frame_ends_it() -> None:
    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        await daemon.send_bytes(b"HCLP\0\x0a\0\0\0\0\0\x40")
        assert daemon.raw is not None
        daemon.raw.shutdown(socket.SHUT_WR)

    _, told = await play(greeted(A, reply(A)), FakeDaemon(answer))
    (line,) = told.lines
    assert "12 bytes of a frame" in line


async def test_a_refusal_is_told_with_its_reason() -> None:
    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        await daemon.send(f.Goodbye(s.GoodbyeReason.REFUSED, "no such guest", 0))

    _, told = await play(greeted(A, reply(A)), FakeDaemon(answer))
    (line,) = told.lines
    assert "GOODBYE REFUSED: no such guest" in line


async def test_a_terminated_guest_is_told() -> None:
    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        await daemon.send(f.Control(s.ControlAction.TERMINATE, "why not", 0))

    capture = greeted(A, f.Control(s.ControlAction.RESET, "why not", 0))
    _, told = await play(capture, FakeDaemon(answer))
    assert told.lines == ["lpar7 CONTROL: action: TERMINATE, expected RESET"]


async def test_the_first_difference_may_be_enough() -> None:
    capture = greeted(A, reply(A), B, reply(B))
    daemon = FakeDaemon(answering([reply(A, H.BUSY), reply(B)]))
    told = Told(stop=True)
    with pytest.raises(Stopped):
        await play(capture, daemon, told)
    assert len(told.lines) == 1
    assert len(daemon.frames(f.Call)) == 1


# -- captures that cannot be played ---------------------------------------------------------


async def refused(capture: Capture, guest: str | None = None) -> str:
    with pytest.raises((ReplayError, CaptureError)) as error:
        await play(capture, FakeDaemon(nothing), guest=guest)
    return str(error.value)


async def test_a_capture_of_two_guests_needs_a_choice() -> None:
    capture = greeted(capture=greeted(guest="lpar8"), guest="lpar7")
    assert "'lpar8' and 'lpar7'" in await refused(capture)
    assert "no guest called 'lpar9'" in await refused(capture, "lpar9")
    daemon = FakeDaemon(nothing)
    await play(capture, daemon, guest="lpar8")
    assert len(daemon.frames(f.Hello)) == 1


async def test_a_capture_without_a_begin_is_refused() -> None:
    capture = Capture()
    capture.guest("lpar7")
    capture.frame(A)
    assert "CALL before the connection's HELLO" in (await refused(capture)).replace(
        "H_PKS_GET_CONFIG", "CALL"
    )


async def test_no_capture_is_refused() -> None:
    capture = Capture()
    assert "no guest has frames" in await refused(capture)
    capture.data = b"GIF89a" + bytes(100)
    assert await refused(capture)


async def test_missing_frames_are_refused() -> None:
    capture = greeted(has_end=False)
    capture.record(Dropped(frames=3))
    assert "3 frames are missing" in await refused(capture)


async def test_a_damaged_capture_is_played_up_to_the_damage() -> None:
    capture = greeted(A, reply(A), B, reply(B))
    capture.data = capture.data[:-10]  # in the midst of the last record
    daemon = FakeDaemon(answering([reply(A), reply(B)]))
    with pytest.raises(ReplayError, match="all before that was played"):
        await play(capture, daemon)
    assert len(daemon.frames(f.Call)) == 2


async def test_a_secure_vm_is_refused_without_its_memory() -> None:
    esm = call(uv.ESM, 1, vcpu=0)
    features = s.Feature.SC2 | s.Feature.PAGE_STATES
    capture = greeted(
        esm, begin=hello(features=features), greeting=welcome(spec(uv.ESM), features=features)
    )
    with pytest.raises(ReplayError, match="lives off its memory"):
        await play(capture, FakeDaemon(nothing, welcome(spec(uv.ESM), features=features)))


async def test_a_tpms_blanked_requests_are_not_sent() -> None:
    execute = call(tpm.TPM_COMM, 1, vcpu=0, operation=1, request_size=10)
    close = call(tpm.TPM_COMM, 2, vcpu=0, operation=2)
    greeting = welcome(spec(tpm.TPM_COMM))
    capture = greeted(execute, reply(execute), close, reply(close), greeting=greeting)
    comparer = Comparer(is_blanked=True, is_live=True)
    daemon = FakeDaemon(answering([reply(execute), reply(close)]), greeting)
    _, told = await play(capture, daemon, comparer=comparer)
    assert told.lines == []
    assert len(daemon.frames(f.Call)) == 1
    assert comparer.left_out == {"H_TPM_COMM (its request is blanked)": 1}
    # With its secrets it is.
    daemon = FakeDaemon(answering([reply(execute), reply(close)]), greeting)
    await play(capture, daemon, is_blanked=False)
    assert len(daemon.frames(f.Call)) == 2
