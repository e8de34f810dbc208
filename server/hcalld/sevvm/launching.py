# SPDX-License-Identifier: Apache-2.0
"""A launch in QEMU's order (QEMU 10.0 ``target/i386/sev.c``, ``hw/i386/x86-common.c``).

QEMU has its firmware end below 4 GiB; here it ends where memory ends, so that memory is one range.
What a footer names, where the table of hashes and the secret go, is at its own address.
"""

from __future__ import annotations

import dataclasses

from hcalld.crypto.sev.memory import BLOCK_SIZE
from hcalld.guestowner.launch import Kernel, Processors, footer_of, hashes_area
from hcalld.guestowner.platform import Platform
from hcalld.sevvm.errors import SevVmError
from hcalld.sevvm.machine import Machine
from hcallproto.abi.families import sev
from hcallproto.abi.spec import Hcall
from hcallproto.payloads.sev.constants import PlatformFlag, Policy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is launched.

    Attributes:
        firmware: the image.
        kernel: hashes of what is booted directly, if they are measured.
        processors: of a guest of SEV-ES.
        policy: the guest's.
        dh: its owner's certificate, QEMU's dh-cert-file; empty: it has no owner.
        session: its owner's session, QEMU's session-file.
        by_init2: INIT2 makes the VM, as new QEMUs have it.
        handle: of a guest whose key it shares; 0: of none.
    """

    firmware: bytes
    policy: int
    kernel: Kernel | None = None
    processors: Processors | None = None
    dh: bytes = b""
    session: bytes = b""
    by_init2: bool = False
    handle: int = 0

    @property
    def is_es(self) -> bool:
        """Whether the policy is one of SEV-ES."""
        return bool(self.policy & Policy.ES)

    @property
    def init_command(self) -> Hcall:
        """What makes the VM."""
        if self.by_init2:
            return sev.INIT2
        return sev.ES_INIT if self.is_es else sev.INIT

    def hashes_address(self) -> int | None:
        """Where the table of hashes goes; None without a kernel.

        Raises:
            GuestOwnerError: the firmware has no place for it.
        """
        if self.kernel is None:
            return None
        return hashes_area(footer_of(self.firmware)).base


def launch(machine: Machine, plan: Plan) -> bytes:
    """Launch a guest up to its measurement, which is returned with its nonce.

    Raises:
        GuestOwnerError: the VM is too small, or firmware or platform cannot do what is planned.
        CommandRefused: the platform refuses.
    """
    if len(plan.firmware) % BLOCK_SIZE:
        raise SevVmError(
            f"the firmware has {len(plan.firmware)} bytes; expected a multiple of {BLOCK_SIZE}"
        )
    firmware_address = machine.size - len(plan.firmware)
    machine.address(firmware_address, len(plan.firmware))
    hashes_address = plan.hashes_address()
    flags = Platform(machine.client).status().flags
    if plan.is_es and not flags & PlatformFlag.CONFIG_ES:
        raise SevVmError(
            "the policy is one of SEV-ES, which the platform does not have; expected es = true in "
            "its profile, or another policy"
        )
    machine.init(plan.init_command)
    machine.launch_start(plan.policy, plan.dh, plan.session, handle=plan.handle)
    machine.launch_update_data(firmware_address, plan.firmware)
    if hashes_address is not None:
        assert plan.kernel is not None
        machine.launch_update_data(hashes_address, plan.kernel.table)
    if plan.is_es and plan.processors is not None:
        machine.launch_update_vmsas(plan.processors.pages)
    return machine.launch_measure()


def secret_address(firmware: bytes, size: int) -> int:
    """Where a secret goes unless told otherwise.

    Raises:
        SevVmError: the firmware names no place, or too small a one.
    """
    area = footer_of(firmware).secret_area
    if area is None:
        raise SevVmError("names no place for a secret; give one by --gpa")
    if area.size < size:
        raise SevVmError(
            f"has room for a secret of {area.size} bytes, and this one has {size}; expected a "
            "smaller one, or a place for it by --gpa"
        )
    return area.base
