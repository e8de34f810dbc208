# SPDX-License-Identifier: Apache-2.0
"""UV_ESM: a VM enters secure mode.

Source: open-power/ultravisor ``svm/svm-esm.c``. Its order is kept but for two things. It
takes pages at the top of the VM's memory for itself and adds them to the device tree; we
have the daemon's, so the tree stays as it is and nothing is reserved. And where it leaves
all pages that it asked for alone, we zero all that was not measured: what is left of the
hypervisor's is the device tree. The archive that the blob is in would be unpacked with the
initrd, and nobody has said which files may be in it.

While it lasts no vCPU can touch the VM's memory: all of it is paged out as far as QEMU is
concerned. So what is measured is what runs. A VM that fails goes on after its ``sc 2``
with its memory as it was. If the call is cut off, nothing of it is left.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from hcalld.core.effects import Entropy, GuestMemoryError, ReadGuest, WriteGuest, ZeroGuest
from hcalld.core.errors import BackendUnavailable, HcallError
from hcalld.core.outcome import Context, Outcome
from hcalld.core.pages import PageBits, PageRange, SetPages
from hcalld.domain.esm.errors import EsmError
from hcalld.domain.pef.machine import GUEST_LPID, MAX_SEGMENTS, PefMachine, pieces
from hcalld.domain.pef.verify import MAX_TREE, Key, Verified, Verify
from hcalld.domain.runs import Spans
from hcalld.domain.ultravisor.abi import PAGE_SHIFT, PAGE_SIZE, Turn, page_of, pages_of
from hcalld.domain.ultravisor.sealing import IDENTITY_SIZE
from hcalld.domain.ultravisor.vm import SecureVm
from hcalld.domain.ultravisor.vm_states import VmEvent
from hcallproto.abi.families import svm
from hcallproto.abi.registers import MSR_S
from hcallproto.abi.returns import H, U, status_name
from hcallproto.payloads import fdt

MSR_EE: Final = 1 << 15
"""External interrupts on (Power ISA v3.1 Book III 4.2.1, bit 48)."""
MAX_BOOT_CPUID: Final = 4096
"""The firmware's greatest number of vCPUs (``include/config.h``)."""
VECTORS_SIZE: Final = 1 << 16
"""Bytes that hold the interrupt vectors (Power ISA v3.1 Book III 7.5), as pages go."""
CHUNK_SIZE: Final = 1 << 16
_FDT_SIZE: Final = struct.Struct(">II")
_FDT_BOOT_CPUID: Final = struct.Struct(">28xI")


class _Failed(Exception):
    """The VM does not become secure; the text holds no secret."""


