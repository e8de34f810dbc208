# SPDX-License-Identifier: Apache-2.0
"""Memory slots: bounds, overlaps, neighbours."""

from __future__ import annotations

import pytest

from hcalld.core.errors import HcallError
from hcalld.domain.ultravisor.slots import Slot, Slots
from hcallproto.abi.returns import U

PAGE = 0x10000
TOP = 1 << 60
ROOM = 1 << 44


def make(*slots: tuple[int, int]) -> Slots:
    made = Slots()
    for slot_id, (start, size) in enumerate(slots):
        made.put(slot_id, made.check(slot_id, start, size))
    return made


@pytest.mark.parametrize(
    ("slot_id", "start", "size", "code"),
    [
        (1, 1, PAGE, U.P2),
        (1, PAGE - 4096, PAGE, U.P2),
        (1, PAGE, 0, U.P3),
        (1, TOP - PAGE, 2 * PAGE, U.P3),
        (1, TOP, PAGE, U.P3),
        (1, PAGE, (1 << 64) - 1, U.P3),
        (1, ROOM - PAGE, 2 * PAGE, U.PARAMETER),
        (1, ROOM, PAGE, U.PARAMETER),
        (1, 4 * PAGE, TOP - 4 * PAGE, U.PARAMETER),
        (1, 3 * PAGE, PAGE, U.P3),
        (1, 0, 5 * PAGE, U.P3),
        (512, 8 * PAGE, PAGE, U.P5),
        (0xFFFF, 8 * PAGE, PAGE, U.P5),
    ],
)
def test_refused(slot_id: int, start: int, size: int, code: U):
    slots = make((2 * PAGE, 2 * PAGE))
    with pytest.raises(HcallError) as raised:
        slots.check(slot_id, start, size)
    assert raised.value.code is code
    assert raised.value.why


@pytest.mark.parametrize(
    ("slot_id", "start", "size"),
    [(511, ROOM - PAGE, PAGE), (1, 0, 2 * PAGE), (1, 4 * PAGE, PAGE), (0, 3 * PAGE, PAGE)],
)
def test_taken(slot_id: int, start: int, size: int):
    assert make((2 * PAGE, 2 * PAGE)).check(slot_id, start, size) == Slot(start, size)


def test_size_is_rounded_up():
    assert make().check(0, PAGE, 1) == Slot(PAGE, PAGE)
    assert make().check(0, PAGE, PAGE + 1) == Slot(PAGE, 2 * PAGE)


def test_neighbours_hold_a_range_together():
    slots = make((0, PAGE), (PAGE, PAGE), (3 * PAGE, PAGE))
    assert slots.hold(0, 2 * PAGE)
    assert not slots.hold(PAGE, 4 * PAGE)
    assert not slots.hold(0, 0)
    assert slots.ranges() == [(0, 2 * PAGE), (3 * PAGE, 4 * PAGE)]


def test_an_id_in_use_is_replaced():
    slots = make((0, 2 * PAGE))
    slots.put(0, slots.check(0, PAGE, 2 * PAGE))
    assert slots.ranges() == [(PAGE, 3 * PAGE)]
    assert len(slots) == 1
    assert slots.remove(0) == Slot(PAGE, 2 * PAGE)
    assert slots.remove(0) is None
    assert list(slots) == []
