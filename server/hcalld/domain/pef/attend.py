# SPDX-License-Identifier: Apache-2.0
"""What a secure VM's hypervisor does in nobody's name: in QEMU's ATTEND (docs/wire.rst).

Memory that came or went becomes a slot or none, pages go out that an operator wants out, or
that are over the limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from hcalld.core.outcome import Outcome
from hcalld.domain.pef.machine import PAGE_OUT_BATCH, PefMachine
from hcalld.domain.runs import Spans
from hcalld.domain.ultravisor.abi import Turn
from hcallproto.abi.returns import U

_Range = tuple[int, int]


def is_wanting(machine: PefMachine, memory: Iterable[_Range] | None = None) -> bool:
    """True if ``attend`` has something to do; ``memory`` is RAM, if it may have changed."""
    if not machine.is_secure:
        return False
    if machine.wanted_out or machine.hypervisor.excess():
        return True
    return memory is not None and any(_changes(machine, memory))


async def attend(machine: PefMachine, memory: Iterable[_Range]) -> Outcome:
    """Do the next thing that waits; U_BUSY if there is more."""
    memory = tuple(memory)
    if not is_wanting(machine, memory):
        return Outcome(U.SUCCESS)
    gone, new = _changes(machine, memory)
    excess = machine.hypervisor.excess()
    if gone:
        outcome = await unplug(machine, gone[0][0], gone[0][1] - gone[0][0])
    elif new:
        outcome = await plug(machine, new[0][0], new[0][1] - new[0][0])
    elif machine.wanted_out:
        gpas = tuple(machine.wanted_out)[:PAGE_OUT_BATCH]
        for gpa in gpas:
            del machine.wanted_out[gpa]
        outcome = await machine.page_out(gpas)
    else:
        outcome = await machine.trim()
        if machine.hypervisor.excess() >= excess:
            why = outcome.why or "no page of the VM can go out"
            return dataclasses.replace(outcome, code=U.PARAMETER, why=why)
    if outcome.code in (U.SUCCESS, U.BUSY):
        code = U.BUSY if is_wanting(machine, memory) else U.SUCCESS
        return dataclasses.replace(outcome, code=code)
    return outcome


def _changes(machine: PefMachine, memory: Iterable[_Range]) -> tuple[list[_Range], list[_Range]]:
    """(first byte, byte after the last) of what is gone from RAM, and of what is new.

    What is new is a slot for each region, even where they touch: a slot is given up as a
    whole, and its content with it, but each region can be unplugged alone.
    """
    memory = tuple(memory)
    now, known = Spans(), Spans()
    for low, high in memory:
        now.add(low, high)
    gone = []
    for start, size in machine.hypervisor.slots.values():
        if now.holds(start, start + size):
            known.add(start, start + size)
        else:
            gone.append((start, start + size))
    return gone, [gap for low, high in memory for gap in known.gaps(low, high)]


async def plug(machine: PefMachine, start: int, size: int) -> Outcome:
    """Memory was added to the machine."""

    def work(turn: Turn) -> U:
        return U.SUCCESS if machine.hypervisor.plug(turn, start, size) else U.PARAMETER

    return await machine.carry_out(work)


async def unplug(machine: PefMachine, start: int, size: int) -> Outcome:
    """Memory was removed from the machine."""

    def work(turn: Turn) -> U:
        if not machine.hypervisor.unplug(turn, start, size):
            return U.PARAMETER
        # It is no longer there to be zeroed.
        turn.zeros.remove(start, start + size)
        turn.touched.remove(start, start + size)
        return U.SUCCESS

    return await machine.carry_out(work)
