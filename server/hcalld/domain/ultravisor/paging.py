# SPDX-License-Identifier: Apache-2.0
"""UV_PAGE_IN, UV_PAGE_OUT, UV_PAGE_INVAL: what a hypervisor does with a VM's pages.

Source: open-power/ultravisor ``core/{page_encrypt,pagein_track,svm_host}.c`` for the order of
the checks and the codes; docs/pef.md says where we differ.
"""

from __future__ import annotations

from hcalld.core.errors import HcallError
from hcalld.core.secret import Secret
from hcalld.domain.ultravisor import records
from hcalld.domain.ultravisor.abi import (
    DONE,
    KEY_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE,
    SECURE_MEMORY,
    ContentNeeded,
    Returned,
    Turn,
    page_of,
)
from hcalld.domain.ultravisor.page_states import Action, PageEvent, PageState, step
from hcalld.domain.ultravisor.sealing import MAX_VERSION, Sealer, SealError
from hcalld.domain.ultravisor.state import UltravisorState
from hcalld.domain.ultravisor.vm import SecureVm
from hcalld.domain.ultravisor.vm_states import VmState
from hcallproto.abi.returns import U


def _page(vm: SecureVm, gpa: int, code: U) -> int:
    low = page_of(gpa)
    if not vm.slots.hold(low, low + PAGE_SIZE):
        raise HcallError(code, f"no slot of VM {vm.lpid} holds 0x{gpa:x}")
    return low


def _check_normal(lra: int, what: str) -> None:
    if not lra or lra & SECURE_MEMORY:
        raise HcallError(U.P2, f"{what} 0x{lra:x} is 0, or in secure memory")


def page_in(
    ultravisor: UltravisorState,
    turn: Turn,
    lpid: int,
    source: int,
    gpa: int,
    flags: int,
    order: int,
) -> Returned:
    """UV_PAGE_IN."""
    if order != PAGE_SHIFT:
        raise HcallError(U.P5, f"page size 2^{order}, expected 2^{PAGE_SHIFT}")
    _check_normal(source, "source")
    vm = ultravisor.vm(lpid)
    if vm.state is VmState.ABORT:
        raise HcallError(U.STATE, f"VM {lpid} was aborted")
    low = _page(vm, gpa, U.P3)
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
        _decrypt(ultravisor, turn, vm, source, low)
    elif Action.COPY in actions:
        _copy(ultravisor, turn, vm, source, low)
    elif Action.MAP in actions:
        _check_mapping(ultravisor, vm, source, low)
    for first, end, state, taken in steps:
        if taken.state is not state:
            vm.set_state(turn, first, end, taken.state)
    return DONE


def _copy(ultravisor: UltravisorState, turn: Turn, vm: SecureVm, source: int, low: int) -> None:
    """A page is handed over before the VM is secure; what it holds will be measured.

    The firmware copies as often as it is asked. But what has been measured must not change.
    """
    if vm.handed_over.touches(low, low + PAGE_SIZE):
        raise HcallError(U.P2, f"page 0x{low:x} was handed over before")
    if ultravisor.memory.guest_page(source) != (vm.lpid, low):
        turn.writes[low] = _load_source(ultravisor, source)
    vm.handed_over.add(low, low + PAGE_SIZE)
    vm.present.add(low, low + PAGE_SIZE)


def _load_source(ultravisor: UltravisorState, source: int) -> bytes:
    if ultravisor.memory.guest_page(source) is not None:
        raise HcallError(U.P2, f"source 0x{source:x} is another page of a VM")
    data = ultravisor.memory.load(source)
    if data is None:
        raise HcallError(U.P2, f"source 0x{source:x} is no memory")
    return data


def _check_mapping(ultravisor: UltravisorState, vm: SecureVm, source: int, low: int) -> None:
    """A shared page is the VM's own RAM here: no other page can be put in its place."""
    if ultravisor.memory.guest_page(source) != (vm.lpid, low):
        raise HcallError(
            U.P2, f"source 0x{source:x} is not the normal page of 0x{low:x}, which is shared"
        )


