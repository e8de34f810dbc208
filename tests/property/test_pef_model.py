# SPDX-License-Identifier: Apache-2.0
"""A secure guest, its pages and a hypervisor that meddles, against a naive model.

The naive model is three dictionaries: what the guest last wrote to each 4 KiB, which of
them are shared, which 64 KiB are out. Calls go in by registers; the guest's memory, what
a device sees, QEMU's bits and what a store holds must agree with it at every step,
whatever a hypervisor beside ours asks for, and over restarts of the daemon.
"""

from __future__ import annotations

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hcalld.core.pages import PageBits
from hcalld.domain.hypervisor.half import HypervisorSettings
from hcalld.domain.pef.machine import PefSettings
from hcalld.domain.ultravisor.vm_states import VmState
from hcalld.testing.guest import FakeGuest
from hcalld.testing.pef import HOST, PagedOutError, PefGuest
from hcallproto.abi.families import svm, uv
from hcallproto.abi.returns import H, U

UNIT = 4096
PAGE = 65536
PAGES = 8
SIZE = PAGES * PAGE
UNITS = SIZE // UNIT
PER_PAGE = PAGE // UNIT
TREE, KERNEL = 2 * PAGE, PAGE
WORD = 16

PAGE_NUMBERS = st.integers(0, PAGES - 1)
UNIT_NUMBERS = st.integers(0, UNITS - 1)
ANY = st.sampled_from([0, 1, PAGE, 2 * PAGE, SIZE, 1 << 44, 1 << 48, (1 << 64) - 1])


