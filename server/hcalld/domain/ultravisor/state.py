# SPDX-License-Identifier: Apache-2.0
"""What the ultravisor knows: VMs by LPID, the partition table, registers; and its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from hcalld.core.errors import HcallError
from hcalld.core.records import Change, Record
from hcalld.core.secret import Secret
from hcalld.domain.stored_keys import StoredKeys
from hcalld.domain.ultravisor import records
from hcalld.domain.ultravisor.abi import NormalMemory, Turn
from hcalld.domain.ultravisor.sealing import Sealer
from hcalld.domain.ultravisor.vm import SecureVm
from hcalld.domain.ultravisor.vm_states import VmEvent, VmState
from hcallproto.abi.returns import U

MAX_VMS: Final = 64
"""Records of VMs at a time."""


class UltravisorState:
    """VMs by LPID, the partition table, and registers.

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
        self._stored = StoredKeys(records.NAMESPACE, records.put, self._encode)
        self._dirty: set[bytes] = set()
        self._load([record for record in stored if record.namespace == records.NAMESPACE])

    # -- records ----------------------------------------------------------------------------

    def _load(self, stored: Sequence[Record]) -> None:
        later = []
        for record in stored:
            self._stored.add(record.key)
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
        dirty, self._dirty = self._dirty, set()
        for vm in self.vms.values():
            dirty |= vm.take_dirty()
        return self._stored.changes(dirty) if dirty else []

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
        vm.handed_over.clear()
        # What the hypervisor handed over and nobody asked for.
        turn.writes.clear()
        vm.dirty |= vm.all_keys()
        for low, high in vm.slots.ranges():
            turn.touched.add(low, high)

    def breach(self, turn: Turn, vm: SecureVm, why: str) -> None:
        """Take a VM down: what it relies on is not so."""
        vm.happen(VmEvent.BREACH)
        turn.kill(why)

    def set_pate(self, lpid: int, entry: tuple[int, int]) -> None:
        """Set a partition table entry."""
        self.pates[lpid] = entry
        self._dirty.add(records.key(records.PATE_TAG, lpid))

    def set_spr(self, number: int, value: int) -> None:
        """Keep a register's value."""
        self.sprs[number] = value
        self._dirty.add(records.key(records.SPR_TAG, 0, number.to_bytes(2, "big")))

    def forget(self, vm: SecureVm) -> None:
        """A VM is over: nothing of it is kept."""
        vm.happen(VmEvent.TERMINATE)
        del self.vms[vm.lpid]
        self._dirty |= vm.take_dirty()
        self._dirty |= {key for key in self._stored if _is_of_vm(key, vm.lpid)}


def _is_of_vm(key: bytes, lpid: int) -> bool:
    tag, owner, _ = records.split_key(key)
    return owner == lpid and tag not in (records.PATE_TAG, records.SPR_TAG)
