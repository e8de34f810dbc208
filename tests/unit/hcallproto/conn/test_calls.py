# SPDX-License-Identifier: Apache-2.0
"""The rules about calls that the table does not show: order, bounds, answers that fit."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.hcallproto.conn.talk import (
    CALL,
    CANCEL,
    CANCELLED,
    READ,
    READ_REPLY,
    REPLY,
    REQUEST,
    SEQ,
    VCPU,
    WRITE,
    WRITE_REPLY,
)

from hcallproto.conn.calls import CallRuleError, CallTable
from hcallproto.conn.states import CallState
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

OK = s.AccessStatus.OK
NOT_RAM = s.AccessStatus.NOT_RAM
VCPU_MAX = 4


def table(*said: f.Frame, levels: tuple[int, ...] = (1, 2)) -> CallTable:
    calls = CallTable()
    calls.vcpu_max = VCPU_MAX
    calls.levels = levels
    for frame in said:
        apply(calls, frame)
    return calls


def apply(calls: CallTable, frame: Any) -> bool:
    return calls.apply(f.FRAME_TYPES[type(frame)], frame)


def refuse(calls: CallTable, frame: Any, match: str) -> None:
    """The frame breaks a rule, and nothing has changed."""
    before = (calls.live(), len(calls), calls.state(frame.vcpu, frame.seq))
    with pytest.raises(CallRuleError, match=match):
        apply(calls, frame)
    assert (calls.live(), len(calls), calls.state(frame.vcpu, frame.seq)) == before


def call(vcpu: int, seq: int, **more: Any) -> f.Call:
    return CALL._replace(vcpu=vcpu, seq=seq, **more)


def cancel(vcpu: int, seq: int) -> f.Cancel:
    return CANCEL._replace(vcpu=vcpu, seq=seq)


# -- the beginning of a call ------------------------------------------------------------------


def test_call_when_its_vcpu_has_a_live_one_then_it_is_refused():
    calls = table(CALL)
    refuse(calls, call(VCPU, SEQ + 1), f"vcpu {VCPU} has a live call, {SEQ}")
    apply(calls, call(VCPU - 1, SEQ + 1))
    assert calls.live() == [(VCPU, SEQ), (VCPU - 1, SEQ + 1)]


@pytest.mark.parametrize("end", [(REPLY,), (CANCEL,), (CANCEL, CANCELLED)])
def test_call_when_the_one_before_is_over_or_cancelled_then_it_begins(end: tuple[f.Frame, ...]):
    calls = table(CALL, *end, call(VCPU, SEQ + 1))
    assert calls.live() == [(VCPU, SEQ + 1)]


@pytest.mark.parametrize(
    ("seq", "is_fine"), [(0, False), (SEQ - 1, False), (SEQ, False), (8, True)]
)
def test_sequence_when_it_does_not_grow_then_the_call_is_refused(seq: int, is_fine: bool):
    calls = table(CALL, REPLY)
    if is_fine:
        apply(calls, call(VCPU, seq))
    else:
        refuse(calls, call(VCPU, seq), f"{seq} is not above {SEQ}")
        refuse(calls, call(0, seq), f"{seq} is not above {SEQ}")


def test_sequence_when_it_is_zero_from_the_start_then_the_call_is_refused():
    refuse(table(), call(VCPU, 0), "0 is not above 0")


def test_calls_when_resent_after_a_lost_connection_then_their_order_is_that_of_their_numbers():
    """On a new connection the count begins wherever the oldest call stands."""
    calls = table(
        call(2, 40, is_resent=True),
        call(0, 43, is_resent=True),
        call(1, 44),
    )
    assert calls.live() == [(2, 40), (0, 43), (1, 44)]
    refuse(calls, call(3, 42, is_resent=True), "not above 44")


def test_vcpus_when_there_are_more_than_the_machine_can_have_then_they_are_refused():
    calls = table(*(call(10 * n, n + 1) for n in range(VCPU_MAX)))
    refuse(calls, call(99, SEQ), "vcpu 99 calls, and there are only 4")
    # Numbers need not be dense; a CPU without a call does not count.
    apply(calls, REPLY._replace(vcpu=10, seq=2))
    apply(calls, call(99, SEQ))
    refuse(calls, call(10, SEQ + 1), "vcpu 10 calls, and there are only 4")


def test_vcpus_when_a_reply_and_a_cancel_cross_then_both_sides_count_the_same():
    """Once, a CPU whose call was answered counted for the daemon and not for the shim."""
    calls = [call(vcpu, vcpu + 1) for vcpu in range(VCPU_MAX + 1)]
    cancelled, reply = cancel(0, 1), REPLY._replace(vcpu=0, seq=1)
    shim = table(*calls[:-1], cancelled, calls[-1])
    daemon = table(*calls[:-1], reply, cancelled, calls[-1])
    assert sorted(shim.live()) == sorted(daemon.live())


def test_vcpus_when_ever_new_ones_call_then_nothing_is_kept_of_the_others():
    calls = table()
    for vcpu in range(1000):
        apply(calls, call(vcpu, vcpu + 1))
        apply(calls, REPLY._replace(vcpu=vcpu, seq=vcpu + 1))
    assert len(calls._newest) <= VCPU_MAX


@pytest.mark.parametrize("frame", [call(s.NO_VCPU, 1), cancel(s.NO_VCPU, 1)])
def test_vcpu_when_it_is_none_then_the_frame_is_refused(frame: Any):
    refuse(table(), frame, "no vcpu|vcpu 4294967295")


@pytest.mark.parametrize("level", [0, 2, 3])
def test_level_when_it_is_not_in_force_then_the_call_is_refused(level: int):
    refuse(table(levels=(1,)), call(VCPU, SEQ, level=level), f"level {level}")


# -- replies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [s.CONTEXT_NIP, s.CONTEXT_MSR, 3])
def test_reply_when_it_sets_the_context_then_the_call_must_be_of_level_two(context: int):
    refuse(table(CALL), REPLY._replace(context=context), "level is not 2")
    calls = table(call(VCPU, SEQ, level=2))
    apply(calls, REPLY._replace(context=context))
    assert calls.live() == []


def test_reply_when_the_call_is_a_command_then_it_is_of_registers_and_memory_alone():
    command = call(VCPU, SEQ, level=s.LEVEL_COMMAND)
    calls = table(command, levels=(s.LEVEL_COMMAND,))
    refuse(calls, REPLY._replace(context=s.CONTEXT_MSR), "level is not 2")
    pages = (f.PageRange(0, s.STATE_PAGE_SIZE, s.PageState.UNSHARED),)
    refuse(calls, REPLY._replace(pages=pages), "neither 2 nor 3")
    assert apply(calls, REPLY._replace(registers=((4, 5),))) is True


def test_reply_when_it_has_page_states_then_the_call_must_not_be_a_hypercall():
    reply = REPLY._replace(
        registers=(), pages=(f.PageRange(0, s.STATE_PAGE_SIZE, s.PageState.UNSHARED),)
    )
    refuse(table(CALL), reply, "neither 2 nor 3")
    refuse(table(CANCEL), reply, "neither 2 nor 3")
    for level in (2, s.LEVEL_SHIM):
        calls = table(call(VCPU, SEQ, level=level), levels=(1, 2, s.LEVEL_SHIM))
        apply(calls, reply)
        assert calls.live() == []


def test_reply_when_the_shim_made_the_call_then_it_sets_no_register():
    calls = table(call(VCPU, SEQ, level=s.LEVEL_SHIM), levels=(1, 2, s.LEVEL_SHIM))
    refuse(calls, REPLY._replace(registers=((4, 5),)), "the shim itself made the call")
    refuse(calls, REPLY._replace(registers=(), context=s.CONTEXT_NIP), "level is not 2")
    assert apply(calls, REPLY._replace(registers=())) is True


def test_reply_when_the_call_was_over_before_it_was_cancelled_then_it_sets_no_context():
    calls = table(CANCEL)
    refuse(calls, REPLY._replace(context=s.CONTEXT_NIP), "level is not 2")
    assert apply(calls, REPLY) is False


def test_reply_when_it_crosses_the_cancel_then_it_is_dropped_and_cancelled_ends_it():
    calls = table(CALL, CANCEL)
    assert apply(calls, REPLY) is False
    assert apply(calls, CANCELLED) is True
    assert calls.state(VCPU, SEQ) is CallState.NONE
    refuse(calls, CANCELLED, "whose state is none")
    refuse(calls, REPLY, "whose state is none")


# -- cancelled calls --------------------------------------------------------------------------


@pytest.mark.parametrize("is_live", [False, True])
def test_cancelled_calls_when_not_acknowledged_then_only_so_many_are_kept(is_live: bool):
    calls = table()
    for seq in range(1, s.MAX_CANCELLING + 2):
        if is_live:
            apply(calls, call(VCPU, seq))
        if seq <= s.MAX_CANCELLING:
            apply(calls, cancel(VCPU, seq))
    too_many = cancel(VCPU, s.MAX_CANCELLING + 1)
    refuse(calls, too_many, f"{s.MAX_CANCELLING} calls being cancelled")
    # Another CPU has its own, and an acknowledgement makes room.
    apply(calls, cancel(0, 1))
    apply(calls, CANCELLED._replace(seq=3))
    apply(calls, too_many)
    assert len(calls) == s.MAX_CANCELLING + 1


def test_cancelled_calls_when_acknowledged_then_nothing_is_kept_of_their_cpus():
    calls = table()
    for vcpu in range(1000):
        apply(calls, cancel(vcpu, 1))
        apply(calls, cancel(vcpu, 2))
        apply(calls, CANCELLED._replace(vcpu=vcpu, seq=1))
        apply(calls, CANCELLED._replace(vcpu=vcpu, seq=2))
    assert len(calls) == 0


def test_cancel_when_it_names_the_call_answered_last_then_a_late_frame_finds_it():
    """Once over, a call's record is free for the next one of its CPU."""
    calls = table(CALL, REPLY, CANCEL)
    assert calls.state(VCPU, SEQ) is CallState.CANCELLING
    apply(calls, call(VCPU, SEQ + 1))
    refuse(calls, CANCEL, "whose state is cancelling")
    apply(calls, CANCELLED)
    assert calls.live() == [(VCPU, SEQ + 1)]


