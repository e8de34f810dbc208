# SPDX-License-Identifier: Apache-2.0
"""What is counted of guests' calls, and how much of it is kept."""

from __future__ import annotations

from tests.unit.hcallproto.capture import sample

from hcalld.core.outcome import Outcome
from hcalld.observe.figures import MAX_PARTITIONS, MAX_REASON_SIZE, MAX_REFUSALS, Figures
from hcallproto.abi.families import pks, sev, uv
from hcallproto.abi.returns import H, SevCode, U
from hcallproto.abi.spec import Hcall
from hcallproto.wire import frames as f


def call(hcall: Hcall, *, vcpu: int = 0, **args: int) -> f.Call:
    return sample.call(hcall, 1, vcpu=vcpu, **args)


def test_figures_when_calls_are_answered_then_each_code_and_time_is_counted():
    guest = Figures().of("lpar7")
    for microseconds in (10, 20, 30):
        guest.answered(
            pks.GET_CONFIG, call(pks.GET_CONFIG), Outcome(H.SUCCESS), microseconds * 1000
        )
    guest.answered(pks.GET_CONFIG, call(pks.GET_CONFIG), Outcome(H.P2, why="too small"), 5000)
    figures = guest.calls["H_PKS_GET_CONFIG"]
    assert figures.codes == {H.SUCCESS: 3, H.P2: 1}
    assert figures.latency.count == 4
    assert (figures.latency.total, figures.latency.largest) == (65_000, 30_000)


def test_figures_when_a_success_gives_a_number_then_it_is_one_code():
    guest = Figures().of("lpar7")
    for result in range(100):
        guest.answered(uv.ESM, call(uv.ESM), Outcome(U.SUCCESS, result=result), 1)
    assert guest.calls["UV_ESM"].codes == {U.SUCCESS: 100}


def test_figures_when_a_guest_makes_up_numbers_then_they_have_one_name_a_level():
    guest = Figures().of("lpar7")
    guest.answered(None, call(pks.GET_CONFIG), Outcome(H.FUNCTION, why="no handler"), 1)
    guest.answered(None, call(pks.GET_CONFIG), Outcome(U.FUNCTION, why="no handler"), 1)
    assert set(guest.calls) == {"unknown", "unknown ultracall"}


def test_refusals_when_there_are_many_then_the_last_are_kept_and_all_are_counted():
    times = iter(range(1000))
    guest = Figures(clock=lambda: next(times)).of("lpar7")
    for number in range(MAX_REFUSALS + 5):
        guest.answered(
            pks.GET_CONFIG,
            call(pks.GET_CONFIG, vcpu=3),
            Outcome(H.P2, why=f"{number} " + "x" * 9999),
            1,
        )
    assert guest.refused_count == MAX_REFUSALS + 5
    assert len(guest.refusals) == MAX_REFUSALS
    newest = guest.refusals[-1]
    assert (newest.time_ns, newest.vcpu, newest.call) == (36, 3, "H_PKS_GET_CONFIG")
    assert newest.reason.startswith("36 ")
    assert len(newest.reason) == MAX_REASON_SIZE


def test_refusals_when_lengths_were_only_asked_for_then_that_is_none():
    guest = Figures().of("sev-1")
    told = Outcome(SevCode.INVALID_LEN, ((5, 48),), why="asked for lengths: len 48 needed")
    guest.answered(sev.LAUNCH_MEASURE, call(sev.LAUNCH_MEASURE), told, 1)
    assert (guest.refused_count, list(guest.refusals)) == (0, [])
    short = call(sev.LAUNCH_MEASURE, len=8, uaddr=0x1000)
    guest.answered(sev.LAUNCH_MEASURE, short, told, 1)
    assert guest.refused_count == 1
    assert guest.calls["KVM_SEV_LAUNCH_MEASURE"].codes == {SevCode.INVALID_LEN: 2}


def test_refusals_when_a_call_is_to_be_made_again_then_that_is_none():
    guest = Figures().of("lpar7")
    guest.answered(pks.WRAP_OBJECT, call(pks.WRAP_OBJECT), Outcome(H.BUSY, why="busy"), 1)
    assert guest.refused_count == 0


def test_refusals_when_a_code_has_no_name_then_its_number_says_it():
    guest = Figures().of("lpar7")
    # As a rule of faults gives it.
    told = Outcome(H.ABORTED, why="fault 1", result=-4711)
    guest.answered(pks.GET_CONFIG, call(pks.GET_CONFIG), told, 1)
    assert [one.reason for one in guest.refusals] == ["fault 1"]
    told = Outcome(H.ABORTED, why="fault 1", result=4711)
    guest.answered(pks.GET_CONFIG, call(pks.GET_CONFIG), told, 1)
    assert guest.refused_count == 1


def test_of_when_a_guest_comes_again_then_its_figures_go_on():
    figures = Figures()
    figures.of("a").answered(pks.GET_CONFIG, call(pks.GET_CONFIG), Outcome(H.SUCCESS), 1)
    assert figures.of("a").calls["H_PKS_GET_CONFIG"].latency.count == 1


def test_of_when_too_many_came_then_the_one_that_is_longest_gone_is_forgotten():
    connected = {"0", "2"}
    figures = Figures(connected.__contains__)
    for number in range(MAX_PARTITIONS):
        figures.of(str(number))
    figures.of("1")
    figures.of("new")
    assert "3" not in figures.guests
    assert {"0", "1", "2", "new"} <= set(figures.guests)
    assert len(figures.guests) == MAX_PARTITIONS


def test_of_when_all_are_connected_then_the_first_is_forgotten():
    figures = Figures(lambda _: True)
    for number in range(MAX_PARTITIONS + 1):
        figures.of(str(number))
    assert "0" not in figures.guests
    assert len(figures.guests) == MAX_PARTITIONS
