# SPDX-License-Identifier: Apache-2.0
"""UV_SHARE_PAGE, UV_UNSHARE_PAGE and UV_UNSHARE_ALL_PAGES, of any size.

A call is one turn, which nothing interrupts, and one reply, which has room for few segments.
A guest may share all of its memory, though, or leave its shared pages strewn. Then most of
it is done before, in pieces. A piece's pages are taken from the guest and zeroed before they
change their states, so that what other calls commit meanwhile is always true. A daemon that
dies on the way has the call sent again, and goes on with what is left; so does a guest whose
call is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from hcalld.core.effects import GuestMemoryError, WriteGuest, ZeroGuest
from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome
from hcalld.core.pages import STATE_SIZE, PageBits, PageRange, SetPages
from hcalld.domain.pef.machine import GUEST_LPID, TRIES, PefMachine
from hcalld.domain.ultravisor import sharing
from hcalld.domain.ultravisor.abi import PAGE_SHIFT, PAGE_SIZE, Turn, page_of, pages_of
from hcalld.domain.ultravisor.page_states import Action, PageEvent, step
from hcalld.domain.ultravisor.ultravisor import UltravisorModel
from hcalld.domain.ultravisor.vm import SecureVm
from hcalld.domain.ultravisor.vm_states import VmState
from hcallproto.abi.returns import Code, U

PIECE_SIZE: Final = 1 << 26
"""Bytes that one turn shares or takes back: Linux's SWIOTLB pool. Others wait so long."""
PIECE_RUNS: Final = 48
"""Runs of pages that one turn shares or takes back; a reply has room for them."""

_Range = tuple[int, int]


async def share(machine: PefMachine, gfn: int, count: int) -> Outcome:
    """UV_SHARE_PAGE."""
    return await _range_call(machine, gfn, count, PageEvent.SHARE, sharing.share)


async def unshare(machine: PefMachine, gfn: int, count: int) -> Outcome:
    """UV_UNSHARE_PAGE."""
    return await _range_call(machine, gfn, count, PageEvent.UNSHARE, sharing.unshare)


async def _range_call(
    machine: PefMachine,
    gfn: int,
    count: int,
    event: PageEvent,
    call: Callable[[UltravisorModel, Turn, int, int, int], None],
) -> Outcome:
    ended = await _range_in_pieces(machine, gfn, count, event)
    if ended is not None:
        return ended

    def work(turn: Turn) -> U:
        call(machine.ultravisor, turn, gfn, count, machine.page_shift)
        return U.SUCCESS

    return await machine.carry_out(work)


async def unshare_all(machine: PefMachine) -> Outcome:
    """UV_UNSHARE_ALL_PAGES."""
    vm = _secure_vm(machine)
    if vm is not None:
        ended = await _in_pieces(machine, vm, vm.slots.ranges(), PageEvent.UNSHARE)
        if ended is not None:
            return ended

    def work(turn: Turn) -> U:
        sharing.unshare_all(machine.ultravisor, turn)
        return U.SUCCESS

    return await machine.carry_out(work)


# -- pieces ---------------------------------------------------------------------------------


def _secure_vm(machine: PefMachine) -> SecureVm | None:
    vm = machine.ultravisor.vms.get(GUEST_LPID)
    return vm if vm is not None and vm.state is VmState.SECURE else None


async def _range_in_pieces(
    machine: PefMachine, gfn: int, count: int, event: PageEvent
) -> Outcome | None:
    """Do so much of a call that one turn can do the rest.

    Returns:
        How the call ends; None: the rest is to be done, or says what is wrong.
    """
    if count << machine.page_shift <= PIECE_RUNS * STATE_SIZE:
        return None
    vm = _secure_vm(machine)
    if vm is None:
        return None
    try:
        low, high = sharing.guest_range(vm, gfn, count, machine.page_shift)
    except HcallError:
        return None
    if any(step(state, event).action is Action.REFUSE for state in vm.states(low, high)):
        return None
    # Whole pages of both halves: what is at the ends may go in and out with others' pages.
    return await _in_pieces(machine, vm, [(page_of(low + PAGE_SIZE - 1), page_of(high))], event)


