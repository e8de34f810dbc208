# SPDX-License-Identifier: Apache-2.0
"""The ultravisor alone, with three VMs and a hypervisor that lies, against a naive model.

The model is what the published documents say of the calls (docs/pef.md, "Sources"), in plain
dictionaries: slots, a state for each page, what each page of the VMs' memory holds, and the
very bytes that left for each page that is out. A page comes back if, and only if, these are
what is brought: not altered, not another page's, not another VM's, not an older version.
All calls are made in any order, at any time, of VMs that are not there too; the daemon dies
between any two of them, or in the middle of one; and no plaintext is ever in what the
hypervisor has.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.hcalld.domain.halves import Store

from hcalld.core.errors import HcallError
from hcalld.core.pages import PageBits
from hcalld.domain.ultravisor import sharing
from hcalld.domain.ultravisor.abi import (
    ENTROPY_SIZE,
    PAGE_SIZE,
    SECURE_MEMORY,
    PageContent,
    Returned,
    Turn,
)
from hcalld.domain.ultravisor.page_states import PageState
from hcalld.domain.ultravisor.ultravisor import UltravisorModel
from hcalld.domain.ultravisor.vm_states import VmEvent, VmState
from hcallproto.abi.families import svm, uv
from hcallproto.abi.returns import Code, H, U

LPIDS = (1, 2, 3)
PAGES = 6
OWN_PAGES = 5
OWN = 1 << 30
ALIAS = 1 << 40
MARKER = b"only its guest may read this"
ZEROS = bytes(PAGE_SIZE)

# What a page is.
SECURE, OUT, SHARED, INVALID = "secure", "out", "shared", "invalid"
STATES = {
    SECURE: PageState.SECURE,
    OUT: PageState.PAGEDOUT,
    SHARED: PageState.SHARED,
    INVALID: PageState.SHARED_INV,
}
BITS = {
    SECURE: PageBits.UNSHARED,
    OUT: PageBits.OUT,
    SHARED: PageBits.NONE,
    INVALID: PageBits.NONE,
}

LPID = st.sampled_from([*LPIDS, *LPIDS, *LPIDS, 4])
RARELY = st.integers(0, 9).map(lambda n: n == 9)
PAGE = st.integers(0, PAGES)
"""One more than there are: in no slot."""
ORDER = st.sampled_from([16] * 9 + [12, 0, (1 << 64) - 1])


def alias(lpid: int, page: int) -> int:
    """The real address of a VM's page."""
    return ALIAS + (lpid << 32) + page * PAGE_SIZE


ADDRESS = st.one_of(
    st.integers(0, OWN_PAGES).map(lambda n: OWN + n * PAGE_SIZE),
    st.tuples(st.sampled_from(LPIDS), st.integers(0, PAGES - 1)).map(lambda at: alias(*at)),
    st.sampled_from([0, 1, OWN + 1, SECURE_MEMORY, SECURE_MEMORY | OWN, (1 << 64) - 1]),
)
"""Of memory that the hypervisor names: its own, some VM's, and none."""


class Memory:
    """Normal memory, as the hypervisor has it: pages of its own, and its VMs'."""

    def __init__(self) -> None:
        self.own = {OWN + n * PAGE_SIZE: ZEROS for n in range(OWN_PAGES)}

    def guest_page(self, lra: int) -> tuple[int, int] | None:
        if not ALIAS <= lra < ALIAS + (5 << 32):
            return None
        return (lra - ALIAS) >> 32, lra & 0xFFFF_FFFF

    def load(self, lra: int) -> bytes | None:
        return self.own.get(lra)

    def store(self, lra: int, data: bytes) -> bool:
        if lra not in self.own:
            return False
        self.own[lra] = data
        return True


@dataclasses.dataclass
class Vm:
    """What the model knows of a VM that has a record."""

    state: VmState = VmState.ACTIVE
    was_secure: bool = False
    slots: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    pages: dict[int, str] = dataclasses.field(default_factory=dict)
    left: dict[int, bytes] = dataclasses.field(default_factory=dict)
    """Page to what left."""
    handed: set[int] = dataclasses.field(default_factory=set)
    """Pages that were handed over to be measured: that happens once."""
    breaches: int = 0


