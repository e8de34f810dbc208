# SPDX-License-Identifier: Apache-2.0
"""UV_SHARE_PAGE, UV_UNSHARE_PAGE, UV_UNSHARE_ALL_PAGES: calls of a secure VM.

Source: open-power/ultravisor ``core/uvcall.c``, ``page_encrypt.c``. All or nothing: pages
are shared when the hypervisor has consented to each, and then zeroed; what was shared
already is left as it is. The firmware's pages have 64 KiB and so have those that the
hypervisor is asked about, but a guest's kernel of 4 KiB pages shares 4 KiB: its
neighbours in the 64 KiB are not its to give away. Such a page is asked for when its first
part is shared, and given back when its last one is not.
"""

from __future__ import annotations

from hcalld.core.errors import HcallError
from hcalld.domain.ultravisor.abi import PAGE_SHIFT, PAGE_SIZE, Turn, page_of, pages_of
from hcalld.domain.ultravisor.page_states import (
    EXPLICIT,
    TRANSIENT,
    Action,
    PageEvent,
    PageState,
    step,
)
from hcalld.domain.ultravisor.ultravisor import UltravisorModel
from hcalld.domain.ultravisor.vm import SecureVm
from hcalld.domain.ultravisor.vm_states import VmState
from hcallproto.abi.families import svm
from hcallproto.abi.registers import REAL_ADDRESS_MASK
from hcallproto.abi.returns import H, U

PAGE_IN_TRIES = 4
"""How often the hypervisor is asked for a page that is out (``core/page_encrypt.c``)."""
SMALL_SHIFT = 12
"""Of the smaller pages that Linux may have."""
ENDED = "the hypervisor ended the VM"
_SHARED = int(svm.PageInFlag.SHARED)


def guest_range(vm: SecureVm, gfn: int, count: int, page_shift: int) -> tuple[int, int]:
    """The addresses that a VM means.

    Raises:
        HcallError: U_P2, not all of them are memory.
    """
    low = gfn << page_shift
    high = (gfn + count) << page_shift
    if high > REAL_ADDRESS_MASK + 1:
        raise HcallError(U.P2, f"frames 0x{gfn:x} + 0x{count:x} wrap")
    if not vm.slots.hold(low, high):
        why = f"not all of 0x{low:x} to 0x{high:x} is in the VM's slots"
        if page_shift != SMALL_SHIFT and vm.slots.hold(
            gfn << SMALL_SHIFT, (gfn + count) << SMALL_SHIFT
        ):
            # No call tells what a guest's frames are: the operator must.
            why += "; a kernel with pages of 4 KiB needs page_shift = 12 in [pef] of its profile"
        raise HcallError(U.P2, why)
    return low, high


def _running(ultravisor: UltravisorModel, lpid: int) -> SecureVm:
    vm = ultravisor.vms.get(lpid)
    if vm is None or vm.state is not VmState.SECURE:
        raise HcallError(U.PERMISSION, "the VM is not secure")
    return vm


def _is_gone(ultravisor: UltravisorModel, turn: Turn, vm: SecureVm) -> bool:
    """True if a hypervisor that was asked for something ended the VM; then so do we."""
    if ultravisor.vms.get(vm.lpid) is vm and vm.state is VmState.SECURE:
        return False
    turn.kill(ENDED)
    return True


def share(ultravisor: UltravisorModel, turn: Turn, gfn: int, count: int, page_shift: int) -> None:
    """UV_SHARE_PAGE.

    Raises:
        HcallError: U_P2 or U_PERMISSION; no page has changed its state.
    """
    vm = _running(ultravisor, turn.lpid)
    if not count:
        return
    low, high = guest_range(vm, gfn, count, page_shift)
    if vm.states(low, high).intersection(TRANSIENT):
        raise HcallError(U.P2, "a page is in transition")
    _page_in_all(ultravisor, turn, vm, low, high)
    asked = [
        (first, end)
        for first, end, taken in vm.apply(turn, low, high, PageEvent.SHARE)
        if taken.action is Action.ASK
    ]
    for first, end in asked:
        for page in pages_of(first, end):
            begin, stop = max(first, page), min(end, page + PAGE_SIZE)
            returned = turn.hypercall(svm.PAGE_IN.number, page, _SHARED, PAGE_SHIFT)
            if _is_gone(ultravisor, turn, vm):
                raise HcallError(U.P2, ENDED)
            consented = not vm.states(begin, stop).intersection((PageState.HV_SHARING,))
            if returned.status != H.SUCCESS or not consented:
                _revert(ultravisor, turn, vm, asked)
                raise HcallError(U.P2, f"the hypervisor does not share page 0x{page:x}")
    for first, end in asked:
        vm.apply(turn, first, end, PageEvent.COMMIT_SHARE)
        turn.zeros.add(first, end)
    # Told in any case, should an earlier call have been cut off before QEMU heard of it.
    turn.touched.add(low, high)


def _page_in_all(
    ultravisor: UltravisorModel, turn: Turn, vm: SecureVm, low: int, high: int
) -> None:
    """Bring in what is out: it is the hypervisor's, who must give it back first."""
    for first, end, state in vm.state_runs(low, high):
        if step(state, PageEvent.SHARE).action is not Action.PAGE_IN_FIRST:
            continue
        for page in pages_of(first, end):
            if not page_in(ultravisor, turn, vm, page):
                raise HcallError(U.P2, f"page 0x{page:x} is out, and does not come back")


