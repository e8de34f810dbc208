# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from hcallproto.abi.returns import (
    PARAMETER_CODES,
    ULTRA_PARAMETER_CODES,
    Code,
    H,
    U,
    code_name,
    status_name,
)

# Linux asm/hvcall.h and asm/ultravisor-api.h, open-power/ultravisor uapi_uvcall.h.
FROM_HEADERS: dict[Code, int] = {
    H.SUCCESS: 0,
    H.BUSY: 1,
    H.LONG_BUSY_ORDER_1_MSEC: 9900,
    H.LONG_BUSY_ORDER_100_SEC: 9905,
    H.HARDWARE: -1,
    H.FUNCTION: -2,
    H.PRIVILEGE: -3,
    H.PARAMETER: -4,
    H.NOT_FOUND: -7,
    H.NO_MEM: -9,
    H.AUTHORITY: -10,
    H.PERMISSION: -11,
    H.RESOURCE: -16,
    H.R_STATE: -45,
    H.P2: -55,
    H.P9: -62,
    H.TOO_BIG: -64,
    H.UNSUPPORTED: -67,
    H.BAD_DATA: -70,
    H.STATE: -75,
    H.IN_USE: -77,
    U.RETRY: -5,
    U.PERMISSION: -11,
    U.P5: -58,
    U.BAD_MODE: -59,
    U.STATE: -75,
}


@pytest.mark.parametrize(("code", "value"), FROM_HEADERS.items(), ids=map(code_name, FROM_HEADERS))
def test_code_has_the_headers_value(code: Code, value: int):
    assert code == value


def test_parameter_codes_are_in_order():
    assert [code_name(code) for code in PARAMETER_CODES] == [
        "H_PARAMETER",
        *(f"H_P{n}" for n in range(2, 10)),
    ]
    assert [code_name(code) for code in ULTRA_PARAMETER_CODES] == [
        "U_PARAMETER",
        *(f"U_P{n}" for n in range(2, 6)),
    ]


@pytest.mark.parametrize("codes", [H, U])
def test_no_two_names_share_a_value(codes: type[H | U]):
    assert len(codes.__members__) == len(list(codes))


@pytest.mark.parametrize(
    ("status", "codes", "name"),
    [
        (0, H, "H_SUCCESS"),
        (-59, H, "H_P6"),
        (-59, U, "U_BAD_MODE"),
        (-12345, H, "-12345"),
        (23, U, "23"),
    ],
)
def test_status_name(status: int, codes: type[H | U], name: str):
    assert status_name(status, codes) == name


def test_status_name_without_codes_is_a_hypercalls():
    assert status_name(-4) == "H_PARAMETER"