class Liar:
    """A hypervisor that answers H_SVM_PAGE_IN as it was told to, each time anew."""

    def __init__(self) -> None:
        self.lies: list[str] = []

    def hypercall(self, turn: Turn, number: int, args: Sequence[int]) -> Returned:
        assert number == svm.PAGE_IN.number
        gpa = args[0]
        lie = self.lies.pop(0) if self.lies else "none"
        own = alias(turn.lpid, gpa // PAGE_SIZE)
        source = {"other page": own + PAGE_SIZE, "other vm": own + (1 << 32), "own": OWN}
        if lie == "refuses":
            return Returned(H.PARAMETER)
        if lie == "ends":
            turn.ultracall(uv.SVM_TERMINATE.number, turn.lpid)
        elif lie != "does nothing":
            turn.ultracall(uv.PAGE_IN.number, turn.lpid, source.get(lie, own), gpa, 0, 16)
        return Returned(H.SUCCESS)


def code_of(
    work: Callable[[UltravisorModel, Turn, int, int, int], None],
    real: UltravisorModel,
    turn: Turn,
    first: int,
    count: int,
) -> Code:
    """The code of a call of the VM's own, with frames of 64 KiB."""
    try:
        work(real, turn, first, count, 16)
    except HcallError as error:
        return error.code
    return U.SUCCESS


LIES = st.lists(
    st.sampled_from(
        ["none"] * 6 + ["refuses", "ends", "does nothing", "other page", "other vm", "own"]
    ),
    max_size=4,
)


class UltravisorAndLiar(RuleBasedStateMachine):
    """See the module."""

    @initialize()
    def power_on(self) -> None:
        self.memory = Memory()
        self.liar = Liar()
        self.store = Store()
        self.real = UltravisorModel(self.memory)
        self.vms: dict[int, Vm] = {}
        self.ram = {(lpid, page): ZEROS for lpid in (*LPIDS, 4) for page in range(PAGES)}
        self.pates: dict[int, tuple[int, int]] = {}
        self.seen: list[bytes] = []
        """All that ever left."""
        self.nonces: set[bytes] = set()
        self.count = itertools.count(1)
        self.identities = itertools.count(1)
        self.doomed = ""
        self.plain: dict[tuple[int, int, bytes], bytes] = {}
        """VM, page and what left, to what it holds."""
        for lpid in LPIDS:
            self.begin(lpid)
            for page in range(4):
                self.store_secret(lpid, page)
        self.commit(1)
        self.commit(2)
        self.share(1, 2, 2, [], True)

    # -- turns ------------------------------------------------------------------------------

    def turn(self, lpid: int) -> Turn:
        contents = {}
        for page in range(PAGES):
            entropy = next(self.count).to_bytes(ENTROPY_SIZE, "big")
            contents[page * PAGE_SIZE] = PageContent(self.ram[lpid, page], entropy)
        return Turn(lpid, self.real, self.liar, contents)

    def carry_out(self, turn: Turn, expected: set[int]) -> None:
        """What a turn does to memory: to pages that the model expects, and to no others."""
        lpid = turn.lpid
        for gpa, data in turn.pending_writes():
            assert gpa // PAGE_SIZE in expected
            self.ram[lpid, gpa // PAGE_SIZE] = data
        for low, high in turn.zeros.ranges():
            assert set(range(low // PAGE_SIZE, high // PAGE_SIZE)) <= expected
            for page in range(low // PAGE_SIZE, high // PAGE_SIZE):
                self.ram[lpid, page] = ZEROS
        self.store.commit(self.real.take_changes())

    def ask(self, lpid: int, number: int, *args: int, expected: set[int] | None = None) -> U:
        turn = self.turn(lpid)
        status = turn.ultracall(number, *args).status
        assert isinstance(status, U)
        self.carry_out(turn, expected or set())
        self.doomed = turn.doom
        return status

    def flags(self) -> int:
        """Nobody has published what flags mean, and nobody looks at them."""
        return (0, 1, 1 << 63, (1 << 64) - 1)[next(self.count) % 4]

    # -- the VM's life ----------------------------------------------------------------------

    @rule(lpid=st.sampled_from(LPIDS))
    def begin(self, lpid: int) -> None:
        identity = next(self.identities).to_bytes(16, "big")
        if lpid in self.vms:
            with pytest.raises(HcallError) as refused:
                self.real.begin(lpid, identity)
            assert refused.value.code is U.RETRY
            return
        self.real.begin(lpid, identity)
        self.vms[lpid] = Vm()
        # Most have memory at once.
        self.register(lpid, 0, 0, 4 * PAGE_SIZE)

    @rule(lpid=st.sampled_from(LPIDS))
    def commit(self, lpid: int) -> None:
        vm = self.vms.get(lpid)
        if vm is None or vm.state is not VmState.ACTIVE:
            return
        turn = self.turn(lpid)
        self.real.commit(turn, self.real.vms[lpid], {})
        self.carry_out(turn, set())
        vm.state, vm.was_secure = VmState.SECURE, True

    @rule(lpid=st.sampled_from(LPIDS), is_meant=RARELY)
    def abort(self, lpid: int, is_meant: bool) -> None:
        vm = self.vms.get(lpid)
        if vm is None or vm.state is not VmState.ACTIVE or not is_meant:
            return
        self.real.vms[lpid].happen(VmEvent.ABORT)
        vm.state = VmState.ABORT

    @rule(lpid=LPID, is_meant=RARELY)
    def terminate(self, lpid: int, is_meant: bool) -> None:
        if not is_meant:
            return
        vm = self.vms.pop(lpid, None)
        pages = set(vm.pages) if vm is not None and vm.was_secure else set()
        if vm is not None and vm.state is VmState.SECURE:
            self.pates[lpid] = (0, 0)
        assert self.ask(lpid, uv.SVM_TERMINATE.number, lpid, expected=pages) is U.SUCCESS
        assert all(self.ram[lpid, page] == ZEROS for page in pages)

    @rule(lpid=LPID, is_meant=RARELY)
    def make_uv_return(self, lpid: int, is_meant: bool) -> None:
        """A cookie of the hypervisor's own ends the VM."""
        if not is_meant:
            return
        status = self.ask(lpid, uv.RETURN.number, *range(12))
        assert status is U.PERMISSION
        vm = self.vms.get(lpid)
        assert bool(self.doomed) is (vm is not None and vm.state is VmState.SECURE)
        if vm is not None and vm.state is VmState.SECURE:
            vm.state = VmState.ABORT

    # -- slots ------------------------------------------------------------------------------

    @rule(
        lpid=LPID,
        slot=st.sampled_from([0, 1, 1, 2, 511, 512, 1 << 40]),
        start=st.integers(0, PAGES).map(lambda page: page * PAGE_SIZE)
        | st.sampled_from([1, 1 << 63, (1 << 64) - PAGE_SIZE]),
        size=st.sampled_from([PAGE_SIZE, 2 * PAGE_SIZE, PAGE_SIZE - 1, 1, 0, (1 << 64) - 1]),
    )
    def register(self, lpid: int, slot: int, start: int, size: int) -> None:
        vm = self.vms.get(lpid)
        rounded = -(-size // PAGE_SIZE) * PAGE_SIZE
        if start + rounded <= 1 << 60 and start + rounded > PAGES * PAGE_SIZE:
            return  # there is no such memory in this test
        expected = self.code_of_register(vm, slot, start, rounded)
        old: set[int] = set()
        new: set[int] = set()
        if expected is U.SUCCESS and vm is not None and vm.slots.get(slot) != (start, rounded):
            if slot in vm.slots:
                old = self.drop(vm, slot)
            vm.slots[slot] = (start, rounded)
            new = set(range(start // PAGE_SIZE, (start + rounded) // PAGE_SIZE))
            vm.pages |= dict.fromkeys(new, SECURE)
        changed = (old if vm is not None and vm.was_secure else set()) | (
            new if vm is not None and vm.state is VmState.SECURE else set()
        )
        for page in new:
            self.ram[lpid, page] = b"planted." * (PAGE_SIZE // 8)
        number = uv.REGISTER_MEM_SLOT.number
        assert self.ask(lpid, number, lpid, start, size, 7, slot, expected=changed) is expected
        assert all(self.ram[lpid, page] == ZEROS for page in changed)

    @staticmethod
    def code_of_register(vm: Vm | None, slot: int, start: int, size: int) -> U:
        if vm is None:
            return U.PARAMETER
        if start % PAGE_SIZE:
            return U.P2
        if not size or start + size > 1 << 60:
            return U.P3
        if slot >= 512:
            return U.P5
        for other, (low, length) in vm.slots.items():
            if other != slot and low < start + size and start < low + length:
                return U.P3
        if vm.slots.get(slot) != (start, size) and vm.state is VmState.ABORT:
            return U.PARAMETER
        return U.SUCCESS

    def drop(self, vm: Vm, slot: int) -> set[int]:
        start, size = vm.slots.pop(slot)
        pages = set(range(start // PAGE_SIZE, (start + size) // PAGE_SIZE))
        for page in pages:
            del vm.pages[page]
            vm.left.pop(page, None)
        return pages

    @rule(lpid=LPID, slot=st.sampled_from([0, 1, 1, 1, 2, 2, 511, 512]))
    def unregister(self, lpid: int, slot: int) -> None:
        vm = self.vms.get(lpid)
        expected, pages = U.SUCCESS, set()
        if vm is None:
            expected = U.PARAMETER
        elif slot not in vm.slots:
            expected = U.P2
        else:
            pages = self.drop(vm, slot)
            pages = pages if vm.was_secure else set()
        number = uv.UNREGISTER_MEM_SLOT.number
        assert self.ask(lpid, number, lpid, slot, expected=pages) is expected
        assert all(self.ram[lpid, page] == ZEROS for page in pages)

    # -- pages ------------------------------------------------------------------------------

    @rule(lpid=LPID, page=PAGE, order=ORDER, source=ADDRESS)
    def page_in(self, lpid: int, page: int, order: int, source: int) -> None:
        vm = self.vms.get(lpid)
        code, content = self.code_of_page_in(lpid, page, source, order)
        if code is U.SUCCESS and vm is not None:
            if vm.pages[page] == SECURE:
                vm.handed.add(page)
            vm.pages[page] = SHARED if vm.pages[page] in (SHARED, INVALID) else SECURE
            vm.left.pop(page, None)
        number, gpa = uv.PAGE_IN.number, page * PAGE_SIZE + 123
        changed = set() if content is None else {page}
        assert (
            self.ask(lpid, number, lpid, source, gpa, self.flags(), order, expected=changed) is code
        )
        if content is not None:
            assert self.ram[lpid, page] == content

    def right_source(self, lpid: int, vm: Vm, page: int) -> int:
        if vm.pages[page] != OUT:
            return alias(lpid, page)
        found = [lra for lra, data in self.memory.own.items() if data == vm.left[page]]
        return found[0] if found else OWN

    def code_of_page_in(
        self, lpid: int, page: int, source: int, order: int
    ) -> tuple[U, bytes | None]:
        """The code, and what the page holds then if it is changed."""
        vm = self.vms.get(lpid)
        if order != 16:
            return U.P5, None
        if not source or source & SECURE_MEMORY:
            return U.P2, None
        if vm is None:
            return U.PARAMETER, None
        if vm.state is VmState.ABORT:
            return U.STATE, None
        if page not in vm.pages:
            return U.P3, None
        own = self.memory.own.get(source)
        state, is_right = vm.pages[page], source == alias(lpid, page)
        if state == OUT:
            if own is None and self.memory.guest_page(source) is None:
                return U.P2, None
            if own != vm.left[page]:
                vm.breaches += 1
                return U.P3, None
            return U.SUCCESS, self.hidden(lpid, page)
        if state == SECURE and vm.state is VmState.SECURE:
            return U.P2, None
        if state == SECURE and page in vm.handed:
            return U.P2, None
        if is_right:
            return U.SUCCESS, None
        if state == SECURE and own is not None:
            return U.SUCCESS, own
        return U.P2, None

    def hidden(self, lpid: int, page: int) -> bytes:
        return self.plain[lpid, page, self.vms[lpid].left[page]]

    @rule(lpid=LPID, page=PAGE, order=ORDER, destination=ADDRESS)
    def page_out(self, lpid: int, page: int, order: int, destination: int) -> None:
        vm = self.vms.get(lpid)
        code, leaves = self.code_of_page_out(vm, page, destination, order)
        before, content = dict(self.memory.own), self.ram.get((lpid, page), ZEROS)
        number, gpa = uv.PAGE_OUT.number, page * PAGE_SIZE + PAGE_SIZE - 1
        changed = {page} if leaves else set()
        assert (
            self.ask(lpid, number, lpid, destination, gpa, self.flags(), order, expected=changed)
            is code
        )
        if not leaves:
            assert self.memory.own == before
            return
        assert vm is not None
        left = self.memory.own[destination]
        # No two pages that left are alike, nor is anything of one.
        assert not any(left[n : n + 16] == old[n : n + 16] for old in self.seen for n in (0, 4096))
        self.seen.append(left)
        nonce = self.real.vms[lpid].identity + self.real.vms[lpid].out[page].nonce
        assert nonce not in self.nonces
        self.nonces.add(nonce)
        vm.pages[page], vm.left[page] = OUT, left
        self.plain[lpid, page, left] = content
        assert self.ram[lpid, page] == ZEROS

    def code_of_page_out(
        self, vm: Vm | None, page: int, destination: int, order: int
    ) -> tuple[U, bool]:
        if order != 16:
            return U.P5, False
        if not destination or destination & SECURE_MEMORY:
            return U.P2, False
        if self.memory.guest_page(destination) is not None:
            return U.P2, False
        if vm is None:
            return U.PARAMETER, False
        if page not in vm.pages:
            return U.P3, False
        if vm.state is VmState.ABORT:
            return U.SUCCESS, False
        if vm.pages[page] != SECURE:
            return U.PARAMETER, False
        return (U.SUCCESS, True) if destination in self.memory.own else (U.P2, False)

    @rule(lpid=st.sampled_from(LPIDS), pages=st.lists(PAGE, max_size=3))
    def page_some_out(self, lpid: int, pages: list[int]) -> None:
        """To where no other is, if there is such a page."""
        for page in pages:
            taken = [left for vm in self.vms.values() for left in vm.left.values()]
            free = [lra for lra, data in self.memory.own.items() if data not in taken]
            self.page_out(lpid, page, 16, (free or [OWN])[0])

    @rule(lpid=st.sampled_from(LPIDS))
    def page_all_in(self, lpid: int) -> None:
        """What is there comes in; what is not, does not; and no other page for a shared one."""
        vm = self.vms[lpid] if lpid in self.vms else Vm()
        for page in [page for page, state in vm.pages.items() if state in (SHARED, INVALID)]:
            self.page_in(lpid, page, 16, alias(lpid, (page + 1) % PAGES))
            self.page_in(lpid, page, 16, OWN)
            self.page_in(lpid, page, 16, alias(lpid, page))
        for page in [page for page, state in vm.pages.items() if state == OUT]:
            self.page_in(lpid, page, 16, self.right_source(lpid, vm, page))

    @rule(lpid=LPID, page=PAGE, order=ORDER)
    def invalidate(self, lpid: int, page: int, order: int) -> None:
        vm = self.vms.get(lpid)
        if order != 16:
            code = U.P3
        elif vm is None:
            code = U.PARAMETER
        elif vm.state is VmState.ABORT:
            code = U.STATE
        elif page not in vm.pages:
            code = U.P3
        elif vm.pages[page] in (SECURE, OUT):
            code = U.P2
        else:
            code = U.SUCCESS
            vm.pages[page] = INVALID
        number = uv.PAGE_INVAL.number
        assert self.ask(lpid, number, lpid, page * PAGE_SIZE, order) is code

    # -- the VM's own calls, and what it stores ----------------------------------------------

    @rule(lpid=st.sampled_from(LPIDS), page=st.integers(0, PAGES - 1))
    def store_secret(self, lpid: int, page: int) -> None:
        vm = self.vms.get(lpid)
        if vm is None or vm.pages.get(page, OUT) == OUT:
            return
        self.ram[lpid, page] = (MARKER + next(self.count).to_bytes(4, "big")) * (PAGE_SIZE // 32)

    @rule(
        lpid=st.sampled_from(LPIDS),
        first=st.integers(0, PAGES - 1),
        count=st.integers(0, 3),
        lies=LIES,
        is_share=st.booleans(),
    )
    def share(self, lpid: int, first: int, count: int, lies: list[str], is_share: bool) -> None:
        """With a hypervisor that may lie: all or nothing, or the end of the VM."""
        vm = self.vms.get(lpid)
        pages = set(range(first, first + count))
        work = sharing.share if is_share else sharing.unshare
        self.liar.lies = list(lies)
        before = dict(vm.pages) if vm is not None else {}
        contents = {page: self.ram[lpid, page] for page in range(PAGES)}
        turn = self.turn(lpid)
        code = code_of(work, self.real, turn, first, count)
        self.liar.lies = []
        if vm is None or vm.state is not VmState.SECURE:
            assert code is U.PERMISSION
            self.carry_out(turn, set())
            return
        if not pages <= vm.pages.keys():
            assert code is U.P2
            self.carry_out(turn, set())
            return
        if code is not U.SUCCESS and lpid not in self.real.vms:
            assert turn.doom
            self.forget(lpid)
            self.carry_out(turn, set(before))
            return
        real = self.real.vms[lpid]
        vm.breaches = real.breaches
        affected = {page for page in pages if (before[page] in (SHARED, INVALID)) != is_share}
        self.carry_out(turn, pages)
        if turn.doom:
            assert code is U.P2
            assert real.state is VmState.ABORT
            vm.state = VmState.ABORT
            # It does not run on. What was its own nobody is shown.
            vm.pages = {page: self.state_told(lpid, page) for page in vm.pages}
            assert not [page for page, state in before.items() if state == SECURE != vm.pages[page]]
            vm.left = {page: left for page, left in vm.left.items() if vm.pages[page] == OUT}
            return
        if code is not U.SUCCESS:
            assert code is U.P2
            # Pages that were out may have come in; no other has changed its state.
            for page in pages:
                if before[page] == OUT and self.state_told(lpid, page) == SECURE:
                    self.came_in(lpid, vm, page)
                else:
                    assert self.ram[lpid, page] in (contents[page], ZEROS)
                    if before[page] == SECURE:
                        assert self.ram[lpid, page] == contents[page]
            return
        for page in affected:
            vm.pages[page] = SHARED if is_share else SECURE
            vm.left.pop(page, None)
            assert self.ram[lpid, page] == ZEROS
        for page in pages - affected:
            assert self.ram[lpid, page] == contents[page]

    def forget(self, lpid: int) -> None:
        vm = self.vms.pop(lpid)
        assert vm.state is VmState.SECURE
        self.pates[lpid] = (0, 0)

    def state_told(self, lpid: int, page: int) -> str:
        real = self.real.vms[lpid].pages[page * 16]
        return next(name for name, state in STATES.items() if state is real)

    def came_in(self, lpid: int, vm: Vm, page: int) -> None:
        assert self.ram[lpid, page] == self.hidden(lpid, page)
        vm.pages[page] = SECURE
        vm.left.pop(page)

    # -- lies about memory -------------------------------------------------------------------

    @rule(n=st.integers(0, OWN_PAGES - 1), position=st.integers(0, PAGE_SIZE * 8 - 1))
    def alter(self, n: int, position: int) -> None:
        lra = OWN + n * PAGE_SIZE
        data = bytearray(self.memory.own[lra])
        data[position // 8] ^= 1 << position % 8
        self.memory.own[lra] = bytes(data)

    @rule(n=st.integers(0, OWN_PAGES - 1), m=st.integers(0, OWN_PAGES - 1))
    def swap(self, n: int, m: int) -> None:
        a, b, own = OWN + n * PAGE_SIZE, OWN + m * PAGE_SIZE, self.memory.own
        own[a], own[b] = own[b], own[a]

    @rule(n=st.integers(0, OWN_PAGES - 1), data=st.data())
    def replay(self, n: int, data: st.DataObject) -> None:
        if self.seen:
            self.memory.own[OWN + n * PAGE_SIZE] = data.draw(st.sampled_from(self.seen))

    @rule(n=st.integers(0, OWN_PAGES - 1), data=st.data())
    def cut_off(self, n: int, data: st.DataObject) -> None:
        """A page of which only a part is there: zeros behind it."""
        size = data.draw(st.integers(0, PAGE_SIZE - 1))
        lra = OWN + n * PAGE_SIZE
        self.memory.own[lra] = self.memory.own[lra][:size].ljust(PAGE_SIZE, b"\0")

    # -- what is not a VM's -----------------------------------------------------------------

    @rule(lpid=LPID, dw0=st.integers(0, 9), dw1=st.integers(0, 9))
    def write_pate(self, lpid: int, dw0: int, dw1: int) -> None:
        old = self.pates.get(lpid, (0, 0))
        self.pates[lpid] = (old[0] if lpid in self.vms else dw0, dw1)
        assert self.ask(lpid, uv.WRITE_PATE.number, lpid, dw0, dw1) is U.SUCCESS

    # -- the daemon dies ----------------------------------------------------------------------

    @rule()
    def die(self) -> None:
        """Between calls. A VM that is not secure yet has no records; it begins anew."""
        self.real = UltravisorModel(self.memory, self.store.records.values())
        gone = [lpid for lpid, vm in self.vms.items() if not vm.was_secure]
        for lpid in gone:
            del self.vms[lpid]
        self.all_is_as_the_model_says()
        for lpid in gone:
            self.begin(lpid)

    @rule(lpid=st.sampled_from(LPIDS), page=st.integers(0, PAGES - 1), what=st.integers(0, 4))
    def die_in_a_call(self, lpid: int, page: int, what: int) -> None:
        """What was not committed never was; its ciphertext was not either."""
        own = dict(self.memory.own)
        gpa = page * PAGE_SIZE
        turn = self.turn(lpid)
        if what == 0:
            turn.ultracall(uv.PAGE_OUT.number, lpid, OWN, gpa, 0, 16)
        elif what == 1:
            for lra in own:
                turn.ultracall(uv.PAGE_IN.number, lpid, lra, gpa, 0, 16)
        elif what == 2:
            turn.ultracall(uv.SVM_TERMINATE.number, lpid)
        elif what == 3:
            turn.ultracall(uv.UNREGISTER_MEM_SLOT.number, lpid, 0)
        elif lpid in self.vms and self.vms[lpid].state is VmState.SECURE:
            assert code_of(sharing.share, self.real, turn, page, 1) in (U.SUCCESS, U.P2)
        self.memory.own = own
        self.die()

    # -- what must hold -----------------------------------------------------------------------

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        if not hasattr(self, "vms"):
            return
        assert self.real.vms.keys() == self.vms.keys()
        assert self.real.pates == self.pates
        for lpid, vm in self.vms.items():
            real = self.real.vms[lpid]
            assert (real.state, real.was_secure) == (vm.state, vm.was_secure)
            assert {n: (slot.start, slot.size) for n, slot in real.slots} == vm.slots
            assert set(real.out) == {page for page, state in vm.pages.items() if state == OUT}
            assert real.breaches == vm.breaches
            for page, state in vm.pages.items():
                low, high = page * PAGE_SIZE, (page + 1) * PAGE_SIZE
                assert real.states(low, high) == {STATES[state]}
                (told,) = real.bits(low, high)
                assert told.state is (BITS[state] if vm.was_secure else PageBits.NONE)

    @invariant()
    def no_plaintext_is_where_the_hypervisor_looks(self) -> None:
        if hasattr(self, "memory"):
            for data in self.memory.own.values():
                assert MARKER[:8] not in data


TestUltravisorAndLiar = UltravisorAndLiar.TestCase
TestUltravisorAndLiar.settings = settings(stateful_step_count=40)
