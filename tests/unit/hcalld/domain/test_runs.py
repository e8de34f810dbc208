# SPDX-License-Identifier: Apache-2.0
"""Runs of equal states, against a plain list."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hcalld.domain.runs import Runs, Spans

TOP = 24
RANGES = st.tuples(st.integers(0, TOP), st.integers(0, TOP)).map(lambda pair: sorted(pair))
SETS = st.lists(st.tuples(RANGES, st.integers(0, 2)), max_size=12)


@given(SETS, RANGES)
def test_runs_are_what_a_list_would_be(sets: list[tuple[list[int], int]], asked: list[int]):
    runs: Runs[int] = Runs(0)
    plain = [0] * (TOP + 1)
    for (low, high), state in sets:
        runs.set(low, high, state)
        plain[low:high] = [state] * (high - low)
    assert [runs[n] for n in range(TOP)] == plain[:TOP]
    low, high = asked
    found = runs.runs(low, high)
    assert [state for a, b, state in found for _ in range(a, b)] == plain[low:high]
    assert all(one[1] == two[0] and one[2] != two[2] for one, two in itertools.pairwise(found))
    assert runs.count(1, 2) == sum(state != 0 for state in plain)
    assert [n for a, b, _ in runs.all_runs() for n in range(a, b)] == [
        n for n, state in enumerate(plain) if state
    ]


@given(SETS, RANGES)
def test_spans_are_a_set(sets: list[tuple[list[int], int]], asked: list[int]):
    spans = Spans()
    plain: set[int] = set()
    for (low, high), state in sets:
        if state:
            spans.add(low, high)
            plain |= set(range(low, high))
        else:
            spans.remove(low, high)
            plain -= set(range(low, high))
    low, high = asked
    wanted = set(range(low, high))
    assert bool(spans) == bool(plain)
    assert spans.holds(low, high) == (wanted <= plain)
    assert spans.touches(low, high) == bool(wanted & plain)
    assert {n for a, b in spans.within(low, high) for n in range(a, b)} == wanted & plain
    assert {n for a, b in spans.gaps(low, high) for n in range(a, b)} == wanted - plain
    assert {n for a, b in spans.ranges() for n in range(a, b)} == plain
    spans.clear()
    assert not spans


def test_runs_stay_few_when_neighbours_are_alike():
    runs: Runs[int] = Runs(0)
    for n in range(1000):
        runs.set(n, n + 1, 1)
    assert len(runs) == 2