class PefMachineAgainstNaive(RuleBasedStateMachine):
    """One guest from power-on to its end, again and again."""

    @initialize(shift=st.sampled_from([12, 16]), limit=st.sampled_from([None, None, 5, 2]))
    def power_on(self, shift: int, limit: int | None) -> None:
        self.shift = shift
        self.per_frame = (1 << shift) // UNIT
        settings = PefSettings(
            page_shift=shift, hypervisor=HypervisorSettings(resident_pages=limit)
        )
        self.guest = PefGuest(settings, guest=FakeGuest([(0, SIZE)]))
        self.counter = itertools.count(1)
        self.begin()

    def begin(self) -> None:
        assert self.guest.enter(kernel_gpa=KERNEL, tree_gpa=TREE).code is U.SUCCESS
        self.words = {unit: self.guest.guest.read(unit * UNIT, WORD) for unit in range(UNITS)}
        self.shared: set[int] = set()

    @property
    def is_doomed(self) -> bool:
        return bool(self.guest.doom)

    def out_pages(self) -> set[int]:
        return {gpa for gpa in range(PAGES) if self.guest.bits_at(gpa * PAGE) == PageBits.OUT}

    # -- the guest ------------------------------------------------------------------------

    def frames(self, gfn: int, count: int) -> set[int] | None:
        """The units of a range; None if it is not memory."""
        end = (gfn + count) * self.per_frame
        return set(range(gfn * self.per_frame, end)) if end <= UNITS else None

    @precondition(lambda self: not self.is_doomed)
    @rule(gfn=st.integers(0, UNITS), count=st.integers(0, 40), is_share=st.booleans())
    def share_or_unshare(self, gfn: int, count: int, is_share: bool) -> None:
        gfn //= self.per_frame
        call = uv.SHARE_PAGE if is_share else uv.UNSHARE_PAGE
        outcome = self.guest.call(call, gfn, count)
        units = self.frames(gfn, count)
        if units is None and count:
            assert outcome.code is U.P2
            return
        assert outcome.code is U.SUCCESS
        units = units or set()
        changed = units - self.shared if is_share else units & self.shared
        self.shared ^= changed
        self.words |= dict.fromkeys(changed, bytes(WORD))

    @precondition(lambda self: not self.is_doomed)
    @rule(
        gfn=st.sampled_from([(1 << 64) - 1, (1 << 64) - 3, 1 << 48, 1 << 52, UNITS]),
        count=st.sampled_from([1, 4, (1 << 32) - 1]),
        call=st.sampled_from([uv.SHARE_PAGE, uv.UNSHARE_PAGE]),
    )
    def share_what_is_not_there(self, gfn: int, count: int, call: object) -> None:
        assert self.guest.call(call, gfn, count).code is U.P2  # type: ignore[arg-type]

    @precondition(lambda self: not self.is_doomed)
    @rule()
    def unshare_all(self) -> None:
        assert self.guest.call(uv.UNSHARE_ALL_PAGES).code is U.SUCCESS
        self.words |= dict.fromkeys(self.shared, bytes(WORD))
        self.shared.clear()

    @precondition(lambda self: not self.is_doomed)
    @rule(unit=UNIT_NUMBERS)
    def store(self, unit: int) -> None:
        word = b"guest" + next(self.counter).to_bytes(WORD - 5, "big")
        self.guest.store_bytes(unit * UNIT, word)
        self.words[unit] = word

    @precondition(lambda self: not self.is_doomed)
    @rule(unit=UNIT_NUMBERS)
    def load(self, unit: int) -> None:
        assert self.guest.load(unit * UNIT, WORD) == self.words[unit]

    @precondition(lambda self: not self.is_doomed)
    @rule(page=PAGE_NUMBERS)
    def page_itself_out(self, page: int) -> None:
        code = self.guest.call(svm.PAGE_OUT, page * PAGE, 0, 16).code
        assert code in (H.SUCCESS, H.PARAMETER)

    # -- the host -------------------------------------------------------------------------

    @precondition(lambda self: not self.is_doomed and self.shared)
    @rule(data=st.data())
    def device_writes(self, data: st.DataObject) -> None:
        unit = data.draw(st.sampled_from(sorted(self.shared)))
        word = b"device" + next(self.counter).to_bytes(WORD - 6, "big")
        self.guest.guest.write(unit * UNIT, word)
        self.words[unit] = word

    @precondition(lambda self: not self.is_doomed)
    @rule(pages=st.lists(PAGE_NUMBERS, min_size=1, max_size=4))
    def operator_pages_out(self, pages: list[int]) -> None:
        self.guest.run(self.guest.machine.page_out([page * PAGE for page in pages]))

    @precondition(lambda self: not self.is_doomed)
    @rule()
    def trim(self) -> None:
        self.guest.run(self.guest.machine.trim())

    def addresses(self) -> list[int]:
        half = self.guest.machine.hypervisor
        return sorted(half.out.values()) or [PAGE]

    @precondition(lambda self: not self.is_doomed)
    @rule(page=PAGE_NUMBERS, data=st.data(), order=st.sampled_from([16, 16, 16, 12]))
    def somebody_pages_in(self, page: int, data: st.DataObject, order: int) -> None:
        alias = self.guest.machine.memory.lra_of(page * PAGE)
        source = data.draw(st.sampled_from([*self.addresses(), alias]) | ANY)
        before = self.out_pages()
        code = self.guest.call(uv.PAGE_IN, 1, source, page * PAGE, 0, order, msr=HOST).code
        if code is not U.SUCCESS:
            assert self.out_pages() == before

    @precondition(lambda self: not self.is_doomed)
    @rule(gpa=ANY | PAGE_NUMBERS.map(lambda page: page * PAGE), lra=ANY)
    def somebody_pages_out_to_nowhere(self, gpa: int, lra: int) -> None:
        held = self.guest.machine.memory.load(lra)
        if held is None:
            before = self.out_pages()
            self.guest.call(uv.PAGE_OUT, 1, lra, gpa, 0, 16, msr=HOST)
            assert self.out_pages() == before

    @precondition(lambda self: not self.is_doomed)
    @rule(page=PAGE_NUMBERS)
    def somebody_invalidates(self, page: int) -> None:
        code = self.guest.call(uv.PAGE_INVAL, 1, page * PAGE, 16, msr=HOST).code
        units = set(range(page * PER_PAGE, (page + 1) * PER_PAGE))
        assert code is (U.SUCCESS if units & self.shared else U.P2)

    @precondition(lambda self: not self.is_doomed and self.out_pages())
    @rule(data=st.data(), position=st.integers(0, PAGE - 1))
    def somebody_alters(self, data: st.DataObject, position: int) -> None:
        """One flipped bit: the page is never seen again, and touching it is the end."""
        page = data.draw(st.sampled_from(sorted(self.out_pages())))
        memory = self.guest.machine.memory
        lra = self.guest.machine.hypervisor.out[page]
        content = memory.load(lra)
        assert content
        altered = bytearray(content)
        altered[position] ^= 1
        memory.store(lra, bytes(altered))
        try:
            self.guest.load(page * PAGE, WORD)
        except PagedOutError:
            assert self.is_doomed
            assert self.guest.machine.state is VmState.ABORT
        else:
            raise AssertionError("an altered page was taken")

    # -- the daemon and the machine -------------------------------------------------------

    @rule()
    def restart(self) -> None:
        self.guest.reload()

    @rule()
    def reset(self) -> None:
        self.guest.reset()
        assert all(b"guest" not in part for part in self.guest.guest.snapshot()) or self.shared
        self.guest.guest.write(0, bytes(SIZE))
        self.begin()

    # -- what must hold -------------------------------------------------------------------

    @invariant()
    def memory_is_as_it_should_be(self) -> None:
        if not hasattr(self, "words"):
            return
        out = self.out_pages()
        for unit, word in self.words.items():
            page = unit // PER_PAGE
            found = self.guest.guest.read(unit * UNIT, WORD)
            bits = self.guest.bits_at(unit * UNIT)
            if page in out:
                assert unit not in self.shared
                assert found == bytes(WORD)
                assert bits == PageBits.OUT
            else:
                assert found == word
                assert bits == (PageBits.NONE if unit in self.shared else PageBits.UNSHARED)
            if unit not in self.shared:
                assert self.guest.seen_by_host(unit * UNIT, 1) == b"\0"

    @invariant()
    def the_daemon_counts_the_same(self) -> None:
        if hasattr(self, "words") and not self.is_doomed:
            vm = self.guest.machine.ultravisor.vms[1]
            assert vm.shared_count == len(self.shared)
            assert set(vm.out) == self.out_pages()

    @invariant()
    def no_plaintext_leaves(self) -> None:
        if not hasattr(self, "words"):
            return
        for number in self.guest.machine.memory.numbers():
            assert b"guest" not in (self.guest.machine.memory.get(number) or b"")


TestPefMachine = PefMachineAgainstNaive.TestCase
