# SPDX-License-Identifier: Apache-2.0
"""What an operator is told of a secure VM: numbers, and nothing of what is in its pages."""

from __future__ import annotations

import dataclasses

from hcalld.domain.hypervisor.states import GfnState
from hcalld.domain.pef.machine import GUEST_LPID, PefMachine
from hcalld.domain.ultravisor.vm_states import VmState


@dataclasses.dataclass(frozen=True, slots=True)
class PefFigures:
    """Of one VM. Pages are the hypervisor's, of 64 KiB, unless said otherwise."""

    state: VmState
    secure: int = 0
    """In secure memory."""
    shared: int = 0
    """Normal ones, because the VM shares all of them or a part."""
    out: int = 0
    """Paged out."""
    shared_4k: int = 0
    """Pages of 4 KiB that the VM shares."""
    paged_out: int = 0
    """How often a page went out since the VM became secure; outlives the daemon."""
    limit: int | None = None
    """Pages that it may have in secure memory; None: no limit."""


def figures_of(machine: PefMachine) -> PefFigures:
    """What a VM is now."""
    vm = machine.ultravisor.vms.get(GUEST_LPID)
    limit = machine.settings.hypervisor.resident_pages
    if vm is None or not machine.is_secure:
        return PefFigures(machine.state, limit=limit)
    count = dict.fromkeys(GfnState, 0)
    for low, high, state in machine.hypervisor.gfns.all_runs():
        count[state] += high - low
    return PefFigures(
        machine.state,
        secure=count[GfnState.SECURE],
        shared=count[GfnState.SHARED],
        out=count[GfnState.OUT],
        shared_4k=vm.shared_count,
        # Each page that leaves takes a version of its own.
        paged_out=vm.next_version - 1,
        limit=limit,
    )
