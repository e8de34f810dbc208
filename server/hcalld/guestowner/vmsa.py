# SPDX-License-Identifier: Apache-2.0
"""The first state of SEV-ES processors: a page each, measured after all memory.

The fields are those of the save area of AMD's manual (24593, volume 2, appendix B, table B-4),
the values those of a reset (volume 2, table 14-1) as KVM keeps them, and CR4.MCE, which QEMU
sets. Which command made the VM decides about four bytes: with INIT2, KVM fills in the state
of the FPU too (Linux, ``sev_es_sync_vmsa``).
"""

from __future__ import annotations

import enum
from typing import Any, Final

from construct import Int16ul, Int32ul, Int64ul, Padded, Padding, Struct, Terminated

from hcalld.guestowner.errors import GuestOwnerError
from hcallproto.payloads.sev.constants import PAGE_SIZE

RESET_VECTOR: Final = 0xFFFF_FFF0
"""Where the first processor begins."""

Segment: Final = Struct(
    "selector" / Int16ul, "attrib" / Int16ul, "limit" / Int32ul, "base" / Int64ul
)

SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")

SaveArea: Final = Struct(
    *(name / Segment for name in SEGMENTS),
    Padding(0x0D0 - 0x0A0),
    "efer" / Int64ul,
    Padding(0x148 - 0x0D8),
    "cr4" / Int64ul,
    "cr3" / Int64ul,
    "cr0" / Int64ul,
    "dr7" / Int64ul,
    "dr6" / Int64ul,
    "rflags" / Int64ul,
    "rip" / Int64ul,
    Padding(0x268 - 0x180),
    "g_pat" / Int64ul,
    Padding(0x310 - 0x270),
    "rdx" / Int64ul,
    Padding(0x3B0 - 0x318),
    "sev_features" / Int64ul,
    Padding(0x3E8 - 0x3B8),
    "xcr0" / Int64ul,
    Padding(0x408 - 0x3F0),
    "mxcsr" / Int32ul,
    "x87_ftw" / Int16ul,
    "x87_fsw" / Int16ul,
    "x87_fcw" / Int16ul,
)
"""What of the save area is not zero after a reset."""

Page: Final = Struct("area" / Padded(PAGE_SIZE, SaveArea), Terminated)


class InitStyle(enum.Enum):
    """Which command makes the VM, hence who fills in the FPU."""

    ES_INIT = "es-init"
    """KVM_SEV_ES_INIT: what QEMU up to 9.0 uses, and virt-qemu-sev-validate builds."""
    INIT2 = "init2"
    """KVM_SEV_INIT2: newer QEMU, and what sev-snp-measure builds."""

    @property
    def command(self) -> str:
        """The command's name."""
        return f"KVM_SEV_{self.name}"


_DATA_SEGMENT: Final = {"selector": 0, "attrib": 0x93, "limit": 0xFFFF, "base": 0}
_TABLE: Final = {"selector": 0, "attrib": 0, "limit": 0xFFFF, "base": 0}

_RESET: Final[dict[str, Any]] = {
    **dict.fromkeys(("es", "ss", "ds", "fs", "gs"), _DATA_SEGMENT),
    "gdtr": _TABLE,
    "idtr": _TABLE,
    "ldtr": _TABLE | {"attrib": 0x82},
    "tr": _TABLE | {"attrib": 0x8B},
    "efer": 0x1000,  # SVME: the hardware wants it in any guest's
    "cr4": 0x40,  # MCE
    "cr3": 0,
    "cr0": 0x10,  # ET
    "dr7": 0x400,
    "dr6": 0xFFFF_0FF0,
    "rflags": 0x2,
    "g_pat": 0x0007_0406_0007_0406,
    "sev_features": 0,
    "xcr0": 0x1,
    "mxcsr": 0,
    "x87_ftw": 0,
    "x87_fsw": 0,
    "x87_fcw": 0,
}

_FPU: Final = {"mxcsr": 0x1F80, "x87_fcw": 0x037F}
"""What INIT2 adds: the values after FNINIT."""


def page(address: int, signature: int, style: InitStyle) -> bytes:
    """The page of one processor.

    Args:
        address: where it begins: RESET_VECTOR, or what the firmware's footer says.
        signature: family, model and stepping, as CPUID 1 gives them in EAX.
        style: which command makes the VM.
    """
    area = _RESET | {
        # In real mode, so what RIP cannot hold is in the base of CS.
        "cs": {
            "selector": 0xF000,
            "attrib": 0x9B,
            "limit": 0xFFFF,
            "base": address & 0xFFFF_0000,
        },
        "rip": address & 0xFFFF,
        "rdx": signature,
    }
    if style is InitStyle.INIT2:
        area |= _FPU
    built: bytes = Page.build({"area": area})
    return built


def pages(
    count: int, reset_address: int | None, signature: int, style: InitStyle
) -> tuple[bytes, ...]:
    """The pages of all processors, in their order.

    Args:
        count: how many processors.
        reset_address: where those other than the first begin.
        signature: as for ``page``.
        style: as for ``page``.

    Raises:
        GuestOwnerError: it is not known where the others begin.
    """
    first = page(RESET_VECTOR, signature, style)
    if count == 1:
        return (first,)
    if reset_address is None:
        raise GuestOwnerError(
            "the firmware has no SEV-ES reset block in its footer table, so it is not known where "
            "processors other than the first begin; expected OVMF built for SEV-ES"
        )
    return (first, *[page(reset_address, signature, style)] * (count - 1))


def from_files(count: int, first: bytes, others: bytes | None) -> tuple[bytes, ...]:
    """The pages of all processors from dumps of one page each.

    Raises:
        GuestOwnerError: a dump is missing, or is no page.
    """
    for data in (first, others):
        if data is not None and len(data) != PAGE_SIZE:
            raise GuestOwnerError(f"a VMSA has {len(data)} bytes, expected {PAGE_SIZE}: one page")
    if count > 1 and others is None:
        raise GuestOwnerError(
            f"there are {count} processors and a VMSA of the first alone; give that of the others "
            "too"
        )
    return (first, *[others or b""] * (count - 1))


__all__ = ["RESET_VECTOR", "InitStyle", "from_files", "page", "pages"]
