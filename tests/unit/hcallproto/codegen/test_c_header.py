# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from hcallproto.abi.families import sev
from hcallproto.abi.registry import CALLS, FAMILIES
from hcallproto.abi.returns import H, SevCode, U, code_name
from hcallproto.abi.spec import Hcall, Level
from hcallproto.codegen.c_header import c_header

HEADER = c_header()
DEFINES = dict(re.findall(r"^#define (\w+)\t+(\S+)$", HEADER, re.MULTILINE))


def number(text: str) -> int:
    return int(text.strip("()"), 0)


@pytest.mark.parametrize(
    "call",
    [call for call in CALLS if call.level is not Level.COMMAND],
    ids=lambda call: call.name,
)
def test_call_is_defined(call: Hcall):
    assert number(DEFINES[call.name]) == call.number
    served = int(not call.decode_only)
    entry = rf"^\tX\({call.name}, 0x{call.number:x}, {call.level}, \d, {served}\)"
    assert re.search(entry, HEADER, re.MULTILINE)


def test_codes_are_defined_and_listed():
    for code in (*H, *U):
        assert number(DEFINES[code_name(code)]) == code
        assert f"\tX({code_name(code)})" in HEADER


def test_constants_are_defined():
    for family in FAMILIES:
        for name, value in family.constants:
            if family is sev.FAMILY:
                assert name not in DEFINES
            else:
                assert number(DEFINES[name]) == value


def test_what_no_pseries_guest_can_make_is_left_out():
    """Commands have a header of their own."""
    names = {call.name for call in sev.FAMILY.calls} | {code_name(code) for code in SevCode}
    assert not [name for name in re.findall(r"\w+", HEADER) if name in names]


def test_nothing_is_defined_twice():
    names = re.findall(r"^#define (\w+)", HEADER, re.MULTILINE)
    assert len(names) == len(set(names))


def test_negative_numbers_are_safe_in_expressions():
    assert DEFINES["H_P2"] == "(-55)"


def test_masks_are_hexadecimal_and_sizes_decimal():
    assert DEFINES["PKS_POLICY_WORLDREADABLE"] == "0x08000000"
    assert DEFINES["PKS_AUTH_HEADER_SIZE"] == "16"


def test_only_ordinary_arguments_are_counted():
    assert "\tX(UV_RETURN, 0xf11c, 2, 9, 1)" in HEADER
    assert "\tX(H_PKS_WRITE_OBJECT, 0x42c, 1, 6, 1)" in HEADER


def test_licence_and_guard():
    assert HEADER.startswith("/* SPDX-License-Identifier: GPL-2.0-or-later */\n")
    assert HEADER.rstrip().endswith("#endif")
    assert "Do not edit" in HEADER


def test_every_list_is_one_logical_line():
    for name in ("HCALL_H_CODES", "HCALL_U_CODES", "HCALL_CALLS"):
        body = HEADER[HEADER.index(f"#define {name}(X)") :].split("\n\n")[0]
        *continued, last = body.splitlines()
        assert all(line.endswith("\\") for line in continued)
        assert not last.endswith("\\")
