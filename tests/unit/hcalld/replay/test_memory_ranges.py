# SPDX-License-Identifier: Apache-2.0
"""What segments do to memory, against a byte for each address."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hcalld.replay.memory_ranges import first_difference, pieces, ranges, shown
from hcallproto.wire import frames as f

SIZE = 48


@st.composite
def segments(draw: st.DrawFn) -> list[f.WriteSegment]:
    found = []
    for _ in range(draw(st.integers(0, 6))):
        low = draw(st.integers(0, SIZE - 1))
        size = draw(st.integers(0, SIZE - low))
        data = draw(st.none() | st.binary(min_size=size, max_size=size))
        found.append(f.WriteSegment(low, size, data))
    return found


def naive(written: list[f.WriteSegment]) -> list[int | None]:
    memory: list[int | None] = [None] * SIZE
    for one in written:
        data = bytes(one.size) if one.data is None else one.data
        memory[one.gpa : one.gpa + one.size] = list(data)
    return memory


@given(segments())
def test_ranges_are_what_is_there_at_last(written: list[f.WriteSegment]) -> None:
    memory: list[int | None] = [None] * SIZE
    found = ranges(written)
    for one in found:
        memory[one.gpa : one.gpa + one.size] = list(shown(one, 0, one.size))
    assert memory == naive(written)
    assert all(one.size > 0 for one in found)
    assert all(a.gpa + a.size <= b.gpa for a, b in itertools.pairwise(found))


@given(segments(), segments(), st.lists(st.integers(0, SIZE), max_size=4))
def test_pieces_show_each_byte_of_both_sides_once(
    mine: list[f.WriteSegment], its: list[f.WriteSegment], cuts: list[int]
) -> None:
    left: list[int | None] = [None] * SIZE
    right: list[int | None] = [None] * SIZE
    end = 0
    for one in pieces(ranges(mine), ranges(its), cuts):
        assert one.gpa >= end
        end = one.gpa + one.size
        assert not any(one.gpa < cut < end for cut in cuts)
        for side, part in ((left, one.expected), (right, one.got)):
            if part is not None:
                side[one.gpa : end] = list(shown(part, 0, part.size))
        if one.expected is not None and one.got is not None:
            at = first_difference(one.expected, one.got)
            same = shown(one.expected, 0, one.size), shown(one.got, 0, one.size)
            assert (at is None) == (same[0] == same[1])
            if at is not None:
                assert same[0][:at] == same[1][:at]
                assert same[0][at] != same[1][at]
    assert left == naive(mine)
    assert right == naive(its)
