# SPDX-License-Identifier: Apache-2.0
"""Which addresses are RAM."""

from __future__ import annotations

import pytest

from hcalld.core.guestmem import RamMap

U64 = 1 << 64
SPLIT = RamMap([(0, 0x1000), (0x1000, 0x1000), (0x8000, 0x1000)])
"""Two neighbours, which are one range, and one apart."""


@pytest.mark.parametrize(
    ("gpa", "size", "inside"),
    [
        (0, 0x2000, True),
        (0xFFF, 2, True),
        (0, 0x2001, False),
        (0x1FFF, 1, True),
        (0x1FFF, 2, False),
        (0x2000, 1, False),
        (0x2000, 0, False),
        (0x1FFF, 0, True),
        (0x7FFF, 1, False),
        (0x8000, 0x1000, True),
        (0x8FFF, 1, True),
        (0x8FFF, 2, False),
        (0x9000, 0, False),
        (U64 - 1, 1, False),
        (U64 - 1, U64 - 1, False),
        (0, U64, False),
    ],
)
def test_contains_is_true_for_whole_ranges_only(gpa: int, size: int, inside: bool):
    assert SPLIT.contains(gpa, size) is inside


@pytest.mark.parametrize(
    ("gpa", "rest"), [(0, 0x2000), (0x1FFF, 1), (0x2000, 0), (0x7FFF, 0), (0x8010, 0xFF0)]
)
def test_bytes_from_counts_to_the_end_of_the_range(gpa: int, rest: int):
    assert SPLIT.bytes_from(gpa) == rest


def test_a_machine_without_ram_contains_nothing():
    assert not RamMap([]).contains(0, 0)
    assert RamMap([]).bytes_from(0) == 0


def test_ram_that_begins_above_0_does_not_contain_0():
    assert not RamMap([(0x1000, 0x1000)]).contains(0, 1)


def test_ram_tells_its_ranges():
    ram = RamMap(iter([(0, 8), (8, 8), (32, 4)]))
    assert ram.regions == ((0, 8), (8, 16), (32, 36))
    assert ram.contains(4, 12)
    assert not ram.contains(4, 13)
    assert RamMap([]).regions == ()
