# SPDX-License-Identifier: Apache-2.0
"""Sharing: all or nothing, with hypervisors that consent, refuse, lie and end the VM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tests.unit.hcalld.domain.halves import ALIAS, LPID, OWN, SIZE, Answer, Half, obey

from hcalld.core.errors import HcallError
from hcalld.core.pages import PageBits
from hcalld.domain.ultravisor import sharing
from hcalld.domain.ultravisor.abi import PAGE_SHIFT, PAGE_SIZE, SECURE_MEMORY, Turn
from hcalld.domain.ultravisor.page_states import TABLE, Action, PageEvent, PageState
from hcalld.domain.ultravisor.vm_states import VmEvent, VmState
from hcallproto.abi.families import svm, uv
from hcallproto.abi.returns import H, U

FRAMES = SIZE >> PAGE_SHIFT
SMALL = 4096


def share(half: Half, gfn: int, count: int, shift: int = PAGE_SHIFT) -> Turn:
    turn = half.turn()
    sharing.share(half.model, turn, gfn, count, shift)
    return turn


def unshare(half: Half, gfn: int, count: int, shift: int = PAGE_SHIFT) -> Turn:
    turn = half.turn()
    sharing.unshare(half.model, turn, gfn, count, shift)
    return turn


Call = Callable[[Half, int, int], Turn]
both = pytest.mark.parametrize("call", [share, unshare])


def code_of(action: Callable[[], object]) -> U:
    with pytest.raises(HcallError) as raised:
        action()
    assert raised.value.why
    assert isinstance(raised.value.code, U)
    return raised.value.code


def states(half: Half, first: int, count: int) -> list[PageState]:
    return [
        state
        for low, high, state in half.vm.state_runs(first * PAGE_SIZE, (first + count) * PAGE_SIZE)
        for _ in range(low, high, PAGE_SIZE)
    ]


# -- consent -----------------------------------------------------------------------------------


def test_pages_are_shared_and_read_zero():
    half = Half()
    turn = share(half, 3, 4)
    assert states(half, 2, 6) == [0, 2, 2, 2, 2, 0]
    assert turn.zeros.ranges() == [(3 * PAGE_SIZE, 7 * PAGE_SIZE)]
    assert half.hypervisor.calls == [
        (svm.PAGE_IN.number, (gfn * PAGE_SIZE, 1, PAGE_SHIFT)) for gfn in range(3, 7)
    ]
    assert turn.crossing_count == 8
    assert half.vm.shared_count == 4 * 16


def test_what_is_shared_already_is_left_as_it_is():
    half = Half()
    share(half, 4, 1)
    turn = share(half, 3, 3)
    assert turn.zeros.ranges() == [
        (3 * PAGE_SIZE, 4 * PAGE_SIZE),
        (5 * PAGE_SIZE, 6 * PAGE_SIZE),
    ]
    # QEMU hears of all of it.
    assert turn.touched.holds(3 * PAGE_SIZE, 6 * PAGE_SIZE)
    assert not share(half, 3, 3).zeros


def test_pages_come_back_zeroed():
    half = Half()
    share(half, 3, 4)
    half.hypervisor.calls.clear()
    turn = unshare(half, 2, 4)
    assert states(half, 2, 6) == [0, 0, 0, 0, 2, 0]
    assert turn.zeros.ranges() == [(3 * PAGE_SIZE, 6 * PAGE_SIZE)]
    assert [args[1] for _, args in half.hypervisor.calls] == [0, 0, 0]
    assert not unshare(half, 2, 4).zeros


def test_unshare_all_takes_what_the_vm_shared():
    half = Half()
    share(half, 3, 2)
    share(half, 9, 1)
    turn = half.turn()
    half.vm.set_state(turn, 20 * PAGE_SIZE, 21 * PAGE_SIZE, PageState.SHARED_IMPLICIT)
    half.vm.set_state(turn, 21 * PAGE_SIZE, 22 * PAGE_SIZE, PageState.PSEUDO_SHARED)
    half.page_out(OWN, 0)
    turn = half.turn()
    sharing.unshare_all(half.model, turn)
    assert half.vm.shared_count == 0
    assert turn.zeros.ranges() == [
        (3 * PAGE_SIZE, 5 * PAGE_SIZE),
        (9 * PAGE_SIZE, 10 * PAGE_SIZE),
    ]
    assert states(half, 0, 1) == [PageState.PAGEDOUT]
    assert states(half, 20, 2) == [PageState.SHARED_IMPLICIT, PageState.PSEUDO_SHARED]


def test_a_page_that_is_out_is_brought_in_first():
    def answer(turn: Turn, number: int, args: Sequence[int]) -> H:
        if args[1]:
            return obey(turn, number, args)
        status = turn.ultracall(uv.PAGE_IN.number, LPID, OWN, args[0], 0, PAGE_SHIFT).status
        return H.SUCCESS if status is U.SUCCESS else H.PARAMETER

    half = Half(answer)
    half.page_out(OWN, 3 * PAGE_SIZE)
    turn = share(half, 3, 1)
    assert states(half, 3, 1) == [PageState.SHARED]
    # What was in it is not written, for it is zeroed.
    assert turn.pending_writes() == ()
    assert half.vm.out == {}


# -- frames of 4 KiB ---------------------------------------------------------------------------


def test_small_frames_leave_their_neighbours_alone():
    half = Half()
    turn = share(half, 0x3A, 2, 12)
    assert turn.zeros.ranges() == [(0x3A000, 0x3C000)]
    assert half.hypervisor.calls == [(svm.PAGE_IN.number, (0x30000, 1, PAGE_SHIFT))]
    bits = list(half.vm.bits(0x30000, 0x40000))
    assert [(one.gpa, one.size, one.state) for one in bits] == [
        (0x30000, 0xA000, PageBits.UNSHARED),
        (0x3A000, 0x2000, PageBits.NONE),
        (0x3C000, 0x4000, PageBits.UNSHARED),
    ]


def test_the_hypervisor_keeps_a_page_until_its_last_part_is_taken_back():
    half = Half()
    share(half, 0x3A, 2, 12)
    share(half, 0x3F, 1, 12)
    half.hypervisor.calls.clear()
    unshare(half, 0x3A, 2, 12)
    assert half.hypervisor.calls == []
    unshare(half, 0x3F, 1, 12)
    assert half.hypervisor.calls == [(svm.PAGE_IN.number, (0x30000, 0, PAGE_SHIFT))]
    assert half.vm.shared_count == 0


def test_a_page_that_is_shared_in_part_cannot_go_out_nor_come_in_as_secure():
    half = Half()
    share(half, 0x3A, 2, 12)
    assert half.page_out(OWN, 0x30000) is U.PARAMETER
    assert half.inval(0x30000) is U.SUCCESS
    assert half.vm.states(0x30000, 0x40000) == {PageState.SECURE, PageState.SHARED_INV}
    assert half.page_in(OWN, 0x30000) is U.P2
    assert half.page_in(ALIAS + 0x30000, 0x30000) is U.SUCCESS
    assert half.vm.states(0x30000, 0x40000) == {PageState.SECURE, PageState.SHARED}


# -- ranges ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("gfn", "count"),
    [
        (FRAMES, 1),
        (FRAMES - 1, 2),
        (0, FRAMES + 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 2),
        ((1 << 48) - 1, 1),
        (1 << 48, 1),
        ((1 << 64) - 1, 0xFFFFFFFF),
        ((1 << 44), FRAMES),
        (0, (1 << 64) - 1),
        (0, (1 << 48) + 1),
        (1, (1 << 64) - 1),
    ],
)
def test_a_range_that_is_not_memory_or_wraps(call: Call, gfn: int, count: int):
    half = Half()
    before = half.snapshot()
    assert code_of(lambda: call(half, gfn, count)) is U.P2
    assert half.snapshot() == before
    assert half.hypervisor.calls == []


@both
@pytest.mark.parametrize(
    ("gfn", "shift", "is_told"),
    [
        (FRAMES, PAGE_SHIFT, True),
        (16 * FRAMES - 1, PAGE_SHIFT, True),
        (16 * FRAMES, PAGE_SHIFT, False),
        (16 * FRAMES, 12, False),
    ],
)
def test_frames_that_would_be_memory_with_small_pages(
    call: Callable[[Half, int, int, int], Turn], gfn: int, shift: int, is_told: bool
):
    with pytest.raises(HcallError) as raised:
        call(Half(), gfn, 1, shift)
    assert ("page_shift = 12" in raised.value.why) is is_told


@both
@pytest.mark.parametrize("gfn", [0, 5, FRAMES, (1 << 64) - 1])
def test_no_frames_are_a_success(call: Call, gfn: int):
    half = Half()
    before = half.snapshot()
    call(half, gfn, 0)
    assert half.snapshot() == before


@both
def test_a_range_may_span_neighbouring_slots(call: Call):
    half = Half()
    half.must(uv.REGISTER_MEM_SLOT.number, LPID, SIZE, SIZE, 0, 1)
    call(half, FRAMES - 1, 2)


@both
@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.ABORT, None])
def test_only_a_secure_vm_shares(call: Call, state: VmState | None):
    half = Half()
    if state is None:
        half.must(uv.SVM_TERMINATE.number, LPID)
    else:
        half.vm.state = state
    assert code_of(lambda: call(half, 0, 1)) is U.PERMISSION
    assert code_of(lambda: sharing.unshare_all(half.model, half.turn())) is U.PERMISSION


# -- every state -------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("state", PageState, ids=lambda state: state.name)
def test_every_state(call: Call, state: PageState):
    half = Half()
    if state is PageState.PAGEDOUT:
        half.page_out(OWN, 4 * PAGE_SIZE)
    else:
        half.vm.set_state(half.turn(), 4 * PAGE_SIZE, 5 * PAGE_SIZE, state)
    before = half.snapshot()
    event = PageEvent.SHARE if call is share else PageEvent.UNSHARE
    taken = TABLE[state, event]
    if taken.action is Action.REFUSE:
        assert code_of(lambda: call(half, 3, 3)) is taken.code
        assert half.snapshot() == before
        assert half.hypervisor.calls == []
    elif taken.action is Action.PAGE_IN_FIRST:
        # This hypervisor offers the page's normal place, where it is not.
        assert code_of(lambda: call(half, 3, 3)) is U.P2
        assert states(half, 3, 3) == [0, 1, 0]
        assert len(half.hypervisor.calls) == sharing.PAGE_IN_TRIES
    elif call is share:
        call(half, 3, 3)
        expected = PageState.SHARED if taken.action is Action.ASK else state
        assert states(half, 3, 3) == [PageState.SHARED, expected, PageState.SHARED]
    else:
        call(half, 3, 3)
        expected = PageState.SECURE if taken.action is Action.ASK else state
        assert states(half, 3, 3) == [0, expected, 0]


# -- hypervisors that do not do as they should ---------------------------------------------------


def refuse_from(gpa: int, status: H = H.PARAMETER) -> Answer:
    """Consents to pages below an address, and gives all back."""

    def answer(turn: Turn, number: int, args: Sequence[int]) -> H:
        return status if args[1] and args[0] >= gpa else obey(turn, number, args)

    return answer


def test_one_refusal_reverts_all():
    half = Half(refuse_from(5 * PAGE_SIZE))
    share(half, 4, 1)
    before = half.snapshot()
    turn = half.turn()
    assert code_of(lambda: sharing.share(half.model, turn, 3, 4, PAGE_SHIFT)) is U.P2
    assert half.snapshot() == before
    assert not turn.zeros
    assert not turn.writes
    assert turn.doom == ""


def test_consent_without_uv_page_in_is_none():
    half = Half(lambda turn, number, args: H.SUCCESS)
    before = half.snapshot()
    assert code_of(lambda: share(half, 3, 2)) is U.P2
    assert half.snapshot() == before


def test_refusing_to_revert_ends_the_vm():
    def answer(turn: Turn, number: int, args: Sequence[int]) -> H:
        if not args[1] or args[0] == 5 * PAGE_SIZE:
            return H.PARAMETER
        return obey(turn, number, args)

    half = Half(answer)
    turn = half.turn()
    assert code_of(lambda: sharing.share(half.model, turn, 3, 3, PAGE_SHIFT)) is U.P2
    assert "does not give back" in turn.doom
    assert half.vm.state is VmState.ABORT


def test_refusing_to_give_back_ends_the_vm():
    half = Half()
    share(half, 3, 2)
    half.hypervisor.answer = lambda turn, number, args: H.PARAMETER
    turn = half.turn()
    assert code_of(lambda: sharing.unshare(half.model, turn, 3, 2, PAGE_SHIFT)) is U.P2
    assert "does not give back" in turn.doom


def test_unshare_all_ends_with_the_vm():
    half = Half()
    share(half, 3, 1)
    share(half, 5, 1)
    half.hypervisor.answer = lambda turn, number, args: H.PARAMETER
    turn = half.turn()
    assert code_of(lambda: sharing.unshare_all(half.model, turn)) is U.P2
    assert turn.doom


@pytest.mark.parametrize("first", [True, False])
def test_ending_the_vm_meanwhile(first: bool):
    def answer(turn: Turn, number: int, args: Sequence[int]) -> H:
        if first or args[0] > 3 * PAGE_SIZE:
            turn.ultracall(uv.SVM_TERMINATE.number, LPID)
            return H.SUCCESS
        return obey(turn, number, args)

    half = Half(answer)
    turn = half.turn()
    assert code_of(lambda: sharing.share(half.model, turn, 3, 3, PAGE_SHIFT)) is U.P2
    assert half.model.vms == {}
    assert "ended the VM" in turn.doom
    # What the VM had is zeroed before the hypervisor gets it.
    assert turn.zeros.holds(0, SIZE)


def test_ending_the_vm_when_it_takes_back():
    half = Half()
    share(half, 3, 2)

    def answer(turn: Turn, number: int, args: Sequence[int]) -> H:
        turn.ultracall(uv.SVM_TERMINATE.number, LPID)
        return H.SUCCESS

    half.hypervisor.answer = answer
    turn = half.turn()
    assert code_of(lambda: sharing.unshare(half.model, turn, 3, 2, PAGE_SHIFT)) is U.P2
    assert half.model.vms == {}
    assert "ended the VM" in turn.doom


def meddle(turn: Turn, number: int, args: Sequence[int]) -> H:
    """Does as asked, and everything else as well."""
    gpa = args[0]
    for source in (ALIAS + gpa, OWN, ALIAS, OWN - PAGE_SIZE, 0, SECURE_MEMORY | gpa):
        for page in (gpa, gpa + PAGE_SIZE, 0, SIZE):
            for order in (PAGE_SHIFT, 12):
                turn.ultracall(uv.PAGE_IN.number, LPID, source, page, 0, order)
            turn.ultracall(uv.PAGE_OUT.number, LPID, source, page, 0, 12)
        turn.ultracall(uv.PAGE_OUT.number, LPID, source, gpa, 0, PAGE_SHIFT)
        turn.ultracall(uv.PAGE_INVAL.number, LPID, gpa, PAGE_SHIFT)
        turn.ultracall(uv.PAGE_INVAL.number, LPID, gpa, PAGE_SHIFT)
    return obey(turn, number, args)


def test_a_hypervisor_that_meddles_gets_no_plaintext_and_no_more_pages():
    half = Half(meddle)
    turn = share(half, 3, 2)
    assert states(half, 2, 4) == [0, 2, 2, 0]
    assert turn.zeros.holds(3 * PAGE_SIZE, 5 * PAGE_SIZE)
    turn = unshare(half, 3, 2)
    assert states(half, 2, 4) == [0, 0, 0, 0]
    assert turn.zeros.holds(3 * PAGE_SIZE, 5 * PAGE_SIZE)
    for page in half.memory.pages.values():
        assert b"plaintext" not in page


def test_invalidated_while_it_is_being_shared():
    def answer(turn: Turn, number: int, args: Sequence[int]) -> H:
        status = obey(turn, number, args)
        assert turn.ultracall(uv.PAGE_INVAL.number, LPID, args[0], PAGE_SHIFT).status == 0
        return status

    half = Half(answer)
    share(half, 3, 1)
    assert states(half, 3, 1) == [PageState.SHARED_INV]
    unshare(half, 3, 1)
    assert states(half, 3, 1) == [PageState.SECURE]


# -- a page that is touched ----------------------------------------------------------------------


def test_touching_a_page_that_is_not_out_does_nothing():
    half = Half()
    before = half.snapshot()
    for gpa in (0, SIZE, 1 << 60):
        assert sharing.touch(half.model, half.turn(), gpa)
    assert half.snapshot() == before
    half.must(uv.SVM_TERMINATE.number, LPID)
    assert sharing.touch(half.model, half.turn(), 0)


@pytest.mark.parametrize("status", [H.SUCCESS, H.PARAMETER])
def test_a_page_that_does_not_come_back_ends_the_vm(status: H):
    half = Half(lambda turn, number, args: status)
    half.page_out(OWN, 3 * PAGE_SIZE)
    turn = half.turn()
    assert not sharing.touch(half.model, turn, 3 * PAGE_SIZE + 17)
    assert "does not come back" in turn.doom
    assert half.vm.state is VmState.ABORT
    assert len(half.hypervisor.calls) == sharing.PAGE_IN_TRIES
    assert half.page_in(OWN, 3 * PAGE_SIZE) is U.STATE


def test_a_page_that_comes_back_at_the_last_try():
    tries: list[int] = []

    def answer(turn: Turn, number: int, args: Sequence[int]) -> H:
        tries.append(args[0])
        source = OWN if len(tries) == sharing.PAGE_IN_TRIES else OWN + PAGE_SIZE
        turn.ultracall(uv.PAGE_IN.number, LPID, source, args[0], 0, PAGE_SHIFT)
        return H.SUCCESS

    half = Half(answer)
    half.page_out(OWN, 3 * PAGE_SIZE)
    turn = half.turn()
    assert sharing.touch(half.model, turn, 3 * PAGE_SIZE)
    assert not turn.doom
    assert half.vm.breaches == sharing.PAGE_IN_TRIES - 1


def test_a_hypervisor_is_asked_four_times():
    """As the firmware does (``core/page_encrypt.c``)."""
    assert sharing.PAGE_IN_TRIES == 4


def test_ended_while_a_page_is_brought_in():
    def answer(turn: Turn, number: int, args: Sequence[int]) -> H:
        turn.ultracall(uv.SVM_TERMINATE.number, LPID)
        return H.SUCCESS

    half = Half(answer)
    half.page_out(OWN, 3 * PAGE_SIZE)
    turn = half.turn()
    assert not sharing.touch(half.model, turn, 3 * PAGE_SIZE)
    assert "ended the VM" in turn.doom


def test_undo_gives_states_back():
    half = Half()
    share(half, 9, 1)
    before = half.snapshot()
    turn = share(half, 3, 8)
    turn.undo()
    assert half.snapshot() == before


def test_aborted_vm_is_doomed_once():
    half = Half()
    turn = half.turn()
    half.model.breach(turn, half.vm, "first")
    half.model.breach(turn, half.vm, "second")
    assert turn.doom == "first"
    half.vm.happen(VmEvent.TERMINATE)
