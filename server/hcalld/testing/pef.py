# SPDX-License-Identifier: Apache-2.0
"""A guest that speaks ultracalls, and QEMU's part of its pages.

``PefGuest`` makes calls by registers and MSR. A page that is paged out cannot be touched:
``load`` and ``store`` ask for it first, as QEMU does. The handlers of UV_* and H_SVM_*
are here whether they are served yet or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from hcalld.core.call import Call, Plan
from hcalld.core.effects import (
    Effect,
    Entropy,
    GuestMemoryError,
    Note,
    ReadGuest,
    TpmClose,
    TpmTransmit,
    WriteGuest,
    ZeroGuest,
)
from hcalld.core.errors import BackendUnavailable, HcallError
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome, refusal
from hcalld.core.pages import STATE_SIZE, PageBits, PageRange, SetPages
from hcalld.core.records import RecordedReply, Run
from hcalld.core.secret import Secret
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.esm.boot_tree import Range
from hcalld.domain.pef.entry import enter
from hcalld.domain.pef.machine import PefMachine, PefSettings
from hcalld.domain.pef.verify import Verified
from hcalld.domain.runs import Runs
from hcalld.families.svm.handlers import HANDLERS as SVM
from hcalld.families.uv.handlers import HANDLERS as UV
from hcalld.stores.base import Store
from hcalld.stores.memory import MemoryStore
from hcalld.testing.driver import run_pure
from hcalld.testing.guest import FakeGuest
from hcalld.testing.machine import UndeclaredError
from hcallproto.abi.registers import MSR_HV, MSR_PR, MSR_S
from hcallproto.abi.spec import Hcall, Level
from hcallproto.payloads import fdt

SECURE_KERNEL = MSR_S
SECURE_USER = MSR_S | MSR_PR
KERNEL = 0
USER = MSR_PR
HOST = MSR_HV

KERNEL_GPA = 0x40_0000
TREE_GPA = 0x20_0000
RAM_SIZE = 8 << 20


class PagedOutError(Exception):
    """A vCPU touched a page that is paged out, and it does not come in."""


class PefGuest:
    """One guest of both halves.

    Args:
        settings: an operator's.
        guest: its memory; 8 MiB by default.
        store: its store; in memory by default.
        tpm: its TPM, from command to response; may raise BackendUnavailable.
    """

    def __init__(
        self,
        settings: PefSettings | None = None,
        *,
        guest: FakeGuest | None = None,
        store: Store | None = None,
        tpm: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.tpm = tpm
        self.settings = settings or PefSettings()
        self.guest = guest or FakeGuest(((0, RAM_SIZE),))
        self.store: Store = store if store is not None else MemoryStore()
        self._bits: Runs[PageBits] = Runs(PageBits.NONE)
        """QEMU's bits by number of the 4 KiB page."""
        self.trail: list[Effect[Any]] = []
        """The effects of the last call."""
        self.doom = ""
        """Why the guest was taken down."""
        self._handlers: dict[str, tuple[HandlerSet[PefMachine], Any]] = {}
        for handlers in (UV, SVM):
            for hcall, handler in handlers.by_call.items():
                self._handlers[hcall.name] = (handlers, handler)
        self._reset_count = 0
        self._entropy_count = 0
        self._seq = 0
        self.store.begin_run(self._run())
        self.reload()

    def _run(self) -> Run:
        return Run(b"pef test machine", self._reset_count)

    def reload(self) -> None:
        """Build the model anew from the store, as after the daemon's restart."""
        self.machine = PefMachine(self.settings, self.store.load().records)

    def reset(self) -> None:
        """The machine's system reset: QEMU forgets all bits, and zeroes what was hidden."""
        for low, high, _ in self._bits.all_runs():
            self.guest.write(low * STATE_SIZE, bytes((high - low) * STATE_SIZE))
        self._bits = Runs(PageBits.NONE)
        self.doom = ""
        self._reset_count += 1
        self.store.begin_run(self._run())
        self.reload()

    # -- calls ------------------------------------------------------------------------------

    def call(
        self, hcall: Hcall, *registers: int, msr: int = SECURE_KERNEL, pidr: int = 0
    ) -> Outcome:
        """Make a call with values for its arguments, in order.

        Raises:
            UndeclaredError: the code, or a register, is not in the table.
        """
        values = {arg.register: value for arg, value in zip(hcall.args, registers, strict=True)}
        return self.issue(hcall, values, msr=msr, pidr=pidr)

    def issue(
        self, hcall: Hcall, registers: Mapping[int, int], *, msr: int, pidr: int = 0
    ) -> Outcome:
        """Make a call with values for registers."""
        handlers, handler = self._handlers[hcall.name]
        plan = Plan(hcall, PartitionAttributes().limits())
        machine = self.machine
        try:
            if handlers.admission is not None:
                handlers.admission(hcall, msr, machine)
            args = plan.arguments(registers, self.guest.ram)
            call = Call(hcall, args, 0, self.guest.ram, msr=msr, pidr=pidr)
            outcome = self.run(handler(call, machine))
        except HcallError as error:
            outcome = refusal(hcall, error)
            self._commit()
        assert hcall.level is Level.SC2 or not outcome.pages, "a breach of docs/wire.rst"
        if outcome.code not in plan.codes:
            raise UndeclaredError(f"{hcall.name} gave {outcome.code!r}, which it does not declare")
        outputs = {output.register for output in hcall.outputs}
        for register, _ in outcome.registers:
            if register not in outputs:
                raise UndeclaredError(f"{hcall.name} gave r{register}, which is no output of it")
        return outcome

    def run(self, coroutine: Coroutine[Effect[Any], Any, Outcome]) -> Outcome:
        """Run what ends with a reply: effects, commit, memory, bits.

        Raises:
            HcallError: it was refused.
        """
        self.trail = []
        outcome = run_pure(coroutine, self.perform, trail=self.trail)
        self._commit()
        for gpa, data in outcome.writes:
            self.guest.write(gpa, data)
        for gpa, size in outcome.zeros:
            self.guest.write(gpa, bytes(size))
        assert all(one.state is not PageBits.OUT for one in outcome.pages), "a breach, too"
        self.set_bits(outcome.pages)
        self.doom = self.doom or outcome.terminate
        return outcome

    def _commit(self) -> None:
        self._seq += 1
        changes = self.machine.take_changes()
        if changes:
            self.store.commit(changes, RecordedReply(0, self._seq, b"reply"))

    def perform(self, effect: Effect[Any]) -> Any:
        """Perform an effect."""
        match effect:
            case ReadGuest(gpa, size):
                return self.guest.read(gpa, size)
            case WriteGuest(gpa, data):
                return self.guest.write(gpa, data)
            case ZeroGuest(gpa, size):
                return self.guest.write(gpa, bytes(size))
            case SetPages(ranges):
                return self.set_bits(ranges)
            case Entropy(size):
                self._entropy_count += 1
                return hashlib.shake_256(self._entropy_count.to_bytes(8, "big")).digest(size)
            case TpmTransmit(command):
                if self.tpm is None:
                    raise BackendUnavailable("the machine has no TPM")
                return self.tpm(command)
            case Note() | TpmClose():
                return None
            case _:
                raise TypeError(f"no way to perform {effect!r}")

    def set_bits(self, ranges: Iterable[PageRange]) -> None:
        """QEMU is told of pages."""
        for gpa, size, state in ranges:
            assert gpa % STATE_SIZE == 0
            assert size % STATE_SIZE == 0
            if not self.guest.ram.contains(gpa, size):
                raise GuestMemoryError(gpa, size, "not RAM")
            self._bits.set(gpa // STATE_SIZE, (gpa + size) // STATE_SIZE, state)

    # -- a vCPU's and a device's accesses -----------------------------------------------------

    def bits_at(self, gpa: int) -> PageBits:
        """QEMU's bits of a page."""
        return self._bits[gpa // STATE_SIZE]

    def bits(self) -> list[PageRange]:
        """All pages that QEMU has bits of."""
        return [
            PageRange(low * STATE_SIZE, (high - low) * STATE_SIZE, bits)
            for low, high, bits in self._bits.all_runs()
        ]

    def _reach(self, gpa: int, size: int) -> None:
        for page in range(gpa // STATE_SIZE, (gpa + size - 1) // STATE_SIZE + 1):
            if self._bits[page] & PageBits.PAGED_OUT:
                try:
                    self.run(self.machine.touch(page * STATE_SIZE))
                except HcallError as error:
                    raise PagedOutError(str(error)) from None
            if self.doom or self._bits[page] & PageBits.PAGED_OUT:
                raise PagedOutError(f"page 0x{page * STATE_SIZE:x}: {self.doom}")

    def load(self, gpa: int, size: int) -> bytes:
        """A vCPU loads; what is paged out is brought in."""
        self._reach(gpa, size)
        return self.guest.read(gpa, size)

    def store_bytes(self, gpa: int, data: bytes) -> None:
        """A vCPU stores; what is paged out is brought in."""
        self._reach(gpa, len(data))
        self.guest.write(gpa, data)

    def seen_by_host(self, gpa: int, size: int) -> bytes:
        """What a device or the monitor gets: zeros for what is not shared."""
        seen = bytearray(self.guest.read(gpa, size))
        for offset in range(size):
            if self.bits_at(gpa + offset):
                seen[offset] = 0
        return bytes(seen)

    # -- secure mode --------------------------------------------------------------------------

    def enter(
        self,
        files: Mapping[bytes, Secret | None] | None = None,
        *,
        kernel_gpa: int = KERNEL_GPA,
        tree_gpa: int = TREE_GPA,
    ) -> Outcome:
        """UV_ESM of a guest that is what it must be: a kernel of 64 KiB, and files."""
        tree = fdt.Fdt().build()
        self.guest.write(tree_gpa, tree)

        async def verify(read: Any, content: bytes, kernel: int, key: Any) -> Verified:
            assert content == tree
            await read(kernel, 1 << 16)
            return Verified(files=files or {}, measured=(Range(kernel, 1 << 16),))

        async def key(blob: Any) -> Secret:
            raise AssertionError("nobody needs a key")

        regions = self.guest.ram.regions
        return self.run(enter(self.machine, kernel_gpa, tree_gpa, regions, verify, key))
