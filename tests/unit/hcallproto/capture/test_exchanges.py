# SPDX-License-Identifier: Apache-2.0
"""Frames become calls again."""

from __future__ import annotations

from tests.unit.hcallproto.capture.sample import call

from hcallproto.abi import shim
from hcallproto.abi.families import pks
from hcallproto.capture.exchanges import (
    MAX_LIVE,
    MAX_LIVE_BYTES,
    SEGMENT_BYTES,
    Exchange,
    Exchanges,
    Fate,
)
from hcallproto.capture.selection import Selection, parse_calls
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s


def follow(*frames: f.Frame) -> list[Exchange]:
    exchanges = Exchanges()
    found: list[Exchange] = []
    for number, frame in enumerate(frames):
        found += exchanges.take(frame, number, f"comment {number}")
    return [*found, *exchanges.end(99)]


def test_take_when_a_call_is_answered_then_it_is_whole():
    write = call(pks.WRITE_OBJECT, 1, auth=0x1000, label=0xF000_0000_0000_2000, label_size=3)
    ok = s.AccessStatus.OK
    (found,) = follow(
        write,
        f.Read(3, 0, 1, 1, ((0x1000, 16), (0x2000, 3))),
        f.ReadReply(3, 0, 1, 1, ((s.AccessStatus.NOT_RAM, b""), (ok, b"db\0"))),
        f.Reply(3, 0, 1, -55, ((4, 7),)),
    )
    assert (found.hcall, found.fate) == (pks.WRITE_OBJECT, Fate.ANSWERED)
    assert found.buffers == {"auth": None, "label": b"db\0"}
    assert found.reply is not None
    assert (found.reply.status, found.outputs) == (-55, {4: 7})
    assert (found.start_ns, found.end_ns, found.reason) == (0, 3, "comment 3")


def test_written_when_a_reply_writes_then_it_is_named_after_the_buffer():
    args = {"out": 0x3000, "out_size": 64}
    writes = (f.WriteSegment(0x3000, 2, b"ab"), f.WriteSegment(0x9000, 2, b"cd"))
    (found,) = follow(call(pks.READ_OBJECT, 1, **args), f.Reply(3, 0, 1, 0, (), writes))
    assert found.written() == {"out": b"ab"}
    (open_call,) = follow(call(pks.READ_OBJECT, 1, **args))
    assert open_call.written() == {}


def test_written_when_it_comes_in_pieces_then_they_are_joined():
    args = {"out": 0x3000, "out_size": 64}
    early = (f.WriteSegment(0x3000, 2, b"ab"), f.WriteSegment(0x8000, 1, b"x"))
    late = (f.WriteSegment(0x3002, 3, b"cde"), f.WriteSegment(0x3006, 1, b"y"))
    (found,) = follow(
        call(pks.READ_OBJECT, 1, **args),
        f.Write(3, 0, 1, 1, early),
        f.Write(4, 0, 1, 1, early),  # of another call
        f.Reply(3, 0, 1, 0, (), late),
    )
    assert found.written() == {"out": b"abcde"}


class Joined(bytes):
    """A piece that is not added to others one by one, which would copy them each time."""

    def __radd__(self, other: object) -> bytes:
        raise AssertionError("all before is copied for each piece")


def test_written_when_it_comes_in_many_pieces_then_they_are_joined_at_once():
    writes = tuple(f.WriteSegment(0x3000 + n, 1, Joined(bytes((n,)))) for n in range(256))
    (found,) = follow(
        call(pks.READ_OBJECT, 1, out=0x3000, out_size=256), f.Reply(3, 0, 1, 0, (), writes)
    )
    assert found.written() == {"out": bytes(range(256))}


def test_take_when_a_buffers_beginning_is_read_before_the_whole_then_the_whole_is_kept():
    ok = s.AccessStatus.OK
    (found,) = follow(
        call(pks.WRITE_OBJECT, 1, label=0x2000, label_size=3),
        f.Read(3, 0, 1, 1, ((0x2000, 1),)),
        f.ReadReply(3, 0, 1, 1, ((ok, b"d"),)),
        f.Read(3, 0, 1, 2, ((0x2000, 3),)),
        f.ReadReply(3, 0, 1, 2, ((ok, b"db\0"),)),
        f.Read(3, 0, 1, 3, ((0x2000, 1),)),
        f.ReadReply(3, 0, 1, 3, ((ok, b"d"),)),
    )
    assert found.buffers == {"label": b"db\0"}


def test_take_when_a_call_is_made_twice_then_the_first_is_lost():
    first, second = call(pks.READ_OBJECT, 1), call(pks.GET_CONFIG, 1)
    found = follow(first, second, f.Reply(3, 0, 1, 0))
    assert [(one.hcall, one.fate) for one in found] == [
        (pks.READ_OBJECT, Fate.LOST),
        (pks.GET_CONFIG, Fate.ANSWERED),
    ]


def test_take_when_an_announcement_waits_for_a_reset_then_calls_before_it_are_understood():
    """And those whose buffers were announced in two ways are not taken for what they are not."""

    def announce(*registers: int) -> f.Announce:
        buffers = tuple(
            f.BufferSpec(one, s.BufferKind.SIZED, s.Direction.IN, 6, 255) for one in registers
        )
        spec = f.CallSpec(pks.READ_OBJECT.number, 1, s.Disposition.FORWARD, 0, 1, -54, -54, buffers)
        return f.Announce(f.Announcement((spec,) if registers else ()), 1, 0)

    label = f.Segment(0, 0x2000, s.SegmentStatus.OK, b"db")
    read = call(pks.READ_OBJECT, 1, label)
    (found,) = follow(announce(5), announce(), read)
    assert found.buffers == {"label": b"db"}
    (found,) = follow(announce(5), announce(4), read)
    assert found.buffers == {}


