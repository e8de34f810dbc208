# SPDX-License-Identifier: Apache-2.0
"""Return codes of hypercalls (``H_*``) and ultracalls (``U_*``), as r3 holds them.

Sources: LoPAR 14.5.4.1.1 (table of return codes); the values also stand in Linux
``arch/powerpc/include/asm/hvcall.h`` and ``asm/ultravisor-api.h``. U_RETRY,
U_PERMISSION and U_P5 come from ``open-power/ultravisor`` ``include/uvcall.h``.
"""

from __future__ import annotations

import enum
from typing import Final


class H(enum.IntEnum):
    """Hypercall return codes."""

    SUCCESS = 0
    BUSY = 1
    CLOSED = 2
    NOT_AVAILABLE = 3
    LONG_BUSY_ORDER_1_MSEC = 9900
    LONG_BUSY_ORDER_10_MSEC = 9901
    LONG_BUSY_ORDER_100_MSEC = 9902
    LONG_BUSY_ORDER_1_SEC = 9903
    LONG_BUSY_ORDER_10_SEC = 9904
    LONG_BUSY_ORDER_100_SEC = 9905
    HARDWARE = -1
    FUNCTION = -2
    PRIVILEGE = -3
    PARAMETER = -4
    NOT_FOUND = -7
    NO_MEM = -9
    AUTHORITY = -10
    PERMISSION = -11
    DROPPED = -12
    RESOURCE = -16
    R_STATE = -45
    ABORTED = -54
    P2 = -55
    P3 = -56
    P4 = -57
    P5 = -58
    P6 = -59
    P7 = -60
    P8 = -61
    P9 = -62
    TOO_BIG = -64
    UNSUPPORTED = -67
    BAD_DATA = -70
    STATE = -75
    IN_USE = -77


class U(enum.IntEnum):
    """Ultracall return codes."""

    SUCCESS = 0
    BUSY = 1
    NOT_AVAILABLE = 3
    FUNCTION = -2
    PARAMETER = -4
    RETRY = -5
    PERMISSION = -11
    P2 = -55
    P3 = -56
    P4 = -57
    P5 = -58
    BAD_MODE = -59
    STATE = -75


Code = H | U

PARAMETER_CODES: Final[tuple[H, ...]] = (
    H.PARAMETER,
    H.P2,
    H.P3,
    H.P4,
    H.P5,
    H.P6,
    H.P7,
    H.P8,
    H.P9,
)
"""The code that says "argument n is invalid", by n - 1."""


def code_name(code: Code) -> str:
    """The official spelling: ``H_P2``, ``U_RETRY``."""
    return f"{type(code).__name__}_{code.name}"


def status_name(status: int, codes: type[H | U] = H) -> str:
    """Name a status from r3; a number that no header names comes back as digits.

    Args:
        status: r3 as a signed 64-bit number.
        codes: which set of codes the call's level uses.
    """
    try:
        return code_name(codes(status))
    except ValueError:
        return str(status)
