# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import enum

import pytest

from hcallproto.abi.registers import U32_MAX, U64_MAX
from hcallproto.abi.returns import Code, H, SevCode, U
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Caller,
    Family,
    Hcall,
    Level,
    Limit,
    address,
    flags,
    level_codes,
    opaque,
    size,
    value,
)
from hcallproto.wire.schema import LEVEL_SHIM


class Colour(enum.IntEnum):
    RED = 2
    BLUE = 5


def call(*args: Arg, level: Level = Level.SC1, **more: object) -> Hcall:
    return Hcall(
        name="H_TEST",
        number=0x41C,
        level=level,
        doc="Test.",
        source="here",
        args=args,
        **more,  # type: ignore[arg-type]
    )


def test_arg_is_found_by_name():
    second = opaque("b", 5, "b")
    assert call(opaque("a", 4, "a"), second).arg("b") is second


def test_arg_unknown_raises():
    with pytest.raises(KeyError, match="H_TEST has no argument 'c'"):
        call().arg("c")


def test_arg_code_goes_by_position():
    args = [opaque(f"a{n}", 4 + n, "a") for n in range(9)]
    hcall = call(*args)
    expected = [H.PARAMETER, H.P2, H.P3, H.P4, H.P5, H.P6, H.P7, H.P8, H.P9]
    assert [hcall.arg_code(arg) for arg in args] == expected


def test_arg_code_of_an_ultracall_ends_with_p5():
    args = [opaque(f"a{n}", 4 + n, "a") for n in range(7)]
    codes = [call(*args, level=Level.SC2).arg_code(arg) for arg in args]
    assert codes == [U.PARAMETER, U.P2, U.P3, U.P4, U.P5, U.PARAMETER, U.PARAMETER]
    assert all(type(code) is U for code in codes)


def test_arg_code_of_a_command_is_an_errno():
    where, number = address("a", 4, "a"), opaque("b", 5, "b")
    hcall = call(where, number, level=Level.COMMAND)
    assert hcall.arg_code(where) is SevCode.EFAULT
    assert hcall.arg_code(number) is SevCode.EINVAL


def test_levels_have_their_codes():
    for level in Level:
        codes = level_codes(level)
        assert codes.codes is call(level=level).return_codes
        assert type(codes.function) is codes.codes
    assert level_codes(Level.COMMAND).function is SevCode.EINVAL
    assert level_codes(LEVEL_SHIM).codes is U
    assert level_codes(9) is level_codes(Level.SC1)


def test_arg_code_of_its_own_wins():
    arg = Arg(name="a", register=4, kind=ArgKind.VALUE, doc="a", code=H.TOO_BIG)
    assert call(arg).arg_code(arg) is H.TOO_BIG


@pytest.mark.parametrize(
    ("level", "codes"), [(Level.SC1, H), (Level.SC2, U), (Level.COMMAND, SevCode)]
)
def test_return_codes_by_level(level: Level, codes: type[Code]):
    assert call(level=level).return_codes is codes


@pytest.mark.parametrize("caller", Caller)
def test_only_anyone_calls_from_problem_state(caller: Caller):
    assert call(caller=caller).from_problem_state is (caller is Caller.ANY)


@pytest.mark.parametrize(
    ("decode_only", "expected"), [((True, True), True), ((True, False), False), ((False,), False)]
)
def test_family_is_decode_only_when_all_calls_are(decode_only: tuple[bool, ...], expected: bool):
    calls = tuple(call(decode_only=each) for each in decode_only)
    assert Family(name="t", title="T", source="s", calls=calls).decode_only is expected


def test_shorthands():
    assert address("a", 4, "d") == Arg(name="a", register=4, kind=ArgKind.ADDRESS, doc="d")
    assert opaque("a", 4, "d") == Arg(name="a", register=4, kind=ArgKind.OPAQUE, doc="d")
    sized = size("a", 4, "d", minimum=1, maximum=Limit.MAX_LABEL_SIZE)
    assert (sized.kind, sized.minimum, sized.maximum) == (ArgKind.SIZE, 1, Limit.MAX_LABEL_SIZE)
    assert size("a", 4, "d").maximum == U32_MAX
    assert flags("a", 4, "d", bits=6).maximum == 6
    assert (value("a", 4, "d").minimum, value("a", 4, "d").maximum) == (0, U64_MAX)
    named = value("a", 4, "d", names=Colour)
    assert (named.minimum, named.maximum, named.names) == (2, 5, Colour)