def page_in(ultravisor: UltravisorModel, turn: Turn, vm: SecureVm, page: int) -> bool:
    """Ask the hypervisor for a page that is out, a few times; True when it is back."""
    for _ in range(PAGE_IN_TRIES):
        turn.hypercall(svm.PAGE_IN.number, page, 0, PAGE_SHIFT)
        if _is_gone(ultravisor, turn, vm):
            return False
        if PageState.PAGEDOUT not in vm.states(page, page + PAGE_SIZE):
            return True
    return False


def _revert(
    ultravisor: UltravisorModel, turn: Turn, vm: SecureVm, asked: list[tuple[int, int]]
) -> None:
    """Take back what the hypervisor has consented to; it must not refuse."""
    for first, end in asked:
        for begin, stop, taken in vm.apply(turn, first, end, PageEvent.REVERT_SHARE):
            if taken.action is Action.ASK and not _take_back(ultravisor, turn, vm, begin, stop):
                return


def _take_back(ultravisor: UltravisorModel, turn: Turn, vm: SecureVm, low: int, high: int) -> bool:
    """Ask for pages that are HV_UNSHARING; False: refused, and the VM is doomed."""
    for page in pages_of(low, high):
        begin, stop = max(low, page), min(high, page + PAGE_SIZE)
        if not _is_shared_beside(vm, page, begin, stop):
            returned = turn.hypercall(svm.PAGE_IN.number, page, 0, PAGE_SHIFT)
            if _is_gone(ultravisor, turn, vm):
                return False
            if returned.status != H.SUCCESS:
                ultravisor.breach(
                    turn, vm, f"the hypervisor does not give back page 0x{page:x}, which it shared"
                )
                return False
        vm.apply(turn, begin, stop, PageEvent.CONSENT_UNSHARE)
        vm.apply(turn, begin, stop, PageEvent.COMMIT_UNSHARE)
    return True


def _is_shared_beside(vm: SecureVm, page: int, low: int, high: int) -> bool:
    """True if another part of a page of both halves stays with the hypervisor."""
    beside = vm.states(page, low) | vm.states(high, page + PAGE_SIZE)
    return bool(beside - {PageState.SECURE})


def unshare(ultravisor: UltravisorModel, turn: Turn, gfn: int, count: int, page_shift: int) -> None:
    """UV_UNSHARE_PAGE.

    Raises:
        HcallError: U_P2 or U_PERMISSION; no page has changed its state, but for a VM that
            is doomed.
    """
    vm = _running(ultravisor, turn.lpid)
    if not count:
        return
    low, high = guest_range(vm, gfn, count, page_shift)
    for _, _, state in vm.state_runs(low, high):
        if step(state, PageEvent.UNSHARE).action is Action.REFUSE:
            raise HcallError(U.P2, f"a page is {state.name}")
    _unshare_range(ultravisor, turn, vm, low, high)
    turn.touched.add(low, high)


def unshare_all(ultravisor: UltravisorModel, turn: Turn) -> None:
    """UV_UNSHARE_ALL_PAGES: all that the VM shared; what others did is left.

    Raises:
        HcallError: U_PERMISSION.
    """
    vm = _running(ultravisor, turn.lpid)
    for low, high in vm.slots.ranges():
        unshare_explicit(ultravisor, turn, low, high)
        if turn.doom:
            return
    for low, high in vm.slots.ranges():
        turn.touched.add(low, high)


def unshare_explicit(ultravisor: UltravisorModel, turn: Turn, low: int, high: int) -> None:
    """The same, of a range of addresses."""
    vm = _running(ultravisor, turn.lpid)
    for first, end, state in vm.state_runs(low, high):
        if state in EXPLICIT:
            _unshare_range(ultravisor, turn, vm, first, end)
            if turn.doom:
                return


def affected(vm: SecureVm, low: int, high: int, event: PageEvent) -> list[tuple[int, int]]:
    """The pages of a range that SHARE or UNSHARE will zero, neighbours together."""
    found: list[tuple[int, int]] = []
    for first, end, state in vm.state_runs(low, high):
        if step(state, event).action in (Action.ASK, Action.PAGE_IN_FIRST):
            if found and found[-1][1] == first:
                first = found.pop()[0]
            found.append((first, end))
    return found


def _unshare_range(
    ultravisor: UltravisorModel, turn: Turn, vm: SecureVm, low: int, high: int
) -> None:
    for first, end, taken in vm.apply(turn, low, high, PageEvent.UNSHARE):
        if taken.action is not Action.ASK:
            continue
        # Zeroed whatever comes of it: the VM's page never holds what was in the normal one.
        turn.zeros.add(first, end)
        if not _take_back(ultravisor, turn, vm, first, end):
            raise HcallError(U.P2, "the hypervisor does not give back what it shared")


def touch(ultravisor: UltravisorModel, turn: Turn, gpa: int) -> bool:
    """The VM touched a page that is not there: bring it in.

    Returns:
        True if the VM may try again; False if it is doomed.
    """
    vm = ultravisor.vms.get(turn.lpid)
    if vm is None:
        return True
    page = page_of(gpa)
    turn.touched.add(page, page + PAGE_SIZE)
    if not vm.slots.hold(page, page + PAGE_SIZE):
        return True
    if PageState.PAGEDOUT not in vm.states(page, page + PAGE_SIZE):
        return True
    if page_in(ultravisor, turn, vm, page):
        return True
    if not _is_gone(ultravisor, turn, vm):
        ultravisor.breach(turn, vm, f"page 0x{page:x} is out, and does not come back")
    return False
