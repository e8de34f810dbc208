# SPDX-License-Identifier: Apache-2.0
"""A secure guest whose QEMU answers by itself: it attends when asked, and brings pages in."""

from __future__ import annotations

import random
from typing import Any

import trio
from tests.unit.hcalld.runtime.test_secure import OUT, PAGE, RAM_SIZE, Guest

from hcallproto.wire import frames as f
from hcallproto.wire import schema as s


class Qemu:
    """Serves a guest's connection from now on, in a task of its own.

    Args:
        guest: that has become secure.

    Attributes:
        attends: replies to ATTEND, their codes.
        may_attend: cleared: QEMU has no time for an ATTEND.
        at_read: called with the address of each page that the daemon reads, before it does.
    """

    def __init__(self, guest: Guest, nursery: trio.Nursery) -> None:
        self.guest = guest
        self.attends: list[int] = []
        self.may_attend = True
        self.was_asked = trio.Event()
        self.at_read: Any = None
        self.page_ins = 0
        self._attend: f.Call | None = None
        self._nursery = nursery
        self._done: dict[tuple[int, int], trio.Event] = {}
        self._replies: dict[tuple[int, int], f.Reply] = {}
        # Several tasks send.
        lock, send = trio.Lock(), guest.shim.send

        async def send_in_turn(*frames: f.Frame) -> None:
            async with lock:
                await send(*frames)

        guest.shim.send = send_in_turn  # type: ignore[method-assign]
        nursery.start_soon(self._serve)

    @property
    def out(self) -> list[int]:
        """The pages that are out, as QEMU was told."""
        return [gpa for gpa, state in self.guest.states.items() if state == OUT]

    def fill(self) -> bytes:
        """Writes into all pages that are the guest's own; gives all of its memory."""
        for gpa, state in self.guest.states.items():
            if state is s.PageState.UNSHARED:
                self.guest.memory[gpa : gpa + PAGE] = random.Random(gpa).randbytes(PAGE)
        return bytes(self.guest.memory)

    async def _serve(self) -> None:
        while (frame := await self.guest.shim.receive()) is not None:
            await self._take(frame)

    async def _take(self, frame: f.Frame) -> None:
        guest = self.guest
        match frame:
            case f.Control():
                self.was_asked.set()
                if self._attend is None and self.may_attend:
                    await self.attend()
            case f.Pages():
                guest.set_states(frame.ranges)
                name = (frame.vcpu, frame.reset, frame.seq, frame.request)
                await guest.shim.send(f.PagesReply(*name, s.AccessStatus.OK, 0))
            case f.Read():
                for gpa, _ in frame.segments:
                    if self.at_read is not None:
                        await self.at_read(gpa)
                parts = [bytes(guest.memory[gpa : gpa + n]) for gpa, n in frame.segments]
                await guest.shim.answer_read(frame, *parts)
            case f.Write():
                guest._carry_out(frame.segments)
                await guest.shim.answer_write(frame)
            case f.Reply():
                guest._carry_out(frame.writes)
                guest.set_states(frame.pages)
                if self._attend is not None and frame.seq == self._attend.seq:
                    self._attend = None
                    self.attends.append(frame.status)
                done = self._done.pop((frame.vcpu, frame.seq), None)
                if done is not None:
                    self._replies[frame.vcpu, frame.seq] = frame
                    done.set()
            case f.EventAck():
                pass
            case _:
                raise AssertionError(frame)

    async def attend(self) -> None:
        """Makes an ATTEND."""
        self._attend = self.guest.frame(s.ShimCall.ATTEND, level=3, vcpu=s.MACHINE_VCPU, msr=0)
        await self.guest.shim.send(self._attend)

    async def call(self, hcall: Any, *arguments: int, **more: Any) -> f.Reply:
        """Makes a guest's call and waits for its reply."""
        frame = self.guest.frame(hcall, *arguments, **more)
        done = self._done[frame.vcpu, frame.seq] = trio.Event()
        await self.guest.shim.send(frame)
        await done.wait()
        return self._replies.pop((frame.vcpu, frame.seq))

    async def touch(self, gpa: int, vcpu: int) -> bytes:
        """A vCPU reads a page, which comes in if it is out."""
        page = gpa & -PAGE
        while self.guest.states[page] == OUT:
            self.page_ins += 1
            await self.call(s.ShimCall.PAGE_IN, gpa, level=3, msr=0, vcpu=vcpu)
        return bytes(self.guest.memory[page : page + PAGE])

    def own(self) -> range:
        """All of the guest's pages."""
        return range(0, RAM_SIZE, PAGE)
