# SPDX-License-Identifier: Apache-2.0
"""What a secure VM's hypervisor does in nobody's name: in QEMU's ATTEND (docs/wire.rst).

Memory that came or went becomes a slot or none, pages go out that an operator wants out, or
that are over the limit.

Memory that is new is paged out from its first moment as far as QEMU is concerned, so that
nobody sees what the host has put there (docs/wire.rst). A vCPU that touches it before an
ATTEND has come makes it the VM's by its own PAGE_IN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from hcalld.core.effects import GuestMemoryError, ZeroGuest
from hcalld.core.guestmem import NO_GENERATIONS
from hcalld.core.outcome import Outcome
from hcalld.domain.pef.machine import PAGE_OUT_BATCH, PefMachine, pieces
from hcalld.domain.runs import Spans
from hcalld.domain.ultravisor.abi import Turn
from hcallproto.abi.returns import U

_Range = tuple[int, int]
_New = tuple[int, int, int]
"""(first byte, byte after the last, generation)."""


def is_wanting(
    machine: PefMachine,
    memory: Iterable[_Range] | None = None,
    generations: Mapping[int, int] = NO_GENERATIONS,
) -> bool:
    """True if ``attend`` has something to do; ``memory`` is RAM, if it may have changed."""
    if not machine.is_secure:
        return False
    if machine.wanted_out or machine.hypervisor.excess():
        return True
    return memory is not None and any(_changes(machine, memory, generations))


def memory_changed(
    machine: PefMachine,
    memory: Iterable[_Range],
    generations: Mapping[int, int] = NO_GENERATIONS,
) -> bool:
    """RAM is another: keep what is gone of it; True if ``attend`` has something to do.

    Memory that was unplugged, and other memory in its place, looks like before, but for its
    generation. But QEMU has forgotten what its pages were.
    """
    memory = tuple(memory)
    if machine.is_secure:
        for low, high in _changes(machine, memory, generations)[0]:
            machine.gone.add(low, high)
    return is_wanting(machine, memory, generations)


async def attend(
    machine: PefMachine,
    memory: Iterable[_Range],
    generations: Mapping[int, int] = NO_GENERATIONS,
) -> Outcome:
    """Do the next thing that waits; U_BUSY if there is more."""
    memory = tuple(memory)
    if not is_wanting(machine, memory, generations):
        return Outcome(U.SUCCESS)
    gone, new = _changes(machine, memory, generations)
    excess = machine.hypervisor.excess()
    if gone or new:
        outcome = await _follow(machine, gone, new)
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
        code = U.BUSY if is_wanting(machine, memory, generations) else U.SUCCESS
        return dataclasses.replace(outcome, code=code)
    return outcome


async def touch(
    machine: PefMachine,
    gpa: int,
    memory: Iterable[_Range],
    generations: Mapping[int, int] = NO_GENERATIONS,
) -> Outcome:
    """A vCPU touched a page that is paged out, for its memory is new perhaps."""
    if machine.is_secure:
        gone, new = _changes(machine, memory, generations)
        if any(low <= gpa < high for low, high, *_ in (*gone, *new)):
            outcome = await _follow(machine, gone, new)
            if outcome.code is U.PARAMETER:
                why = f"memory at 0x{gpa:x} cannot be the VM's: {outcome.why}"
                return dataclasses.replace(outcome, terminate=why)
            return outcome
    return await machine.touch(gpa)


async def _follow(machine: PefMachine, gone: Sequence[_Range], new: Sequence[_New]) -> Outcome:
    """Do the first thing that memory's coming and going wants."""
    if gone:
        low, high = gone[0]
        return await unplug(machine, low, high - low)
    low, high, generation = new[0]
    return await plug(machine, low, high - low, generation)


def _changes(
    machine: PefMachine, memory: Iterable[_Range], generations: Mapping[int, int]
) -> tuple[list[_Range], list[_New]]:
    """(first byte, byte after the last) of what is gone from RAM, and of what is new.

    What is new is a slot for each region, even where they touch: a slot is given up as a
    whole, and its content with it, but each region can be unplugged alone. Memory of
    another generation is new, though there was some at its place, which is gone.
    """
    memory = tuple(memory)
    now: dict[int, Spans] = {}
    for low, high in memory:
        now.setdefault(generations.get(low, 0), Spans()).add(low, high)
    known = Spans()
    gone = []
    for slot_id, (start, size) in machine.hypervisor.slots.items():
        there = now.get(machine.hypervisor.generations.get(slot_id, 0), Spans())
        is_new = machine.gone.touches(start, start + size)
        if there.holds(start, start + size) and not is_new:
            known.add(start, start + size)
        else:
            gone.append((start, start + size))
    new = [
        (first, end, generations.get(low, 0))
        for low, high in memory
        for first, end in known.gaps(low, high)
    ]
    return gone, new


async def plug(machine: PefMachine, start: int, size: int, generation: int = 0) -> Outcome:
    """Memory was added to the machine.

    It is zeroed before it is the VM's, while no vCPU can touch it: so it is enough to say
    afterwards that it is there, even if this answer is lost.
    """

    def work(turn: Turn) -> U:
        if not machine.hypervisor.plug(turn, start, size, generation):
            return U.PARAMETER
        turn.zeros.remove(start, start + size)
        return U.SUCCESS

    if machine.is_plugging:
        return Outcome(U.BUSY, why="memory is being zeroed")
    machine.is_plugging = True
    try:
        for gpa, part in pieces([(start, start + size)]):
            await ZeroGuest(gpa, part)
    except GuestMemoryError as error:
        # It was unplugged just now.
        return Outcome(U.BUSY, why=str(error))
    finally:
        machine.is_plugging = False
    return await machine.carry_out(work)


async def unplug(machine: PefMachine, start: int, size: int) -> Outcome:
    """Memory was removed from the machine."""

    def work(turn: Turn) -> U:
        if not machine.hypervisor.unplug(turn, start, size):
            return U.PARAMETER
        machine.gone.remove(start, start + size)
        # It is no longer there to be zeroed.
        turn.zeros.remove(start, start + size)
        turn.touched.remove(start, start + size)
        return U.SUCCESS

    return await machine.carry_out(work)
