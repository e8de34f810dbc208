# SPDX-License-Identifier: Apache-2.0
"""Drives a handler: performs its effects, gives back its outcome.

``Execution.start`` runs the handler as far as it goes without waiting. Most calls end
there: their buffers came with the call, and nothing has to be asked of the shim or the
disk. What has to wait goes on in ``Execution.finish``, a task of its own, so that other
vCPUs' calls overtake it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import trio

from hcalld.core.call import Call
from hcalld.core.effects import (
    Effect,
    Entropy,
    Flush,
    GuestMemoryError,
    Note,
    Now,
    ReadBuffer,
    ReadGuest,
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
from hcalld.runtime.partition import Entry, Partition
from hcalld.runtime.tpm import TpmExchange
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

SLICE_NS = 5_000_000
"""A handler that goes on for so long without waiting lets other guests' calls go first."""


class MustWait(Exception):
    """An effect cannot be performed without waiting."""


class GuestAccess(Protocol):
    """The wire's way to guest memory, for one call."""

    async def read(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> list[bytes]:
        """Read guest memory. Raises GuestMemoryError."""

    async def write(self, call: f.Call, segments: tuple[f.WriteSegment, ...]) -> None:
        """Write or zero guest memory. Raises GuestMemoryError."""

    async def set_pages(self, call: f.Call, ranges: tuple[PageRange, ...]) -> None:
        """Set states of pages. Raises GuestMemoryError."""


class Execution:
    """One call on its way through its handler."""

    __slots__ = (
        "_coroutine",
        "_exchange",
        "_pending",
        "call",
        "entry",
        "frame",
        "may_remain",
        "model",
        "notes",
        "partition",
        "ram",
        "wire",
    )

    def __init__(
        self,
        frame: f.Call,
        entry: Entry,
        call: Call,
        partition: Partition,
        model: Model,
        ram: SharedRam,
        wire: GuestAccess,
    ) -> None:
        self.frame = frame
        self.entry = entry
        self.call = call
        self.partition = partition
        self.model = model
        self.ram = ram
        self.wire = wire
        self.notes: list[str] = []
        self.may_remain = False
        """It has had an effect outside the store, or may have: stopping undoes nothing."""
        self._coroutine: Coroutine[Effect[Any], Any, Outcome] | None = None
        self._pending: Effect[Any] | None = None
        self._exchange: TpmExchange | None = None

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
                except (BackendUnavailable, GuestMemoryError, HcallError) as error:
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
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            until = time.perf_counter_ns() + SLICE_NS
            while True:
                try:
                    answer, error = await self._perform(effect), None
                except (
                    BackendUnavailable,
                    GuestMemoryError,
                    HcallError,
                    StoreError,
                ) as raised:
                    error = raised
                if time.perf_counter_ns() > until:
                    # As UV_ESM, which reads and measures what may be all of a guest's RAM.
                    await trio.lowlevel.checkpoint()
                    until = time.perf_counter_ns() + SLICE_NS
                # What was waited for may have come together with the end of the call: the
                # handler must not go on then, and change what nobody is told of.
                await trio.lowlevel.checkpoint_if_cancelled()
                effect = coroutine.send(answer) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
        finally:
            coroutine.close()
            if self._exchange is not None:
                self._exchange.abandon()

    # -- effects ------------------------------------------------------------------------

    def _perform_now(self, effect: Effect[Any]) -> Any:
        perform = _IMMEDIATE.get(type(effect))
        if perform is None:
            raise MustWait
        return perform(self, effect)

    async def _perform(self, effect: Effect[Any]) -> Any:
        try:
            return self._perform_now(effect)
        except MustWait:
            pass
        match effect:
            case ReadBuffer(name):
                gpa, size = self.entry.plan.range_of(name, self.call)
                try:
                    return (await self.wire.read(self.frame, ((gpa, size),)))[0]
                except GuestMemoryError as error:
                    raise self.call.refuse(name, str(error)) from error
            case ReadGuest(gpa, size):
                return (await self.wire.read(self.frame, ((gpa, size),)))[0]
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
            case Flush():
                return await self.partition.flush()
            case TpmTransmit():
                exchange = self._exchange
                assert exchange is not None
                try:
                    return await exchange.finish()
                finally:
                    self._exchange = None
            case TpmClose():
                assert self.partition.tpm is not None
                return await self.partition.tpm.close()
            case _:
                raise TypeError(f"no driver for effect {effect!r}")

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
        data = self.ram.read(gpa, size)
        if data is None:
            raise MustWait
        return data

    def _must_be_ram(self, gpa: int, size: int) -> None:
        if not self.call.ram.contains(gpa, size):
            raise GuestMemoryError(gpa, size, "not in guest RAM")

    def _read_guest(self, effect: ReadGuest) -> bytes:
        self._must_be_ram(effect.gpa, effect.size)
        return self._read_shared(effect.gpa, effect.size)

    def _flush(self, effect: Flush) -> None:
        if self.partition.is_dirty:
            raise MustWait

    def _tpm_transmit(self, effect: TpmTransmit) -> bytes:
        if self._exchange is None:
            assert self.partition.tpm is not None
            self.may_remain = True
            exchange = self.partition.tpm.exchange(effect.command)
            response = exchange.start()
            if response is not None:
                return response
            self._exchange = exchange
        raise MustWait

    def _entropy(self, effect: Entropy) -> bytes:
        return os.urandom(effect.size)

    def _now(self, effect: Now) -> int:
        return time.time_ns()

    def _note(self, effect: Note) -> None:
        self.notes.append(effect.text)


_IMMEDIATE: Mapping[type[Effect[Any]], Callable[[Execution, Any], Any]] = {
    ReadBuffer: Execution._read_buffer,
    ReadGuest: Execution._read_guest,
    Flush: Execution._flush,
    TpmTransmit: Execution._tpm_transmit,
    Entropy: Execution._entropy,
    Now: Execution._now,
    Note: Execution._note,
}
