# SPDX-License-Identifier: Apache-2.0
"""Registers that a call is made of, and the MSR bits that say who makes it.

Sources: Power ISA v3.1 Book III 4.2.1 (MSR), 3.3.1 (System Call); LoPAR 14.5.1.
"""

from __future__ import annotations

from typing import Final

R_NUMBER: Final = 3
"""Holds the call's number on entry and its status on return."""

FIRST_ARGUMENT: Final = 4
LAST_ARGUMENT: Final = 12
CONTEXT_REGISTERS: Final = (0, 2, 31)
"""Forwarded beside r3 to r12, for UV_RETURN, which takes a whole context."""

MSR_S: Final = 1 << 22
"""Secure state (IBM bit 41)."""
MSR_HV: Final = 1 << 60
"""Hypervisor state (IBM bit 3)."""
MSR_PR: Final = 1 << 14
"""Problem state (IBM bit 49)."""
MSR_LE: Final = 1
"""Little-endian mode (IBM bit 63)."""

REAL_ADDRESS_MASK: Final = 0x0FFF_FFFF_FFFF_FFFF
"""The address bits that count; the top four are ignored (ISA v3.1 Book III 6.7.3)."""

U64_MAX: Final = (1 << 64) - 1
U32_MAX: Final = (1 << 32) - 1