def test_cancel_when_memory_is_being_read_then_the_answer_is_still_awaited():
    calls = table(CALL, READ, CANCEL, call(VCPU, SEQ + 1))
    refuse(calls, CANCELLED, "cancelling, accessing")
    refuse(calls, REPLY, "cancelling, accessing")
    apply(calls, READ_REPLY)
    assert apply(calls, READ) is True
    no_call = (s.AccessStatus.NO_CALL, b"")
    apply(calls, READ_REPLY._replace(segments=(no_call, no_call)))
    apply(calls, CANCELLED)
    assert calls.live() == [(VCPU, SEQ + 1)]


# -- memory requests --------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [READ, WRITE])
def test_request_when_its_number_is_zero_then_it_is_refused(frame: Any):
    refuse(table(CALL), frame._replace(request=0), "request number 0")


@pytest.mark.parametrize("second", [READ, WRITE])
def test_request_when_one_is_outstanding_then_it_is_refused(second: f.Frame):
    refuse(table(CALL, READ), second, "whose state is accessing")


def test_request_when_answered_then_the_next_may_have_the_same_number():
    calls = table(CALL, READ, READ_REPLY, WRITE, WRITE_REPLY, READ)
    assert calls.state(VCPU, SEQ) is CallState.ACCESSING


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (READ, READ_REPLY._replace(request=REQUEST + 1)),
        (READ, WRITE_REPLY),
        (WRITE, READ_REPLY),
        (WRITE, WRITE_REPLY._replace(request=0)),
    ],
)
def test_answer_when_it_is_to_another_request_then_it_is_refused(asked: f.Frame, answer: f.Frame):
    refuse(table(CALL, asked), answer, f"outstanding is {type(asked).__name__.upper()} {REQUEST}")


