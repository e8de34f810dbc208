# SPDX-License-Identifier: Apache-2.0
"""What a frame does to guest memory, whatever segments it says it with."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from hcallproto.wire import frames as f

CHUNK: Final = 1 << 16
"""Zeros are compared with bytes in pieces of this many."""


class Range(NamedTuple):
    """Bytes that are written; ``data`` None: zeros."""

    gpa: int
    size: int
    data: bytes | None

    def part(self, low: int, high: int) -> Range:
        """What there is of it between two addresses."""
        data = None if self.data is None else self.data[low - self.gpa : high - self.gpa]
        return Range(low, high - low, data)


def ranges(segments: Sequence[f.WriteSegment]) -> list[Range]:
    """Ranges in rising order without overlap: a later segment is written over earlier ones."""
    done: list[Range] = []
    for segment in segments:
        if not segment.size:
            continue
        low, high = segment.gpa, segment.gpa + segment.size
        first = bisect.bisect_right(done, low, key=lambda one: one.gpa + one.size)
        last = bisect.bisect_left(done, high, key=lambda one: one.gpa)
        pieces = [Range(low, segment.size, segment.data)]
        if first < last:
            before, after = done[first], done[last - 1]
            if before.gpa < low:
                pieces.insert(0, before.part(before.gpa, low))
            if after.gpa + after.size > high:
                pieces.append(after.part(high, after.gpa + after.size))
        done[first:last] = pieces
    return done


class Piece(NamedTuple):
    """A stretch of memory that each side writes wholly or not at all."""

    gpa: int
    size: int
    expected: Range | None
    got: Range | None


def pieces(
    expected: Sequence[Range], got: Sequence[Range], cuts: Sequence[int] = ()
) -> Iterator[Piece]:
    """Both sides, cut where either begins or ends, and at the addresses given."""
    marks = sorted(
        {mark for one in (*expected, *got) for mark in (one.gpa, one.gpa + one.size)} | {*cuts}
    )
    left = right = 0
    for low, high in itertools.pairwise(marks):
        while left < len(expected) and expected[left].gpa + expected[left].size <= low:
            left += 1
        while right < len(got) and got[right].gpa + got[right].size <= low:
            right += 1
        mine = _part(expected, left, low, high)
        its = _part(got, right, low, high)
        if mine is not None or its is not None:
            yield Piece(low, high - low, mine, its)


def _part(found: Sequence[Range], at: int, low: int, high: int) -> Range | None:
    if at < len(found) and found[at].gpa <= low:
        return found[at].part(low, high)
    return None


def first_difference(expected: Range, got: Range, start: int = 0) -> int | None:
    """Offset of the first byte that is not the same, from ``start`` on."""
    if expected.data is None and got.data is None:
        return None
    for at in range(start, expected.size, CHUNK):
        end = min(at + CHUNK, expected.size)
        mine, its = shown(expected, at, end), shown(got, at, end)
        if mine != its:
            return at + next(i for i, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b)
    return None


def shown(one: Range, start: int, end: int) -> bytes:
    """Some of a range's bytes."""
    end = min(end, one.size)
    return bytes(end - start) if one.data is None else one.data[start:end]
