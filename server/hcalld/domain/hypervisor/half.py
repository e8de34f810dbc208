# SPDX-License-Identifier: Apache-2.0
"""H_SVM_*: what the ultravisor asks of the hypervisor, and what the hypervisor does itself.

Source: Linux 7.2 ``arch/powerpc/kvm/book3s_hv_uvmem.c``; each method names its function.
KVM tests MSR[S] in SRR1 before them (``book3s_hv.c``): here that is the handlers', for
the ultravisor has it set.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from hcalld.core.records import Change, Record
from hcalld.domain.hypervisor import records
from hcalld.domain.hypervisor.memory import HypervisorMemory
from hcalld.domain.hypervisor.states import (
    GFNS,
    PHASES,
    GfnEvent,
    GfnState,
    VmCall,
    VmPhase,
)
from hcalld.domain.runs import CHUNK_SHIFT, Runs
from hcalld.domain.stored_keys import StoredKeys
from hcalld.domain.ultravisor.abi import (
    PAGE_SHIFT,
    PAGE_SIZE,
    ContentNeeded,
    Returned,
    Turn,
    page_of,
)
from hcallproto.abi.families import svm, uv
from hcallproto.abi.returns import H, U

_SHARED: Final = int(svm.PageInFlag.SHARED)


@dataclasses.dataclass(frozen=True, slots=True)
class HypervisorSettings:
    """What an operator decides."""

    allows: bool = True
    """KVM_CAP_PPC_SECURE_GUEST: the VM may become secure."""
    has_secure_memory: bool = True
    is_radix: bool = True
    """KVM has no secure VMs with a hash MMU."""
    resident_pages: int | None = None
    """Pages of 64 KiB that the VM may have in secure memory; None: all of them."""


class HypervisorHalf:
    """The model behind H_SVM_*; see ``abi.Hypervisor``.

    Args:
        lpid: of its one VM.
        memory: its normal memory.
        settings: what an operator decides.
        stored: a store's records; those of other namespaces are ignored.

    Raises:
        StoreError: a record is malformed or of a newer version.
    """

    def __init__(
        self,
        lpid: int,
        memory: HypervisorMemory,
        settings: HypervisorSettings | None = None,
        stored: Iterable[Record] = (),
    ) -> None:
        self.lpid = lpid
        self.memory = memory
        self.settings = settings or HypervisorSettings()
        self.phase = VmPhase.NORMAL
        self.slots: dict[int, tuple[int, int]] = {}
        """Memory slots by id: (start, size)."""
        self.generations: dict[int, int] = {}
        """Which memory it is: the shim's number, another after it was gone."""
        self.gfns: Runs[GfnState] = Runs(GfnState.NORMAL)
        self.out: dict[int, int] = {}
        """Page of the VM to real address of its ciphertext."""
        self.hand = 0
        """The page after the one that was chosen last to go out."""
        self._dirty: set[bytes] = set()
        self._stored = StoredKeys(records.NAMESPACE, records.put, self._encode)
        self._load(record for record in stored if record.namespace == records.NAMESPACE)

    # -- records ----------------------------------------------------------------------------

    def _load(self, stored: Iterable[Record]) -> None:
        for record in stored:
            self._stored.add(record.key)
            tag, number, content = records.content_of(record)
            key = record.key
            if tag == records.VM_TAG:
                self.phase = records.decode_phase(key, content)
            elif tag == records.SLOT_TAG:
                start, size, generation = records.decode_slot(key, content)
                self.slots[number] = (start, size)
                self.generations[number] = generation
            elif tag == records.CHUNK_TAG:
                records.decode_states(key, number, content, self.gfns)
            elif tag == records.OUT_TAG:
                self.out[number] = records.decode_out(key, content) << PAGE_SHIFT
            else:
                records.check_content(key, number, content)
                self.memory.put(number, content)
        taken: set[int] = set()
        for gfn, lra in self.out.items():
            if self.memory.load(lra) is None or lra in taken:
                raise records.malformed(
                    records.OUT_TAG + records.PAGE_NUMBER.pack(gfn),
                    "there is no such page, or it is another one's",
                )
            taken.add(lra)
        self.memory.settle()

    def take_changes(self) -> list[Change]:
        """The changes since the last time, to be committed together."""
        dirty = self._dirty
        if self.memory.dirty:
            dirty |= {
                records.CONTENT_TAG + records.CONTENT_NUMBER.pack(number)
                for number in self.memory.dirty
            }
            self.memory.dirty.clear()
        self._dirty = set()
        return self._stored.changes(dirty) if dirty else []

    def _encode(self, key: bytes) -> bytes | None:
        """What a record holds; None if there is none. A VM that is not secure has none."""
        if self.phase is not VmPhase.DONE:
            return None
        tag, number = key[:1], int.from_bytes(key[1:], "big")
        if tag == records.VM_TAG:
            return bytes((self.phase,))
        if tag == records.SLOT_TAG:
            slot = self.slots.get(number)
            generation = self.generations.get(number, 0)
            return None if slot is None else records.encode_slot(*slot, generation)
        if tag == records.CHUNK_TAG:
            return self.gfns.pack(number)
        if tag == records.OUT_TAG:
            lra = self.out.get(number)
            return None if lra is None else records.CONTENT_NUMBER.pack(lra >> PAGE_SHIFT)
        return self.memory.get(number)

    def _forget(self) -> None:
        self._dirty.update(self._stored)
        self._set_phase(VmPhase.NORMAL)
        for lra in self.out.values():
            self.memory.free(lra)
        self.out.clear()
        self.slots.clear()
        self.generations.clear()
        self.gfns = Runs(GfnState.NORMAL)
        self.hand = 0

    def _set_phase(self, phase: VmPhase) -> None:
        self.phase = phase
        self._dirty.add(records.VM_TAG)

    def _set_gfns(self, turn: Turn, low: int, high: int, state: GfnState) -> None:
        turn.journal += [
            (self, first << PAGE_SHIFT, end << PAGE_SHIFT, old)
            for first, end, old in self.gfns.runs(low, high)
        ]
        self._set(low, high, state)

    def _set(self, low: int, high: int, state: GfnState) -> None:
        self.gfns.set(low, high, state)
        for chunk in range(low >> CHUNK_SHIFT, (high - 1 >> CHUNK_SHIFT) + 1):
            self._dirty.add(records.CHUNK_TAG + records.CHUNK_NUMBER.pack(chunk))

    def restore(self, low: int, high: int, state: int) -> None:
        """See ``abi.Restores``; the ciphertext of a page that was out is gone."""
        back = GfnState(state)
        self._set(
            low >> PAGE_SHIFT, high >> PAGE_SHIFT, GfnState.SECURE if back is GfnState.OUT else back
        )

    # -- hypercalls -------------------------------------------------------------------------

    def hypercall(self, turn: Turn, number: int, args: Sequence[int]) -> Returned:
        """Carry out a call that the ultravisor makes in the VM's name.

        Raises:
            ContentNeeded: pages must be read first.
        """
        method = CALLS.get(number)
        return Returned(H.FUNCTION if method is None else method(self, turn, *args))

    def svm_init_start(self, turn: Turn) -> H:
        """``kvmppc_h_svm_init_start()``: the VM counts as started whatever comes of it."""
        phase, code = PHASES[self.phase, VmCall.INIT_START]
        if code is not H.SUCCESS:
            return code
        self._set_phase(phase)
        if not self.settings.has_secure_memory or not self.settings.is_radix:
            return H.UNSUPPORTED
        if not self.settings.allows:
            return H.AUTHORITY
        registered: list[int] = []
        for slot_id in sorted(self.slots):
            if not self._register(turn, slot_id):
                for done in registered:
                    turn.ultracall(uv.UNREGISTER_MEM_SLOT.number, self.lpid, done)
                return H.PARAMETER
            registered.append(slot_id)
        return H.SUCCESS

    def _register(self, turn: Turn, slot_id: int) -> bool:
        """``kvmppc_memslot_create()``: only a negative code is a failure."""
        start, size = self.slots[slot_id]
        number = uv.REGISTER_MEM_SLOT.number
        return turn.ultracall(number, self.lpid, start, size, 0, slot_id).status >= 0

    def svm_init_done(self, turn: Turn) -> H:
        """``kvmppc_h_svm_init_done()``: what was not asked for goes without UV_PAGE_IN."""
        phase, code = PHASES[self.phase, VmCall.INIT_DONE]
        if code is not H.SUCCESS:
            return code
        for start, size in self.slots.values():
            self._move(turn, start, size)
        self._set_phase(phase)
        self._dirty |= self._all_keys()
        return H.SUCCESS

    def _move(self, turn: Turn, start: int, size: int) -> None:
        for low, high, state in self.gfns.runs(start >> PAGE_SHIFT, (start + size) >> PAGE_SHIFT):
            self._set_gfns(turn, low, high, GFNS[state, GfnEvent.MOVE][0])

    def _all_keys(self) -> set[bytes]:
        keys = {records.SLOT_TAG + records.SLOT_NUMBER.pack(slot_id) for slot_id in self.slots}
        keys |= {records.OUT_TAG + records.PAGE_NUMBER.pack(gfn) for gfn in self.out}
        keys |= {
            records.CONTENT_TAG + records.CONTENT_NUMBER.pack(lra >> PAGE_SHIFT)
            for lra in self.out.values()
        }
        return keys

    def svm_init_abort(self, turn: Turn) -> H:
        """``kvmppc_h_svm_init_abort()``: H_PARAMETER is the VM's, after its UV_ESM."""
        _, code = PHASES[self.phase, VmCall.INIT_ABORT]
        if code is not H.PARAMETER:
            return code
        scratch = self.memory.allocate()
        if scratch is not None:
            # A page that the hypervisor keeps: the VM's own is the guest's RAM, and stays.
            try:
                for low, high, state in list(self.gfns.all_runs()):
                    for gfn in range(low, high) if state is GfnState.SECURE else ():
                        number = uv.PAGE_OUT.number
                        turn.ultracall(number, self.lpid, scratch, gfn << PAGE_SHIFT, 0, PAGE_SHIFT)
            finally:
                self.memory.free(scratch)
        self._forget()
        turn.ultracall(uv.SVM_TERMINATE.number, self.lpid)
        return code

    def svm_page_in(self, turn: Turn, gpa: int, flags: int, order: int) -> H:
        """``kvmppc_h_svm_page_in()`` and ``kvmppc_share_page()``."""
        _, code = PHASES[self.phase, VmCall.PAGE]
        if code is not H.SUCCESS:
            return code
        if order != PAGE_SHIFT:
            return H.P3
        if flags & ~_SHARED:
            return H.P2
        if not self._holds(gpa):
            return H.PARAMETER
        gfn = gpa >> PAGE_SHIFT
        event = GfnEvent.SHARE if flags else GfnEvent.PAGE_IN
        state, code = GFNS[self.gfns[gfn], event]
        if code is not H.SUCCESS:
            return code
        held = self.out.get(gfn)
        # What is shared is the normal page, as in kvmppc_share_page(): should another
        # hypervisor have brought in what is out, the ciphertext is of no more use.
        source = self.memory.lra_of(page_of(gpa)) if held is None or flags else held
        returned = turn.ultracall(uv.PAGE_IN.number, self.lpid, source, page_of(gpa), 0, PAGE_SHIFT)
        if returned.status is not U.SUCCESS:
            return H.PARAMETER
        if held is not None:
            self._drop_out(gfn)
        self._set_gfns(turn, gfn, gfn + 1, state)
        return H.SUCCESS

    def svm_page_out(self, turn: Turn, gpa: int, flags: int, order: int) -> H:
        """``kvmppc_h_svm_page_out()``: a page that is not in secure memory is out already."""
        _, code = PHASES[self.phase, VmCall.PAGE]
        if code is not H.SUCCESS:
            return code
        if order != PAGE_SHIFT:
            return H.P3
        if flags:
            return H.P2
        if not self._holds(gpa):
            return H.PARAMETER
        gfn = gpa >> PAGE_SHIFT
        before = self.gfns[gfn]
        state, code = GFNS[before, GfnEvent.PAGE_OUT]
        if state is before:
            return code
        lra = self.memory.allocate()
        if lra is None:
            turn.say("HV: no page left for ciphertext")
            return H.PARAMETER
        try:
            returned = turn.ultracall(
                uv.PAGE_OUT.number, self.lpid, lra, page_of(gpa), 0, PAGE_SHIFT
            )
        except ContentNeeded:
            self.memory.free(lra)
            raise
        if returned.status is not U.SUCCESS:
            self.memory.free(lra)
            return H.PARAMETER
        self.out[gfn] = lra
        self._dirty.add(records.OUT_TAG + records.PAGE_NUMBER.pack(gfn))
        self._set_gfns(turn, gfn, gfn + 1, state)
        return H.SUCCESS

    def _drop_out(self, gfn: int) -> None:
        self.memory.free(self.out.pop(gfn))
        self._dirty.add(records.OUT_TAG + records.PAGE_NUMBER.pack(gfn))

    def _holds(self, gpa: int) -> bool:
        """A memory slot holds the page (``gfn_to_hva()``)."""
        low = page_of(gpa)
        return any(
            start <= low and low + PAGE_SIZE <= start + size for start, size in self.slots.values()
        )

    # -- what the hypervisor does itself ----------------------------------------------------

    def set_memory(
        self, ranges: Iterable[tuple[int, int]], generations: Iterable[int] = ()
    ) -> None:
        """What RAM the VM has, as (first byte, byte after the last); before INIT_START."""
        if self.phase is VmPhase.NORMAL:
            self.slots = {
                slot_id: (start, end - start) for slot_id, (start, end) in enumerate(ranges)
            }
            self.generations = dict(enumerate(generations))

    def plug(self, turn: Turn, start: int, size: int, generation: int = 0) -> bool:
        """Memory was added: ``kvmppc_core_commit_memory_region_hv()``, KVM_MR_CREATE.

        Returns:
            False if the ultravisor does not take it.
        """
        slot_id = next(n for n in range(len(self.slots) + 1) if n not in self.slots)
        self.slots[slot_id] = (start, size)
        self.generations[slot_id] = generation
        if self.phase is VmPhase.NORMAL:
            return True
        if not self._register(turn, slot_id):
            del self.slots[slot_id], self.generations[slot_id]
            return False
        self._dirty.add(records.SLOT_TAG + records.SLOT_NUMBER.pack(slot_id))
        if self.phase is VmPhase.DONE:
            self._move(turn, start, size)
        return True

    def unplug(self, turn: Turn, start: int, size: int) -> bool:
        """Memory was removed; False if it is no slot."""
        found = [slot_id for slot_id, slot in self.slots.items() if slot == (start, size)]
        if not found:
            return False
        (slot_id,) = found
        del self.slots[slot_id]
        self.generations.pop(slot_id, None)
        self._dirty.add(records.SLOT_TAG + records.SLOT_NUMBER.pack(slot_id))
        low, high = start >> PAGE_SHIFT, (start + size) >> PAGE_SHIFT
        for gfn in [gfn for gfn in self.out if low <= gfn < high]:
            self._drop_out(gfn)
        self._set_gfns(turn, low, high, GfnState.NORMAL)
        if self.phase is not VmPhase.NORMAL:
            turn.ultracall(uv.UNREGISTER_MEM_SLOT.number, self.lpid, slot_id)
        return True

    def svm_off(self, turn: Turn) -> None:
        """``kvmhv_svm_off()``: the VM is a normal one again, without its pages."""
        if self.phase is VmPhase.NORMAL:
            return
        for slot_id in sorted(self.slots):
            turn.ultracall(uv.UNREGISTER_MEM_SLOT.number, self.lpid, slot_id)
        turn.ultracall(uv.SVM_TERMINATE.number, self.lpid)
        self._forget()

    @property
    def resident_count(self) -> int:
        """Pages of the VM in secure memory."""
        return self.gfns.count(GfnState.SECURE)

    def excess(self, wanted: int = 0) -> int:
        """How many pages must go out so that ``wanted`` more may come in."""
        limit = self.settings.resident_pages
        if limit is None or self.phase is not VmPhase.DONE:
            return 0
        return max(0, self.resident_count + wanted - limit)

    def victims(self, count: int, spared: Container[int] = ()) -> tuple[int, ...]:
        """The next pages to go out, one after the other through all of the VM's memory.

        Args:
            count: that are wanted.
            spared: guest addresses of pages that are taken only if there are no others.
        """
        chosen: list[int] = []
        left: list[int] = []
        for gpa in self.from_hand():
            if len(chosen) == count:
                break
            (left if gpa in spared else chosen).append(gpa)
        chosen += left[: count - len(chosen)]
        if chosen:
            self.hand = (chosen[-1] >> PAGE_SHIFT) + 1
        return tuple(chosen)

    def from_hand(self) -> Iterator[int]:
        """The pages in secure memory, from the one on that would be chosen next."""
        resident = [
            (low, high) for low, high, state in self.gfns.all_runs() if state is GfnState.SECURE
        ]
        hand = self.hand
        ahead = ((max(low, hand), high) for low, high in resident)
        behind = ((low, min(high, hand)) for low, high in resident)
        for low, high in itertools.chain(ahead, behind):
            for gfn in range(low, high):
                yield gfn << PAGE_SHIFT


CALLS: Final[Mapping[int, Callable[..., H]]] = MappingProxyType(
    {
        svm.PAGE_IN.number: HypervisorHalf.svm_page_in,
        svm.PAGE_OUT.number: HypervisorHalf.svm_page_out,
        svm.INIT_START.number: HypervisorHalf.svm_init_start,
        svm.INIT_DONE.number: HypervisorHalf.svm_init_done,
        svm.INIT_ABORT.number: HypervisorHalf.svm_init_abort,
    }
)
"""Calls of the ultravisor by number."""
