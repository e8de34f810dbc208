# SPDX-License-Identifier: Apache-2.0
"""Who makes a call: MSR(S, HV, PR), looked at before anything else.

Source: Linux 7.2 ``ultravisor.rst``, "Hardware"; open-power/ultravisor ``core/uvcall.c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hcalld.core.errors import HcallError
from hcallproto.abi.families import uv
from hcallproto.abi.registers import MSR_HV, MSR_PR, MSR_S
from hcallproto.abi.returns import U
from hcallproto.abi.spec import Caller, Hcall

MSR_TS: Final = 3 << 33
"""Transaction state (Power ISA v3.0B Book III 3.2.1, bits 29 and 30)."""

MSR_UNMEASURED: Final = 1 << 10 | 1 << 9 | 1 << 5 | 1 << 4
"""SE, BE, IR, DR (Power ISA v3.1 Book III 4.2.1, bits 53, 54, 58, 59): with one of them the
next instruction is not simply the one at the kernel's real address."""

WHO: Final[Mapping[tuple[bool, bool, bool], str]] = MappingProxyType(
    {
        (False, True, False): "hypervisor",
        (False, False, False): "kernel of a normal VM",
        (False, False, True): "user of a normal VM",
        (False, True, True): "user of the host",
        (True, True, False): "ultravisor",
        (True, False, False): "kernel of a secure VM",
        (True, False, True): "user of a secure VM",
        (True, True, True): "nobody (reserved)",
    }
)
"""(S, HV, PR) to who runs."""

ADMITTED: Final[Mapping[Caller, frozenset[tuple[bool, bool, bool]]]] = MappingProxyType(
    {
        # S is not looked at where the firmware does not.
        Caller.HYPERVISOR: frozenset({(False, True, False), (True, True, False)}),
        Caller.KERNEL: frozenset({(False, False, False), (True, False, False)}),
        Caller.SECURE_KERNEL: frozenset({(True, False, False)}),
        Caller.ULTRAVISOR: frozenset({(True, True, False)}),
        Caller.ANY: frozenset(WHO),
    }
)


def context(msr: int) -> tuple[bool, bool, bool]:
    """(S, HV, PR)."""
    return bool(msr & MSR_S), bool(msr & MSR_HV), bool(msr & MSR_PR)


def check_caller(hcall: Hcall, msr: int) -> None:
    """Admit a caller, or not.

    Raises:
        HcallError: U_PERMISSION, it may not make this call; U_BAD_MODE, it is a
            hypervisor in a transaction.
    """
    who = context(msr)
    if who not in ADMITTED[hcall.caller]:
        raise HcallError(U.PERMISSION, f"{hcall.name} made by the {WHO[who]}")
    # To UV_RETURN the firmware gives no code, but the VM an interrupt (``core/exceptions.c``).
    if hcall.caller is Caller.HYPERVISOR and hcall is not uv.RETURN and msr & MSR_TS:
        raise HcallError(U.BAD_MODE, "the hypervisor is in a transaction (MSR[TS] is not 0)")


def check_entry(msr: int) -> None:
    """Whether UV_ESM can go on at the kernel, which keeps the caller's MSR.

    Linux calls in real mode (``prom_init.c``). In virtual mode the kernel's address would
    mean what the caller's page tables say, and they can be in the device tree, the one thing
    in the VM's memory that nobody measured.

    Raises:
        HcallError: U_PARAMETER, it cannot.
    """
    if msr & MSR_UNMEASURED:
        raise HcallError(
            U.PARAMETER,
            f"MSR is 0x{msr:x}: expected real mode without traces (SE, BE, IR and DR are 0)",
        )
