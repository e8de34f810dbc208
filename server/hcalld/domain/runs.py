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
    """Ranges of numbers, merged: a set of them without states."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: Runs[bool] = Runs(False)

    def add(self, low: int, high: int) -> None:
        """Take a range in."""
        self._runs.set(low, high, True)

    def remove(self, low: int, high: int) -> None:
        """Take a range out."""
        self._runs.set(low, high, False)

    def clear(self) -> None:
        """Take all out."""
        self._runs = Runs(False)

    def holds(self, low: int, high: int) -> bool:
        """True if all of the range is in."""
        return all(state for _, _, state in self._runs.runs(low, high))

    def touches(self, low: int, high: int) -> bool:
        """True if any of the range is in."""
        return any(state for _, _, state in self._runs.runs(low, high))

    def ranges(self) -> list[tuple[int, int]]:
        """All (first, after the last) pairs."""
        return [(low, high) for low, high, _ in self._runs.all_runs()]

    def within(self, low: int, high: int) -> list[tuple[int, int]]:
        """What of the range is in."""
        return [(a, b) for a, b, state in self._runs.runs(low, high) if state]

    def gaps(self, low: int, high: int) -> list[tuple[int, int]]:
        """What of the range is not in."""
        return [(a, b) for a, b, state in self._runs.runs(low, high) if not state]

    def __bool__(self) -> bool:
        return len(self._runs) > 1
