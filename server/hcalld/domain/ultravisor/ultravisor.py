# SPDX-License-Identifier: Apache-2.0
"""The ultravisor's model: the calls that a hypervisor makes.

Source: open-power/ultravisor ``core/{uvcall,svm_host,pagein_track}.c`` for the order of the
checks and the codes; docs/pef.md says where we differ. Calls about pages are in ``paging``,
those of a VM in ``sharing`` and ``hcalld.domain.pef.entry``. The model knows no registers of
the caller and no MSR: who may call is ``caller``'s to say, before.

All of it is one synchronous step after another: a call is carried out whole, or refused
with nothing changed, or stopped by ``ContentNeeded`` with nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from hcalld.core.errors import HcallError
from hcalld.domain.ultravisor import paging
from hcalld.domain.ultravisor.abi import DONE, Returned, Turn
from hcalld.domain.ultravisor.state import UltravisorState
from hcalld.domain.ultravisor.vm import SecureVm
from hcalld.domain.ultravisor.vm_states import VmState
from hcallproto.abi.families import uv
from hcallproto.abi.returns import U

MAX_LPID: Final = 1 << 12
"""LPIDR has 12 bits (POWER9 User's Manual); a partition table has as many entries."""
READABLE_SPRS: Final = frozenset({uv.Spr.DAWR, uv.Spr.DAWRX, uv.Spr.CIABR})
WRITABLE_SPRS: Final = frozenset(uv.Spr)


class UltravisorModel(UltravisorState):
    """The model behind UV_*; see ``abi.Ultravisor``."""

    def ultracall(self, turn: Turn, number: int, args: Sequence[int]) -> Returned:
        """Carry out a call that a hypervisor makes; its state of the machine is checked.

        Raises:
            ContentNeeded: pages must be read first.
        """
        method = CALLS.get(number)
        if method is None:
            return Returned(U.FUNCTION)
        try:
            return method(self, turn, *args)
        except HcallError as error:
            turn.say(f"UV: {error}")
            turn.reason = error.why
            return Returned(error.code)

    def write_pate(self, turn: Turn, lpid: int, dw0: int, dw1: int) -> Returned:
        """UV_WRITE_PATE."""
        if lpid >= MAX_LPID:
            turn.say(f"UV: no partition table entry {lpid}")
            return DONE
        vm = self.vms.get(lpid)
        if vm is not None:
            dw0 = self.pates.get(lpid, (0, 0))[0]
        self.set_pate(lpid, (dw0, dw1))
        return DONE

    def restricted_spr_write(self, turn: Turn, spr: int, value: int) -> Returned:
        """UV_RESTRICTED_SPR_WRITE: kept, and without effect on a machine without a host."""
        if spr not in WRITABLE_SPRS:
            raise HcallError(U.PARAMETER, f"SPR 0x{spr:x} is not the ultravisor's")
        self.set_spr(spr, value)
        return DONE

    def restricted_spr_read(self, turn: Turn, spr: int) -> Returned:
        """UV_RESTRICTED_SPR_READ; the value is in r5."""
        if spr not in READABLE_SPRS:
            raise HcallError(U.PARAMETER, f"SPR 0x{spr:x} cannot be read")
        return Returned(U.SUCCESS, ((5, self.sprs.get(spr, 0)),))

    def register_mem_slot(
        self, turn: Turn, lpid: int, start: int, size: int, flags: int, slot_id: int
    ) -> Returned:
        """UV_REGISTER_MEM_SLOT."""
        vm = self.vm(lpid)
        slot = vm.slots.check(slot_id, start, size)
        old = vm.slots.get(slot_id)
        if old == slot:
            return DONE
        if vm.state is VmState.ABORT:
            raise HcallError(U.PARAMETER, f"VM {lpid} was aborted")
        if old is not None:
            self._release(turn, vm, old.start, old.end)
        vm.slots.put(slot_id, slot)
        vm.slot_changed(slot_id)
        if vm.state is VmState.SECURE:
            # Memory that was plugged in: what the hypervisor left in it is not for the VM.
            turn.zeros.add(slot.start, slot.end)
            turn.touched.add(slot.start, slot.end)
        return DONE

    def unregister_mem_slot(self, turn: Turn, lpid: int, slot_id: int) -> Returned:
        """UV_UNREGISTER_MEM_SLOT."""
        vm = self.vm(lpid)
        slot = vm.slots.get(slot_id)
        if slot is None:
            raise HcallError(U.P2, f"VM {lpid} has no slot {slot_id}")
        self._release(turn, vm, slot.start, slot.end)
        vm.slots.remove(slot_id)
        vm.slot_changed(slot_id)
        return DONE

    def _release(self, turn: Turn, vm: SecureVm, low: int, high: int) -> None:
        """Memory goes back to the hypervisor: it reads zeros, if the VM was ever secure."""
        if vm.was_secure:
            turn.zeros.add(low, high)
        vm.drop_range(turn, low, high)

    def svm_terminate(self, turn: Turn, lpid: int) -> Returned:
        """UV_SVM_TERMINATE: always a success."""
        vm = self.vms.get(lpid)
        if vm is None:
            return DONE
        if vm.state is VmState.SECURE:
            self.set_pate(lpid, (0, 0))
        for _, slot in vm.slots:
            self._release(turn, vm, slot.start, slot.end)
        self.forget(vm)
        return DONE

    def no_unit(self, turn: Turn, *args: int) -> Returned:
        """UV_READ_SCOM, UV_WRITE_SCOM, UV_SEND_SBE_COMMAND: a pseries machine has no chips."""
        raise HcallError(U.PARAMETER, f"there is no chip 0x{args[0]:x}")

    def no_memory(self, turn: Turn, buffer: int, handle: int, offset: int, size: int) -> Returned:
        """UV_READ_MEM, UV_WRITE_MEM: nothing may be accessed, for there is nothing."""
        if not buffer or not size:
            raise HcallError(U.PARAMETER, "buffer or size is 0")
        raise HcallError(U.PERMISSION, f"memory 0x{handle:x} may not be accessed")

    def resume(self, turn: Turn, *args: int) -> Returned:
        """UV_RETURN: nothing was reflected, so no cookie is good."""
        vm = self.vms.get(turn.lpid)
        if vm is not None and vm.state is VmState.SECURE:
            self.breach(turn, vm, "the hypervisor made UV_RETURN with a cookie of its own")
        raise HcallError(U.PERMISSION, "nothing was reflected to the hypervisor")


Call = Callable[..., Returned]

CALLS: Final[Mapping[int, Call]] = MappingProxyType(
    {
        uv.WRITE_PATE.number: UltravisorModel.write_pate,
        uv.RESTRICTED_SPR_WRITE.number: UltravisorModel.restricted_spr_write,
        uv.RESTRICTED_SPR_READ.number: UltravisorModel.restricted_spr_read,
        uv.READ_SCOM.number: UltravisorModel.no_unit,
        uv.WRITE_SCOM.number: UltravisorModel.no_unit,
        uv.RETURN.number: UltravisorModel.resume,
        uv.REGISTER_MEM_SLOT.number: UltravisorModel.register_mem_slot,
        uv.UNREGISTER_MEM_SLOT.number: UltravisorModel.unregister_mem_slot,
        uv.PAGE_IN.number: paging.page_in,
        uv.PAGE_OUT.number: paging.page_out,
        uv.PAGE_INVAL.number: paging.page_inval,
        uv.SVM_TERMINATE.number: UltravisorModel.svm_terminate,
        uv.READ_MEM.number: UltravisorModel.no_memory,
        uv.WRITE_MEM.number: UltravisorModel.no_memory,
        uv.SEND_SBE_COMMAND.number: UltravisorModel.no_unit,
    }
)
"""Calls of a hypervisor by number."""