def _decrypt(ultravisor: UltravisorState, turn: Turn, vm: SecureVm, source: int, low: int) -> None:
    kept = vm.kept(low)
    if kept is None or vm.sealer is None:
        raise HcallError(U.P3, f"nothing is known of page 0x{low:x}, which is out")
    if ultravisor.memory.guest_page(source) is not None:
        data: bytes | None = b""
    else:
        data = ultravisor.memory.load(source)
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
    ultravisor: UltravisorState,
    turn: Turn,
    lpid: int,
    destination: int,
    gpa: int,
    flags: int,
    order: int,
) -> Returned:
    """UV_PAGE_OUT."""
    if order != PAGE_SHIFT:
        raise HcallError(U.P5, f"page size 2^{order}, expected 2^{PAGE_SHIFT}")
    _check_normal(destination, "destination")
    if ultravisor.memory.guest_page(destination) is not None:
        raise HcallError(U.P2, f"destination 0x{destination:x} is a page of a VM")
    vm = ultravisor.vm(lpid)
    low = _page(vm, gpa, U.P3)
    if vm.state is VmState.ABORT:
        # Nothing is told of the page. Before the VM was secure it is the guest's own.
        return DONE
    states = vm.states(low, low + PAGE_SIZE)
    # Of a page that is shared in part, the shared part decides.
    state = PageState.HV_UNSHARED if PageState.HV_UNSHARED in states else max(states)
    taken = step(state, PageEvent.PAGE_OUT)
    if taken.action is Action.REFUSE:
        raise HcallError(taken.code, f"page 0x{low:x} is {state.name}")
    content = turn.content(low)
    if content is None:
        if turn.journal:
            # A hypervisor that was asked for something else does this in between.
            raise HcallError(U.RETRY, f"page 0x{low:x} goes out with no other event")
        raise ContentNeeded(lpid, (low,))
    if vm.next_version > MAX_VERSION:
        raise HcallError(U.RETRY, f"VM {lpid} has used up its page key")
    sealer = vm.sealer
    if sealer is None:
        sealer = Sealer(vm.identity, Secret(content.entropy[:KEY_SIZE]))
    ciphertext, sealed = sealer.seal(low, content.data, content.entropy[KEY_SIZE:], vm.next_version)
    if not ultravisor.memory.store(destination, ciphertext):
        raise HcallError(U.P2, f"destination 0x{destination:x} is no memory")
    vm.sealer = sealer
    vm.use_version()
    vm.keep(low, sealed)
    vm.set_state(turn, low, low + PAGE_SIZE, taken.state)
    vm.present.remove(low, low + PAGE_SIZE)
    turn.writes.pop(low, None)
    turn.zeros.add(low, low + PAGE_SIZE)
    return DONE


def page_inval(
    ultravisor: UltravisorState, turn: Turn, lpid: int, gpa: int, order: int
) -> Returned:
    """UV_PAGE_INVAL."""
    if order != PAGE_SHIFT:
        raise HcallError(U.P3, f"page size 2^{order}, expected 2^{PAGE_SHIFT}")
    vm = ultravisor.vm(lpid)
    if vm.state is VmState.ABORT:
        raise HcallError(U.STATE, f"VM {lpid} was aborted")
    low = _page(vm, gpa, U.P3)
    runs = vm.state_runs(low, low + PAGE_SIZE)
    if len(runs) > 1:
        runs = [run for run in runs if run[2] is not PageState.SECURE]
    steps = [(first, end, step(state, PageEvent.INVAL)) for first, end, state in runs]
    for _, _, taken in steps:
        if taken.action is Action.REFUSE:
            raise HcallError(taken.code, f"page 0x{low:x} is {taken.state.name}")
    for first, end, taken in steps:
        vm.set_state(turn, first, end, taken.state)
    return DONE
