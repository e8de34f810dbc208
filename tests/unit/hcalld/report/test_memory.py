# SPDX-License-Identifier: Apache-2.0
"""Memory in each state: what the frames said, whatever they said it of."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hcalld.report.memory import MAX_ADDRESS, Memory, Point, States
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

MIB = 1 << 20
SHARED = s.PageState(0)
SECURE = s.PageState.UNSHARED
OUT = s.PageState.UNSHARED | s.PageState.PAGED_OUT


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3)), max_size=30))
def test_states_when_ranges_are_set_then_their_sizes_are_right(sets: list[tuple[int, int, int]]):
    states, naive = States(), [0] * 100
    for low, size, state in sets:
        states.set(low, low + size, state)
        naive[low : low + size] = [state] * size
        for one in (1, 2, 3):
            assert states.sizes.get(one, 0) == naive.count(one)
    runs = 1 + sum(one != other for one, other in itertools.pairwise(naive))
    assert len(states) <= runs + 2


def ram(*regions: tuple[int, int]) -> f.Ram:
    return f.Ram(tuple(f.RamRegion(gpa, size) for gpa, size in regions), 0, 0)


def pages(gpa: int, size: int, state: s.PageState) -> f.Pages:
    return f.Pages(0, 0, 1, 1, (f.PageRange(gpa, size, state),))


def reply(gpa: int, size: int, state: s.PageState) -> f.Reply:
    return f.Reply(0, 0, 1, 0, pages=(f.PageRange(gpa, size, state),))


def test_memory_when_a_vm_becomes_secure_and_shares_then_each_change_is_a_point():
    memory = Memory()
    memory.take(ram((0, 64 * MIB)), 1)
    assert not memory.is_secure
    memory.take(pages(0, 64 * MIB, SECURE), 2)
    memory.take(reply(8 * MIB, MIB, SHARED), 3)
    memory.take(f.Reply(0, 0, 2, 0), 4)
    memory.take(pages(16 * MIB, 2 * MIB, OUT), 5)
    memory.take(f.Event(s.EventKind.RESET, 0, 0, 1), 6)
    assert memory.points == [
        Point(2, 64 * MIB, 0, 0),
        Point(3, 63 * MIB, MIB, 0),
        Point(5, 61 * MIB, MIB, 2 * MIB),
        Point(6, 0, 0, 0),
    ]
    assert memory.is_secure
    assert memory.is_complete


def test_memory_when_it_is_plugged_then_it_is_out_until_it_has_a_state():
    memory = Memory()
    memory.take(ram((0, 4 * MIB)), 1)
    memory.take(pages(0, 4 * MIB, SECURE), 2)
    memory.take(ram((0, 4 * MIB), (16 * MIB, MIB)), 3)
    assert memory.points[-1] == Point(3, 4 * MIB, 0, MIB)
    memory.take(pages(16 * MIB, MIB, SECURE), 4)
    assert memory.points[-1] == Point(4, 5 * MIB, 0, 0)
    memory.take(ram((16 * MIB, MIB)), 5)
    assert memory.points[-1] == Point(5, MIB, 0, 0)


def test_memory_when_it_changes_often_then_the_points_are_few_and_the_last_is_right():
    memory = Memory(max_points=20)
    memory.take(ram((0, 4 * MIB)), 0)
    memory.take(pages(0, 4 * MIB, SECURE), 0)
    for time_ns in range(1, 1000):
        memory.take(reply(0, 4096 * (time_ns % 100 + 1), SHARED), time_ns * 10)
        memory.take(reply(0, 4096 * (time_ns % 100 + 1), SECURE), time_ns * 10 + 5)
    assert len(memory.points) <= 20
    assert memory.cell
    assert memory.points[-1][1:] == (4 * MIB, 0, 0)


def test_memory_when_it_is_in_too_many_pieces_then_it_is_followed_no_further():
    memory = Memory(max_runs=10)
    memory.take(ram((0, MIB)), 0)
    for page in range(0, 100, 2):
        memory.take(pages(page * 4096, 4096, SECURE), page)
    assert not memory.is_complete
    assert memory.points[-1].secure <= 12 * 4096


def test_memory_when_addresses_are_any_then_nothing_is_as_large_as_they_say():
    memory = Memory()
    memory.take(ram((0, (1 << 64) - 1)), 0)
    memory.take(pages((1 << 64) - 4096, 4096, SECURE), 1)
    memory.take(pages(0, (1 << 64) - 4096, SECURE), 2)
    assert memory.points[-1].secure == MAX_ADDRESS
