# SPDX-License-Identifier: Apache-2.0
"""A state for each of many pages, kept as runs of equal neighbours.

A VM of a TiB has 2^28 pages of 4 KiB, and nearly all are in the same state.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Runs(Generic[T]):
    """Number from 0 on to state; ``default`` where nothing was set."""

    __slots__ = ("_starts", "_states", "default")

    def __init__(self, default: T) -> None:
        self.default = default
        self._starts = [0]
        self._states = [default]

    def __getitem__(self, number: int) -> T:
        return self._states[bisect_right(self._starts, number) - 1]

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._starts)

    def set(self, low: int, high: int, state: T) -> None:
        """Give all numbers from ``low`` to ``high`` - 1 a state."""
        if low >= high:
            return
        starts, states = self._starts, self._states
        index = bisect_right(starts, low) - 1
        if states[index] == state and (index + 1 == len(starts) or high <= starts[index + 1]):
            return
        first = bisect_left(starts, low)
        last = bisect_left(starts, high)
        rest = states[bisect_right(starts, high) - 1]
        if last < len(starts) and starts[last] == high:
            last += 1
        new_starts: list[int] = []
        new_states: list[T] = []
        if first == 0 or states[first - 1] != state:
            new_starts.append(low)
            new_states.append(state)
        if rest != state:
            new_starts.append(high)
            new_states.append(rest)
        starts[first:last] = new_starts
        states[first:last] = new_states

    def runs(self, low: int, high: int) -> list[tuple[int, int, T]]:
        """(first, after the last, state) from ``low`` to ``high`` - 1, without a gap."""
        if low >= high:
            return []
        starts, states = self._starts, self._states
        index = bisect_right(starts, low) - 1
        found = []
        while low < high:
            end = starts[index + 1] if index + 1 < len(starts) else high
            end = min(end, high)
            found.append((low, end, states[index]))
            low = end
            index += 1
        return found

    def all_runs(self) -> Iterator[tuple[int, int, T]]:
        """The runs whose state is not the default; the last one may be open to the top."""
        for index, state in enumerate(self._states):
            if state != self.default:
                top = index + 1 == len(self._starts)
                assert not top, "what was set has an end"
                yield self._starts[index], self._starts[index + 1], state

    def count(self, *states: T) -> int:
        """How many numbers have one of these states, none of which is the default."""
        return sum(high - low for low, high, state in self.all_runs() if state in states)


class Spans:
    """Ranges of numbers, merged: a set of them without states.

    Most have one range or none, and are asked once what is in them: adding is cheap.
    """

    __slots__ = ("_is_merged", "_ranges")

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._is_merged = True

    def add(self, low: int, high: int) -> None:
        """Take a range in."""
        if low < high:
            self._is_merged = not self._ranges
            self._ranges.append((low, high))

    def remove(self, low: int, high: int) -> None:
        """Take a range out."""
        kept = []
        for first, end in self.ranges():
            if first < min(end, low):
                kept.append((first, min(end, low)))
            if max(first, high) < end:
                kept.append((max(first, high), end))
        self._ranges = kept

    def clear(self) -> None:
        """Take all out."""
        self._ranges = []
        self._is_merged = True

    def ranges(self) -> list[tuple[int, int]]:
        """All (first, after the last) pairs."""
        if not self._is_merged:
            merged: list[tuple[int, int]] = []
            for low, high in sorted(self._ranges):
                if merged and low <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
                else:
                    merged.append((low, high))
            self._ranges = merged
            self._is_merged = True
        return self._ranges

    def within(self, low: int, high: int) -> list[tuple[int, int]]:
        """What of the range is in."""
        ranges = self.ranges()
        index = max(0, bisect_right(ranges, (low, low)) - 1)
        found = []
        for first, end in ranges[index:]:
            if first >= high:
                break
            if low < end:
                found.append((max(first, low), min(end, high)))
        return found

    def gaps(self, low: int, high: int) -> list[tuple[int, int]]:
        """What of the range is not in."""
        found = []
        for first, end in self.within(low, high):
            if low < first:
                found.append((low, first))
            low = end
        if low < high:
            found.append((low, high))
        return found

    def holds(self, low: int, high: int) -> bool:
        """True if all of the range is in."""
        return low >= high or self.within(low, high) == [(low, high)]

    def touches(self, low: int, high: int) -> bool:
        """True if any of the range is in."""
        return bool(self.within(low, high))

    def __bool__(self) -> bool:
        return bool(self._ranges)
