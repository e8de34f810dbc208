# SPDX-License-Identifier: Apache-2.0
"""Takes what may be secret out of the frames of one connection.

What stays is what the table of calls says of: registers, and the bytes of buffers that are
declared and not secret. All other bytes of guest memory are blanked: they are zeros, as
many as there were, so that sizes and offsets stay what they are.

``Blanker`` follows one connection, for a READ_REPLY does not say what was asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from hcallproto.abi.registers import R_NUMBER, REAL_ADDRESS_MASK
from hcallproto.abi.registry import CALLS, find
from hcallproto.abi.spec import Buffer, BufferShape, Direction, Hcall
from hcallproto.capture.announced import Announced
from hcallproto.wire import frames as f
from hcallproto.wire.schema import REGISTERS

MAX_ENTRIES: Final = 8192
"""Calls and READs that are not over and are remembered: two for each vCPU that there may be."""
MAX_LEFT_OVER: Final = 512
"""Results of the newest calls that gave secret ones: eight registers each."""

_PAGE_SIZE: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """One of a call's buffers."""

    low: int
    high: int
    """The byte after its last one, as the arguments have it."""
    direction: Direction
    register: int
    open_size: int | None
    """Leading bytes that are not secret; None: none is."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Live:
    """A call that is not over."""

    spans: tuple[_Span, ...] = ()
    hidden: frozenset[int] = frozenset()
    """Registers of results that are secret."""
    arguments: frozenset[int] = frozenset()
    """Registers that the call's arguments are in, and r3."""
    seq: int = 0

    def open_size(self, gpa: int, size: int, direction: Direction) -> int:
        """How many leading bytes of a piece of guest memory may be shown.

        All, if it is within a declared buffer and touches no secret one; of one that begins
        with a secret buffer that buffer's open bytes; else none.
        """
        touched = [
            span
            for span in self.spans
            if span.direction is direction and span.low < gpa + size and gpa < span.high
        ]
        secret = [span for span in touched if span.open_size is not None]
        if not secret:
            is_within = any(span.low <= gpa and gpa + size <= span.high for span in touched)
            return size if is_within else 0
        if len(touched) == 1 and secret[0].low == gpa:
            return min(size, secret[0].open_size or 0)
        return 0

    def open_size_inline(self, register: int, size: int) -> int:
        """The same for a buffer that came with the call, by its address' register."""
        for span in self.spans:
            if span.register == register:
                return size if span.open_size is None else min(size, span.open_size)
        return 0


_UNKNOWN: Final = _Live(hidden=frozenset(REGISTERS), arguments=frozenset({R_NUMBER}))


