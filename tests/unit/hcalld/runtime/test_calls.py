# SPDX-License-Identifier: Apache-2.0
"""Calls from CALL to REPLY: at once, in tasks, cancelled, reset, sent again, gone wrong."""

from __future__ import annotations

import os
import pathlib
import socket
import time
from collections.abc import Iterator

import pytest
import trio
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.conftest import Logs
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import OTHER_INSTANCE, RAM, RAM_SIZE, Shim, hello
from trio.testing import MockClock

from hcalld.config import Profiles
from hcalld.runtime.transport import SocketTransport, TransportClosed
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.conn.states import CallState
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

KEY_OF_A_RUN = 1 << 32


def events(logs: Logs, name: str) -> Logs:
    return [entry for entry in logs if entry["event"] == name]


def values(reply: f.Reply) -> tuple[int, ...]:
    return tuple(value for _, value in reply.registers)


def entry_keys(daemon: Daemon, partition: str = "lpar7") -> set[int]:
    """What the store holds, which is what counts."""
    return {int.from_bytes(record.key, "big") for record in daemon.stored(partition)}


# -- at once -------------------------------------------------------------------------------


async def test_call_when_it_needs_no_waiting_then_its_reply_carries_the_handlers_outcome(
    daemon: Daemon,
):
    shim = await daemon.guest()
    reply = await shim.call(ledger.PUT, 7, 70)
    assert (reply.status, reply.registers, reply.writes) == (H.SUCCESS, ((4, 1),), ())
    assert values(await shim.call(ledger.PUT, 8, 80)) == (2,)
    assert entry_keys(daemon) == {7, 8}


async def test_call_when_it_is_answered_then_observers_are_told(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 7, 70, vcpu=3)
    (answered,) = daemon.answered
    assert answered.partition == "lpar7"
    assert answered.hcall is ledger.PUT
    assert answered.frame.vcpu == 3
    assert answered.outcome.registers == ((4, 1),)
    assert 0 < answered.duration_ns < 5_000_000_000
    assert not answered.is_replayed


async def test_call_when_the_handler_leaves_notes_then_observers_get_them(daemon: Daemon):
    shim = await daemon.guest()
    before = time.time_ns()
    stamp, entropy = values(await shim.call(ledger.NOTE, 0))
    assert before <= stamp <= time.time_ns()
    assert entropy != values(await shim.call(ledger.NOTE, 0))[1]
    assert daemon.answered[0].notes == ("first remark", "second remark")


async def test_call_when_nobody_serves_the_number_then_h_function_and_a_reason(daemon: Daemon):
    shim = await daemon.guest()
    assert (await shim.call(0xE000)).status == H.FUNCTION
    (answered,) = daemon.answered
    assert answered.hcall is None
    assert answered.outcome.why == "no handler for this call"


@pytest.mark.usefixtures("ledger_served")
async def test_call_when_the_familys_gate_is_shut_then_its_code_comes_before_any_check(
    nursery: trio.Nursery, tmp_path: pathlib.Path
):
    (tmp_path / "lpar7.toml").write_text("keystore_kbytes = 0\n")
    daemon = Daemon(nursery, Profiles(tmp_path))
    shim = await daemon.guest()
    assert (await shim.call(ledger.SIZED, 1, 1 << 40, 1000)).status == H.STATE


