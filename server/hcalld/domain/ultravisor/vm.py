# SPDX-License-Identifier: Apache-2.0
"""One VM as the ultravisor knows it, and what of it a store must be told."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final

from hcalld.core.errors import HcallError
from hcalld.core.pages import STATE_SHIFT, PageBits, PageRange
from hcalld.core.secret import Secret
from hcalld.domain.runs import Runs, Spans
from hcalld.domain.ultravisor import records
from hcalld.domain.ultravisor.abi import PAGE_SHIFT, PAGE_SIZE, Turn, page_of
from hcalld.domain.ultravisor.files import Files
from hcalld.domain.ultravisor.page_states import (
    BITS,
    EXPLICIT,
    PageEvent,
    PageState,
    Step,
    step,
)
from hcalld.domain.ultravisor.sealing import Sealed, Sealer
from hcalld.domain.ultravisor.slots import Slots
from hcalld.domain.ultravisor.vm_states import VmEvent, VmState, after

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")

RECORDED: Final = (VmState.SECURE, VmState.ABORT)
"""States in which a VM has records."""


class SecureVm:
    """A VM that is secure, or is about to be.

    Pages are counted in 4 KiB, the smallest that a guest's kernel shares. The pages of
    both halves, which go in and out, have 64 KiB.
    """

    def __init__(self, lpid: int, identity: bytes, state: VmState = VmState.ACTIVE) -> None:
        self.lpid = lpid
        self.identity = identity
        """Random: no other VM, not even this one after a reset, has the same."""
        self.state = state
        self.was_secure = state in RECORDED
        """Its pages hold what only it may see."""
        self.slots = Slots()
        self.pages: Runs[PageState] = Runs(PageState.SECURE)
        self.out: dict[int, Sealed] = {}
        """Page number to what is kept of a page that is out."""
        self.next_version = 1
        self.breaches = 0
        """How often a page came back that was not the one that left."""
        self.sealer: Sealer | None = None
        self.files = Files()
        self.present = Spans()
        """While it is being made secure: addresses of pages that the hypervisor handed over."""
        self.handed_over = Spans()
        """The same, with those that it took back since: they may have been measured."""
        self.dirty: set[bytes] = set()
        """Keys of records that may have changed, but for page states."""
        self._dirty_chunks: set[int] = set()

    # -- states -----------------------------------------------------------------------------

    def happen(self, event: VmEvent) -> None:
        """Something happens to the VM.

        Raises:
            HcallError: it is refused.
            VmStateError: it cannot happen in this state.
        """
        self.state = after(self.state, event)
        self.was_secure = self.was_secure or self.state is VmState.SECURE
        self.dirty.add(records.key(records.VM_TAG, self.lpid))

    @property
    def page_in_event(self) -> PageEvent:
        """What a UV_PAGE_IN is to its pages."""
        if self.state is VmState.ACTIVE:
            return PageEvent.PAGE_IN_SECURING
        return PageEvent.PAGE_IN

    def state_runs(self, low: int, high: int) -> list[tuple[int, int, PageState]]:
        """(first byte, byte after the last, state) of the pages of a range."""
        runs = self.pages.runs(low >> STATE_SHIFT, high >> STATE_SHIFT)
        if len(runs) == 1:
            return [(low, high, runs[0][2])]
        return [(first << STATE_SHIFT, end << STATE_SHIFT, state) for first, end, state in runs]

    def states(self, low: int, high: int) -> set[PageState]:
        """Which states the pages of a range have."""
        state = self.pages.only(low >> STATE_SHIFT, high >> STATE_SHIFT)
        if state is not None:
            return {state}
        return {state for _, _, state in self.pages.runs(low >> STATE_SHIFT, high >> STATE_SHIFT)}

    def set_state(self, turn: Turn, low: int, high: int, state: PageState) -> None:
        """Pages change their state; QEMU will be told what they are when the turn ends."""
        for first, end, old in self.state_runs(low, high):
            turn.journal.append((self, first, end, old))
            if old is not state:
                self._put(first, end, state)
        turn.touched.add(low, high)

    def restore(self, low: int, high: int, state: int) -> None:
        """See ``abi.Restores``; what proved a page that was out is gone."""
        back = PageState(state)
        self._set(low, high, PageState.SECURE if back is PageState.PAGEDOUT else back)

    def _set(self, low: int, high: int, state: PageState) -> None:
        for first, end, old in self.state_runs(low, high):
            if old is not state:
                self._put(first, end, state)

    def _put(self, low: int, high: int, state: PageState) -> None:
        """Pages change their state indeed."""
        self.pages.set(low >> STATE_SHIFT, high >> STATE_SHIFT, state)
        first = low >> records.CHUNK_SHIFT
        last = (high - 1) >> records.CHUNK_SHIFT
        if first == last:
            self._dirty_chunks.add(first)
        else:
            self._dirty_chunks.update(range(first, last + 1))

    def take_dirty(self) -> set[bytes]:
        """Keys of records that may have changed since the last time."""
        dirty, self.dirty = self.dirty, set()
        for chunk in self._dirty_chunks:
            dirty.add(records.key(records.CHUNK_TAG, self.lpid, _U32.pack(chunk)))
        self._dirty_chunks.clear()
        return dirty

    def apply(
        self, turn: Turn, low: int, high: int, event: PageEvent
    ) -> list[tuple[int, int, Step]]:
        """Something happens to the pages of a range, each in its state.

        Returns:
            (first byte, byte after the last, step) of each run.
        """
        steps = [
            (first, end, state, step(state, event))
            for first, end, state in self.state_runs(low, high)
        ]
        for first, end, state, taken in steps:
            if taken.state is not state:
                turn.journal.append((self, first, end, state))
                turn.touched.add(first, end)
                self._put(first, end, taken.state)
        return [(first, end, taken) for first, end, _, taken in steps]

    def bits(self, low: int, high: int) -> Iterator[PageRange]:
        """What QEMU is told of a range, neighbours that are alike together."""
        memory = self.slots.ranges()
        pending: PageRange | None = None
        for first, end in memory:
            first, end = max(first, low), min(end, high)
            if first >= end:
                continue
            for begin, stop, state in self.state_runs(first, end):
                bits = BITS[state] if self.was_secure else PageBits.NONE
                if (
                    pending is not None
                    and pending.state is bits
                    and (pending.gpa + pending.size == begin)
                ):
                    pending = pending._replace(size=pending.size + stop - begin)
                    continue
                if pending is not None:
                    yield pending
                pending = PageRange(begin, stop - begin, bits)
        if pending is not None:
            yield pending

    @property
    def shared_count(self) -> int:
        """How many 4 KiB the VM has shared."""
        return self.pages.count(*EXPLICIT)

    # -- pages that are out -----------------------------------------------------------------

    def keep(self, gpa: int, sealed: Sealed) -> None:
        """Keep what proves that a page is the one that left."""
        self.out[gpa >> PAGE_SHIFT] = sealed
        self._out_changed(gpa)

    def kept(self, gpa: int) -> Sealed | None:
        """What is kept of a page that is out."""
        return self.out.get(gpa >> PAGE_SHIFT)

    def forget(self, gpa: int) -> None:
        """The page is back, or will never be."""
        if self.out.pop(gpa >> PAGE_SHIFT, None) is not None:
            self._out_changed(gpa)

    def _out_changed(self, gpa: int) -> None:
        number = _U64.pack(gpa >> PAGE_SHIFT)
        self.dirty.add(records.key(records.OUT_TAG, self.lpid, number))

    def use_version(self) -> int:
        """A number that has not been used before."""
        version = self.next_version
        self.next_version += 1
        self.dirty.add(records.key(records.VM_TAG, self.lpid))
        return version

    # -- slots and files --------------------------------------------------------------------

    def slot_changed(self, slot_id: int) -> None:
        """A slot was registered or given up."""
        self.dirty.add(records.key(records.SLOT_TAG, self.lpid, _U16.pack(slot_id)))

    def drop_range(self, turn: Turn, low: int, high: int) -> None:
        """Memory is gone, with all that is known of its pages."""
        self.set_state(turn, low, high, PageState.SECURE)
        for number in [n for n in self.out if low <= n << PAGE_SHIFT < high]:
            self.forget(number << PAGE_SHIFT)
        self.present.remove(low, high)

    def reader_changed(self, name: bytes) -> None:
        """A file has a reader, or it has read on."""
        self.dirty.add(records.key(records.READER_TAG, self.lpid, name))

    def is_all_secure(self, gpa: int) -> bool:
        """True if all of a page of both halves is the VM's own, and there."""
        low = page_of(gpa)
        return self.states(low, low + PAGE_SIZE) == {PageState.SECURE}

    # -- records ----------------------------------------------------------------------------

    def all_keys(self) -> set[bytes]:
        """The keys of all its records."""
        own = self.lpid
        keys = {records.key(records.VM_TAG, own)}
        keys |= {records.key(records.SLOT_TAG, own, _U16.pack(n)) for n, _ in self.slots}
        for chunk in self.pages.chunk_numbers():
            keys.add(records.key(records.CHUNK_TAG, own, _U32.pack(chunk)))
        keys |= {records.key(records.OUT_TAG, own, _U64.pack(n)) for n in self.out}
        keys |= {records.key(records.FILE_TAG, own, name) for name in self.files.contents}
        keys |= {records.key(records.READER_TAG, own, name) for name in self.files.readers}
        return keys

    def encode(self, tag: bytes, rest: bytes) -> bytes | None:
        """What one of its records holds; None if there is none."""
        if not self.was_secure or self.state is VmState.NORMAL:
            return None
        if tag == records.VM_TAG:
            page_key = None if self.sealer is None else self.sealer.key
            return records.encode_vm(
                self.state, self.identity, self.next_version, self.breaches, page_key
            )
        if tag == records.SLOT_TAG:
            slot = self.slots.get(int.from_bytes(rest, "big"))
            return None if slot is None else records.encode_slot(slot)
        if tag == records.CHUNK_TAG:
            return self.pages.pack(int.from_bytes(rest, "big"))
        if tag == records.OUT_TAG:
            sealed = self.out.get(int.from_bytes(rest, "big"))
            return None if sealed is None else records.encode_out(sealed)
        if tag == records.FILE_TAG:
            return records.encode_file(self.files.contents[rest])
        assert tag == records.READER_TAG
        return records.encode_reader(self.files.readers[rest])

    def decode(self, tag: bytes, rest: bytes, whole_key: bytes, content: bytes) -> None:
        """Take one of its records, beside VM_TAG's.

        Raises:
            StoreError: it is malformed.
        """
        if tag == records.SLOT_TAG:
            slot_id, slot = records.decode_slot(whole_key, rest, content)
            try:
                checked = self.slots.check(slot_id, *slot)
            except HcallError as error:
                raise records.malformed(whole_key, error.why) from None
            self.slots.put(slot_id, checked)
        elif tag == records.CHUNK_TAG:
            records.decode_states(whole_key, rest, content, self.pages)
        elif tag == records.OUT_TAG:
            number, sealed = records.decode_out(whole_key, rest, content)
            self.out[number] = sealed
        elif tag == records.FILE_TAG:
            name, content_of = records.decode_file(whole_key, rest, content)
            self.files.contents[name] = content_of
        elif tag == records.READER_TAG:
            name, reader = records.decode_reader(whole_key, rest, content)
            self.files.readers[name] = reader
        else:
            raise records.malformed(whole_key, f"unknown kind {tag!r}; a newer hcalld's?")

    def take_files(self, contents: Mapping[bytes, Secret | None]) -> None:
        """The files that the VM's blob carries."""
        self.files = Files(contents)
