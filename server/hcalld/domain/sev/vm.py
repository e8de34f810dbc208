# SPDX-License-Identifier: Apache-2.0
"""A virtual machine of a connection, and the guest that the platform keeps for it.

Nothing of it is stored: a guest ends with its connection, or with the daemon, as one does with
its processor's power. What the platform knows of it beside is in ``view.GuestEntry``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Final

from hcalld.core.errors import HcallError
from hcalld.core.records import Change, Record
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.memory import MemoryCipher
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.sev.settings import MAX_REGIONS
from hcalld.domain.sev.states import INITIALIZES, NEEDS_ES, UNINITIALIZED, VmKind, guest_after
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev import GuestState, Policy, Version

_ADDRESS_END: Final = 1 << 64


def is_beyond(address: int, size: int) -> bool:
    """True unless a range ends before the last address: ``sev_pin_memory()`` adds in 64 bits."""
    return address + size >= _ADDRESS_END


@dataclasses.dataclass(slots=True)
class Guest:
    """A guest's context, which hardware keeps from everyone."""

    handle: int
    policy: int
    state: GuestState
    version: Version
    """The platform's when it began: measurements cover it."""
    memory: MemoryCipher | None
    """Of its memory; None: that is left in plain."""
    keys: TransportKeys | None = dataclasses.field(repr=False)
    """Shared with its owner, or with the other platform. None: they are used no more."""
    digest: hashlib._Hash = dataclasses.field(default_factory=hashlib.sha256, repr=False)
    """Of what was launched so far. A command works on a copy."""
    launch_digest: bytes = bytes(32)
    """Of all that was launched; zero in a guest that was received."""
    measurement: bytes = b""
    vmsas: dict[int, bytes] = dataclasses.field(default_factory=dict, repr=False)
    """Save areas by vCPU."""


@dataclasses.dataclass(slots=True)
class SevVm:
    """A VM of a client, as its kernel and the platform know it; see ``Served.build``."""

    kind: VmKind = VmKind.NONE
    is_strict: bool = False
    """Refuses what mainline's KVM does."""
    guest: Guest | None = None
    regions: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    """(first byte, size) to how often it is registered."""
    is_busy: bool = False
    """A command is under way."""

    @classmethod
    def build(cls, attributes: PartitionAttributes, records: Iterable[Record]) -> SevVm:
        """A VM that nothing was done with: there is nothing to store of one."""
        return cls()

    def take_changes(self) -> list[Change]:
        """See Model."""
        return []

    def held(self) -> str:
        """See Served."""
        is_new = self.kind is VmKind.NONE and not self.regions
        return "" if is_new else "the VM was one of SEV already"

    def enter(self) -> None:
        """Begin a command, which ends with ``is_busy`` unset.

        The kernel lets a second one wait. A client's library does as well, so here is one that
        comes too soon, and could undo what the first has worked out.

        Raises:
            HcallError: EINVAL.
        """
        if self.is_busy:
            raise HcallError(
                SevCode.EINVAL,
                "another command of the VM is under way: send the next one after its reply",
            )
        self.is_busy = True

    # -- states -----------------------------------------------------------------------------

    @property
    def state(self) -> GuestState:
        """The guest's; UNINIT without one."""
        return GuestState.UNINIT if self.guest is None else self.guest.state

    def check_kind(self, command: Hcall) -> None:
        """What the kernel looks at first: is the VM one for which the command is?

        Raises:
            HcallError: it is not.
        """
        name = command.name
        if name in INITIALIZES:
            if self.kind is not VmKind.NONE:
                raise HcallError(SevCode.EINVAL, f"the VM is {self.kind.value} already")
        elif self.kind is VmKind.NONE:
            raise HcallError(
                UNINITIALIZED.get(name, SevCode.ENOTTY), f"the VM is {self.kind.value}"
            )
        elif name in NEEDS_ES and self.kind is VmKind.SEV:
            raise HcallError(SevCode.ENOTTY, "the VM is one of SEV, and has no save areas")

    def begin(self, command: Hcall) -> tuple[Guest, GuestState]:
        """The guest, and the state that a command will leave it in.

        Raises:
            HcallError: there is no guest, or the command is refused in its state.
        """
        after = guest_after(command, self.state)
        assert self.guest is not None, "the table lets no other command pass"
        return self.guest, after

    def open(self, guest: Guest) -> None:
        """It has a guest from now on."""
        self.guest = guest
        if self.kind is VmKind.BY_POLICY:
            self.kind = VmKind.SEV_ES if guest.policy & Policy.ES else VmKind.SEV

    # -- regions ----------------------------------------------------------------------------

    def register(self, address: int, size: int) -> None:
        """Memory may come to hold encrypted data (``sev_mem_enc_register_region()``).

        Raises:
            HcallError: EINVAL.
        """
        if not size or is_beyond(address, size):
            raise HcallError(
                SevCode.EINVAL,
                f"region 0x{address:x} + {size}: expected at least one byte, and an end that is "
                "an address",
            )
        if sum(self.regions.values()) >= MAX_REGIONS:
            raise HcallError(SevCode.EINVAL, f"the VM has {MAX_REGIONS} regions already")
        self.regions[address, size] = self.regions.get((address, size), 0) + 1

    def unregister(self, address: int, size: int) -> None:
        """It does no more.

        Raises:
            HcallError: EINVAL, the region was not registered so.
        """
        count = self.regions.get((address, size), 0)
        if not count:
            raise HcallError(
                SevCode.EINVAL,
                f"region 0x{address:x} + {size} was not registered: give both as they were",
            )
        if count > 1:
            self.regions[address, size] = count - 1
        else:
            del self.regions[address, size]
