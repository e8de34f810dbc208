# SPDX-License-Identifier: Apache-2.0
"""Return codes of hypercalls, ultracalls and SEV commands, as r3 holds them.

Sources: LoPAR 14.5.4.1.1 (table of return codes); the values also stand in Linux
``arch/powerpc/include/asm/hvcall.h`` and ``asm/ultravisor-api.h``. U_RETRY, U_BAD_MODE
and U_STATE come from ``open-power/ultravisor`` ``include/uapi_uvcall.h``, the ones from
U_UNSUPPORTED to U_XSCOM_TIMEOUT from its ``include/uvcall.h``. The firmware and Linux
disagree about U_BUSY: -2 and internal there, 1 here.

A SEV command has a firmware status (``enum sev_ret_code`` of Linux 7.2
``include/uapi/linux/psp-sev.h``) or the kernel's -errno; the two never come together but as
-EIO with a status, so one number says both.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
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
    UNSUPPORTED = -7
    PERMISSION = -11
    XSCOM_CHIPLET_OFF = -14
    XSCOM_PARTIAL_GOOD = -25
    XSCOM_ADDR_ERROR = -26
    XSCOM_CLOCK_ERROR = -27
    XSCOM_PARITY_ERROR = -28
    XSCOM_TIMEOUT = -29
    P2 = -55
    P3 = -56
    P4 = -57
    P5 = -58
    BAD_MODE = -59
    STATE = -75


class SevCode(enum.IntEnum):
    """What becomes of a SEV command: a firmware status above 0, or -errno below.

    With a status the ioctl gives -EIO and the caller's ``error`` is the status. The kernel
    spells 0x03 SEV_RET_INAVLID_CONFIG.
    """

    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_GUEST_STATE = 0x02
    INVALID_CONFIG = 0x03
    INVALID_LEN = 0x04
    ALREADY_OWNED = 0x05
    INVALID_CERTIFICATE = 0x06
    POLICY_FAILURE = 0x07
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    BAD_SIGNATURE = 0x0A
    BAD_MEASUREMENT = 0x0B
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    WBINVD_REQUIRED = 0x0E
    DFFLUSH_REQUIRED = 0x0F
    INVALID_GUEST = 0x10
    INVALID_COMMAND = 0x11
    ACTIVE = 0x12
    HWERROR_PLATFORM = 0x13
    HWERROR_UNSAFE = 0x14
    UNSUPPORTED = 0x15
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    SECURE_DATA_INVALID = 0x18
    EPERM = -1
    EIO = -5
    EBADF = -9
    EFAULT = -14
    EBUSY = -16
    ENODEV = -19
    EINVAL = -22
    ENOTTY = -25
    ETIMEDOUT = -110


Code = H | U | SevCode

CODE_SETS: Final[tuple[type[Code], ...]] = (H, U, SevCode)

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

ULTRA_PARAMETER_CODES: Final[tuple[U, ...]] = (U.PARAMETER, U.P2, U.P3, U.P4, U.P5)
"""The same for ultracalls, which have no more."""


AGAIN: Final[Mapping[type[Code], frozenset[int]]] = MappingProxyType(
    {
        H: frozenset((H.BUSY, *(code for code in H if code.name.startswith("LONG_BUSY_")))),
        U: frozenset((U.BUSY, U.RETRY)),
        SevCode: frozenset(),
    }
)
"""The codes that ask for the same call again. EBUSY of a SEV platform with guests does not."""


def code_name(code: Code) -> str:
    """The official spelling: ``H_P2``, ``U_RETRY``, ``SEV_RET_INVALID_LEN``, ``EINVAL``."""
    if isinstance(code, SevCode):
        return code.name if code < 0 else f"SEV_RET_{code.name}"
    return f"{type(code).__name__}_{code.name}"


def status_name(status: int, codes: type[Code] = H) -> str:
    """Name a status from r3; a number that no header names comes back as digits.

    Args:
        status: r3 as a signed 64-bit number.
        codes: which set of codes the call's level uses.
    """
    try:
        return code_name(codes(status))
    except ValueError:
        return str(status)
