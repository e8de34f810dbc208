# SPDX-License-Identifier: Apache-2.0
"""How often which number was seen, in buckets of fixed bounds: what percentiles are told from.

Each power of two is cut into 16 buckets, so a bucket is 1/16 of its lower bound wide, and a
number told from it is wrong by 1/32 at most. The bounds never depend on what was seen: two
histograms can be added, and of two that were taken one after the other the difference says
what was between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

_PART_BITS: Final = 4
PARTS: Final = 1 << _PART_BITS
"""Buckets in a power of two."""
MAX_VALUE: Final = (1 << 62) - 1
"""What is larger counts as this."""


def bucket_of(value: int) -> int:
    """The number of the bucket that a value is in."""
    shift = value.bit_length() - _PART_BITS - 1
    return value if shift <= 0 else (shift << _PART_BITS) + (value >> shift)


def bounds_of(bucket: int) -> tuple[int, int]:
    """The least number of a bucket, and the least that is beyond it."""
    shift = max((bucket >> _PART_BITS) - 1, 0)
    return (bucket - (shift << _PART_BITS)) << shift, (bucket + 1 - (shift << _PART_BITS)) << shift


class Histogram:
    """Counts of whole numbers from 0 on, such as nanoseconds.

    Attributes:
        buckets: of each bucket that is not empty, how many are in it.
        total: the sum of all.
        largest: of all.
    """

    __slots__ = ("buckets", "largest", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.total = 0
        self.largest = 0

    def add(self, value: int) -> None:
        """Count a number; one below 0 counts as 0."""
        if not 0 <= value <= MAX_VALUE:
            value = max(0, min(value, MAX_VALUE))
        self.total += value
        if value > self.largest:
            self.largest = value
        # bucket_of, without the call: every hypercall pays for it.
        shift = value.bit_length() - 5
        bucket = value if shift <= 0 else (shift << 4) + (value >> shift)
        buckets = self.buckets
        buckets[bucket] = buckets.get(bucket, 0) + 1

    @property
    def count(self) -> int:
        """How many were seen."""
        return sum(self.buckets.values())

    def percentile(self, percent: float) -> int:
        """The number that so many of 100 are at most; 0 if there is none."""
        rank = max(1, math.ceil(self.count * percent / 100))
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                low, end = bounds_of(bucket)
                return min((low + end - 1) // 2, self.largest)
        return 0

    def pairs(self) -> list[tuple[int, int]]:
        """Of each bucket that is not empty its least number, and how many are in it."""
        return [(bounds_of(bucket)[0], self.buckets[bucket]) for bucket in sorted(self.buckets)]

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[int, int]], largest: int) -> Histogram:
        """The histogram that gave these pairs; its ``total`` is lost."""
        histogram = cls()
        histogram.buckets = {bucket_of(low): count for low, count in pairs}
        histogram.largest = largest
        return histogram

    def since(self, earlier: Histogram) -> Histogram:
        """What came after an earlier state of the same histogram; ``largest`` is of all."""
        later = Histogram()
        later.largest = self.largest
        later.total = self.total - earlier.total
        for bucket, count in self.buckets.items():
            more = count - earlier.buckets.get(bucket, 0)
            if more > 0:
                later.buckets[bucket] = more
        return later

    def below(self, limits: Iterable[int]) -> Iterator[int]:
        """How many are below each of some limits, in rising order; they must be bounds."""
        buckets = sorted(self.buckets)
        at = seen = 0
        for limit in limits:
            end = bucket_of(limit)
            while at < len(buckets) and buckets[at] < end:
                seen += self.buckets[buckets[at]]
                at += 1
            yield seen
