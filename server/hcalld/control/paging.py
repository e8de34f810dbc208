# SPDX-License-Identifier: Apache-2.0
"""Paging a secure VM's pages out at an operator's command.

The hypervisor's half does it, in the name of calls ATTEND that QEMU is asked for: a batch of
pages for each. The guest runs meanwhile and brings back what it touches, so "all" means each
page that is in secure memory at the begin, once. A page that the guest wants back while it is
read stays, and is tried again.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Final

import trio

from hcalld.control.figures import pef_of
from hcalld.control.listener import Refusal
from hcalld.control.messages import Kind, PagedOut
from hcalld.domain.hypervisor.memory import MAX_PAGES
from hcalld.domain.hypervisor.states import GfnState
from hcalld.domain.pef.figures import figures_of
from hcalld.domain.pef.machine import PAGE_OUT_BATCH, PefMachine
from hcalld.domain.ultravisor.abi import PAGE_SHIFT
from hcalld.domain.ultravisor.vm_states import VmState
from hcalld.families.uv.shim_calls import FAMILY
from hcalld.runtime import orders
from hcalld.runtime.session import Session

TRIES: Final = 4
"""How often a page is tried that the guest wants back each time."""
ANSWER_SECONDS: Final = 30
"""QEMU has not made ATTEND by then: it hangs. A machine that is stopped does not."""

NO_ROOM: Final = f"no room: the hypervisor has {MAX_PAGES} pages for what is out, and no more"
WHY: Final = {
    VmState.NORMAL: "is a normal VM",
    VmState.ACTIVE: "is becoming secure just now",
    VmState.ABORT: "was taken down",
}


async def page_out(name: str, session: Session, pages: int | None) -> PagedOut:
    """Page out; None: all that is in secure memory.

    Raises:
        Refusal: the guest is not secure, or is no more; or QEMU does not answer.
        StoreError: its state cannot be read.
    """
    return await _Order(name, session).carry_out(pages)


class _Order:
    """One command.

    Args:
        name: the partition.
        session: its guest's.
    """

    def __init__(self, name: str, session: Session) -> None:
        self._name = name
        self._session = session
        self._went = 0

    async def carry_out(self, pages: int | None) -> PagedOut:
        """See ``page_out``."""
        machine = self._machine()
        resident = machine.hypervisor.resident_count
        wanted = resident if pages is None else min(pages, resident)
        waiting = deque(itertools.islice(machine.hypervisor.from_hand(), min(wanted, MAX_PAGES)))
        tries = dict.fromkeys(waiting, 0)
        while waiting:
            machine = self._machine()
            room = MAX_PAGES - len(machine.memory)
            if not room:
                break
            # One that is wanted back all the time must not keep others.
            size = min(room, 1 if tries[waiting[0]] else PAGE_OUT_BATCH)
            batch: list[int] = []
            while waiting and len(batch) < size:
                gpa = waiting.popleft()
                tries[gpa] += 1
                if _is_resident(machine, gpa):
                    batch.append(gpa)
            if not batch:
                continue
            if await self._carry_out(machine, batch) < len(batch):
                waiting += [
                    gpa for gpa in batch if _is_resident(machine, gpa) and tries[gpa] < TRIES
                ]
        machine = self._machine()
        why = ""
        if self._went < wanted:
            is_full = len(machine.memory) >= MAX_PAGES
            why = (
                NO_ROOM if is_full else "the others are shared, gone, or were wanted back each time"
            )
        return PagedOut(
            partition=self._name,
            wanted=wanted,
            went=self._went,
            why=why,
            pef=pef_of(figures_of(machine)),
        )

    def _machine(self) -> PefMachine:
        """The model, as long as the guest is secure: it is another one after a reset."""
        partition = self._session.partition
        if partition is None or not partition.may_be_secure:
            raise Refusal(
                Kind.NOT_SECURE,
                f"the guest of partition {self._name!r} may not become secure: its profile has "
                "no [pef] enabled = true",
            )
        if self._session.ended.is_set():
            raise self._lost()
        machine = partition.model(FAMILY.name)
        assert isinstance(machine, PefMachine)
        if not machine.is_secure:
            raise Refusal(
                Kind.NOT_SECURE,
                f"the guest of partition {self._name!r} {WHY[machine.state]}{self._so_far()}; only "
                "a secure VM's pages can be paged out",
            )
        return machine

    def _lost(self) -> Refusal:
        return Refusal(
            Kind.NO_GUEST,
            f"the guest of partition {self._name!r} has gone, or is not ready{self._so_far()}",
        )

    def _so_far(self) -> str:
        return f" ({self._went} pages had gone out)" if self._went else ""

    async def _carry_out(self, machine: PefMachine, batch: list[int]) -> int:
        """Page a batch out; how many of it went."""
        before = machine.ordered_out
        gpas = tuple(batch)
        self._session.carry_out(orders.PageOut(gpas))
        try:
            with trio.move_on_after(ANSWER_SECONDS) as scope:
                # What memory came or went is QEMU's ATTEND's to tell first.
                while any(gpa in machine.wanted_out for gpa in batch):
                    attended = self._session.attend()
                    if attended is None:
                        raise self._lost()
                    await attended.wait()
                    if self._machine() is not machine:
                        return 0
        finally:
            self._session.carry_out(orders.Withdraw(gpas))
            went = machine.ordered_out - before
            self._went += went
        if scope.cancelled_caught:
            raise Refusal(
                Kind.NO_ANSWER,
                f"QEMU has not done its part for {ANSWER_SECONDS} s{self._so_far()}: it hangs, or "
                "the host is overloaded. Look at its process, and try again",
            )
        return went


def _is_resident(machine: PefMachine, gpa: int) -> bool:
    return machine.hypervisor.gfns[gpa >> PAGE_SHIFT] is GfnState.SECURE
