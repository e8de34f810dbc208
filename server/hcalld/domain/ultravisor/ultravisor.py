# SPDX-License-Identifier: Apache-2.0
"""The ultravisor's model: VMs by LPID, and the calls that a hypervisor makes.

Source: open-power/ultravisor ``core/{svm_host,page_encrypt,pagein_track}.c`` for the order
of the checks and the codes; docs/pef.md says where we differ. Calls of a VM are in
``sharing`` and ``hcalld.domain.pef.entry``. The model knows no registers of the caller and
no MSR: who may call is ``caller``'s to say, before.

All of it is one synchronous step after another: a call is carried out whole, or refused
with nothing changed, or stopped by ``ContentNeeded`` with nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from hcalld.core.errors import HcallError
from hcalld.core.records import Change, Delete, Put, Record
from hcalld.core.secret import Secret
from hcalld.domain.ultravisor import records
from hcalld.domain.ultravisor.abi import (
    KEY_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE,
    SECURE_MEMORY,
    ContentNeeded,
    NormalMemory,
    Returned,
    Turn,
    page_of,
)
from hcalld.domain.ultravisor.page_states import Action, PageEvent, PageState, step
from hcalld.domain.ultravisor.sealing import MAX_VERSION, Sealer, SealError
from hcalld.domain.ultravisor.vm import SecureVm
from hcalld.domain.ultravisor.vm_states import VmEvent, VmState
from hcallproto.abi.families import uv
from hcallproto.abi.returns import U

MAX_LPID: Final = 1 << 12
"""LPIDR has 12 bits (POWER9 User's Manual); a partition table has as many entries."""
MAX_VMS: Final = 64
"""Records of VMs at a time."""
READABLE_SPRS: Final = frozenset({uv.Spr.DAWR, uv.Spr.DAWRX, uv.Spr.CIABR})
WRITABLE_SPRS: Final = frozenset(uv.Spr)

_DONE: Final = Returned(U.SUCCESS)


class UltravisorModel:
    """The model behind UV_*; see ``abi.Ultravisor``.

    Args:
        memory: what the hypervisor can name by a real address.
        stored: a store's records; those of other namespaces are ignored.

    Raises:
        StoreError: a record is malformed or of a newer version.
    """

    def __init__(self, memory: NormalMemory, stored: Iterable[Record] = ()) -> None:
        self.memory = memory
        self.vms: dict[int, SecureVm] = {}
        self.pates: dict[int, tuple[int, int]] = {}
        self.sprs: dict[int, int] = {}
        self._stored: set[bytes] = set()
        self._dirty: set[bytes] = set()
        self._load([record for record in stored if record.namespace == records.NAMESPACE])

    # -- records ----------------------------------------------------------------------------

    def _load(self, stored: Sequence[Record]) -> None:
        self._stored = {record.key for record in stored}
        later = []
        for record in stored:
            tag, lpid, rest = records.split_key(record.key)
            content = records.content_of(record)
            if tag == records.VM_TAG and not rest:
                self._load_vm(lpid, record.key, content)
            elif tag == records.PATE_TAG and not rest:
                self.pates[lpid] = records.decode_pate(record.key, content)
            elif tag == records.SPR_TAG:
                number, value = records.decode_spr(record.key, rest, content)
                self.sprs[number] = value
            else:
                later.append((tag, lpid, rest, record.key, content))
        for tag, lpid, rest, key, content in later:
            vm = self.vms.get(lpid)
            if vm is None:
                raise records.malformed(key, f"there is no VM {lpid}")
            vm.decode(tag, rest, key, content)

    def _load_vm(self, lpid: int, key: bytes, content: bytes) -> None:
        state, identity, version, breaches, page_key = records.decode_vm(key, content)
        vm = self.vms[lpid] = SecureVm(lpid, identity, state)
        vm.next_version = version
        vm.breaches = breaches
        if page_key is not None:
            vm.sealer = Sealer(identity, page_key)

    def take_changes(self) -> list[Change]:
        """The changes since the last time, to be committed together."""
        dirty = self._dirty
        for vm in self.vms.values():
            dirty |= vm.take_dirty()
        if not dirty:
            return []
        changes: list[Change] = []
        for key in sorted(dirty):
            content = self._encode(key)
            if content is not None:
                self._stored.add(key)
                changes.append(Put(records.put(key, content)))
            elif key in self._stored:
                self._stored.remove(key)
                changes.append(Delete(records.NAMESPACE, key))
        self._dirty = set()
        return changes

    def _encode(self, key: bytes) -> bytes | None:
        tag, lpid, rest = records.split_key(key)
        if tag == records.PATE_TAG:
            entry = self.pates.get(lpid)
            return None if entry is None else records.encode_pate(entry)
        if tag == records.SPR_TAG:
            return records.encode_spr(self.sprs[int.from_bytes(rest, "big")])
        vm = self.vms.get(lpid)
        return None if vm is None else vm.encode(tag, rest)

    # -- VMs --------------------------------------------------------------------------------

    def vm(self, lpid: int) -> SecureVm:
        """A VM's record.

        Raises:
            HcallError: U_PARAMETER, it has none.
        """
        vm = self.vms.get(lpid)
        if vm is None:
            raise HcallError(U.PARAMETER, f"VM {lpid} is not secure, nor about to be")
        return vm

    def state_of(self, lpid: int) -> VmState:
        """The state of a VM."""
        vm = self.vms.get(lpid)
        return VmState.NORMAL if vm is None else vm.state

    def check_begin(self, lpid: int) -> None:
        """Whether a VM may make UV_ESM.

        Raises:
            HcallError: U_RETRY, it has a record, or there are too many.
        """
        known = self.vms.get(lpid)
        if known is not None:
            known.happen(VmEvent.ESM)
        if len(self.vms) >= MAX_VMS:
            raise HcallError(U.RETRY, f"there are {MAX_VMS} secure VMs already")

    def begin(self, lpid: int, identity: bytes) -> SecureVm:
        """UV_ESM: make a record.

        Raises:
            HcallError: U_RETRY, it has one, or there are too many.
        """
        self.check_begin(lpid)
        vm = self.vms[lpid] = SecureVm(lpid, identity)
        return vm

    def commit(self, turn: Turn, vm: SecureVm, files: Mapping[bytes, Secret | None]) -> None:
        """UV_ESM: all is checked, the VM is secure."""
        vm.happen(VmEvent.COMMIT)
        vm.take_files(files)
        vm.present.clear()
        vm.dirty |= vm.all_keys()
        for low, high in vm.slots.ranges():
            turn.touched.add(low, high)

    def breach(self, turn: Turn, vm: SecureVm, why: str) -> None:
        """Take a VM down: what it relies on is not so."""
        vm.happen(VmEvent.BREACH)
        turn.kill(why)

    # -- calls of a hypervisor --------------------------------------------------------------

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
            return _DONE
        vm = self.vms.get(lpid)
        if vm is not None:
            dw0 = self.pates.get(lpid, (0, 0))[0]
        self._set_pate(lpid, (dw0, dw1))
        return _DONE

    def _set_pate(self, lpid: int, entry: tuple[int, int]) -> None:
        self.pates[lpid] = entry
        self._dirty.add(records.key(records.PATE_TAG, lpid))

    def restricted_spr_write(self, turn: Turn, spr: int, value: int) -> Returned:
        """UV_RESTRICTED_SPR_WRITE: kept, and without effect on a machine without a host."""
        if spr not in WRITABLE_SPRS:
            raise HcallError(U.PARAMETER, f"SPR 0x{spr:x} is not the ultravisor's")
        self.sprs[spr] = value
        self._dirty.add(records.key(records.SPR_TAG, 0, spr.to_bytes(2, "big")))
        return _DONE

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
            return _DONE
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
        return _DONE

    def unregister_mem_slot(self, turn: Turn, lpid: int, slot_id: int) -> Returned:
        """UV_UNREGISTER_MEM_SLOT."""
        vm = self.vm(lpid)
        slot = vm.slots.get(slot_id)
        if slot is None:
            raise HcallError(U.P2, f"VM {lpid} has no slot {slot_id}")
        self._release(turn, vm, slot.start, slot.end)
        vm.slots.remove(slot_id)
        vm.slot_changed(slot_id)
        return _DONE

    def _release(self, turn: Turn, vm: SecureVm, low: int, high: int) -> None:
        """Memory goes back to the hypervisor: it reads zeros, if the VM was ever secure."""
        if vm.was_secure:
            turn.zeros.add(low, high)
        vm.drop_range(turn, low, high)

    def _page(self, vm: SecureVm, gpa: int, code: U) -> int:
        low = page_of(gpa)
        if not vm.slots.hold(low, low + PAGE_SIZE):
            raise HcallError(code, f"no slot of VM {vm.lpid} holds 0x{gpa:x}")
        return low

    @staticmethod
    def _check_normal(lra: int, what: str) -> None:
        if not lra or lra & SECURE_MEMORY:
            raise HcallError(U.P2, f"{what} 0x{lra:x} is 0, or in secure memory")

    def page_in(
        self, turn: Turn, lpid: int, source: int, gpa: int, flags: int, order: int
    ) -> Returned:
        """UV_PAGE_IN."""
        if order != PAGE_SHIFT:
            raise HcallError(U.P5, f"page size 2^{order}, expected 2^{PAGE_SHIFT}")
        self._check_normal(source, "source")
        vm = self.vm(lpid)
        if vm.state is VmState.ABORT:
            raise HcallError(U.STATE, f"VM {lpid} was aborted")
        low = self._page(vm, gpa, U.P3)
        high = low + PAGE_SIZE
        runs = vm.state_runs(low, high)
        if len(runs) > 1:
            # A part of it is shared, or about to be: that part is meant.
            runs = [run for run in runs if run[2] is not PageState.SECURE]
        event = vm.page_in_event
        steps = [(first, end, state, step(state, event)) for first, end, state in runs]
        actions = {taken.action for _, _, _, taken in steps}
        if Action.REFUSE in actions:
            taken = next(taken for _, _, _, taken in steps if taken.action is Action.REFUSE)
            raise HcallError(taken.code, f"page 0x{low:x} is {taken.state.name}")
        if Action.DECRYPT in actions:
            self._decrypt(turn, vm, source, low)
        elif Action.COPY in actions:
            self._copy(turn, vm, source, low)
        elif Action.MAP in actions:
            self._check_mapping(vm, source, low)
        for first, end, state, taken in steps:
            if taken.state is not state:
                vm.set_state(turn, first, end, taken.state)
        return _DONE

    def _copy(self, turn: Turn, vm: SecureVm, source: int, low: int) -> None:
        """A page is handed over before the VM is secure; what it holds will be measured."""
        if self.memory.guest_page(source) != (vm.lpid, low):
            turn.writes[low] = self._load_source(source)
        vm.present.add(low, low + PAGE_SIZE)

    def _load_source(self, source: int) -> bytes:
        if self.memory.guest_page(source) is not None:
            raise HcallError(U.P2, f"source 0x{source:x} is another page of a VM")
        data = self.memory.load(source)
        if data is None:
            raise HcallError(U.P2, f"source 0x{source:x} is no memory")
        return data

    def _check_mapping(self, vm: SecureVm, source: int, low: int) -> None:
        """A shared page is the VM's own RAM here: no other page can be put in its place."""
        if self.memory.guest_page(source) != (vm.lpid, low):
            raise HcallError(
                U.P2, f"source 0x{source:x} is not the normal page of 0x{low:x}, which is shared"
            )

    def _decrypt(self, turn: Turn, vm: SecureVm, source: int, low: int) -> None:
        kept = vm.kept(low)
        if kept is None or vm.sealer is None:
            raise HcallError(U.P3, f"nothing is known of page 0x{low:x}, which is out")
        if self.memory.guest_page(source) is not None:
            data: bytes | None = b""
        else:
            data = self.memory.load(source)
        if data is None:
            raise HcallError(U.P2, f"source 0x{source:x} is no memory")
        try:
            turn.writes[low] = vm.sealer.open(low, data, kept)
        except SealError as error:
            vm.breaches += 1
            vm.dirty.add(records.key(records.VM_TAG, vm.lpid))
            raise HcallError(U.P3, f"page 0x{low:x}: {error}") from None
        turn.zeros.remove(low, low + PAGE_SIZE)
        vm.forget(low)
        if vm.state is VmState.ACTIVE:
            vm.present.add(low, low + PAGE_SIZE)

    def page_out(
        self, turn: Turn, lpid: int, destination: int, gpa: int, flags: int, order: int
    ) -> Returned:
        """UV_PAGE_OUT."""
        if order != PAGE_SHIFT:
            raise HcallError(U.P5, f"page size 2^{order}, expected 2^{PAGE_SHIFT}")
        self._check_normal(destination, "destination")
        if self.memory.guest_page(destination) is not None:
            raise HcallError(U.P2, f"destination 0x{destination:x} is a page of a VM")
        vm = self.vm(lpid)
        low = self._page(vm, gpa, U.P3)
        if vm.state is VmState.ABORT:
            # Nothing is told of the page. Before the VM was secure it is the guest's own.
            return _DONE
        states = vm.states(low, low + PAGE_SIZE)
        # Of a page that is shared in part, the shared part decides.
        state = PageState.HV_UNSHARED if PageState.HV_UNSHARED in states else max(states)
        taken = step(state, PageEvent.PAGE_OUT)
        if taken.action is Action.REFUSE:
            raise HcallError(taken.code, f"page 0x{low:x} is {state.name}")
        content = turn.content(low)
        if content is None:
            raise ContentNeeded(lpid, (low,))
        if vm.next_version > MAX_VERSION:
            raise HcallError(U.RETRY, f"VM {lpid} has used up its page key")
        sealer = vm.sealer
        if sealer is None:
            sealer = Sealer(vm.identity, Secret(content.entropy[:KEY_SIZE]))
        ciphertext, sealed = sealer.seal(
            low, content.data, content.entropy[KEY_SIZE:], vm.next_version
        )
        if not self.memory.store(destination, ciphertext):
            raise HcallError(U.P2, f"destination 0x{destination:x} is no memory")
        vm.sealer = sealer
        vm.use_version()
        vm.keep(low, sealed)
        vm.set_state(turn, low, low + PAGE_SIZE, taken.state)
        vm.present.remove(low, low + PAGE_SIZE)
        turn.writes.pop(low, None)
        turn.zeros.add(low, low + PAGE_SIZE)
        return _DONE

    def page_inval(self, turn: Turn, lpid: int, gpa: int, order: int) -> Returned:
        """UV_PAGE_INVAL."""
        if order != PAGE_SHIFT:
            raise HcallError(U.P3, f"page size 2^{order}, expected 2^{PAGE_SHIFT}")
        vm = self.vm(lpid)
        if vm.state is VmState.ABORT:
            raise HcallError(U.STATE, f"VM {lpid} was aborted")
        low = self._page(vm, gpa, U.P3)
        runs = vm.state_runs(low, low + PAGE_SIZE)
        if len(runs) > 1:
            runs = [run for run in runs if run[2] is not PageState.SECURE]
        steps = [(first, end, step(state, PageEvent.INVAL)) for first, end, state in runs]
        for _, _, taken in steps:
            if taken.action is Action.REFUSE:
                raise HcallError(taken.code, f"page 0x{low:x} is {taken.state.name}")
        for first, end, taken in steps:
            vm.set_state(turn, first, end, taken.state)
        return _DONE

    def svm_terminate(self, turn: Turn, lpid: int) -> Returned:
        """UV_SVM_TERMINATE: always a success."""
        vm = self.vms.get(lpid)
        if vm is None:
            return _DONE
        if vm.state is VmState.SECURE:
            self._set_pate(lpid, (0, 0))
        for _, slot in vm.slots:
            self._release(turn, vm, slot.start, slot.end)
        vm.happen(VmEvent.TERMINATE)
        del self.vms[lpid]
        self._dirty |= vm.take_dirty()
        self._dirty |= {key for key in self._stored if self._is_of_vm(key, lpid)}
        return _DONE

    @staticmethod
    def _is_of_vm(key: bytes, lpid: int) -> bool:
        tag, owner, _ = records.split_key(key)
        return owner == lpid and tag not in (records.PATE_TAG, records.SPR_TAG)

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
        uv.PAGE_IN.number: UltravisorModel.page_in,
        uv.PAGE_OUT.number: UltravisorModel.page_out,
        uv.PAGE_INVAL.number: UltravisorModel.page_inval,
        uv.SVM_TERMINATE.number: UltravisorModel.svm_terminate,
        uv.READ_MEM.number: UltravisorModel.no_memory,
        uv.WRITE_MEM.number: UltravisorModel.no_memory,
        uv.SEND_SBE_COMMAND.number: UltravisorModel.no_unit,
    }
)
"""Calls of a hypervisor by number."""
