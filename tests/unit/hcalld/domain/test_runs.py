# SPDX-License-Identifier: Apache-2.0
"""Runs of equal states, against a plain list."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.domain.runs import CHUNK_SIZE, Runs, Spans

TOP = 24
RANGES = st.tuples(st.integers(0, TOP), st.integers(0, TOP)).map(lambda pair: sorted(pair))
SETS = st.lists(st.tuples(RANGES, st.integers(0, 2)), max_size=12)


@given(SETS, RANGES)
def test_runs_are_what_a_list_would_be(sets: list[tuple[list[int], int]], asked: list[int]):
    runs: Runs[int] = Runs(0, range(3))
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


def test_runs_take_no_memory_when_neighbours_are_alike():
    runs: Runs[int] = Runs(0, range(3))
    for n in range(CHUNK_SIZE):
        runs.set(n, n + 1, 1)
    assert len(runs) == 1
    runs.set(0, 1 << 28, 1)
    runs.set(1 << 12, 1 << 28, 0)
    assert len(runs) == 1
    runs.set(0, 1 << 12, 0)
    assert len(runs) == 0


WIDE = st.integers(0, 5 * CHUNK_SIZE)
WIDE_SETS = st.lists(st.tuples(st.tuples(WIDE, WIDE).map(sorted), st.integers(0, 2)), max_size=8)


@given(WIDE_SETS, WIDE, WIDE)
def test_runs_across_chunks(sets: list[tuple[list[int], int]], one: int, other: int):
    runs: Runs[int] = Runs(0, range(3))
    plain = bytearray(5 * CHUNK_SIZE)
    for (low, high), state in sets:
        runs.set(low, high, state)
        plain[low:high] = bytes([state]) * (high - low)
    low, high = min(one, other), max(one, other) + 1
    found = runs.runs(low, high)
    states = b"".join(bytes([state]) * (b - a) for a, b, state in found)
    assert states[: len(plain) - low] == plain[low:high]
    assert [a for a, _, _ in found] == [low, *(b for _, b, _ in found[:-1])]
    assert all(one[2] != two[2] for one, two in itertools.pairwise(found))
    assert runs.only(low, high) == (found[0][2] if len(found) == 1 else None)
    every = list(runs.all_runs())
    assert all(state for _, _, state in every)
    assert all(one[1] < two[0] or one[2] != two[2] for one, two in itertools.pairwise(every))
    rebuilt = bytearray(len(plain))
    for a, b, state in every:
        rebuilt[a:b] = bytes([state]) * (b - a)
    assert rebuilt == plain
    assert runs.count(1, 2) == len(plain) - plain.count(0)


@given(WIDE_SETS)
def test_packed_chunks_come_back(sets: list[tuple[list[int], int]]):
    runs: Runs[int] = Runs(0, range(3))
    for (low, high), state in sets:
        runs.set(low, high, state)
    other: Runs[int] = Runs(0, range(3))
    for number in range(6):
        packed = runs.pack(number)
        assert (packed is not None) == (number in runs.chunk_numbers())
        if packed is not None:
            other.unpack(number, packed)
    assert list(other.all_runs()) == list(runs.all_runs())


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\0",
        bytes(2),
        bytes(2 + 16),
        bytes(2) + b"\1" * 15,
        bytes(2) + b"\1" * 17,
        bytes(2) + b"\3" * 16,
        b"\0\1" + bytes(255 + 15),
        b"\0\1" + bytes(257 + 15),
        b"\0\1" + bytes(255 + 15) + b"\3",
    ],
)
def test_malformed_chunks_are_refused(packed: bytes):
    runs: Runs[int] = Runs(0, range(3))
    with pytest.raises(ValueError, match="state"):
        runs.unpack(0, packed)
    assert len(runs) == 0
