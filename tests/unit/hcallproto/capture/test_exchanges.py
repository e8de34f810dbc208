# SPDX-License-Identifier: Apache-2.0
"""Frames become calls again."""

from __future__ import annotations

from tests.unit.hcallproto.capture.sample import call

from hcallproto.abi.families import pks
from hcallproto.capture.exchanges import MAX_LIVE, Exchange, Exchanges, Fate
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


def test_take_when_a_peer_invents_vcpus_then_what_is_followed_is_bounded():
    exchanges = Exchanges()
    ended = 0
    for seq in range(MAX_LIVE + 10):
        ended += len(list(exchanges.take(call(pks.READ_OBJECT, seq, vcpu=seq), seq)))
        list(exchanges.take(f.Read(seq, 0, seq, 1, ((0, 1),)), seq))
    assert ended == MAX_LIVE
