# SPDX-License-Identifier: Apache-2.0
"""What carries out the calls that QEMU itself makes for a secure VM."""

from __future__ import annotations

from hcalld.core.call import Call
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.domain.pef.attend import attend, touch
from hcalld.domain.pef.machine import PefMachine
from hcalld.families.uv.shim_table import ATTEND, FAMILY, PAGE_IN

__all__ = ["FAMILY", "HANDLERS"]

HANDLERS: HandlerSet[PefMachine] = HandlerSet(FAMILY)
"""Over the model of family ``uv``."""


@HANDLERS.handles(PAGE_IN)
async def page_in(call: Call, machine: PefMachine) -> Outcome:
    """Bring the page."""
    return await touch(machine, call["gpa"], call.ram.regions, call.ram.generations)


@HANDLERS.handles(ATTEND)
async def attend_now(call: Call, machine: PefMachine) -> Outcome:
    """Do the next thing that waits."""
    return await attend(machine, call.ram.regions, call.ram.generations)
