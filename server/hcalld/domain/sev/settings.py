# SPDX-License-Identifier: Apache-2.0
"""What a platform is like: what its owner chooses, and what no source says.

``SevSettings`` is the first. The constants are the second: numbers and rules that AMD publication
55766 and the kernel leave open, or that hardware alone could tell. They stand here and nowhere
else.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from hcallproto.payloads.sev import GuestState, PlatformState, Version


class Memory(enum.StrEnum):
    """What becomes of a guest's memory."""

    PLAIN = "plain"
    """It stays as it is: the guest runs on a KVM, or an emulator, without SEV."""
    ENCRYPTED = "encrypted"
    """It is encrypted in place: nothing but this platform reads it."""


class SevSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A platform's settings.

    Args:
        api_major: API version, as PLATFORM_STATUS tells it and measurements cover it.
        api_minor: the same.
        build: firmware build, as well.
        es: whether there is SEV-ES.
        asids: how many guests there may be. SEV and SEV-ES share one pool: hardware parts it
            at a number that is set in its firmware setup, and a client sees that only by what
            runs out first.
        memory: what becomes of guests' memory.
        strict_mainline: refuse what mainline's KVM refuses and the firmware does not: the
            commands that it never implemented, and packets beyond one page.
        init_on_probe: the driver's parameter ``psp_init_on_probe``, on by default as there:
            the platform is INIT from the start on, not from the first VM on.
        root: file with the keys of ARK and ASK; "" makes a platform's own.
    """

    api_major: int = 1
    api_minor: int = 55
    build: int = 21
    es: bool = True
    asids: int = 15
    memory: Memory = Memory.PLAIN
    strict_mainline: bool = False
    init_on_probe: bool = True
    root: str = ""

    @property
    def version(self) -> Version:
        """API version and build."""
        return Version(self.api_major, self.api_minor, self.build)

    def problems(self) -> list[str]:
        """What is impossible about them, one sentence each."""
        found = [
            f"{name} = {value}: expected 0 to 255"
            for name, value in (
                ("api_major", self.api_major),
                ("api_minor", self.api_minor),
                ("build", self.build),
            )
            if not 0 <= value <= 0xFF
        ]
        if not 1 <= self.asids <= MAX_ASIDS:
            found.append(f"asids = {self.asids}: expected 1 to {MAX_ASIDS}")
        return found


MAX_ASIDS: Final = 1006
"""More than any processor has had (CPUID 0x8000001F ECX of Genoa)."""

MAX_REGIONS: Final = 4096
"""Regions that a VM may register at once; the kernel's limit is that of locked memory."""
MAX_VCPUS: Final = 1024
"""Save areas of a guest: KVM_MAX_VCPUS as distributions build it."""
PIECE_SIZE: Final = 512 << 10
"""Guest memory is read and written in pieces: no frame has more than 1 MiB."""
MAX_HELD: Final = 128 << 20
"""What LAUNCH_UPDATE_DATA may hold of guest memory that it encrypts, until it is known that nothing
refuses it. The kernel's limit is again that of locked memory."""
MAX_DEBUG: Final = 8 << 20
"""What one DBG_DECRYPT or DBG_ENCRYPT may copy, for the same reason."""

VMSA_FEATURES: Final = 0
"""Of INIT2: SEV_FEATURES that a guest may have. All of them are of SEV-SNP but DEBUG_SWAP, which
needs a processor."""
MAX_GHCB_VERSION: Final = 2

DEBUG_STATES: Final = (GuestState.RUNNING, GuestState.SUPDATE)
"""States in which DBG_DECRYPT and DBG_ENCRYPT work."""
REPORT_STATES: Final = (GuestState.LSECRET, GuestState.RUNNING)
"""States in which GET_ATTESTATION_REPORT works."""
CSR_STATES: Final = (PlatformState.UNINIT, PlatformState.INIT)
"""The platform's states in which PEK_CSR works: not while guests exist, as sev-tool's table has it;
notes on 55766 allow it."""
