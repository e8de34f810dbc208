# SPDX-License-Identifier: Apache-2.0
"""Counts in buckets: percentiles that are right to 1/32, whatever was counted."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.core.histogram import MAX_VALUE, PARTS, Histogram, bounds_of, bucket_of

VALUES = st.one_of(st.integers(0, 2000), st.integers(0, MAX_VALUE))


def counted(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(VALUES)
def test_buckets_when_a_number_is_in_one_then_it_is_within_its_bounds(value: int):
    low, end = bounds_of(bucket_of(value))
    assert low <= value < end
    assert end - low <= max(1, low / PARTS)
    assert list(counted([value]).buckets) == [bucket_of(value)]


def test_buckets_when_they_are_counted_then_none_is_left_out():
    ends = [bounds_of(bucket) for bucket in range(600)]
    assert ends[0][0] == 0
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ends))


@given(st.lists(VALUES, min_size=1, max_size=60), st.integers(1, 100))
def test_percentile_when_it_is_told_then_it_is_that_of_the_numbers_to_a_32nd(
    values: list[int], percent: int
):
    exact = sorted(values)[math.ceil(len(values) * percent / 100) - 1]
    told = counted(values).percentile(percent)
    assert abs(told - exact) <= exact / 32
    assert told <= max(values)


def test_percentile_when_nothing_was_counted_then_it_is_zero():
    assert Histogram().percentile(50) == 0


@pytest.mark.parametrize(("value", "largest"), [(-5, 0), (1 << 70, MAX_VALUE)])
def test_add_when_a_clock_was_set_then_the_number_is_the_nearest_that_is_counted(
    value: int, largest: int
):
    histogram = counted([value])
    assert (histogram.count, histogram.total, histogram.largest) == (1, largest, largest)


@given(st.lists(VALUES, max_size=40), st.lists(VALUES, max_size=40))
def test_since_when_more_came_then_it_is_what_came(before: list[int], after: list[int]):
    earlier, later = counted(before), counted(before + after)
    came = later.since(earlier)
    assert came.buckets == counted(after).buckets
    assert came.total == sum(after)


@given(st.lists(VALUES, max_size=40))
def test_pairs_when_they_are_sent_then_they_are_the_same_histogram(values: list[int]):
    histogram = counted(values)
    again = Histogram.of_pairs(histogram.pairs(), histogram.largest)
    assert again.buckets == histogram.buckets
    assert again.percentile(90) == histogram.percentile(90)


@given(st.lists(st.integers(0, 1 << 40), max_size=40))
def test_below_when_limits_are_powers_of_two_then_what_is_below_is_counted(values: list[int]):
    limits = [1 << shift for shift in range(5, 42, 3)]
    expected = [sum(value < limit for value in values) for limit in limits]
    assert list(counted(values).below(limits)) == expected