class _Reader:
    """Reads a VM's memory for the ultravisor: the hypervisor hands over page after page."""

    def __init__(self, machine: PefMachine, vm: SecureVm, turn: Turn) -> None:
        self._machine = machine
        self._vm = vm
        self._turn = turn

    async def read(self, gpa: int, size: int) -> bytes:
        """Read bytes of the VM's memory.

        Raises:
            GuestMemoryError: they are not, or the hypervisor does not hand them over.
        """
        if size <= 0:
            return b""
        for page in pages_of(gpa, gpa + size):
            await self._hand_over(page, gpa, size)
        parts = [
            await ReadGuest(at, min(CHUNK_SIZE, gpa + size - at))
            for at in range(gpa, gpa + size, CHUNK_SIZE)
        ]
        self.check()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _hand_over(self, page: int, gpa: int, size: int) -> None:
        if self._vm.present.holds(page, page + PAGE_SIZE):
            return
        turn = self._turn
        status = turn.hypercall(svm.PAGE_IN.number, page, 0, PAGE_SHIFT).status
        self.check()
        if status is not H.SUCCESS or not self._vm.present.holds(page, page + PAGE_SIZE):
            raise GuestMemoryError(gpa, size, f"the hypervisor does not hand over 0x{page:x}")
        # A hypervisor may hand over a page of its own: it will be measured like any other.
        writes, turn.writes = turn.writes, {}
        for at, data in writes.items():
            await WriteGuest(at, data)

    def check(self) -> None:
        """Raises _Failed if the VM's record is gone, as after a reset."""
        if self._machine.ultravisor.vms.get(GUEST_LPID) is not self._vm:
            raise _Failed("the VM was reset, or the hypervisor ended it")

    async def tree(self, gpa: int) -> bytes:
        """The device tree.

        Raises:
            _Failed: it is none.
        """
        magic, size = _FDT_SIZE.unpack(await self.read(gpa, _FDT_SIZE.size))
        if magic != fdt.MAGIC:
            raise _Failed(f"device tree at 0x{gpa:x} begins with 0x{magic:x}, not 0x{fdt.MAGIC:x}")
        rounded = -(-size // PAGE_SIZE) * PAGE_SIZE
        if size < fdt.HEADER_SIZE or rounded > MAX_TREE:
            raise _Failed(f"device tree of {size} bytes, at most {MAX_TREE}")
        if gpa < VECTORS_SIZE:
            # Nobody measures it, and the first interrupt would execute it.
            raise _Failed(
                f"device tree at 0x{gpa:x}: expected it above the interrupt vectors, from "
                f"0x{VECTORS_SIZE:x} on"
            )
        tree = await self.read(gpa, size)
        (boot_cpuid,) = _FDT_BOOT_CPUID.unpack_from(tree)
        if boot_cpuid >= MAX_BOOT_CPUID:
            raise _Failed(
                f"device tree: boot CPU {boot_cpuid}, expected one below {MAX_BOOT_CPUID}"
            )
        return tree


async def enter(
    machine: PefMachine,
    kernel: int,
    tree: int,
    ranges: Iterable[tuple[int, int]],
    verify: Verify,
    key: Key,
) -> Outcome:
    """Carry UV_ESM out.

    Args:
        machine: the guest.
        kernel: real address of the kernel's first byte.
        tree: real address of the device tree.
        ranges: the guest's RAM, as (first byte, byte after the last).
        verify: says whether the guest is what it must be.
        key: gives the key of its blob.

    Raises:
        HcallError: U_P2, U_P3 or U_RETRY; nothing was begun.
    """
    if not kernel:
        raise HcallError(U.P2, "the kernel's address is 0")
    if not tree:
        raise HcallError(U.P3, "the device tree's address is 0")
    memory = tuple(ranges)
    machine.ultravisor.check_begin(GUEST_LPID)
    identity = await Entropy(IDENTITY_SIZE)
    try:
        await _hold(memory)
    except GuestMemoryError as error:
        # It was unplugged just now; what is out is given back as it is touched.
        raise HcallError(U.RETRY, str(error)) from None
    vm = machine.ultravisor.begin(GUEST_LPID, identity)
    turn = machine.turn()
    try:
        verified, reader, kept = await _verify(machine, vm, turn, kernel, tree, memory, verify, key)
        code = turn.hypercall(svm.INIT_DONE.number).status
        reader.check()
        if code is not H.SUCCESS:
            raise _Failed(f"the hypervisor answers H_SVM_INIT_DONE {status_name(code)}")
    except (_Failed, EsmError, GuestMemoryError, BackendUnavailable) as error:
        return _failure(machine, vm, turn, memory, str(error))
    except BaseException:
        _abort(machine, vm, turn)
        raise
    try:
        await _zero_rest(memory, kept)
        reader.check()
        _check_present(vm, kept)
    except (_Failed, GuestMemoryError) as error:
        # Too late to go on as it was.
        _off(machine, vm, turn)
        outcome = _failure(machine, vm, turn, memory, str(error))
        return dataclasses.replace(outcome, terminate="Switch to secure mode failed.")
    except BaseException:
        _off(machine, vm, turn)
        raise
    machine.ultravisor.commit(turn, vm, verified.files)
    outcome = await machine.finish(turn, U.SUCCESS, registers=((4, kernel), (5, 0)))
    return _resumed(outcome, kernel, tree)


async def _verify(
    machine: PefMachine,
    vm: SecureVm,
    turn: Turn,
    kernel: int,
    tree: int,
    memory: Sequence[tuple[int, int]],
    verify: Verify,
    key: Key,
) -> tuple[Verified, _Reader, Spans]:
    """Find out whether the VM is what it must be, and what it keeps of its memory."""
    machine.hypervisor.set_memory(memory)
    reader = _Reader(machine, vm, turn)
    code = turn.hypercall(svm.INIT_START.number).status
    reader.check()
    if code is not H.SUCCESS:
        raise _Failed(f"the hypervisor answers H_SVM_INIT_START {status_name(code)}")
    content = await reader.tree(tree)
    verified = await verify(reader.read, content, kernel, key)
    reader.check()
    if verified.failures:
        told = "; ".join(f"{what}: {why}" for what, why in verified.failures.items())
        raise _Failed(f"the guest is not what its blob says: {told}")
    kept = Spans()
    kept.add(tree, tree + len(content))
    for place in verified.measured:
        kept.add(place.start, place.end)
    return verified, reader, kept


async def _hold(memory: Sequence[tuple[int, int]]) -> None:
    """Keep all vCPUs from the VM's memory."""
    ranges = _pages(memory, PageBits.OUT)
    for first in range(0, len(ranges), MAX_SEGMENTS):
        await SetPages(ranges[first : first + MAX_SEGMENTS])


def _pages(memory: Sequence[tuple[int, int]], bits: PageBits) -> tuple[PageRange, ...]:
    whole = Spans()
    for low, high in memory:
        whole.add(low, high)
    return tuple(PageRange(low, high - low, bits) for low, high in whole.ranges())


def _check_present(vm: SecureVm, kept: Spans) -> None:
    """Raises _Failed if the hypervisor took back what was measured."""
    for low, high in kept.ranges():
        if not vm.present.holds(page_of(low), page_of(high + PAGE_SIZE - 1)):
            raise _Failed(f"the hypervisor took back what is at 0x{low:x} to 0x{high:x}")


async def _zero_rest(memory: Sequence[tuple[int, int]], kept: Spans) -> None:
    """Zero all that was not measured: it may be the hypervisor's."""
    for low, high in memory:
        for gpa, size in pieces(kept.gaps(low, high)):
            await ZeroGuest(gpa, size)


def _abort(machine: PefMachine, vm: SecureVm, turn: Turn) -> None:
    """Nothing of the attempt is left in either half."""
    if machine.ultravisor.vms.get(GUEST_LPID) is not vm:
        return
    vm.happen(VmEvent.ABORT)
    turn.hypercall(svm.INIT_ABORT.number)
    if machine.ultravisor.vms.get(GUEST_LPID) is vm:
        # The hypervisor did not end it, as when it never began.
        machine.ultravisor.svm_terminate(turn, GUEST_LPID)


def _off(machine: PefMachine, vm: SecureVm, turn: Turn) -> None:
    """The same, when the hypervisor believes that the VM is secure."""
    if machine.ultravisor.vms.get(GUEST_LPID) is vm:
        vm.happen(VmEvent.ABORT)
        machine.hypervisor.svm_off(turn)


def _failure(
    machine: PefMachine,
    vm: SecureVm,
    turn: Turn,
    memory: Sequence[tuple[int, int]],
    why: str,
) -> Outcome:
    _abort(machine, vm, turn)
    pages = _pages(memory, PageBits.NONE)[:MAX_SEGMENTS]
    return Outcome(U.PARAMETER, why=why, pages=pages, notes=turn.notes())


def _resumed(outcome: Outcome, kernel: int, tree: int) -> Outcome:
    """The VM goes on at its kernel's first byte, as after a kexec."""
    context = Context(nip=kernel, msr=MSR_S, msr_mask=MSR_S | MSR_EE)
    return dataclasses.replace(outcome, result=tree, context=context)
