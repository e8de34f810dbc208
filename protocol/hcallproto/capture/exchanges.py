# SPDX-License-Identifier: Apache-2.0
"""The frames of one connection put together again: what was called, and what became of it.

The trace of a running daemon, ``hcalld decode``, comparisons and reports read calls, not
frames. Here a CALL, what the daemon read for it and its REPLY become one ``Exchange``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Final

from hcallproto.abi import shim
from hcallproto.abi.registers import REAL_ADDRESS_MASK
from hcallproto.abi.registry import find
from hcallproto.abi.returns import Code
from hcallproto.abi.spec import Direction, Hcall, level_codes
from hcallproto.abi.verdicts import Verdict, verdict
from hcallproto.capture.announced import Announced
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

MAX_LIVE: Final = s.MAX_VCPUS + len(s.ShimCall)
"""Calls that are followed at once: each vCPU makes one after another."""
MAX_LIVE_BYTES: Final = 64 << 20
"""Of guest memory in the frames of these, and of what tells where it is."""
SEGMENT_BYTES: Final = 128
"""That a piece of guest memory takes beside its bytes, of which it may have none."""


class Fate(enum.Enum):
    """What became of a call."""

    ANSWERED = "answered"
    CANCELLED = "cancelled"
    """The shim no longer wanted the reply: its deadline passed, or the vCPU is gone."""
    LOST = "lost"
    """A reset, the connection's end or the capture's end came first."""


@dataclasses.dataclass(slots=True)
class Exchange:
    """One call, from its CALL on."""

    call: f.Call
    hcall: Hcall | None
    """None: a number that the table does not know."""
    start_ns: int
    buffers: dict[str, bytes | None] = dataclasses.field(default_factory=dict)
    """What was read of guest memory, by address argument; None: it was not RAM."""
    fate: Fate = Fate.LOST
    reply: f.Reply | None = None
    end_ns: int = 0
    reason: str = ""
    """Why it was refused, and what else the daemon had to say."""
    writes: list[f.WriteSegment] = dataclasses.field(default_factory=list)
    """What was written to guest memory before the reply, in order."""
    held: int = 0
    """Bytes of guest memory in its frames until now, and of what tells where it is."""

    @property
    def outputs(self) -> Mapping[int, int]:
        """The result registers."""
        return {} if self.reply is None else dict(self.reply.registers)

    @property
    def codes(self) -> type[Code]:
        """The set of codes that r3 is read with."""
        if self.hcall is not None:
            return self.hcall.return_codes
        return level_codes(self.call.level).codes

    @property
    def verdict(self) -> Verdict | None:
        """What r3 says; None: it was not answered."""
        if self.reply is None:
            return None
        return verdict(self.reply.status, self.codes, self.hcall, self.call.by_number())

    def written(self) -> dict[str, bytes]:
        """What was written, by the address argument of the buffer it went to, without gaps."""
        writes = self.writes if self.reply is None else [*self.writes, *self.reply.writes]
        if self.hcall is None or not writes:
            return {}
        registers = self.call.by_number()
        # Where the next byte of each buffer is expected, for it may come in several pieces.
        ends = {
            registers[self.hcall.arg(buffer.address).register] & REAL_ADDRESS_MASK: buffer.address
            for buffer in self.hcall.buffers
            if buffer.direction is Direction.OUT
        }
        found: dict[str, list[bytes]] = {}
        for segment in writes:
            name = ends.pop(segment.gpa, None)
            if name is not None and segment.data is not None:
                found.setdefault(name, []).append(segment.data)
                ends[segment.gpa + segment.size] = name
        return {name: b"".join(pieces) for name, pieces in found.items()}


class Exchanges:
    """Follows the frames of one connection."""

    def __init__(self) -> None:
        self._live: dict[tuple[int, int], Exchange] = {}
        """By vCPU and sequence number."""
        self._live_bytes = 0
        self._asked: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        self._announced = Announced()

    def take(self, frame: f.Frame, time_ns: int, comment: str = "") -> Iterator[Exchange]:
        """Take the next frame; gives the exchanges that are over with it.

        Args:
            frame: a frame of either side.
            time_ns: when it passed.
            comment: what was said of it.
        """
        match frame:
            case f.Call():
                name = frame.vcpu, frame.seq
                if len(self._live) >= MAX_LIVE:
                    yield from self.end(time_ns)
                if name in self._live:
                    yield from self._lose(name, time_ns)
                self._live[name] = self._begin(frame, time_ns)
                if self._live_bytes > MAX_LIVE_BYTES:
                    yield from self._bounded(time_ns)
            case f.Reply():
                yield from self._over(frame, Fate.ANSWERED, time_ns, comment)
            case f.Cancelled():
                yield from self._over(frame, Fate.CANCELLED, time_ns, comment)
            case f.Read():
                if (frame.vcpu, frame.seq) in self._live:
                    self._asked[frame.vcpu, frame.seq] = frame.segments
            case f.ReadReply():
                self._read(frame)
                yield from self._bounded(time_ns)
            case f.Write():
                exchange = self._live.get((frame.vcpu, frame.seq))
                if exchange is not None:
                    exchange.writes += frame.segments
                    size = sum(len(one.data or b"") for one in frame.segments)
                    self._hold(exchange, size + SEGMENT_BYTES * len(frame.segments))
                    yield from self._bounded(time_ns)
            case f.Welcome() | f.Announce():
                self._announced.take(frame.announcement)
            case f.Event() if frame.kind is s.EventKind.RESET:
                yield from self.end(time_ns)
            case _:
                pass

    def end(self, time_ns: int) -> Iterator[Exchange]:
        """A reset, or the end: no reply will come."""
        for name in list(self._live):
            yield from self._lose(name, time_ns)

    def _lose(self, name: tuple[int, int], time_ns: int) -> Iterator[Exchange]:
        exchange = self._pop(name)
        if exchange is not None:
            exchange.end_ns = time_ns
            yield exchange

    def _pop(self, name: tuple[int, int]) -> Exchange | None:
        exchange = self._live.pop(name, None)
        if self._asked:
            self._asked.pop(name, None)
        if exchange is not None:
            self._live_bytes -= exchange.held
        return exchange

    def _hold(self, exchange: Exchange, size: int) -> None:
        exchange.held += size
        self._live_bytes += size

    def _bounded(self, time_ns: int) -> Iterator[Exchange]:
        """Give up the oldest calls while all together hold too much."""
        while self._live_bytes > MAX_LIVE_BYTES:
            yield from self._lose(next(iter(self._live)), time_ns)

    def _begin(self, frame: f.Call, time_ns: int) -> Exchange:
        hcall = find(frame.number, frame.level)
        if hcall is None and frame.level == s.LEVEL_SHIM:
            hcall = shim.BY_NUMBER.get(frame.number)
        exchange = Exchange(frame, hcall, time_ns)
        if frame.segments:
            registers = self._announced.registers(frame.number, frame.level)
            for segment in frame.segments:
                self._hold(exchange, len(segment.data))
                if segment.buffer < len(registers):
                    is_there = segment.status is s.SegmentStatus.OK
                    _found(exchange, registers[segment.buffer], segment.data if is_there else None)
        return exchange

    def _read(self, frame: f.ReadReply) -> None:
        """Name what was read after the arguments that point to it."""
        name = frame.vcpu, frame.seq
        exchange, asked = self._live.get(name), self._asked.pop(name, ())
        if exchange is None or exchange.hcall is None:
            return
        registers = exchange.call.by_number()
        for (gpa, _), (status, data) in zip(asked, frame.segments, strict=False):
            self._hold(exchange, len(data))
            for buffer in exchange.hcall.buffers:
                register = exchange.hcall.arg(buffer.address).register
                if (
                    buffer.direction is Direction.IN
                    and registers[register] & REAL_ADDRESS_MASK == gpa
                ):
                    is_there = status is s.AccessStatus.OK
                    _keep(exchange, buffer.address, data if is_there else None)

    def _over(
        self, frame: f.Reply | f.Cancelled, fate: Fate, time_ns: int, comment: str
    ) -> Iterator[Exchange]:
        name = frame.vcpu, frame.seq
        exchange = self._pop(name)
        if exchange is not None:
            exchange.fate, exchange.end_ns, exchange.reason = fate, time_ns, comment
            if isinstance(frame, f.Reply):
                exchange.reply = frame
            yield exchange


def _keep(exchange: Exchange, name: str, data: bytes | None) -> None:
    """What was read of a buffer; its beginning may be read before the whole."""
    before = exchange.buffers.get(name)
    if name not in exchange.buffers or (data is not None and len(data) > len(before or b"")):
        exchange.buffers[name] = data


def _found(exchange: Exchange, register: int, data: bytes | None) -> None:
    if exchange.hcall is None:
        return
    for buffer in exchange.hcall.buffers:
        if exchange.hcall.arg(buffer.address).register == register:
            exchange.buffers[buffer.address] = data