class Blanker:
    """Blanks the frames of one connection, in the order in which they passed.

    Args:
        fill: the byte that takes the place of others, and the number that takes a register's.
            With another than 0 a frame that was blanked before tells what is blanked of it.
    """

    def __init__(self, fill: int = 0) -> None:
        self._fill = fill
        self._announced = Announced()
        self._live: dict[int, _Live] = {}
        """By vCPU: each makes one call after another."""
        self._asked: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {}
        """Of each READ, whose call it is for, and what was asked."""
        self._left_over: dict[int, None] = {}
        """Secret results, which later calls may still have in registers that they don't use."""

    def blank(self, frame: f.Frame) -> f.Frame:
        """The frame without what may be secret; the same object if there is nothing."""
        match frame:
            case f.Call():
                return self._call(frame)
            case f.Reply():
                return self._reply(frame)
            case f.Read():
                _bound(self._asked)
                self._asked[frame.request] = frame.vcpu, frame.segments
                return frame
            case f.ReadReply():
                return self._read_reply(frame)
            case f.Write():
                live = self._live_of(frame.vcpu, frame.seq)
                return frame._replace(segments=self._writes(live, frame.segments))
            case f.Welcome() | f.Announce():
                self._announced.take(frame.announcement)
                return frame
            case _:
                return frame

    def _call(self, frame: f.Call) -> f.Call:
        hcall = find(frame.number, frame.level)
        live = _UNKNOWN if hcall is None else _live(hcall, frame)
        _bound(self._live)
        self._live[frame.vcpu] = live
        if self._left_over and not self._left_over.keys().isdisjoint(frame.gpr):
            frame = self._without_left_over(frame, live.arguments)
        if not frame.segments:
            return frame
        registers = self._announced.registers(frame.number, frame.level)
        return frame._replace(
            segments=tuple(
                segment._replace(
                    data=self._blank(
                        segment.data,
                        live.open_size_inline(registers[segment.buffer], len(segment.data))
                        if segment.buffer < len(registers)
                        else 0,
                    )
                )
                for segment in frame.segments
            )
        )

    def _reply(self, frame: f.Reply) -> f.Reply:
        live = self._live_of(frame.vcpu, frame.seq)
        self._live.pop(frame.vcpu, None)
        if live.hidden:
            self._remember(value for number, value in frame.registers if number in live.hidden)
            frame = frame._replace(
                registers=tuple(
                    (number, self._fill if number in live.hidden else value)
                    for number, value in frame.registers
                )
            )
        if frame.writes:
            frame = frame._replace(writes=self._writes(live, frame.writes))
        return frame

    def _read_reply(self, frame: f.ReadReply) -> f.ReadReply:
        vcpu, asked = self._asked.pop(frame.request, (frame.vcpu, ()))
        live = self._live_of(vcpu, frame.seq)
        sizes = [live.open_size(gpa, size, Direction.IN) for gpa, size in asked]
        sizes += [0] * (len(frame.segments) - len(sizes))
        return frame._replace(
            segments=tuple(
                (status, self._blank(data, size))
                for (status, data), size in zip(frame.segments, sizes, strict=False)
            )
        )

    def _live_of(self, vcpu: int, seq: int) -> _Live:
        """The call that a frame belongs to; of any but the vCPU's newest nothing is known."""
        live = self._live.get(vcpu, _UNKNOWN)
        return live if live.seq == seq else _UNKNOWN

    def _remember(self, values: Iterable[int]) -> None:
        for value in values:
            if value:
                self._left_over.pop(value, None)
                self._left_over[value] = None
        while len(self._left_over) > MAX_LEFT_OVER:
            del self._left_over[next(iter(self._left_over))]

    def _without_left_over(self, frame: f.Call, arguments: Collection[int]) -> f.Call:
        return frame._replace(
            gpr=tuple(
                self._fill if value in self._left_over and number not in arguments else value
                for number, value in zip(REGISTERS, frame.gpr, strict=True)
            )
        )

    def _writes(
        self, live: _Live, segments: Iterable[f.WriteSegment]
    ) -> tuple[f.WriteSegment, ...]:
        return tuple(
            segment
            if segment.data is None
            else segment._replace(
                data=self._blank(
                    segment.data, live.open_size(segment.gpa, segment.size, Direction.OUT)
                )
            )
            for segment in segments
        )

    def _blank(self, data: bytes, open_size: int) -> bytes:
        """All but the leading bytes filled."""
        if open_size >= len(data):
            return data
        return data[:open_size] + bytes((self._fill,)) * (len(data) - open_size)


def _bound(entries: dict[int, Any]) -> None:
    """Forget what a peer that keeps no rules has left behind: more is blanked then, not less."""
    if len(entries) >= MAX_ENTRIES:
        entries.clear()


def _live(hcall: Hcall, frame: f.Call) -> _Live:
    hidden, arguments = _REGISTERS_OF[hcall.name]
    spans: tuple[_Span, ...] = ()
    if hcall.buffers:
        registers = frame.by_number()
        spans = tuple([_span(hcall, buffer, registers) for buffer in hcall.buffers])
    return _Live(spans, hidden, arguments, frame.seq)


_REGISTERS_OF: Final = {
    hcall.name: (
        frozenset(output.register for output in hcall.outputs if output.secret),
        frozenset({R_NUMBER, *(arg.register for arg in hcall.args)}),
    )
    for hcall in CALLS
}
"""Of each call those of secret results, and those of its arguments."""


def _span(hcall: Hcall, buffer: Buffer, registers: Sequence[int]) -> _Span:
    """Where a call's buffer is; one whose size is the partition's to say goes to its page's end."""
    register = hcall.arg(buffer.address).register
    low = registers[register] & REAL_ADDRESS_MASK
    if buffer.size is not None:
        size = registers[hcall.arg(buffer.size).register]
    elif buffer.shape is BufferShape.FIXED and isinstance(buffer.max_size, int):
        size = buffer.header_size + buffer.max_size
    else:
        size = _PAGE_SIZE - low % _PAGE_SIZE
    open_size = buffer.open_size if buffer.secret else None
    return _Span(low, low + size, buffer.direction, register, open_size)
