# SPDX-License-Identifier: Apache-2.0
"""Calls without a socket: what a daemon does between a CALL frame and its REPLY frame.

The checks of the arguments, the handler and its effects are the daemon's own; the frame is
there already, with all buffers in it, and the reply is not encoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from hcalld.config import Profile
from hcalld.core.call import Call, buffer_max_size
from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome
from hcalld.core.pages import PageRange
from hcalld.core.records import Run
from hcalld.domain.attribute_records import Value
from hcalld.runtime.driver import Execution
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.partition import Partition, entry_key
from hcalld.runtime.world import RealWorld
from hcalld.stores.memory import MemoryStore
from hcallproto.abi.registers import U64_MAX
from hcallproto.abi.returns import H, U
from hcallproto.abi.spec import BufferShape, Hcall, Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

RAM_SIZE = 1 << 20


def median_us(function: Callable[[], object], count: int) -> float:
    """The median of a function's times, in microseconds."""
    took = []
    for _ in range(count):
        start = time.perf_counter_ns()
        function()
        took.append(time.perf_counter_ns() - start)
    return sorted(took)[count // 2] / 1000


class NoWire:
    """All buffers come with the call, so nothing is asked of the shim."""

    async def read(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> list[bytes]:
        """See GuestAccess."""
        raise AssertionError(f"memory of call {call.seq} is missing: {segments}")

    def read_ahead(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> None:
        """See GuestAccess."""

    async def write(self, call: f.Call, segments: tuple[f.WriteSegment, ...]) -> None:
        """See GuestAccess."""
        raise AssertionError(f"call {call.seq} writes before its reply: {segments}")

    async def set_pages(self, call: f.Call, ranges: tuple[PageRange, ...]) -> None:
        """See GuestAccess."""
        raise AssertionError(f"call {call.seq} sets pages before its reply: {ranges}")


class InProcess:
    """A partition in memory, and its calls."""

    def __init__(self, orders: dict[str, Value] | None = None) -> None:
        profile = Profile(partition="bench", source="benchmark", orders=orders or {})
        self._partition = Partition(profile, MemoryStore)
        self._partition.begin(Run(bytes(16), 0))
        self._entries = self._partition.entries(shared_ram=False, levels=frozenset({Level.SC1}))
        self._ram = SharedRam([f.RamRegion(0, RAM_SIZE)])
        self._wire = NoWire()
        self._world = RealWorld(self._partition)

    def frame(
        self, hcall: Hcall, arguments: tuple[int, ...], buffers: Mapping[str, bytes]
    ) -> f.Call:
        """The frame of a call; ``buffers`` are what its address arguments point at."""
        entry = self._entries[entry_key(hcall.number, hcall.level)]
        registers = {3: hcall.number}
        registers |= {arg.register: v for arg, v in zip(hcall.args, arguments, strict=True)}
        segments = []
        for buffer in hcall.buffers:
            if buffer.address in entry.inline:
                data = buffers[buffer.address]
                if buffer.shape is BufferShape.PAGE_BOUNDED:
                    data = data.ljust(buffer_max_size(buffer, entry.plan.limits), b"\0")
                gpa = registers[hcall.arg(buffer.address).register]
                index = entry.inline[buffer.address]
                segments.append(f.Segment(index, gpa, s.SegmentStatus.OK, data))
        gpr = tuple(registers.get(n, 0) & U64_MAX for n in s.REGISTERS)
        return f.Call(0, 0, 1, False, int(hcall.level), gpr, 0, 0, 0, 0, tuple(segments))

    def call(self, frame: f.Call) -> Outcome:
        """Carries out a call, up to what its reply says."""
        entry = self._entries[entry_key(frame.number, frame.level)]
        partition = self._partition
        model = partition.model(entry.family)
        if entry.gate is not None:
            entry.gate(model)
        ram = self._ram
        call = Call(entry.hcall, entry.plan.arguments(frame.by_number(), ram.map), 0, ram.map)
        outcome = Execution(frame, entry, call, model, ram, self._wire, self._world).start()
        assert outcome is not None, "a call waits that has nothing to wait for"
        partition.take_changes()
        return outcome

    def must(self, frame: f.Call, code: H | U = H.SUCCESS) -> Outcome:
        """Carries out a call that must give this code."""
        try:
            outcome = self.call(frame)
        except HcallError as error:
            raise AssertionError(f"call {frame.number:#x} was refused: {error}") from error
        assert outcome.code == code, outcome
        return outcome