def test_take_when_calls_hold_too_much_then_the_oldest_are_given_up():
    size = MAX_LIVE_BYTES // 4
    data = f.Segment(0, 0x2000, s.SegmentStatus.OK, bytes(size))
    exchanges = Exchanges()
    ended: list[Exchange] = []
    for seq in range(4):
        ended += exchanges.take(call(pks.READ_OBJECT, seq, data, vcpu=seq), seq)
    assert ended == []
    ended += exchanges.take(f.Write(3, 0, 3, 1, (f.WriteSegment(0, 1, b"a"),)), 4)
    assert [(one.call.seq, one.fate) for one in ended] == [(0, Fate.LOST)]
    read_reply = f.ReadReply(3, 0, 3, 1, ((s.AccessStatus.OK, bytes(size)),))
    list(exchanges.take(f.Read(3, 0, 3, 1, ((0, size),)), 5))
    ended += exchanges.take(read_reply, 5)
    assert [one.call.seq for one in ended] == [0, 1]
    ended += exchanges.take(f.Reply(3, 0, 3, 0), 6)
    assert [one.call.seq for one in [*ended, *exchanges.end(7)]] == [0, 1, 3, 2]


def test_take_when_a_call_zeroes_memory_without_end_then_it_is_given_up():
    """What has no bytes takes memory too: a small file may have a million such pieces."""
    exchanges = Exchanges()
    zeros = f.Write(3, 0, 1, 1, (f.WriteSegment(0, 1 << 16, None),) * s.MAX_SEGMENTS)
    ended = list(exchanges.take(call(pks.READ_OBJECT, 1), 0))
    most = MAX_LIVE_BYTES // SEGMENT_BYTES // s.MAX_SEGMENTS
    for time_ns in range(most + 1):
        assert ended == [], time_ns
        ended += exchanges.take(zeros, time_ns)
    assert [(one.call.seq, one.fate) for one in ended] == [(1, Fate.LOST)]


def test_take_when_calls_overlap_then_they_are_told_apart():
    first, second = call(pks.READ_OBJECT, 1, vcpu=1), call(pks.GET_CONFIG, 2, vcpu=2)
    found = follow(first, second, f.Reply(2, 0, 2, 0), f.Reply(1, 0, 1, -7))
    assert [one.hcall for one in found] == [pks.GET_CONFIG, pks.READ_OBJECT]


def test_take_when_a_call_is_cancelled_then_its_fate_says_so():
    (found,) = follow(
        call(pks.READ_OBJECT, 1),
        f.Cancel(3, 0, 1, s.CancelReason.DEADLINE),
        f.Cancelled(3, 0, 1, s.Effect.NONE),
    )
    assert (found.fate, found.reply, found.end_ns) == (Fate.CANCELLED, None, 2)


def test_take_when_the_machine_is_reset_then_its_calls_are_lost():
    found = follow(
        call(pks.READ_OBJECT, 1),
        f.Event(s.EventKind.RESET, s.NO_VCPU, 1, 1),
        f.Reply(3, 0, 1, 0),
    )
    assert [(one.fate, one.end_ns) for one in found] == [(Fate.LOST, 1)]


def test_end_when_a_call_has_no_reply_then_it_is_lost():
    assert [(one.fate, one.end_ns) for one in follow(call(pks.READ_OBJECT, 1))] == [(Fate.LOST, 99)]


def test_take_when_the_table_does_not_know_a_call_then_it_is_kept():
    unknown = call(pks.READ_OBJECT, 1, f.Segment(0, 0, s.SegmentStatus.OK, b"x"))
    unknown = unknown._replace(gpr=(*unknown.gpr[:2], 0x4242, *unknown.gpr[3:]))
    spec = f.BufferSpec(4, s.BufferKind.FIXED, s.Direction.IN, 0, 1)
    announced = f.CallSpec(0x4242, 1, s.Disposition.FORWARD, 0, 1, 0, 0, (spec,))
    read_reply = f.ReadReply(3, 0, 1, 1, ((s.AccessStatus.OK, b"x"),))
    (found,) = follow(
        f.Announce(f.Announcement((announced,)), 1, 0),
        unknown,
        f.Read(3, 0, 1, 1, ((0, 1),)),
        read_reply,
        f.Reply(3, 0, 1, -2),
    )
    assert (found.hcall, found.buffers, found.written()) == (None, {}, {})


def test_take_when_qemu_itself_calls_then_it_has_a_name():
    frame = call(shim.PAGE_IN, 1, gpa=0x5000)._replace(level=s.LEVEL_SHIM)
    (found,) = follow(frame, f.Reply(3, 0, 1, 0))
    assert found.hcall is shim.PAGE_IN
    assert parse_calls(["page_in"]) == {(s.LEVEL_SHIM, s.ShimCall.PAGE_IN)}
    assert Selection(calls=parse_calls(["page_in"])).wants("lpar7", found)


def test_take_when_a_peer_invents_vcpus_then_what_is_followed_is_bounded():
    exchanges = Exchanges()
    ended = 0
    for seq in range(MAX_LIVE + 10):
        ended += len(list(exchanges.take(call(pks.READ_OBJECT, seq, vcpu=seq), seq)))
        list(exchanges.take(f.Read(seq, 0, seq, 1, ((0, 1),)), seq))
    assert ended == MAX_LIVE
