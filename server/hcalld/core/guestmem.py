# SPDX-License-Identifier: Apache-2.0
"""Which guest addresses are RAM, as the shim's RAM frame tells it."""

from __future__ import annotations

import bisect
from collections.abc import Iterable


class RamMap:
    """Guest RAM as sorted, merged, half-open address ranges."""

    __slots__ = ("_ends", "_starts", "regions")

    def __init__(self, regions: Iterable[tuple[int, int]]) -> None:
        """Args: ``regions`` as (gpa, size) pairs, sorted, not overlapping."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.regions = tuple((gpa, gpa + size) for gpa, size in regions)
        """(first byte, byte after the last) of each: what comes and goes as one."""
        for gpa, end in self.regions:
            if self._ends and self._ends[-1] == gpa:
                self._ends[-1] = end
            else:
                self._starts.append(gpa)
                self._ends.append(end)

    def contains(self, gpa: int, size: int) -> bool:
        """True if ``size`` bytes at ``gpa`` are all RAM; an empty range asks for ``gpa``."""
        index = bisect.bisect_right(self._starts, gpa) - 1
        return index >= 0 and gpa + (size or 1) <= self._ends[index]

    def bytes_from(self, gpa: int) -> int:
        """How many bytes of RAM follow without a gap from ``gpa`` on; 0 if it is not RAM."""
        index = bisect.bisect_right(self._starts, gpa) - 1
        return max(0, self._ends[index] - gpa) if index >= 0 else 0
