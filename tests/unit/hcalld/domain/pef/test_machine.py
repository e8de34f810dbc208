# SPDX-License-Identifier: Apache-2.0
"""A guest of both halves: paging while it runs, limits, memory that comes and goes."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest

from hcalld.core.effects import Effect, ReadGuest, WriteGuest, ZeroGuest
from hcalld.core.outcome import Outcome
from hcalld.core.pages import PageBits, PageRange, SetPages
from hcalld.core.secret import Secret
from hcalld.domain.attributes import PartitionAttributes
from hcalld.domain.hypervisor.half import HypervisorSettings
from hcalld.domain.pef import machine as machine_module
from hcalld.domain.pef.attend import attend as attend_once
from hcalld.domain.pef.attend import plug, unplug
from hcalld.domain.pef.machine import PAGE_OUT_BATCH, PefMachine, PefSettings
from hcalld.domain.pef.shared import share, unshare_all
from hcalld.domain.ultravisor import sharing
from hcalld.domain.ultravisor.abi import PAGE_SIZE, Turn
from hcalld.domain.ultravisor.page_states import PageState
from hcalld.domain.ultravisor.vm_states import VmState
from hcalld.testing.guest import FakeGuest
from hcalld.testing.pef import RAM_SIZE, PagedOutError, PefGuest
from hcallproto.abi.families import svm, uv
from hcallproto.abi.returns import H, U

GPA = 0x60_0000
FRAMES = RAM_SIZE // PAGE_SIZE
SECRET = b"secret of the guest"


def make(limit: int | None = None, shift: int = 16) -> PefGuest:
    guest = PefGuest(
        PefSettings(page_shift=shift, hypervisor=HypervisorSettings(resident_pages=limit))
    )
    assert guest.enter({b"rootd": Secret(b"x" * 100)}).code is U.SUCCESS
    return guest


def page_out(guest: PefGuest, *gpas: int) -> Outcome:
    return guest.run(guest.machine.page_out(gpas))


# -- paging --------------------------------------------------------------------------------------


def test_a_page_goes_out_and_comes_back_when_it_is_touched():
    guest = make()
    guest.store_bytes(GPA + 100, SECRET)
    outcome = page_out(guest, GPA)
    assert outcome.code is U.SUCCESS
    assert guest.guest.read(GPA, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert guest.bits_at(GPA) == PageBits.OUT
    assert SECRET not in b"".join(record.value for record in guest.store.load().records)
    assert guest.load(GPA + 100, len(SECRET)) == SECRET
    assert guest.bits_at(GPA) == PageBits.UNSHARED
    assert len(guest.machine.memory) == 0


def test_the_vm_cannot_touch_a_page_while_it_is_read():
    guest = make()
    page_out(guest, GPA)
    kinds = [type(effect) for effect in guest.trail]
    assert kinds.index(SetPages) < kinds.index(ReadGuest)


def test_paging_over_the_daemons_restart():
    guest = make()
    guest.store_bytes(GPA, SECRET)
    page_out(guest, GPA)
    guest.reload()
    assert guest.load(GPA, len(SECRET)) == SECRET
    page_out(guest, GPA)
    guest.reload()
    guest.reload()
    assert guest.load(GPA, len(SECRET)) == SECRET


def test_the_ciphertext_differs_each_time():
    guest = make()
    seen = set()
    for _ in range(4):
        page_out(guest, GPA)
        (number,) = guest.machine.memory.numbers()
        content = guest.machine.memory.get(number)
        assert content
        seen.add(content)
        guest.load(GPA, 1)
    assert len(seen) == 4


def test_corrupted_ciphertext_ends_the_vm_and_gives_nothing():
    guest = make()
    guest.store_bytes(GPA, SECRET)
    page_out(guest, GPA)
    (lra,) = guest.machine.hypervisor.out.values()
    content = guest.machine.memory.load(lra)
    assert content
    guest.machine.memory.store(lra, content[:-1] + bytes((content[-1] ^ 1,)))
    with pytest.raises(PagedOutError):
        guest.load(GPA, 1)
    assert "does not come back" in guest.doom
    assert guest.machine.state is VmState.ABORT
    assert guest.guest.read(GPA, PAGE_SIZE) == bytes(PAGE_SIZE)
    guest.reload()
    assert guest.machine.state is VmState.ABORT


def test_several_pages_and_twice_the_same():
    guest = make()
    pages = [GPA + n * PAGE_SIZE for n in range(PAGE_OUT_BATCH)]
    for gpa in pages:
        guest.store_bytes(gpa, gpa.to_bytes(8, "big"))
    assert page_out(guest, *pages, GPA + 12345).code is U.SUCCESS
    assert page_out(guest, *pages).code is U.SUCCESS
    assert len(guest.machine.memory) == PAGE_OUT_BATCH
    for gpa in pages:
        assert guest.load(gpa, 8) == gpa.to_bytes(8, "big")


def test_what_cannot_go_out():
    guest = make()
    guest.call(uv.SHARE_PAGE, GPA // PAGE_SIZE, 1)
    before = guest.guest.snapshot()
    assert page_out(guest, GPA).code is U.SUCCESS  # KVM: it is not in secure memory
    assert page_out(guest, RAM_SIZE).code is U.PARAMETER
    assert guest.guest.snapshot() == before
    assert guest.bits_at(GPA) == PageBits.NONE
    assert PefGuest().run(PefMachine().page_out([0])).code is U.PARAMETER


def test_a_share_of_a_page_that_is_out():
    guest = make(shift=12)
    guest.store_bytes(GPA, b"before")
    guest.store_bytes(GPA + 0x2000, b"after")
    page_out(guest, GPA)
    outcome = guest.call(uv.SHARE_PAGE, (GPA >> 12) + 1, 1)
    assert outcome.code is U.SUCCESS
    assert guest.load(GPA, 6) == b"before"
    assert guest.load(GPA + 0x2000, 5) == b"after"
    assert guest.load(GPA + 0x1000, 4096) == bytes(4096)
    assert [guest.bits_at(GPA + n * 4096) for n in range(3)] == [1, 0, 1]


# -- pages that are wanted back ------------------------------------------------------------------


def drive(guest: PefGuest, running: Coroutine[Any, Any, Outcome], until: type[Effect[Any]]) -> Any:
    """Run until an effect of a kind is asked for; nobody has performed it."""
    answer: Any = None
    while True:
        effect = running.send(answer)
        if isinstance(effect, until):
            return effect
        answer = guest.perform(effect)


def finish(guest: PefGuest, running: Coroutine[Any, Any, Outcome], answer: Any) -> Outcome:
    async def rest() -> Outcome:
        value = answer
        while True:
            try:
                effect = running.send(value)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            value = await effect

    return guest.run(rest())


def test_a_page_that_is_wanted_back_while_it_is_read_is_read_again():
    guest = make()
    guest.store_bytes(GPA, b"old")
    running = guest.machine.page_out([GPA])
    effect = drive(guest, running, ReadGuest)
    stale = guest.perform(effect)
    guest.store_bytes(GPA, b"new")  # touches it, and so has it back
    outcome = finish(guest, running, stale)
    assert outcome.code is U.SUCCESS
    assert guest.load(GPA, 3) == b"new"


def test_a_page_out_that_is_cut_off_leaves_nothing():
    guest = make()
    guest.store_bytes(GPA, b"old")
    running = guest.machine.page_out([GPA])
    drive(guest, running, ReadGuest)
    running.close()
    assert guest.bits_at(GPA) == PageBits.OUT
    assert guest.load(GPA, 3) == b"old"
    assert guest.machine.take_changes() == []


def test_two_page_outs_of_one_page():
    guest = make()
    guest.store_bytes(GPA, b"old")
    running = guest.machine.page_out([GPA])
    stale = guest.perform(drive(guest, running, ReadGuest))
    assert page_out(guest, GPA).code is U.SUCCESS
    assert finish(guest, running, stale).code is U.SUCCESS
    assert len(guest.machine.memory) == 1
    assert guest.load(GPA, 3) == b"old"


def test_a_page_that_is_wanted_back_all_the_time():
    guest = make()
    running = guest.machine.page_out([GPA])
    perform = guest.perform

    def interfere(effect: Effect[Any]) -> Any:
        answer = perform(effect)
        if isinstance(effect, ReadGuest):
            guest.perform = perform  # type: ignore[method-assign]
            guest.store_bytes(GPA, b"new")
            guest.perform = interfere  # type: ignore[method-assign]
        return answer

    guest.perform = interfere  # type: ignore[method-assign]
    assert guest.run(running).code is U.RETRY
    assert guest.load(GPA, 3) == b"new"


def test_memory_that_is_gone_while_it_is_read():
    guest = make()
    guest.guest = FakeGuest([(0, GPA)])
    outcome = guest.run(guest.machine.page_out([0]))
    assert outcome.code is U.SUCCESS
    perform = guest.perform

    def fail(effect: Effect[Any]) -> Any:
        if isinstance(effect, SetPages):
            return None
        return perform(effect)

    guest.perform = fail  # type: ignore[method-assign]
    guest.set_bits = lambda ranges: None  # type: ignore[method-assign]
    assert guest.run(guest.machine.page_out([GPA])).code is U.P3


# -- a limit -------------------------------------------------------------------------------------


def trim(guest: PefGuest) -> int:
    calls = 0
    while guest.run(guest.machine.trim()).code is U.BUSY:
        calls += 1
        assert calls < 100
    return calls


def test_a_vm_is_kept_under_its_limit():
    guest = make(limit=100)
    for gpa in range(0, RAM_SIZE, PAGE_SIZE):
        guest.store_bytes(gpa, gpa.to_bytes(8, "big"))
    trim(guest)
    assert guest.machine.hypervisor.resident_count == 100
    for gpa in range(0, RAM_SIZE, PAGE_SIZE):
        assert guest.load(gpa, 8) == gpa.to_bytes(8, "big")
        assert guest.machine.hypervisor.resident_count <= 100
    assert guest.doom == ""


def test_shared_pages_do_not_count_and_do_not_go():
    guest = make(limit=FRAMES - 10)
    guest.call(uv.SHARE_PAGE, 0, 10)
    assert guest.run(guest.machine.trim()).code is U.SUCCESS
    assert guest.machine.hypervisor.excess() == 0
    assert len(guest.machine.memory) == 0


def test_pages_that_are_shared_in_part_stay():
    guest = make(limit=0, shift=12)
    for gfn in range(0, RAM_SIZE >> 12, 16):
        guest.call(uv.SHARE_PAGE, gfn, 1)
    assert guest.run(guest.machine.trim()).code is U.SUCCESS
    guest.call(uv.UNSHARE_PAGE, 0, 1)
    assert guest.run(guest.machine.trim()).code is U.SUCCESS
    assert len(guest.machine.memory) == 1


# -- replies that are too small --------------------------------------------------------------------


def test_a_range_in_many_pieces():
    guest = make(shift=12)
    for gfn in range(0x600, 0x800, 2):
        assert guest.call(uv.SHARE_PAGE, gfn, 1).code is U.SUCCESS
    guest.store_bytes(0x601000, SECRET)
    outcome = guest.call(uv.SHARE_PAGE, 0x600, 0x200)
    assert outcome.code is U.SUCCESS
    assert guest.load(0x601000, 64) == bytes(64)
    assert any(isinstance(effect, ZeroGuest) for effect in guest.trail)
    assert outcome.zeros == ()
    for gfn in range(0x600, 0x800, 2):
        assert guest.call(uv.UNSHARE_PAGE, gfn, 1).code is U.SUCCESS
    outcome = guest.call(uv.UNSHARE_ALL_PAGES)
    assert outcome.code is U.SUCCESS
    assert len(outcome.pages) <= machine_module.MAX_SEGMENTS
    assert guest.machine.ultravisor.vms[1].shared_count == 0
    assert guest.bits_at(0x601000) == PageBits.UNSHARED


def test_cut_off_in_the_middle_of_the_pieces():
    guest = make(shift=12)
    for gfn in range(0x600, 0x800, 2):
        guest.call(uv.SHARE_PAGE, gfn, 1)
    vm = guest.machine.ultravisor.vms[1]
    before = list(vm.pages.all_runs())
    running = share(guest.machine, 0x600, 0x200)
    drive(guest, running, ZeroGuest)
    running.close()
    assert list(vm.pages.all_runs()) == before
    assert guest.call(uv.SHARE_PAGE, 0x600, 0x200).code is U.SUCCESS
    assert vm.shared_count == 0x200


def test_cut_off_while_page_states_are_told():
    guest = PefGuest(guest=FakeGuest([(0, 16 << 20)]))
    guest.enter()
    vm = guest.machine.ultravisor.vms[1]
    guest.call(uv.SHARE_PAGE, 1, 1)
    # The states of all of memory are told, in many pieces if pages are out in between.
    for gpa in range(0, 16 << 20, 2 * PAGE_SIZE):
        page_out(guest, gpa)
    before = list(vm.pages.all_runs())
    running = unshare_all(guest.machine)
    drive(guest, running, SetPages)
    running.close()
    assert list(vm.pages.all_runs()) == before
    outcome = guest.call(uv.UNSHARE_ALL_PAGES)
    assert outcome.code is U.SUCCESS
    assert len(outcome.pages) == machine_module.MAX_SEGMENTS
    assert vm.shared_count == 0
    assert guest.bits_at(PAGE_SIZE) == PageBits.UNSHARED


def test_many_pages_come_in_with_one_call():
    guest = make(shift=12)
    pages = [GPA + n * PAGE_SIZE for n in range(12)]
    for gpa in pages:
        guest.store_bytes(gpa, gpa.to_bytes(8, "big"))
        page_out(guest, gpa)
        # Shared but for the first frame: that one is written, the others zeroed.
    outcome = guest.call(uv.SHARE_PAGE, (GPA >> 12) + 1, 12 * 16 - 1)
    assert outcome.code is U.SUCCESS
    assert not any(isinstance(effect, WriteGuest) for effect in guest.trail)
    assert guest.load(GPA, 8) == GPA.to_bytes(8, "big")
    assert guest.load(pages[1], 8) == bytes(8)


# -- memory, resets, settings ----------------------------------------------------------------------


def test_more_pages_than_a_reply_has_room_for_are_written_before_it():
    """A reply is 1 MiB at most: eight pages of 64 KiB go with it, and no more."""
    guest = make(shift=12)
    pages = [GPA + n * PAGE_SIZE for n in range(9)]
    for gpa in pages:
        guest.store_bytes(gpa, gpa.to_bytes(8, "big"))
        page_out(guest, gpa)
    for count in (9, 8):
        # All but the last frame of each: of every page something is to be written.
        coming = pages[:count]
        machine = guest.machine

        def work(turn: Turn, coming: list[int] = coming, machine: PefMachine = machine) -> U:
            assert all(sharing.touch(machine.ultravisor, turn, gpa) for gpa in coming)
            return U.SUCCESS

        outcome = guest.run(machine.carry_out(work))
        written = [effect for effect in guest.trail if isinstance(effect, WriteGuest)]
        assert (len(outcome.writes), len(written)) == ((0, 9) if count == 9 else (8, 0))
        for gpa in coming:
            assert guest.load(gpa, 8) == gpa.to_bytes(8, "big")
            page_out(guest, gpa)


def test_cut_off_in_the_middle_of_the_writes():
    guest = make(shift=12)
    pages = [GPA + n * PAGE_SIZE for n in range(9)]
    for gpa in pages:
        page_out(guest, gpa)
    vm = guest.machine.ultravisor.vms[1]

    def work(turn: Turn) -> U:
        for gpa in pages:
            sharing.share(guest.machine.ultravisor, turn, (gpa >> 12) + 1, 1, 12)
        return U.SUCCESS

    running = guest.machine.carry_out(work)
    drive(guest, running, WriteGuest)
    running.close()
    # Nothing is shared; what proved the pages is gone, so they are the VM's own, and empty.
    assert vm.states(GPA, GPA + 9 * PAGE_SIZE) == {PageState.SECURE}
    assert not vm.out


def test_memory_that_is_plugged_is_the_vms_and_empty():
    guest = make()
    guest.guest = FakeGuest([(0, 2 * RAM_SIZE)])
    guest.guest.write(RAM_SIZE, b"planted")
    assert guest.run(plug(guest.machine, RAM_SIZE, RAM_SIZE)).code is U.SUCCESS
    assert guest.load(RAM_SIZE, 7) == bytes(7)
    assert guest.bits_at(RAM_SIZE) == PageBits.UNSHARED
    guest.store_bytes(RAM_SIZE, SECRET)
    assert guest.call(uv.SHARE_PAGE, FRAMES - 1, 2).code is U.SUCCESS
    guest.store_bytes(RAM_SIZE + PAGE_SIZE, SECRET)
    page_out(guest, RAM_SIZE + PAGE_SIZE)
    guest.guest = FakeGuest([(0, RAM_SIZE)])
    outcome = guest.run(unplug(guest.machine, RAM_SIZE, RAM_SIZE))
    assert (outcome.code, outcome.zeros, outcome.pages) == (U.SUCCESS, (), ())
    assert len(guest.machine.memory) == 0
    assert guest.call(uv.SHARE_PAGE, FRAMES, 1).code is U.P2
    assert guest.run(unplug(guest.machine, RAM_SIZE, RAM_SIZE)).code is U.PARAMETER
    assert guest.run(plug(guest.machine, RAM_SIZE + 1, RAM_SIZE)).code is U.PARAMETER


def attend(guest: PefGuest, regions: list[tuple[int, int]]) -> None:
    """QEMU asks as often as there is something to do."""
    guest.guest = resized(guest, regions)
    while guest.run(attend_once(guest.machine, guest.guest.ram.regions)).code is U.BUSY:
        pass


def resized(guest: PefGuest, regions: list[tuple[int, int]]) -> FakeGuest:
    made = FakeGuest(regions)
    for gpa, size in regions:
        if guest.guest.ram.contains(gpa, size):
            made.write(gpa, guest.guest.read(gpa, size))
    return made


@pytest.mark.parametrize("is_there_before", [True, False])
def test_memory_that_touches_other_memory_is_unplugged_alone(is_there_before: bool):
    three = [(0, RAM_SIZE), (RAM_SIZE, RAM_SIZE), (2 * RAM_SIZE, RAM_SIZE)]
    guest = PefGuest(guest=FakeGuest(three if is_there_before else three[:1]))
    assert guest.enter().code is U.SUCCESS
    guest.store_bytes(GPA, SECRET)
    assert guest.call(uv.SHARE_PAGE, 0, 1).code is U.SUCCESS
    attend(guest, three)
    guest.store_bytes(RAM_SIZE, SECRET)
    attend(guest, three[:2])
    assert guest.load(GPA, len(SECRET)) == SECRET
    assert guest.load(RAM_SIZE, len(SECRET)) == SECRET
    assert guest.bits_at(0) == PageBits.NONE
    attend(guest, three[:1])
    assert guest.load(GPA, len(SECRET)) == SECRET
    assert list(guest.machine.hypervisor.slots.values()) == [(0, RAM_SIZE)]


def test_off_leaves_zeros():
    guest = make()
    guest.store_bytes(GPA, SECRET)
    guest.call(uv.SHARE_PAGE, 3, 1)
    page_out(guest, 0)
    assert guest.run(guest.machine.svm_off()).code is U.SUCCESS
    assert guest.guest.snapshot() == (bytes(RAM_SIZE),)
    assert not guest.bits()
    assert guest.machine.state is VmState.NORMAL
    records = guest.store.load().records
    assert {record.key[:1] for record in records} == {b"p"}


def test_a_reset_ends_secure_mode():
    guest = make()
    guest.store_bytes(GPA, SECRET)
    page_out(guest, GPA)
    guest.reset()
    assert guest.machine.state is VmState.NORMAL
    assert guest.store.load().records == []
    assert SECRET not in guest.guest.snapshot()[0]
    assert guest.enter().code is U.SUCCESS


def test_a_page_of_a_normal_vm_is_given_back():
    guest = PefGuest()
    guest.set_bits([PageRange(0, RAM_SIZE, PageBits.OUT)])
    guest.guest.write(GPA, SECRET)
    assert guest.load(GPA, len(SECRET)) == SECRET


def test_page_size_is_the_operators_or_a_hint():
    machine = PefMachine()
    assert machine.page_shift == 16
    machine.hint(14)
    assert machine.page_shift == 16
    machine.hint(12)
    assert machine.page_shift == 12
    machine = PefMachine(PefSettings(page_shift=16))
    machine.hint(12)
    assert machine.page_shift == 16
    with pytest.raises(ValueError, match="12 or 16"):
        PefSettings(page_shift=13)


def test_it_is_built_from_a_partition():
    guest = make()
    built = PefMachine.build(PartitionAttributes(), guest.store.load().records)
    assert built.is_secure


def test_the_ultravisors_calls_by_the_guest_itself():
    guest = make()
    guest.store_bytes(GPA, SECRET)
    assert guest.call(svm.PAGE_OUT, GPA, 0, 16).code is H.SUCCESS
    assert guest.bits_at(GPA) == PageBits.OUT
    assert guest.call(svm.PAGE_OUT, GPA, 0, 16).code is H.SUCCESS
    assert guest.call(svm.PAGE_IN, GPA, 1, 16).code is H.PARAMETER
    assert guest.call(svm.PAGE_IN, GPA, 0, 12).code is H.P3
    assert guest.call(svm.PAGE_IN, GPA, 0, 16).code is H.SUCCESS
    assert guest.bits_at(GPA) == PageBits.OUT
    assert guest.load(GPA, len(SECRET)) == SECRET
    assert guest.call(svm.PAGE_IN, GPA, 0, 16).code is H.PARAMETER


def test_what_a_refused_page_out_has_taken_is_given_back_without_a_reply():
    guest = make()
    while guest.machine.memory.allocate() is not None:
        pass
    running = guest.machine.by_guest(svm.PAGE_OUT.number, (GPA, 0, 16))
    assert guest.run(running).code is H.PARAMETER
    assert guest.bits_at(GPA) == PageBits.UNSHARED
