# SPDX-License-Identifier: Apache-2.0
"""Drives a handler: performs its effects, gives back its outcome.

``Execution.start`` runs the handler as far as it goes without waiting. Most calls end
there: their buffers came with the call, and nothing has to be asked of the shim or the
disk. What has to wait goes on in ``Execution.finish``, a task of its own, so that other
vCPUs' calls overtake it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import trio

from hcalld.core.call import Call
from hcalld.core.effects import (
    ChangePlatform,
    Effect,
    Entropy,
    Flush,
    GuestMemoryError,
    Note,
    Now,
    ReadBuffer,
    ReadGuest,
    ReadPlatform,
    TpmClose,
    TpmTransmit,
    WriteGuest,
    ZeroGuest,
)
from hcalld.core.errors import BackendUnavailable, HcallError, StoreError
from hcalld.core.handlers import Model
from hcalld.core.outcome import Outcome
from hcalld.core.pages import PageRange, SetPages
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.mishaps import Mishap
from hcalld.runtime.partition import Entry
from hcalld.runtime.world import MustWait, ReadShared, World
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

SLICE_NS = 5_000_000
"""A handler that goes on for so long without waiting lets other guests' calls go first."""


class GuestAccess(Protocol):
    """The wire's way to guest memory, for one call."""

    async def read(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> list[bytes]:
        """Read guest memory. Raises GuestMemoryError."""

    def read_ahead(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> None:
        """Begin a ``read``, which comes next unless the call ends."""

    async def write(self, call: f.Call, segments: tuple[f.WriteSegment, ...]) -> None:
        """Write or zero guest memory. Raises GuestMemoryError."""

    async def set_pages(self, call: f.Call, ranges: tuple[PageRange, ...]) -> None:
        """Set states of pages. Raises GuestMemoryError."""


class Execution:
    """One call on its way through its handler."""

    __slots__ = (
        "_coroutine",
        "_is_ahead",
        "_is_for_shim",
        "_pending",
        "call",
        "entry",
        "frame",
        "may_remain",
        "mishap",
        "model",
        "notes",
        "ram",
        "wire",
        "world",
    )

    def __init__(
        self,
        frame: f.Call,
        entry: Entry,
        call: Call,
        model: Model,
        ram: SharedRam,
        wire: GuestAccess,
        world: World,
    ) -> None:
        self.frame = frame
        self.entry = entry
        self.call = call
        self.model = model
        self.ram = ram
        self.wire = wire
        self.world = world
        self.notes: list[str] = []
        self.may_remain = False
        """It has had an effect outside the store, or may have: stopping undoes nothing."""
        self.mishap: Mishap | None = None
        """What goes wrong on purpose."""
        self._coroutine: Coroutine[Effect[Any], Any, Outcome] | None = None
        self._pending: Effect[Any] | None = None
        self._is_for_shim = False
        """What is to be read has to be asked of the shim."""
        self._is_ahead = False
        """What the handler is to read next has been asked for."""

    def start(self) -> Outcome | None:
        """Run the handler until it ends or has to wait.

        Returns:
            Its outcome, or None: ``finish`` must go on.

        Raises:
            HcallError: the handler refuses.
        """
        coroutine = self.entry.handler(self.call, self.model)
        self._coroutine = coroutine
        try:
            effect = coroutine.send(None)
            while True:
                try:
                    answer = self._perform_now(effect)
                except MustWait:
                    self._pending = effect
                    return None
                except (BackendUnavailable, GuestMemoryError, HcallError, StoreError) as error:
                    effect = coroutine.throw(error)
                else:
                    effect = coroutine.send(answer)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome

    async def finish(self) -> Outcome:
        """Go on where ``start`` had to wait.

        Raises:
            HcallError: the handler refuses.
            StoreError: a flush failed, and the handler leaves it at that.
        """
        coroutine, effect = self._coroutine, self._pending
        assert coroutine is not None
        assert effect is not None
        answer: Any = None
        error: Exception | None = None
        frame, world = self.frame, self.world
        is_waiting = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            await world.turn(frame)
            until = time.perf_counter_ns() + SLICE_NS
            while True:
                try:
                    if not is_waiting:
                        answer, error = self._perform_now(effect), None
                    else:
                        answer, error = await self._wait_for(effect), None
                except MustWait:
                    is_waiting = True
                    continue
                except (
                    BackendUnavailable,
                    GuestMemoryError,
                    HcallError,
                    StoreError,
                ) as raised:
                    error = raised
                if isinstance(effect, ReadGuest) and time.perf_counter_ns() > until:
                    # As UV_ESM, which reads and measures what may be all of a guest's RAM. Not
                    # after effects that no recording tells of: when a call lets others go first
                    # hangs on the clock.
                    await trio.lowlevel.checkpoint()
                    until = time.perf_counter_ns() + SLICE_NS
                    is_waiting = True
                # What was waited for may have come together with the end of the call: the
                # handler must not go on then, and change what nobody is told of.
                await trio.lowlevel.checkpoint_if_cancelled()
                if is_waiting:
                    await world.turn(frame)
                    is_waiting = False
                if error is not None:
                    effect = coroutine.throw(error)
                    continue
                if isinstance(effect, ReadGuest) and effect.then is not None:
                    self._read_ahead(*effect.then)
                effect = coroutine.send(answer)
        except StopIteration as stop:
            if self._is_ahead:
                # Nothing may be waited for between the model's change and its commit.
                raise RuntimeError("a handler has not read what it said that it would") from None
            outcome: Outcome = stop.value
            return outcome
        finally:
            coroutine.close()
            world.give_up(frame)

    # -- effects ------------------------------------------------------------------------

    def _perform_now(self, effect: Effect[Any]) -> Any:
        if self.mishap is not None:
            self.mishap.perform(effect)
        perform = _IMMEDIATE.get(type(effect))
        if perform is None:
            raise MustWait
        return perform(self, effect)

    async def _wait_for(self, effect: Effect[Any]) -> Any:
        """Perform what could not be performed at once."""
        match effect:
            case ReadBuffer(name):
                gpa, size = self.entry.plan.range_of(name, self.call)
                try:
                    return await self._read_by_waiting(gpa, size)
                except GuestMemoryError as error:
                    raise self.call.refuse(name, str(error)) from error
            case ReadGuest(gpa, size):
                return await self._read_by_waiting(gpa, size)
            case WriteGuest(gpa, data):
                self._must_be_ram(gpa, len(data))
                segment = f.WriteSegment(gpa, len(data), data)
                self.may_remain = True
                return await self.wire.write(self.frame, (segment,))
            case ZeroGuest(gpa, size):
                self._must_be_ram(gpa, size)
                self.may_remain = True
                return await self.wire.write(self.frame, (f.WriteSegment(gpa, size, None),))
            case SetPages(ranges):
                for gpa, size, _ in ranges:
                    self._must_be_ram(gpa, size)
                self.may_remain = True
                return await self.wire.set_pages(self.frame, ranges)
            case Entropy() | Now() | Flush() | TpmTransmit() | TpmClose():
                return await self.world.wait_for(self.frame, effect)
            case ReadPlatform() | ChangePlatform():
                # Only a replay lets them wait, for their place in the capture.
                return await self.world.wait_for(self.frame, effect)
            case _:
                raise TypeError(f"no driver for effect {effect!r}")

    async def _read_by_waiting(self, gpa: int, size: int) -> bytes:
        if not self._is_for_shim:
            shared = ReadShared(gpa, size, self.ram)
            data: bytes | None = await self.world.wait_for(self.frame, shared)
            if data is not None:
                return data
        self._is_ahead = False
        return (await self.wire.read(self.frame, ((gpa, size),)))[0]

    def _read_ahead(self, gpa: int, size: int) -> None:
        if self.call.ram.contains(gpa, size) and not self.ram.shares(gpa, size):
            self.wire.read_ahead(self.frame, ((gpa, size),))
            self._is_ahead = True

    def _read_buffer(self, effect: ReadBuffer) -> bytes:
        name = effect.name
        index = self.entry.inline.get(name)
        if index is not None:
            for segment in self.frame.segments:
                if segment.buffer == index:
                    return self._inline(name, segment)
        gpa, size = self.entry.plan.range_of(name, self.call)
        return self._read_shared(gpa, size)

    def _inline(self, name: str, segment: f.Segment) -> bytes:
        """What came with the call, of the size that the arguments say and the table bounds."""
        if segment.status is not s.SegmentStatus.OK:
            raise self.call.refuse(name, f"the shim says {segment.status.name} of the buffer")
        data = segment.data
        _, size = self.entry.plan.range_of(name, self.call)
        if len(data) != size:
            raise self.call.refuse(name, f"the shim sent {len(data)} bytes, expected {size}")
        return data

    def _read_shared(self, gpa: int, size: int) -> bytes:
        self._is_for_shim = not self.ram.shares(gpa, size)
        if not self._is_for_shim:
            effect = ReadShared(gpa, size, self.ram)
            data: bytes | None = self.world.answer(self.frame, effect)
            if data is not None:
                return data
            self._is_for_shim = True
        raise MustWait

    def _must_be_ram(self, gpa: int, size: int) -> None:
        if not self.call.ram.contains(gpa, size):
            raise GuestMemoryError(gpa, size, "not in guest RAM")

    def _read_guest(self, effect: ReadGuest) -> bytes:
        self._must_be_ram(effect.gpa, effect.size)
        return self._read_shared(effect.gpa, effect.size)

    def _tpm_transmit(self, effect: TpmTransmit) -> Any:
        self.may_remain = True
        return self.world.answer(self.frame, effect)

    def _change_platform(self, effect: ChangePlatform) -> Any:
        self.may_remain = True
        return self.world.answer(self.frame, effect)

    def _ask(self, effect: Effect[Any]) -> Any:
        return self.world.answer(self.frame, effect)

    def _note(self, effect: Note) -> None:
        self.notes.append(effect.text)


_IMMEDIATE: Mapping[type[Effect[Any]], Callable[[Execution, Any], Any]] = {
    ReadBuffer: Execution._read_buffer,
    ReadGuest: Execution._read_guest,
    Flush: Execution._ask,
    TpmTransmit: Execution._tpm_transmit,
    TpmClose: Execution._ask,
    Entropy: Execution._ask,
    Now: Execution._ask,
    Note: Execution._note,
    ReadPlatform: Execution._ask,
    ChangePlatform: Execution._change_platform,
}