GOOD = (OK, b"data")
BAD = (NOT_RAM, b"")


@pytest.mark.parametrize(
    ("segments", "match"),
    [
        ((), "0 segments, 2 were asked"),
        ((GOOD,), "1 segments, 2 were asked"),
        ((GOOD, BAD, BAD), "3 segments, 2 were asked"),
        (((OK, b"dat"), BAD), "3 bytes of 0x1000, 4 were asked"),
        (((OK, b"data!"), BAD), "5 bytes of 0x1000, 4 were asked"),
        ((BAD, (OK, b"")), "0 bytes of 0x2000, 8 were asked"),
        ((GOOD, BAD), ""),
        ((GOOD, (OK, b"87654321")), ""),
        ((BAD, BAD), ""),
    ],
)
def test_read_reply_when_it_has_other_sizes_than_asked_then_it_is_refused(
    segments: tuple[tuple[s.AccessStatus, bytes], ...], match: str
):
    """Once, a handler could be given fewer bytes than it had asked for."""
    calls = table(CALL, READ)
    answer = READ_REPLY._replace(segments=segments)
    if match:
        refuse(calls, answer, match)
    else:
        assert apply(calls, answer) is True
        assert calls.state(VCPU, SEQ) is CallState.LIVE


# -- resets -----------------------------------------------------------------------------------


def test_clear_when_the_machine_was_reset_then_calls_are_gone_and_numbers_go_on():
    calls = table(CALL, READ, cancel(0, 1))
    assert len(calls) == 2
    calls.clear()
    assert (len(calls), calls.live()) == (0, [])
    assert calls.state(0, 1) is CallState.NONE
    refuse(calls, CALL, f"not above {SEQ}")
