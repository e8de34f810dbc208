# SPDX-License-Identifier: Apache-2.0
"""The checks that the table alone decides, on a call made up for the purpose."""

from __future__ import annotations

import enum

import pytest

from hcalld.core.call import Call, Plan, buffer_max_size, page_rest, resolve
from hcalld.core.errors import HcallError
from hcalld.core.guestmem import RamMap
from hcallproto.abi.returns import H
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Buffer,
    BufferShape,
    CodeWhen,
    Condition,
    Direction,
    Hcall,
    Level,
    Limit,
    address,
    flags,
    size,
)

RAM = RamMap([(0, 0x10000)])
LIMITS = {Limit.MAX_OBJECT_SIZE: 100, Limit.MAX_PASSWORD_SIZE: 64, Limit.SUPPORTED_POLICIES: 0x30}

AUTH = Buffer(
    address="auth",
    direction=Direction.IN,
    shape=BufferShape.PAGE_BOUNDED,
    max_size=Limit.MAX_PASSWORD_SIZE,
    header_size=16,
    alignment=16,
)
DATA = Buffer(
    address="data",
    direction=Direction.IN,
    shape=BufferShape.SIZED,
    max_size=Limit.MAX_OBJECT_SIZE,
    size="data_size",
    page_bounded=True,
)
BLOCK = Buffer(address="block", direction=Direction.OUT, shape=BufferShape.FIXED, max_size=0x800)
CALL = Hcall(
    name="H_MADE_UP",
    number=4,
    level=Level.SC1,
    doc="",
    source="",
    args=(
        address("auth", 4, ""),
        Arg(name="reserved", register=5, kind=ArgKind.ZERO, doc=""),
        flags("policy", 6, "", bits=Limit.SUPPORTED_POLICIES),
        address("data", 7, ""),
        size("data_size", 8, "", minimum=1, maximum=Limit.MAX_OBJECT_SIZE),
        address("block", 9, ""),
        Arg(name="op", register=10, kind=ArgKind.VALUE, doc="", minimum=1, maximum=2),
        Arg(
            name="extra",
            register=11,
            kind=ArgKind.ZERO,
            doc="",
            only_when=Condition("op", 2),
            code=H.STATE,
        ),
        Arg(name="token", register=12, kind=ArgKind.TOKEN, doc=""),
    ),
    buffers=(AUTH, DATA, BLOCK),
    codes=(CodeWhen(H.SUCCESS, ""), CodeWhen(H.P2, "")),
)
GOOD = {4: 0x1000, 5: 0, 6: 0x10, 7: 0x2000, 8: 100, 9: 0x3000, 10: 1, 11: 5, 12: 2**64 - 1}
PLAN = Plan(CALL, LIMITS)


def test_good_arguments_come_back_by_name():
    assert PLAN.arguments(GOOD, RAM) == {
        "auth": 0x1000,
        "reserved": 0,
        "policy": 0x10,
        "data": 0x2000,
        "data_size": 100,
        "block": 0x3000,
        "op": 1,
        "extra": 5,
        "token": 2**64 - 1,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {4: 0xFFF0},  # the head fits exactly; how long it is, it says itself
        {4: 0x1FF0},
        {6: 0},
        {6: 0x30},
        {7: 0x3000 - 100},
        {8: 1},
        {7: 0x2FFF, 8: 1},
        {9: 0x10000 - 0x800},
        {10: 2, 11: 0},
    ],
)
def test_arguments_at_their_bounds_are_taken(changes: dict[int, int]):
    PLAN.arguments(GOOD | changes, RAM)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({4: 0x1008}, H.PARAMETER),
        ({4: 0x10000}, H.PARAMETER),
        ({4: 2**63}, H.SUCCESS),  # the top four bits are ignored
        ({4: 0x0800_0000_0000_0000}, H.PARAMETER),
        ({5: 1}, H.P2),
        ({5: 1 << 63}, H.P2),
        ({6: 0x40}, H.P3),
        ({6: 0x1_0000_0010}, H.P3),
        ({7: 0x10000}, H.P4),
        ({7: 0x3000 - 99}, H.P4),  # crosses a page
        ({7: 0x10000 - 99}, H.P4),  # crosses the end of RAM
        ({8: 0}, H.P5),
        ({8: 101}, H.P5),
        ({8: 1 << 32 | 100}, H.P5),
        ({8: 2**64 - 1}, H.P5),
        ({9: 0x10000 - 0x7FF}, H.P6),
        ({10: 0}, H.P7),
        ({10: 3}, H.P7),
        ({10: 2, 11: 1}, H.STATE),
    ],
)
def test_a_bad_argument_gives_the_code_of_its_position(changes: dict[int, int], code: H):
    if code is H.SUCCESS:
        PLAN.arguments(GOOD | changes | {4: 2**63 | 0x1000}, RAM)
        return
    with pytest.raises(HcallError) as raised:
        PLAN.arguments(GOOD | changes, RAM)
    assert raised.value.code is code


def test_of_two_bad_arguments_the_first_names_the_code():
    with pytest.raises(HcallError) as raised:
        PLAN.arguments(GOOD | {5: 1, 6: 0x40, 10: 0}, RAM)
    assert raised.value.code is H.P2


def test_an_address_with_a_bad_size_is_judged_by_its_first_byte():
    with pytest.raises(HcallError) as raised:
        PLAN.arguments(GOOD | {7: 0xFFFF, 8: 2**64 - 1}, RAM)
    assert raised.value.code is H.P5
    with pytest.raises(HcallError) as raised:
        PLAN.arguments(GOOD | {7: 0x10000, 8: 2**64 - 1}, RAM)
    assert raised.value.code is H.P4


def test_bits_outside_an_intflag_limit_are_refused():
    """The complement of an IntFlag lacks the bits that the flag does not have."""

    class Bits(enum.IntFlag):
        LOW = 0x10

    plan = Plan(CALL, LIMITS | {Limit.SUPPORTED_POLICIES: Bits.LOW})
    for value in (1 << 32 | 0x10, 1 << 63, 0x20):
        with pytest.raises(HcallError) as raised:
            plan.arguments(GOOD | {6: value}, RAM)
        assert raised.value.code is H.P3


def test_refuse_uses_the_code_of_the_argument():
    call = Call(CALL, PLAN.arguments(GOOD, RAM), 0, RAM)

    assert call.refuse("policy", "why").code is H.P3
    assert call.refuse("extra", "why").code is H.STATE
    assert call["data_size"] == 100


def test_codes_are_those_of_the_table():
    assert PLAN.codes == {H.SUCCESS, H.P2}


def test_limits_are_resolved():
    assert resolve(Limit.MAX_OBJECT_SIZE, LIMITS) == 100
    assert resolve(7, LIMITS) == 7
    assert buffer_max_size(AUTH, LIMITS) == 80


@pytest.mark.parametrize(("gpa", "rest"), [(0, 4096), (1, 4095), (4095, 1), (4096, 4096)])
def test_page_rest_counts_to_the_end_of_the_page(gpa: int, rest: int):
    assert page_rest(gpa) == rest