async def _in_pieces(
    machine: PefMachine, vm: SecureVm, ranges: Iterable[_Range], event: PageEvent
) -> Outcome | None:
    ranges = list(ranges)
    runs = [run for low, high in ranges for run in sharing.affected(vm, low, high, event)]
    if len(runs) <= PIECE_RUNS and sum(end - first for first, end in runs) <= PIECE_SIZE:
        return None
    done: list[_Range] = []
    for low, high in ranges:
        while low < high:
            low, ended = await _piece(machine, vm, low, high, event, done)
            if ended is not None:
                if event is PageEvent.SHARE and not ended.terminate:
                    await _take_back(machine, vm, done)
                return ended
    return None


async def _piece(
    machine: PefMachine,
    vm: SecureVm,
    low: int,
    high: int,
    event: PageEvent,
    done: list[_Range],
) -> tuple[int, Outcome | None]:
    """Do the first piece of a range; gives its end, and how the call ends if it does."""
    for _ in range(TRIES):
        if _secure_vm(machine) is not vm:
            return high, None
        end, runs = _cut(vm, low, high, event)
        if not runs:
            return end, None
        try:
            if not await _zero(machine, runs):
                continue
            outcome = await _turn(machine, runs, low, end, event)
        except GuestMemoryError as error:
            return end, Outcome(U.P2, why=str(error))
        if outcome.code is not U.SUCCESS or outcome.terminate:
            return end, outcome
        done += runs
        return end, None
    return high, Outcome(U.RETRY, why="pages are wanted back all the time")


def _cut(vm: SecureVm, low: int, high: int, event: PageEvent) -> tuple[int, list[_Range]]:
    """The end of the first piece of a range, and its runs that are to be changed."""
    end = min(high, low + PIECE_SIZE)
    runs = sharing.affected(vm, low, end, event)
    if len(runs) > PIECE_RUNS:
        end = page_of(runs[PIECE_RUNS][0])
        runs = sharing.affected(vm, low, end, event)
    return end, runs


async def _zero(machine: PefMachine, runs: list[_Range]) -> bool:
    """Take pages from the guest and zero them; False if it wanted one back."""
    claims = machine.claim(page for first, end in runs for page in pages_of(first, end))
    await SetPages(tuple(PageRange(first, end - first, PageBits.OUT) for first, end in runs))
    for first, end in runs:
        await ZeroGuest(first, end - first)
    return machine.holds(claims)


async def _turn(
    machine: PefMachine, runs: list[_Range], low: int, high: int, event: PageEvent
) -> Outcome:
    """Share or take back what is zero already, and tell QEMU."""
    turn = machine.turn()
    code: Code = U.SUCCESS
    why = ""
    try:
        if event is PageEvent.SHARE:
            sharing.share(
                machine.ultravisor, turn, low // PAGE_SIZE, (high - low) // PAGE_SIZE, PAGE_SHIFT
            )
        else:
            sharing.unshare_explicit(machine.ultravisor, turn, low, high)
    except HcallError as error:
        code, why = error.code, error.why
    turn.writes = dict(turn.pending_writes())
    for first, end in runs:
        turn.zeros.remove(first, end)
        turn.touched.add(first, end)
    outcome = await machine.finish(turn, code, why)
    for gpa, data in outcome.writes:
        await WriteGuest(gpa, data)
    for gpa, size in outcome.zeros:
        await ZeroGuest(gpa, size)
    if outcome.pages:
        await SetPages(outcome.pages)
    return Outcome(code, why=outcome.why, notes=outcome.notes, terminate=outcome.terminate)


async def _take_back(machine: PefMachine, vm: SecureVm, done: Iterable[_Range]) -> None:
    """A later piece was refused: unshare those before it, whose content is lost."""
    for low, high in done:
        while low < high and _secure_vm(machine) is vm:
            low, _ = await _piece(machine, vm, low, high, PageEvent.UNSHARE, [])
