# SPDX-License-Identifier: Apache-2.0
"""Calls of a secure VM without a socket; see ``inprocess``.

The VM of 1 GiB is secure without a blob. What its calls ask of guest memory is answered at
once: random bytes of a page that goes out, nothing for the rest.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from tests.bench.inprocess import NoWire

from hcalld.config import PefChoice, Profile
from hcalld.core.call import Call
from hcalld.core.effects import Effect, Entropy, ReadGuest
from hcalld.core.outcome import Outcome
from hcalld.core.records import Run
from hcalld.domain.pef.entry import enter
from hcalld.domain.pef.machine import PefMachine
from hcalld.domain.pef.verify import Verified
from hcalld.runtime.driver import Execution
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.partition import Partition, entry_key
from hcalld.runtime.world import RealWorld
from hcalld.stores.memory import MemoryStore
from hcallproto.abi.registers import MSR_S
from hcallproto.abi.returns import U
from hcallproto.abi.spec import Hcall, Level
from hcallproto.payloads import fdt
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

RAM_SIZE = 1 << 30
PAGE_SIZE = 1 << 16
KERNEL_AT, TREE_AT = 0x40_0000, 0x20_0000


class SecureInProcess:
    """A secure VM, and its calls."""

    def __init__(self) -> None:
        pef = PefChoice(enabled=True, page_shift=12)
        partition = Partition(Profile(partition="bench", source="bench", pef=pef), MemoryStore)
        partition.begin(Run(bytes(16), 0))
        self._entries = partition.entries(shared_ram=True, levels=frozenset({Level.SC1, Level.SC2}))
        self._partition = partition
        self._ram = SharedRam([f.RamRegion(0, RAM_SIZE)])
        self._wire = NoWire()
        self._world = RealWorld(partition)
        self._page = os.urandom(PAGE_SIZE)
        self._tree = fdt.Fdt().build()
        machine = partition.pef
        assert machine is not None
        self.machine: PefMachine = machine

        async def verify(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
            return Verified()

        async def key(blob: Any) -> Any:
            raise AssertionError("nobody needs a key")

        memory = ((0, RAM_SIZE),)
        self.drive(enter(machine, KERNEL_AT, TREE_AT, memory, verify, key))
        self._page = os.urandom(PAGE_SIZE)
        assert machine.is_secure

    def drive(
        self, coroutine: Coroutine[Effect[Any], Any, Outcome], code: U = U.SUCCESS
    ) -> Outcome:
        """Carries out what has effects, and takes the changes of its model."""
        answer: Any = None
        try:
            while True:
                effect = coroutine.send(answer)
                answer = None
                if isinstance(effect, ReadGuest):
                    at = effect.gpa - TREE_AT
                    is_tree = 0 <= at < len(self._tree) and effect.size < PAGE_SIZE
                    answer = self._tree[at : at + effect.size] if is_tree else self._page
                elif isinstance(effect, Entropy):
                    answer = os.urandom(effect.size)
        except StopIteration as stop:
            outcome: Outcome = stop.value
        assert outcome.code == code, outcome
        self._partition.take_changes()
        return outcome

    def frame(self, hcall: Hcall, *arguments: int) -> f.Call:
        """The frame of a call."""
        registers = {3: hcall.number}
        registers |= {arg.register: v for arg, v in zip(hcall.args, arguments, strict=True)}
        gpr = tuple(registers.get(n, 0) for n in s.REGISTERS)
        return f.Call(0, 0, 1, False, int(hcall.level), gpr, 0, MSR_S, 0, 0)

    def must(self, frame: f.Call) -> Outcome:
        """Carries out a call that must succeed, up to what its reply says."""
        entry = self._entries[entry_key(frame.number, frame.level)]
        partition = self._partition
        model = partition.model(entry.family)
        if entry.admission is not None:
            entry.admission(entry.hcall, frame.msr, model)
        ram = self._ram.map
        arguments = entry.plan.arguments(frame.by_number(), ram)
        call = Call(entry.hcall, arguments, 0, ram, frame.nip, frame.msr)
        outcome = Execution(frame, entry, call, model, self._ram, self._wire, self._world).start()
        assert outcome is not None, "a call waits that has nothing to wait for"
        assert outcome.code == U.SUCCESS, outcome
        partition.take_changes()
        return outcome

    def medians_us(self, frames: Mapping[str, f.Call], count: int) -> dict[str, float]:
        """The median of each call's times, made in turn."""
        steps = {name: functools.partial(self.must, frame) for name, frame in frames.items()}
        return medians_in_turn_us(steps, count)


def medians_in_turn_us(steps: Mapping[str, Callable[[], object]], count: int) -> dict[str, float]:
    """The median of each function's times, in microseconds, called in turn."""
    took: dict[str, list[int]] = {name: [] for name in steps}
    for _ in range(count):
        for name, function in steps.items():
            start = time.perf_counter_ns()
            function()
            took[name].append(time.perf_counter_ns() - start)
    return {name: sorted(its)[count // 2] / 1000 for name, its in took.items()}