async def test_call_when_it_is_refused_then_the_log_has_the_reason_at_level_debug(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.call(ledger.GET, 5)
    (entry,) = events(logs, "refused")
    assert entry["log_level"] == "debug"
    assert (entry["call"], entry["code"]) == (ledger.GET.name, "H_NOT_FOUND")
    assert entry["reason"] == "no entry 5"


async def test_call_when_the_handler_refuses_then_code_and_registers_come_without_the_reason(
    daemon: Daemon,
):
    shim = await daemon.guest()
    reply = await shim.call(ledger.REFUSE, 5)
    assert (reply.status, reply.registers) == (H.P3, ((4, 77), (5, 78)))
    assert daemon.answered[0].outcome.why == "nobody likes entry 5"
    assert daemon.states["lpar7"].replies == {}


@pytest.mark.parametrize(
    ("gpa", "size", "status"),
    [
        (RAM_SIZE - 64, 64, H.SUCCESS),
        (RAM_SIZE - 63, 64, H.P2),
        (RAM_SIZE, 0, H.P2),
        ((1 << 64) - 8, 16, H.P2),
        (0, 65, H.P3),
        (0, (1 << 32) + 1, H.P3),
    ],
)
async def test_call_when_an_argument_is_out_of_bounds_then_its_position_names_the_code(
    daemon: Daemon, gpa: int, size: int, status: H
):
    shim = await daemon.guest()
    segment = f.Segment(0, gpa, s.SegmentStatus.OK, bytes(size if status == H.SUCCESS else 0))
    await shim.send(shim.call_frame(ledger.SIZED, 1, gpa, size, segments=(segment,)))
    assert (await shim.expect(f.Reply)).status == status


async def test_call_when_it_came_with_its_buffers_then_nothing_is_asked(daemon: Daemon):
    shim = await daemon.guest()
    data = b"thirteen byte"
    segment = f.Segment(0, 0x40, s.SegmentStatus.OK, data)
    await shim.send(shim.call_frame(ledger.SIZED, 9, 0x40, len(data), segments=(segment,)))
    assert values(await shim.expect(f.Reply)) == (13,)
    (record,) = daemon.stored()
    assert record.value == data


@pytest.mark.parametrize("status", [s.SegmentStatus.NOT_RAM, s.SegmentStatus.TOO_LARGE])
async def test_call_when_the_shim_could_not_read_a_buffer_then_the_arguments_code(
    daemon: Daemon, status: s.SegmentStatus
):
    shim = await daemon.guest()
    segment = f.Segment(0, 0x40, status, b"")
    await shim.send(shim.call_frame(ledger.SIZED, 9, 0x40, 4, segments=(segment,)))
    assert (await shim.expect(f.Reply)).status == H.P2
    assert status.name in daemon.answered[0].outcome.why


async def test_call_when_a_buffer_did_not_come_then_it_is_asked_for(daemon: Daemon):
    shim = await daemon.guest()
    await shim.start(ledger.SIZED, 9, 0x40, 4)
    read = await shim.expect(f.Read)
    assert read.segments == ((0x40, 4),)
    await shim.answer_read(read, b"four")
    assert values(await shim.expect(f.Reply)) == (4,)


async def test_call_when_a_buffer_that_is_asked_for_has_left_ram_then_the_arguments_code(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.start(ledger.SIZED, 9, 0x40, 4)
    await shim.refuse_read(await shim.expect(f.Read), s.AccessStatus.NOT_RAM)
    assert (await shim.expect(f.Reply)).status == H.P2
    assert entry_keys(daemon) == set()


@pytest.mark.parametrize(("gpa", "size"), [(0x1000, 256), (0x1F80, 128), (0x1FFF, 1)])
async def test_call_when_a_page_bounded_buffer_is_asked_for_then_only_up_to_its_pages_end(
    daemon: Daemon, gpa: int, size: int
):
    shim = await daemon.guest()
    await shim.start(ledger.PAGE_BOUNDED, 9, gpa)
    read = await shim.expect(f.Read)
    assert read.segments == ((gpa, size),)
    await shim.answer_read(read, bytes(size))
    assert values(await shim.expect(f.Reply)) == (size,)


async def test_call_when_a_page_bounded_buffer_meets_the_end_of_ram_then_it_is_cut_there(
    daemon: Daemon,
):
    odd_ram = f.Ram((f.RamRegion(0, 0x1010),), 0, 0)
    shim = await daemon.guest(ram=odd_ram)
    await shim.start(ledger.PAGE_BOUNDED, 9, 0x1000)
    assert (await shim.expect(f.Read)).segments == ((0x1000, 16),)


async def test_call_when_many_come_with_one_write_then_each_is_answered_in_order(daemon: Daemon):
    shim = await daemon.guest()
    calls = [shim.call_frame(ledger.PUT, key, key, vcpu=key) for key in range(4)]
    await shim.send(*calls)
    replies = [await shim.expect(f.Reply) for _ in calls]
    assert [reply.seq for reply in replies] == [call.seq for call in calls]
    assert [values(reply) for reply in replies] == [(1,), (2,), (3,), (4,)]


@pytest.mark.usefixtures("ledger_served")
async def test_call_when_the_guest_calls_back_to_back_over_a_socket_then_all_are_answered(
    nursery: trio.Nursery,
):
    daemon = Daemon(nursery, spin_us=1000)
    shim = await daemon.connect_socket()
    await shim.negotiate(hello())
    for number in range(1, 200):
        assert values(await shim.call(ledger.PUT, number, number)) == (number,)
    await shim.close()


# -- in tasks ------------------------------------------------------------------------------


async def test_calls_when_several_wait_then_each_is_answered_as_soon_as_it_can_be(daemon: Daemon):
    shim = await daemon.guest()
    reads: dict[int, f.Read] = {}
    for vcpu in range(3):
        await shim.start(ledger.LOAD, vcpu, 0x1000 * vcpu, 8, vcpu=vcpu)
        reads[vcpu] = await shim.expect(f.Read)
        assert reads[vcpu].vcpu == vcpu
    assert values(await shim.call(ledger.PUT, 100, 1, vcpu=3)) == (1,)
    for done, vcpu in enumerate((2, 0, 1)):
        await shim.answer_read(reads[vcpu], b"loaded %d" % vcpu)
        reply = await shim.expect(f.Reply)
        assert reply.vcpu == vcpu
        assert values(reply) == (done + 2,)
    assert entry_keys(daemon) == {0, 1, 2, 100}


async def test_calls_when_one_guest_waits_then_others_do_not(daemon: Daemon):
    waiting = await daemon.guest()
    await waiting.start(ledger.LOAD, 1, 0, 8)
    await waiting.expect(f.Read)
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    assert (await other.call(ledger.PUT, 1, 1)).status == H.SUCCESS


async def test_call_when_it_waits_for_the_disk_then_other_calls_overtake_it(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.faults.may_flush.clear()
    await shim.start(ledger.FLUSH, 0)
    assert values(await shim.call(ledger.PUT, 2, 2, vcpu=1)) == (2,)
    daemon.faults.may_flush.set()
    assert values(await shim.expect(f.Reply)) == (2,)


async def test_call_when_nothing_is_to_be_flushed_then_the_disk_is_not_asked(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    await shim.call(ledger.FLUSH, 0)
    flushes = daemon.faults.flushes
    await shim.call(ledger.FLUSH, 0)
    assert daemon.faults.flushes == flushes == 1


async def test_calls_when_several_flush_then_one_does_it_for_all_that_wait(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.faults.may_flush.clear()
    for vcpu in range(4):
        await shim.start(ledger.FLUSH, 0, vcpu=vcpu)
    await daemon.settle()
    daemon.faults.may_flush.set()
    for _ in range(4):
        assert (await shim.expect(f.Reply)).status == H.SUCCESS
    assert daemon.faults.flushing_most == 1
    assert daemon.faults.flushes <= 2


async def test_call_when_the_flush_fails_then_the_handler_is_told(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.faults.flush = "the disk is gone"
    reply = await shim.call(ledger.FLUSH, 0)
    assert (reply.status, reply.registers) == (H.ABORTED, ((4, 0),))
    assert daemon.answered[-1].outcome.why == "the disk is gone"


# -- guest memory --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [s.AccessStatus.NOT_RAM, s.AccessStatus.TOO_LARGE])
async def test_read_when_the_shim_refuses_then_the_handler_is_told(
    daemon: Daemon, status: s.AccessStatus
):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD, 1, 0x100, 8)
    await shim.refuse_read(await shim.expect(f.Read), status)
    assert (await shim.expect(f.Reply)).status == H.P2
    assert status.name in daemon.answered[0].outcome.why


async def test_read_when_the_range_is_no_ram_then_the_shim_is_not_asked(daemon: Daemon):
    shim = await daemon.guest()
    assert (await shim.call(ledger.LOAD, 1, RAM_SIZE - 4, 8)).status == H.P2


async def test_read_ahead_when_the_first_is_there_then_the_second_is_on_its_way(daemon: Daemon):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD_TWICE, 1, 0x100, 8)
    first = await shim.expect(f.Read)
    assert first.segments == ((0x100, 8),)
    await shim.answer_read(first, b"12345678")
    second = await shim.expect(f.Read)
    assert second.segments == ((0x108, 8),)
    await shim.answer_read(second, b"abcdefgh")
    assert (await shim.expect(f.Reply)).status == H.SUCCESS
    assert values(await shim.call(ledger.GET, 1)) == (int.from_bytes(b"12345678", "big"),)


async def test_read_ahead_when_the_second_is_refused_then_the_handler_is_told(daemon: Daemon):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD_TWICE, 1, 0x100, 8)
    await shim.answer_read(await shim.expect(f.Read), b"12345678")
    await shim.refuse_read(await shim.expect(f.Read), s.AccessStatus.NOT_RAM)
    assert (await shim.expect(f.Reply)).status == H.P2
    assert "0x108" in daemon.answered[0].outcome.why


async def test_read_ahead_when_the_first_is_refused_then_the_second_is_not_asked_for(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD_TWICE, 1, 0x100, 8)
    await shim.refuse_read(await shim.expect(f.Read), s.AccessStatus.NOT_RAM)
    assert (await shim.expect(f.Reply)).status == H.P2


@pytest.mark.parametrize(
    ("first", "status"), [(b"refuse", H.P3), (b"end of it", H.HARDWARE)], ids=["refuses", "ends"]
)
async def test_read_ahead_when_the_handler_ends_then_the_reply_comes_after_what_was_asked_for(
    lenient_daemon: Daemon, first: bytes, status: H
):
    """A call with a READ that is not answered has no REPLY: it would be a breach."""
    shim = await lenient_daemon.guest()
    await shim.start(ledger.LOAD_TWICE, 1, 0x100, len(first))
    await shim.answer_read(await shim.expect(f.Read), first)
    second = await shim.expect(f.Read)
    await lenient_daemon.settle()
    assert lenient_daemon.answered == []
    await shim.answer_read(second, bytes(len(first)))
    assert (await shim.expect(f.Reply)).status == status
    assert (await shim.call(ledger.GET, 1)).status == H.NOT_FOUND


async def test_read_ahead_when_the_handler_writes_first_then_that_waits_for_its_turn(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD_TWICE, 1, 0x100, 8)
    await shim.answer_read(await shim.expect(f.Read), b"w2345678")
    await shim.answer_read(await shim.expect(f.Read), b"stale...")
    write = await shim.expect(f.Write)
    assert write.segments == (f.WriteSegment(0x100, 10, b"in between"),)
    await shim.answer_write(write)
    await shim.answer_read(await shim.expect(f.Read), b"abcdefgh")
    assert (await shim.expect(f.Reply)).status == H.SUCCESS


async def test_read_ahead_when_the_handler_reads_another_then_it_gets_that(daemon: Daemon):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD_TWICE, 1, 0x100, 1)
    for data in (b"o", b"-", b"1", b"2"):
        await shim.answer_read(await shim.expect(f.Read), data)
    assert (await shim.expect(f.Reply)).status == H.SUCCESS
    assert values(await shim.call(ledger.GET, 1)) == (int.from_bytes(b"o12", "big"),)


@pytest.mark.parametrize("is_answered", [False, True])
async def test_read_ahead_when_the_call_is_cancelled_then_it_ends_without_effect(
    daemon: Daemon, is_answered: bool
):
    shim = await daemon.guest()
    call = await shim.start(ledger.LOAD_TWICE, 1, 0, 8)
    await shim.answer_read(await shim.expect(f.Read), b"12345678")
    read = await shim.expect(f.Read)
    if is_answered:
        reply = f.ReadReply(0, 0, call.seq, read.request, ((s.AccessStatus.OK, b"12345678"),))
        await shim.send(reply, cancel_of(call))
    else:
        await shim.send(cancel_of(call))
        await daemon.settle()
        await shim.refuse_read(read, s.AccessStatus.NO_CALL)
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.NONE
    assert (await shim.call(ledger.GET, 1)).status == H.NOT_FOUND


async def test_write_when_a_handler_writes_and_zeroes_then_one_request_follows_the_other(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 0x3132333435363738)
    await shim.start(ledger.STORE, 1, 0x200, 24)
    write = await shim.expect(f.Write)
    assert write.segments == (f.WriteSegment(0x200, 8, b"12345678"),)
    await shim.answer_write(write)
    zero = await shim.expect(f.Write)
    assert zero.segments == (f.WriteSegment(0x208, 16, None),)
    assert zero.request != write.request
    await shim.answer_write(zero)
    reply = await shim.expect(f.Reply)
    assert reply.writes == (f.WriteSegment(0x218, 3, b"end"),)


async def test_memory_when_frames_are_small_then_it_is_read_and_written_in_several(daemon: Daemon):
    ram = bytes(range(251)) * 1200
    shim = await daemon.guest(hello(max_frame_size=s.MIN_MAX_FRAME))
    await shim.start(ledger.LOAD, 1, 0x100, len(ram))
    at = 0
    while at < len(ram):
        read = await shim.expect(f.Read)
        ((gpa, size),) = read.segments
        assert gpa == 0x100 + at
        await shim.answer_read(read, ram[at : at + size])
        at += size
    assert (await shim.expect(f.Reply)).status == H.SUCCESS
    await shim.start(ledger.STORE, 1, 0x200, len(ram))
    written = b""
    while len(written) < len(ram):
        write = await shim.expect(f.Write)
        ((gpa, size, data),) = write.segments
        assert gpa == 0x200 + len(written)
        assert data is not None
        assert len(data) == size
        written += data
        await shim.answer_write(write)
    assert written == ram
    await shim.answer_write(await shim.expect(f.Write))
    assert (await shim.expect(f.Reply)).status == H.SUCCESS


async def test_memory_when_a_later_part_is_refused_then_the_handler_is_told(daemon: Daemon):
    shim = await daemon.guest(hello(max_frame_size=s.MIN_MAX_FRAME))
    await shim.start(ledger.LOAD, 1, 0, s.MIN_MAX_FRAME)
    first = await shim.expect(f.Read)
    await shim.answer_read(first, bytes(first.segments[0][1]))
    second = await shim.expect(f.Read)
    await shim.refuse_read(second, s.AccessStatus.NOT_RAM)
    assert (await shim.expect(f.Reply)).status == H.P2
    assert hex(second.segments[0][0]) in daemon.answered[0].outcome.why


async def test_read_ahead_when_frames_are_too_small_for_it_then_it_is_read_in_its_turn(
    daemon: Daemon,
):
    shim = await daemon.guest(hello(max_frame_size=s.MIN_MAX_FRAME))
    part = s.MIN_MAX_FRAME
    await shim.start(ledger.LOAD_TWICE, 1, 0, part)
    at = 0
    while at < 2 * part:
        read = await shim.expect(f.Read)
        ((gpa, size),) = read.segments
        assert gpa == at
        await shim.answer_read(read, bytes(size))
        at += size
    assert (await shim.expect(f.Reply)).status == H.SUCCESS


@pytest.mark.parametrize("bad_segment", [0, 1, 0xFFFF_FFFF])
async def test_write_when_the_shim_refuses_then_the_handler_is_told(
    daemon: Daemon, bad_segment: int
):
    shim = await daemon.guest()
    await shim.start(ledger.STORE, 1, 0x4560, 24)
    await shim.answer_write(
        await shim.expect(f.Write), s.AccessStatus.NOT_RAM, bad_segment=bad_segment
    )
    assert (await shim.expect(f.Reply)).status == H.P2
    assert "0x4560" in daemon.answered[0].outcome.why


async def test_write_when_the_range_is_no_ram_then_the_shim_is_not_asked(daemon: Daemon):
    shim = await daemon.guest()
    assert (await shim.call(ledger.STORE, 1, RAM_SIZE, 24)).status == H.P2


# -- cancelled -----------------------------------------------------------------------------


def cancel_of(call: f.Call) -> f.Cancel:
    return f.Cancel(call.vcpu, call.reset, call.seq, s.CancelReason.DEADLINE)


async def test_cancel_when_the_call_waits_for_memory_then_it_ends_without_effect(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    call = await shim.start(ledger.LOAD, 1, 0, 8)
    read = await shim.expect(f.Read)
    await shim.send(cancel_of(call))
    await daemon.settle()
    await shim.refuse_read(read, s.AccessStatus.NO_CALL)
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.NONE
    assert values(await shim.call(ledger.PUT, 2, 2)) == (1,)
    (entry,) = events(logs, "call cancelled by the shim")
    assert (entry["vcpu"], entry["seq"], entry["reason"]) == (0, call.seq, "DEADLINE")


async def test_cancel_when_it_crosses_the_memory_asked_for_then_it_ends_without_effect(
    daemon: Daemon,
):
    shim = await daemon.guest()
    call = await shim.start(ledger.LOAD, 1, 0, 8)
    read = await shim.expect(f.Read)
    # The handler has what it waited for, but has not run yet.
    reply = f.ReadReply(0, 0, call.seq, read.request, ((s.AccessStatus.OK, b"12345678"),))
    await shim.send(reply, cancel_of(call))
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.NONE
    assert (await shim.call(ledger.GET, 1)).status == H.NOT_FOUND
    assert entry_keys(daemon) == set()


async def test_cancel_when_it_comes_together_with_its_call_then_the_call_is_not_begun(
    daemon: Daemon,
):
    shim = await daemon.guest()
    call = shim.call_frame(ledger.LOAD, 1, 0, 8)
    await shim.send(call, cancel_of(call))
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.NONE
    assert shim.connection.calls.state(0, call.seq) is CallState.NONE
    assert values(await shim.call(ledger.PUT, 2, 2)) == (1,)


@pytest.mark.parametrize(
    ("hcall", "effect"), [(ledger.PUT, s.Effect.DONE), (ledger.NOTE, s.Effect.NONE)]
)
async def test_cancel_when_it_crosses_the_reply_then_cancelled_tells_what_is_left(
    daemon: Daemon, hcall: Hcall, effect: s.Effect
):
    shim = await daemon.guest()
    call = shim.call_frame(hcall, 1, 2)
    # Both are on their way before the shim sees the reply, which it then drops.
    await shim.send(call, cancel_of(call))
    assert (await shim.expect(f.Cancelled)).effect is effect


async def test_cancel_when_the_call_was_never_seen_then_it_is_acknowledged(daemon: Daemon):
    shim = await daemon.guest()
    await shim.send(f.Cancel(2, 0, 77, s.CancelReason.VCPU_GONE))
    cancelled = await shim.expect(f.Cancelled)
    assert (cancelled.vcpu, cancelled.seq, cancelled.effect) == (2, 77, s.Effect.NONE)


async def test_cancel_when_the_handler_waits_for_the_disk_then_it_does_not_go_on_after(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.faults.may_flush.clear()
    call = await shim.start(ledger.FLUSH_THEN_PUT, 5)
    await daemon.settle()
    await shim.send(cancel_of(call))
    await daemon.settle()
    daemon.faults.may_flush.set()
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.NONE
    assert (await shim.call(ledger.GET, 5)).status == H.NOT_FOUND
    assert entry_keys(daemon) == {1}


async def test_cancel_when_a_call_was_stopped_then_observers_are_told_what_the_guest_was(
    daemon: Daemon,
):
    shim = await daemon.guest()
    call = shim.call_frame(ledger.LOAD, 1, 0, 8)
    await shim.send(call, cancel_of(call))
    await shim.expect(f.Cancelled)
    (answered,) = daemon.answered
    assert answered.hcall is ledger.LOAD
    assert answered.outcome.code is ledger.LOAD.timeout_code
    assert answered.outcome.why == "cancelled by the shim: DEADLINE"


async def test_cancel_when_one_of_two_calls_is_cancelled_then_the_other_goes_on(daemon: Daemon):
    shim = await daemon.guest()
    first = await shim.start(ledger.LOAD, 1, 0, 8, vcpu=0)
    first_read = await shim.expect(f.Read)
    await shim.start(ledger.LOAD, 2, 0, 8, vcpu=1)
    second_read = await shim.expect(f.Read)
    await shim.send(cancel_of(first))
    await shim.answer_read(second_read, bytes(8))
    assert values(await shim.expect(f.Reply)) == (1,)
    await shim.refuse_read(first_read, s.AccessStatus.NO_CALL)
    await shim.expect(f.Cancelled)
    assert entry_keys(daemon) == {2}


async def test_cancel_when_the_vcpu_goes_on_then_its_next_call_does_not_wait(daemon: Daemon):
    shim = await daemon.guest()
    call = await shim.start(ledger.LOAD, 1, 0, 8)
    read = await shim.expect(f.Read)
    await shim.send(cancel_of(call))
    assert values(await shim.call(ledger.PUT, 2, 2)) == (1,)
    await shim.answer_read(read, bytes(8))
    assert (await shim.expect(f.Cancelled)).seq == call.seq
    assert entry_keys(daemon) == {2}


# -- reset ---------------------------------------------------------------------------------


async def test_reset_when_calls_wait_then_they_end_and_change_nothing(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, KEY_OF_A_RUN, 1)
    reads = []
    for vcpu in range(3):
        await shim.start(ledger.LOAD, vcpu, 0, 8, vcpu=vcpu)
        reads.append(await shim.expect(f.Read))
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    for read in reads:
        await shim.refuse_read(read, s.AccessStatus.NO_CALL)
    assert values(await shim.call(ledger.PUT, 50, 1)) == (1,)
    assert entry_keys(daemon) == {50}


async def test_reset_when_it_comes_together_with_a_call_then_the_call_is_not_begun(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    call = shim.call_frame(ledger.LOAD, 1, 0, 8)
    await shim.send(call, shim.reset_event())
    await shim.expect(f.EventAck)
    assert values(await shim.call(ledger.PUT, 2, 2)) == (1,)
    assert not events(logs, "bug in a handler")


async def test_reset_when_it_comes_together_with_memory_then_the_old_call_changes_nothing(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD, 1, 0, 8)
    read = await shim.expect(f.Read)
    reply = f.ReadReply(0, 0, read.seq, read.request, ((s.AccessStatus.OK, b"12345678"),))
    await shim.send(reply, shim.reset_event())
    await shim.expect(f.EventAck)
    assert (await shim.call(ledger.GET, 1)).status == H.NOT_FOUND
    assert entry_keys(daemon) == set()


async def test_reset_when_a_handler_writes_step_by_step_then_no_old_write_follows(daemon: Daemon):
    shim = await daemon.guest()
    await shim.start(ledger.STORE, 1, 0x200, 24)
    write = await shim.expect(f.Write)
    done = f.WriteReply(0, 0, write.seq, write.request, s.AccessStatus.OK, 0)
    await shim.send(done, shim.reset_event())
    await shim.expect(f.EventAck)
    assert (await shim.call(ledger.PUT, 2, 2)).status == H.SUCCESS


async def test_reset_when_a_flush_is_under_way_then_its_call_is_not_answered(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.faults.may_flush.clear()
    await shim.start(ledger.FLUSH_THEN_PUT, 5)
    await daemon.settle()
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    daemon.faults.may_flush.set()
    assert values(await shim.call(ledger.PUT, 6, 6)) == (2,)
    assert entry_keys(daemon) == {1, 6}


async def test_reset_when_there_were_many_then_nothing_is_kept_of_their_calls(daemon: Daemon):
    shim = await daemon.guest()
    for _ in range(20):
        await shim.start(ledger.LOAD, 1, 0, 8)
        await shim.expect(f.Read)
        await shim.send(shim.reset_event())
        await shim.expect(f.EventAck)
    await daemon.settle()
    assert daemon.server.sessions["lpar7"].pending_count == 0


# -- sent again ----------------------------------------------------------------------------


async def test_resent_when_the_call_changed_something_then_its_recorded_reply_comes(
    daemon: Daemon,
):
    shim = await daemon.guest()
    call = await shim.start(ledger.PUT, 1, 1)
    reply = await shim.expect(f.Reply)
    await shim.close()
    shim = await daemon.guest(hello(connection=1))
    assert await shim.resend(call) == reply
    assert daemon.answered[-1].is_replayed
    assert daemon.answered[-1].notes == ("recorded reply",)
    assert daemon.answered[-1].hcall is ledger.PUT
    assert daemon.answered[-1].outcome.code is H.SUCCESS
    # Had it been carried out again, the store would have seen one commit more.
    generation = daemon.states["lpar7"].generation
    await shim.resend(call._replace(vcpu=1, seq=call.seq + 1))
    assert daemon.states["lpar7"].generation == generation + 1


async def test_resent_when_the_daemon_was_killed_meanwhile_then_its_recorded_reply_comes(
    daemon: Daemon, nursery: trio.Nursery
):
    shim = await daemon.guest()
    call = await shim.start(ledger.PUT, 1, 1)
    reply = await shim.expect(f.Reply)
    second = Daemon(nursery)
    second.states = daemon.states
    daemon.states["lpar7"].is_open = False  # kill -9 releases it
    shim = await second.guest(hello(connection=1))
    generation = daemon.states["lpar7"].generation
    assert await shim.resend(call) == reply
    assert daemon.states["lpar7"].generation == generation


async def test_resent_when_the_call_only_read_then_it_is_carried_out_again(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 11)
    call = await shim.start(ledger.GET, 1)
    await shim.expect(f.Reply)
    await shim.call(ledger.PUT, 1, 22, vcpu=1)
    await shim.close()
    shim = await daemon.guest(hello(connection=1))
    assert values(await shim.resend(call)) == (22,)
    assert not daemon.answered[-1].is_replayed


async def test_resent_when_the_call_never_arrived_then_it_is_carried_out(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 11)
    lost = shim.call_frame(ledger.PUT, 2, 22)
    await shim.close()
    shim = await daemon.guest(hello(connection=1))
    assert values(await shim.resend(lost)) == (2,)


async def test_resent_when_several_vcpus_had_calls_then_each_gets_its_own_reply(daemon: Daemon):
    shim = await daemon.guest()
    calls = [await shim.start(ledger.PUT, key, key, vcpu=key) for key in range(3)]
    replies = [await shim.expect(f.Reply) for _ in calls]
    await shim.close()
    shim = await daemon.guest(hello(connection=1))
    assert [await shim.resend(call) for call in calls] == replies


async def test_resent_when_the_family_rests_then_the_recorded_reply_comes_all_the_same(
    daemon: Daemon,
):
    shim = await daemon.guest()
    call = await shim.start(ledger.PUT, 1, 1)
    reply = await shim.expect(f.Reply)
    await shim.close()
    shim = await daemon.guest(hello(connection=1))
    await daemon.settle()
    session = daemon.server.sessions["lpar7"]
    await session.rest_if_idle()
    await session.rest_if_idle()
    assert daemon.faults.rests
    assert await shim.resend(call) == reply


# -- gone wrong ----------------------------------------------------------------------------


async def test_commit_when_it_fails_then_the_guest_is_told_and_nothing_is_left(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.faults.commit = "no space left on device"
    reply = await shim.call(ledger.PUT, 2, 2)
    assert (reply.status, reply.registers) == (ledger.PUT.timeout_code, ())
    assert daemon.answered[-1].outcome.why == "no space left on device"
    (entry,) = events(logs, "store failed")
    assert (entry["call"], entry["reason"]) == ("H_LEDGER_PUT", "no space left on device")
    assert (await shim.call(ledger.GET, 2)).status == H.NOT_FOUND
    daemon.faults.commit = ""
    assert values(await shim.call(ledger.PUT, 3, 3)) == (2,)
    assert entry_keys(daemon) == {1, 3}


async def test_commit_when_it_fails_then_a_call_that_waited_meanwhile_is_not_lost_silently(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD, 1, 0, 8)
    read = await shim.expect(f.Read)
    daemon.faults.commit = "no space left on device"
    await shim.call(ledger.PUT, 2, 2, vcpu=1)
    daemon.faults.commit = ""
    await shim.answer_read(read, bytes(8))
    reply = await shim.expect(f.Reply)
    # Its model was thrown away under it: what it put there is in no store.
    assert (reply.status == H.SUCCESS) is (1 in entry_keys(daemon))
    assert reply.status == ledger.LOAD.timeout_code


async def test_store_when_it_cannot_be_loaded_again_then_each_call_is_told(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.faults.commit = daemon.faults.load = "I/O error"
    await shim.call(ledger.PUT, 2, 2)
    assert (await shim.call(ledger.GET, 1)).status == ledger.GET.timeout_code
    assert events(logs, "store failed")[-1]["call"] == "H_LEDGER_GET"
    daemon.faults.commit = daemon.faults.load = ""
    assert values(await shim.call(ledger.GET, 1)) == (1,)


async def test_bug_when_a_handler_breaks_at_once_then_h_hardware_and_a_traceback(
    lenient_daemon: Daemon, logs: Logs
):
    daemon = lenient_daemon
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    shim = await daemon.guest()
    reply = await shim.call(ledger.BREAK, 1)
    assert (reply.status, reply.registers) == (H.HARDWARE, ())
    (entry,) = events(logs, "bug in a handler")
    assert entry["call"] == "H_LEDGER_BREAK"
    assert entry["log_level"] == "error"
    assert entry["exc_info"]
    assert ledger.SECRET.decode() not in repr(logs)
    assert daemon.answered[-1].outcome.why == "internal error: RuntimeError"
    # What it had changed before it broke is nowhere.
    assert (await shim.call(ledger.GET, 1)).status == H.NOT_FOUND
    assert entry_keys(daemon) == set()
    assert (await other.call(ledger.PUT, 1, 1)).status == H.SUCCESS


async def test_bug_when_a_handler_breaks_later_then_h_hardware_and_a_traceback(
    lenient_daemon: Daemon, logs: Logs
):
    daemon = lenient_daemon
    shim = await daemon.guest()
    await shim.start(ledger.BREAK_LATER, 1, 0, 8)
    await shim.answer_read(await shim.expect(f.Read), bytes(8))
    assert (await shim.expect(f.Reply)).status == H.HARDWARE
    assert events(logs, "bug in a handler")[0]["exc_info"]
    assert (await shim.call(ledger.GET, 1)).status == H.NOT_FOUND


async def test_call_when_the_connection_breaks_as_memory_is_asked_for_then_it_is_no_bug(
    lenient_daemon: Daemon, logs: Logs, monkeypatch: pytest.MonkeyPatch
):
    daemon = lenient_daemon
    shim = await daemon.guest()
    (session,) = daemon.server.sessions.values()

    def broken(data: bytes) -> int:
        raise TransportClosed("reset by peer")

    monkeypatch.setattr(type(session.transport), "try_send", lambda _, data: broken(data))
    await shim.start(ledger.LOAD, 1, 0, 8)
    await session.ended.wait()
    assert not events(logs, "bug in a handler") + events(logs, "bug in a session")
    assert [entry["reason"] for entry in events(logs, "guest gone")] == [
        "connection lost: reset by peer"
    ]


async def test_bug_when_two_wait_and_one_breaks_then_the_other_is_not_lost_silently(
    lenient_daemon: Daemon,
):
    daemon = lenient_daemon
    shim = await daemon.guest()
    await shim.start(ledger.LOAD, 1, 0, 8)
    read = await shim.expect(f.Read)
    await shim.call(ledger.BREAK, 2, vcpu=1)
    await shim.answer_read(read, bytes(8))
    reply = await shim.expect(f.Reply)
    assert (reply.status == H.SUCCESS) is (1 in entry_keys(daemon))


@pytest.mark.usefixtures("ledger_served", "logs")
@pytest.mark.parametrize("hcall", [ledger.BREAK, ledger.BREAK_LATER])
async def test_bug_when_the_server_is_strict_then_it_is_raised(hcall: Hcall):
    async def provoke() -> None:
        async with trio.open_nursery() as nursery:
            shim = await Daemon(nursery, strict=True).guest()
            await shim.start(hcall, 1, 0, 8)
            if hcall is ledger.BREAK_LATER:
                await shim.answer_read(await shim.expect(f.Read), bytes(8))
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as raised:
        await provoke()
    assert raised.group_contains(RuntimeError, match="broken on purpose")


# -- rest ----------------------------------------------------------------------------------


async def test_rest_when_the_guest_is_idle_then_memory_is_given_up_until_its_next_call(
    daemon: Daemon, nursery: trio.Nursery, autojump_clock: MockClock
):
    daemon.faults.is_never_dirty = True
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    nursery.start_soon(daemon.server.rest_idle_partitions, 30)
    await trio.sleep(29)
    await shim.call(ledger.GET, 1)
    await trio.sleep(2)
    assert daemon.faults.rests == 0, "it called within the first period"
    await trio.sleep(30)
    assert daemon.faults.rests == 1
    loads = daemon.faults.loads
    assert values(await shim.call(ledger.GET, 1)) == (1,)
    assert daemon.faults.loads == loads + 1


async def test_rest_when_commits_are_not_flushed_then_they_are_before(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    session = daemon.server.sessions["lpar7"]
    await session.rest_if_idle()
    await session.rest_if_idle()
    state = daemon.states["lpar7"]
    assert state.flushed == state.generation
    assert daemon.faults.rests == 1


async def test_rest_when_the_flush_fails_then_memory_is_kept_and_the_log_says_why(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    session = daemon.server.sessions["lpar7"]
    await session.rest_if_idle()
    daemon.faults.flush = "the disk is gone"
    await session.rest_if_idle()
    assert daemon.faults.rests == 0
    assert events(logs, "store not flushed")[0]["reason"] == "the disk is gone"


async def test_rest_when_the_store_cannot_rest_then_the_log_says_why_and_others_live_on(
    daemon: Daemon, logs: Logs
):
    await daemon.guest()
    session = daemon.server.sessions["lpar7"]
    await session.rest_if_idle()
    daemon.faults.rest = "the disk is gone"
    await session.rest_if_idle()
    assert daemon.faults.rests == 1
    assert events(logs, "store not flushed")[0]["reason"] == "the disk is gone"


async def test_rest_when_a_call_waits_then_its_model_is_kept(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 9, 9)
    await shim.start(ledger.LOAD, 1, 0, 8)
    read = await shim.expect(f.Read)
    session = daemon.server.sessions["lpar7"]
    await session.rest_if_idle()
    await session.rest_if_idle()
    assert daemon.faults.rests == 0
    await shim.answer_read(read, bytes(8))
    assert values(await shim.expect(f.Reply)) == (2,)
    assert entry_keys(daemon) == {1, 9}


async def test_rest_when_a_call_comes_while_the_disk_is_waited_for_then_its_model_is_kept(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 9, 9)
    session = daemon.server.sessions["lpar7"]
    await session.rest_if_idle()
    daemon.faults.may_flush.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.rest_if_idle)
        await daemon.settle()
        await shim.start(ledger.LOAD, 1, 0, 8)
        read = await shim.expect(f.Read)
        daemon.faults.may_flush.set()
    assert daemon.faults.rests == 0
    await shim.answer_read(read, bytes(8))
    assert values(await shim.expect(f.Reply)) == (2,)
    assert entry_keys(daemon) == {1, 9}


async def test_rest_when_the_guest_goes_while_the_disk_is_waited_for_then_the_store_closes_after(
    daemon: Daemon,
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 9, 9)
    session = daemon.server.sessions["lpar7"]
    await session.rest_if_idle()
    daemon.faults.may_flush.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.rest_if_idle)
        await daemon.settle()
        await shim.close()
        await daemon.settle()
        daemon.faults.may_flush.set()
    await session.ended.wait()
    assert daemon.faults.closes == 1
    assert not daemon.faults.closed_while_flushing


async def test_rest_when_the_guest_has_not_negotiated_then_nothing_happens(daemon: Daemon):
    shim = await daemon.connect()
    await shim.greet(hello())
    session = daemon.server.sessions["lpar7"]
    await session.rest_if_idle()
    await session.rest_if_idle()
    await shim.send(f.Accept((), True, 0, 0), RAM)
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS


# -- slow readers --------------------------------------------------------------------------


def narrow(sock: socket.socket) -> None:
    """Lets little wait on its way to the shim."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def test_slow_reader_when_it_reads_nothing_then_other_guests_are_served(daemon: Daemon):
    slow = await daemon.connect_socket(narrow)
    await slow.negotiate(hello())
    count = 500
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood, slow, count)
        other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
        for key in range(50):
            assert (await other.call(ledger.PUT, key, key)).status == H.SUCCESS
        await daemon.settle()
        # It is not read from either, so that what waits for it stays small.
        assert sum(a.partition == "lpar7" for a in daemon.answered) < count
        left = count * len(encode(f.Reply(0, 0, 1, H.SUCCESS, ((4, 1),))))
        while left:
            left -= len(await slow.transport.receive())
    await slow.close()


async def flood(shim: Shim, count: int) -> None:
    """Calls without waiting for replies, as no virtual CPU does."""
    for number in range(1, count + 1):
        await shim.send_raw(encode(shim.call_frame(ledger.PUT, number, number)))


async def test_slow_reader_when_a_call_is_cancelled_while_a_read_is_sent_then_frames_stay_whole(
    daemon: Daemon,
):
    shim = await daemon.connect_socket(narrow)
    await shim.negotiate(hello())
    calls = []
    for vcpu in range(4):
        call = shim.call_frame(ledger.LOAD, vcpu, 0, 8, vcpu=vcpu)
        calls.append(call)
    await shim.send(*calls)
    await shim.send(*[cancel_of(call) for call in calls])
    # Each READ that went out before its cancellation is whole, and wants its answer.
    ended = 0
    while ended < 4:
        frame = await shim.receive()
        if isinstance(frame, f.Read):
            await shim.refuse_read(frame, s.AccessStatus.NO_CALL)
        else:
            assert isinstance(frame, f.Cancelled)
            ended += 1
    await shim.close()


# -- shared RAM --------------------------------------------------------------------------------


class Memory:
    """A guest's RAM in a memory file."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, RAM_SIZE)

    def ram(self, gpa: int = 0) -> f.Ram:
        return f.Ram((f.RamRegion(gpa, RAM_SIZE - gpa, gpa, 0),), 1, 0)


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    os.close(memory.fd)


async def send_with(shim: Shim, frame: f.Frame, fd: int) -> None:
    transport = shim.transport
    assert isinstance(transport, SocketTransport)
    socket.send_fds(transport._sock, [shim.connection.send(frame)], [fd])


async def sharing_guest(daemon: Daemon, memory: Memory) -> Shim:
    shim = await daemon.connect_socket()
    await shim.greet(hello(features=s.Feature.SHARED_RAM))
    await shim.send(f.Accept((), True, 0, 0))
    await send_with(shim, memory.ram(), memory.fd)
    return shim


async def test_shared_ram_when_a_buffer_is_large_then_it_is_read_from_there(
    daemon: Daemon, memory: Memory
):
    shim = await sharing_guest(daemon, memory)
    assert shim.announced[ledger.LARGE.number].buffers == ()
    data = os.urandom(ledger.LARGE_SIZE)
    os.pwrite(memory.fd, data, 0x1234)
    assert values(await shim.call(ledger.LARGE, 1, 0x1234, len(data))) == (len(data),)
    (record,) = daemon.stored()
    assert record.value == data


async def test_shared_ram_when_the_guest_truncates_its_file_then_the_shim_is_asked(
    daemon: Daemon, memory: Memory
):
    shim = await sharing_guest(daemon, memory)
    os.ftruncate(memory.fd, 0x2000)
    await shim.start(ledger.LARGE, 1, 0x1FFF, 2)
    await shim.answer_read(await shim.expect(f.Read), b"ab")
    assert values(await shim.expect(f.Reply)) == (2,)


async def test_shared_ram_when_memory_is_unplugged_then_its_addresses_are_refused(
    daemon: Daemon, memory: Memory
):
    shim = await sharing_guest(daemon, memory)
    assert (await shim.call(ledger.LARGE, 1, 0x100, 8)).status == H.SUCCESS
    await send_with(shim, memory.ram(0x1000), memory.fd)
    assert (await shim.call(ledger.LARGE, 2, 0x100, 8)).status == H.P2
    assert (await shim.call(ledger.LARGE, 3, 0x1000, 8)).status == H.SUCCESS


async def test_shared_ram_when_it_is_told_again_then_old_descriptors_are_closed(
    daemon: Daemon, memory: Memory
):
    shim = await sharing_guest(daemon, memory)
    await shim.call(ledger.LARGE, 1, 0, 8)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await send_with(shim, memory.ram(), memory.fd)
    await shim.call(ledger.LARGE, 1, 0, 8)
    assert len(os.listdir("/proc/self/fd")) == before
    await shim.close()
    await daemon.gone()
    # The connection's two ends and the last descriptor.
    assert len(os.listdir("/proc/self/fd")) == before - 3


async def test_shared_ram_when_its_descriptor_is_no_file_then_the_shim_is_asked(daemon: Daemon):
    shim = await daemon.connect_socket()
    await shim.greet(hello(features=s.Feature.SHARED_RAM))
    await shim.send(f.Accept((), True, 0, 0))
    reading, writing = os.pipe()
    await send_with(shim, f.Ram((f.RamRegion(0, RAM_SIZE, 0, 0),), 1, 0), reading)
    await shim.start(ledger.LARGE, 1, 0, 8)
    await shim.answer_read(await shim.expect(f.Read), bytes(8))
    assert (await shim.expect(f.Reply)).status == H.SUCCESS
    os.close(reading)
    os.close(writing)
