# SPDX-License-Identifier: Apache-2.0
"""UV_ESM: its steps, what is left of memory, and what is left of a failure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hcalld.core.effects import Effect, GuestMemoryError, ReadGuest, ZeroGuest
from hcalld.core.errors import BackendUnavailable, HcallError
from hcalld.core.outcome import Context, Outcome
from hcalld.core.pages import PageBits, SetPages
from hcalld.core.secret import Secret
from hcalld.domain.esm.boot_tree import Range
from hcalld.domain.esm.errors import KeyUnavailableError
from hcalld.domain.hypervisor.half import HypervisorSettings
from hcalld.domain.hypervisor.states import VmPhase
from hcalld.domain.pef.entry import enter
from hcalld.domain.pef.machine import PefSettings
from hcalld.domain.pef.verify import Verified
from hcalld.domain.ultravisor.abi import PAGE_SIZE, Returned, Turn
from hcalld.domain.ultravisor.vm_states import VmState
from hcalld.testing.guest import FakeGuest
from hcalld.testing.pef import KERNEL_GPA, RAM_SIZE, TREE_GPA, PefGuest
from hcallproto.abi.families import svm, uv
from hcallproto.abi.registers import MSR_S
from hcallproto.abi.returns import Code, H, U
from hcallproto.payloads import fdt

TREE = fdt.Fdt().build()
KERNEL = b"\x60\0\0\0" * 25000
"""100000 bytes: one page and a part of the next."""


async def good(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
    assert await read(kernel, len(KERNEL)) == KERNEL
    return Verified(files={b"rootd": Secret(b"secret")}, measured=(Range(kernel, len(KERNEL)),))


async def no_key(blob: Any) -> Secret:
    raise KeyUnavailableError("key unavailable: no TPM")


def make(settings: PefSettings | None = None) -> PefGuest:
    guest = PefGuest(settings)
    guest.guest.write(0, b"planted!" * (RAM_SIZE // 8))
    guest.guest.write(KERNEL_GPA, KERNEL)
    guest.guest.write(TREE_GPA, TREE)
    return guest


def coroutine(
    guest: PefGuest, verify: Any = good, kernel: int = KERNEL_GPA, tree: int = TREE_GPA
) -> Coroutine[Effect[Any], Any, Outcome]:
    return enter(guest.machine, kernel, tree, guest.guest.ram.regions, verify, no_key)


def esm(guest: PefGuest, verify: Any = good, tree: int = TREE_GPA) -> Outcome:
    return guest.run(coroutine(guest, verify, tree=tree))


def is_untouched(guest: PefGuest, before: object) -> bool:
    """True if the guest is a normal VM again, and nothing knows of the attempt."""
    machine = guest.machine
    return (
        guest.guest.snapshot() == before
        and machine.state is VmState.NORMAL
        and machine.hypervisor.phase is VmPhase.NORMAL
        and len(machine.memory) == 0
        and not guest.bits()
        and not guest.store.load().records
        and not guest.doom
    )


# -- success -----------------------------------------------------------------------------------


def test_the_vm_goes_on_at_its_kernel():
    guest = make()
    outcome = esm(guest)
    assert outcome.code is U.SUCCESS
    assert outcome.result == TREE_GPA
    assert outcome.registers == ((4, KERNEL_GPA), (5, 0))
    assert outcome.context == Context(KERNEL_GPA, MSR_S, MSR_S | 1 << 15)
    assert guest.machine.is_secure


async def looks_around(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
    await read(KERNEL_GPA - 4096, 4096)
    return await good(read, tree, kernel, key)


@pytest.mark.parametrize("verify", [good, looks_around])
def test_only_what_was_measured_is_left(verify: Any):
    guest = make()
    esm(guest, verify)
    expected = bytearray(RAM_SIZE)
    expected[KERNEL_GPA : KERNEL_GPA + len(KERNEL)] = KERNEL
    expected[TREE_GPA : TREE_GPA + len(TREE)] = TREE
    assert guest.guest.snapshot() == (bytes(expected),)
    assert guest.seen_by_host(KERNEL_GPA, 64) == bytes(64)


def test_nobody_touches_memory_meanwhile():
    guest = make()
    outcome = esm(guest)
    first = guest.trail.index(next(e for e in guest.trail if isinstance(e, ReadGuest)))
    held = [effect for effect in guest.trail[:first] if isinstance(effect, SetPages)]
    assert [(one.gpa, one.size, one.state) for one in held[0].ranges] == [
        (0, RAM_SIZE, PageBits.OUT)
    ]
    assert [(one.gpa, one.size, one.state) for one in outcome.pages] == [
        (0, RAM_SIZE, PageBits.UNSHARED)
    ]


def test_a_trace_shows_both_halves():
    told = esm(make()).notes
    names = [line.split("(")[0] for line in told]
    assert names[:4] == [
        "UV>HV H_SVM_INIT_START",
        "HV>UV UV_REGISTER_MEM_SLOT",
        "UV>HV H_SVM_PAGE_IN",
        "HV>UV UV_PAGE_IN",
    ]
    assert told[-1] == "UV>HV H_SVM_INIT_DONE() = H_SUCCESS"


def test_a_long_trace_shows_its_begin_and_its_end():
    async def whole(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
        await read(0, RAM_SIZE)
        return Verified()

    told = esm(make(), whole).notes
    assert len(told) == 33
    assert told[24].startswith("... ")
    assert told[-1] == "UV>HV H_SVM_INIT_DONE() = H_SUCCESS"


def test_it_is_told_to_the_store_at_once():
    guest = make()
    esm(guest)
    guest.reload()
    assert guest.machine.is_secure
    assert guest.machine.hypervisor.phase is VmPhase.DONE
    assert guest.machine.ultravisor.vms[1].files.contents[b"rootd"] == Secret(b"secret")


def test_ram_in_several_ranges():
    guest = PefGuest(guest=FakeGuest([(0, 8 << 20), (16 << 20, 8 << 20)]))
    guest.guest.write(KERNEL_GPA, KERNEL)
    guest.guest.write(TREE_GPA, TREE)
    outcome = esm(guest)
    assert [one.gpa for one in outcome.pages] == [0, 16 << 20]
    assert len(guest.machine.hypervisor.slots) == 2


# -- refused at once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "tree", "code"), [(0, 0, U.P2), (0, 1, U.P2), (KERNEL_GPA, 0, U.P3)]
)
def test_addresses_are_not_zero(kernel: int, tree: int, code: U):
    guest = make()
    before = guest.guest.snapshot()
    with pytest.raises(HcallError) as raised:
        guest.run(coroutine(guest, kernel=kernel, tree=tree))
    assert raised.value.code is code
    assert guest.trail == []
    assert is_untouched(guest, before)


def test_a_secure_vm_does_not_become_secure():
    guest = make()
    esm(guest)
    before = guest.guest.snapshot()
    with pytest.raises(HcallError) as raised:
        esm(guest)
    assert raised.value.code is U.RETRY
    assert guest.guest.snapshot() == before
    assert guest.machine.is_secure


# -- failures ----------------------------------------------------------------------------------


def test_all_memory_is_given_back_in_one_reply():
    # Each DIMM is a region; devices cannot reach what is left paged out.
    size = RAM_SIZE // 128
    guest = PefGuest(guest=FakeGuest([(n * size, size) for n in range(128)]))
    guest.guest.write(TREE_GPA, TREE)
    assert esm(guest, differs).code is U.PARAMETER
    assert not guest.bits()
    assert len(guest.trail) < 16


async def differs(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
    await read(kernel, 8)
    return Verified(failures={"kernel": "differs", "initrd": "differs too"})


async def needs_key(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
    await key(None)
    raise AssertionError("there is no key")


async def beyond(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
    await read(RAM_SIZE - 4, 8)
    raise AssertionError("not memory")


async def no_backend(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
    raise BackendUnavailable("the TPM is gone")


@pytest.mark.parametrize(
    ("verify", "why"),
    [
        (differs, "kernel: differs; initrd: differs too"),
        (needs_key, "key unavailable"),
        (beyond, "does not hand over"),
        (no_backend, "TPM is gone"),
    ],
)
def test_a_failure_leaves_the_guest_as_it_was(verify: Any, why: str):
    guest = make()
    before = guest.guest.snapshot()
    outcome = esm(guest, verify)
    assert outcome.code is U.PARAMETER
    assert why in outcome.why
    assert outcome.context is None
    assert outcome.result is None
    assert "UV>HV H_SVM_INIT_ABORT() = H_PARAMETER" in outcome.notes
    assert is_untouched(guest, before)
    # And it may try again.
    assert esm(guest).code is U.SUCCESS


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (HypervisorSettings(allows=False), "H_AUTHORITY"),
        (HypervisorSettings(has_secure_memory=False), "H_UNSUPPORTED"),
    ],
)
def test_a_hypervisor_that_does_not_want_to(settings: HypervisorSettings, why: str):
    guest = make(PefSettings(hypervisor=settings))
    before = guest.guest.snapshot()
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert why in outcome.why
    assert is_untouched(guest, before)


def header(magic: int = 0xD00DFEED, size: int = len(TREE), cpu: int = 0) -> bytes:
    return struct.pack(">II20xI", magic, size, cpu) + bytes(64)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (header(magic=0xEDFE0DD0), "not 0xd00dfeed"),
        (header(size=39), "device tree of 39 bytes"),
        (header(size=(1 << 20) + 1), "at most"),
        (header(size=0xFFFFFFFF), "at most"),
        (header(cpu=4096), "boot CPU 4096"),
    ],
)
def test_a_bad_device_tree(head: bytes, why: str):
    guest = make()
    guest.guest.write(TREE_GPA, head)
    before = guest.guest.snapshot()
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert why in outcome.why
    assert is_untouched(guest, before)


@pytest.mark.parametrize("tree", [0x40, 0x100, 0xFFF8])
def test_a_device_tree_over_the_interrupt_vectors(tree: int):
    guest = make()
    guest.guest.write(tree, TREE)
    before = guest.guest.snapshot()
    outcome = esm(guest, tree=tree)
    assert outcome.code is U.PARAMETER
    assert "interrupt vectors" in outcome.why
    assert is_untouched(guest, before)


@pytest.mark.parametrize("tree", [RAM_SIZE, RAM_SIZE - 4, (1 << 60) - 8, (1 << 64) - 1])
def test_a_device_tree_that_is_not_in_memory(tree: int):
    guest = make()
    before = guest.guest.snapshot()
    assert esm(guest, tree=tree).code is U.PARAMETER
    assert is_untouched(guest, before)


# -- hypervisors that lie ------------------------------------------------------------------------


def answer_instead(guest: PefGuest, number: int, answer: Callable[[Turn], H]) -> None:
    half = guest.machine.hypervisor
    real = half.hypercall

    def hypercall(turn: Turn, asked: int, args: Any) -> Returned:
        return Returned(answer(turn)) if asked == number else real(turn, asked, args)

    half.hypercall = hypercall  # type: ignore[method-assign, assignment]


def test_done_is_refused():
    guest = make()
    before = guest.guest.snapshot()
    answer_instead(guest, svm.INIT_DONE.number, lambda turn: H.STATE)
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert "H_SVM_INIT_DONE H_STATE" in outcome.why
    assert is_untouched(guest, before)


def test_pages_that_are_not_handed_over():
    guest = make()
    before = guest.guest.snapshot()
    answer_instead(guest, svm.PAGE_IN.number, lambda turn: H.SUCCESS)
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert is_untouched(guest, before)


@pytest.mark.parametrize("call", [svm.INIT_START, svm.PAGE_IN, svm.INIT_DONE])
def test_ending_the_vm_meanwhile(call: Any):
    guest = make()
    before = guest.guest.snapshot()

    def end(turn: Turn) -> H:
        turn.ultracall(uv.SVM_TERMINATE.number, 1)
        return H.SUCCESS

    answer_instead(guest, call.number, end)
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert "ended it" in outcome.why
    assert guest.guest.snapshot() == before
    assert guest.machine.state is VmState.NORMAL


def test_an_abort_that_does_not_end_the_vm():
    guest = make()
    answer_instead(guest, svm.INIT_ABORT.number, lambda turn: H.STATE)
    assert esm(guest, differs).code is U.PARAMETER
    assert guest.machine.state is VmState.NORMAL


def test_a_page_of_the_hypervisors_own_is_measured():
    guest = make()
    half = guest.machine.hypervisor
    memory = guest.machine.memory
    lra = memory.allocate()
    assert lra
    memory.store(lra, b"evil" * (PAGE_SIZE // 4))
    memory.lra_of = lambda gpa: lra  # type: ignore[method-assign]
    seen: list[bytes] = []

    async def look(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
        seen.append(await read(kernel, 8))
        return Verified()

    guest.guest.write(TREE_GPA, TREE)
    memory.store(lra, TREE.ljust(PAGE_SIZE, b"e"))
    assert esm(guest, look).code is U.SUCCESS
    assert seen == [TREE[:8]]
    assert half.phase is VmPhase.DONE


def evil_page(guest: PefGuest) -> int:
    """Real address of a page of the hypervisor's own."""
    memory = guest.machine.memory
    lra = memory.allocate()
    assert lra is not None
    memory.store(lra, b"evil" * (PAGE_SIZE // 4))
    return lra


def hand_over(turn: Turn, lra: int, gpa: int) -> Code:
    return turn.ultracall(uv.PAGE_IN.number, 1, lra, gpa, 0, 16).status


SMALLER = (uv.REGISTER_MEM_SLOT.number, 1, 0, RAM_SIZE // 2, 0, 0)
WHOLE = (uv.REGISTER_MEM_SLOT.number, 1, 0, RAM_SIZE, 0, 0)


@pytest.mark.parametrize("when", [svm.PAGE_IN, svm.INIT_DONE])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_what_was_measured_is_not_handed_over_again(when: Any, is_replaced: bool):
    guest = make()
    lra = evil_page(guest)
    half = guest.machine.hypervisor
    real = half.hypercall
    codes: list[Code] = []

    def hypercall(turn: Turn, number: int, args: Any) -> Returned:
        # The tree's page was read; now others are asked for, or all is done.
        is_later = bool(guest.machine.ultravisor.vms[1].present)
        if number == when.number and is_later and not codes:
            if is_replaced:
                for call in (SMALLER, WHOLE):
                    turn.ultracall(*call)
            codes.append(hand_over(turn, lra, TREE_GPA))
        return real(turn, number, args)

    half.hypercall = hypercall  # type: ignore[method-assign]
    outcome = esm(guest)
    assert codes == [U.P2]
    assert b"evil" not in guest.guest.snapshot()[0]
    assert outcome.code is (U.PARAMETER if is_replaced else U.SUCCESS)
    if is_replaced:
        assert "took back" in outcome.why
        assert guest.doom


def test_what_nobody_asked_for_is_not_written():
    guest = make()
    lra = evil_page(guest)
    codes: list[Code] = []

    def done(turn: Turn) -> H:
        codes.append(hand_over(turn, lra, 0x50_0000))
        return guest.machine.hypervisor.svm_init_done(turn)

    answer_instead(guest, svm.INIT_DONE.number, done)
    outcome = esm(guest)
    assert codes == [U.SUCCESS]
    assert outcome.code is U.SUCCESS
    assert b"evil" not in guest.guest.snapshot()[0]


# -- cut off -----------------------------------------------------------------------------------


def cut_off(guest: PefGuest, count: int, verify: Any = good) -> Effect[Any] | None:
    """Run UV_ESM for some effects, and close it; the effect that it waited for."""
    running = coroutine(guest, verify)
    answer: Any = None
    try:
        for _ in range(count):
            answer = guest.perform(running.send(answer))
        effect = running.send(answer)
    except StopIteration:
        return None
    running.close()
    return effect


def test_cut_off_anywhere_nothing_is_left():
    count = 0
    while True:
        guest = make()
        effect = cut_off(guest, count)
        if effect is None:
            break
        machine = guest.machine
        assert machine.state is VmState.NORMAL, effect
        assert machine.hypervisor.phase is VmPhase.NORMAL
        assert machine.take_changes() == []
        assert len(machine.memory) == 0
        # Whatever QEMU still holds back is given back when it is touched.
        guest.load(0x50_0000, 8)
        count += 1
    assert count > 5


def phases(guest: PefGuest) -> tuple[VmState, VmPhase]:
    return guest.machine.state, guest.machine.hypervisor.phase


def test_a_daemon_that_dies_after_another_call_was_answered_begins_anew():
    count = 0
    while True:
        guest = make()
        running = coroutine(guest)
        try:
            answer: Any = None
            for _ in range(count):
                answer = guest.perform(running.send(answer))
            running.send(answer)
        except StopIteration:
            break
        # Another vCPU's, whose answer is committed with all that has changed.
        guest.run(guest.machine.touch(0))
        guest.reload()
        assert phases(guest) == (VmState.NORMAL, VmPhase.NORMAL), count
        assert esm(guest).code is U.SUCCESS
        guest.reload()
        assert phases(guest) == (VmState.SECURE, VmPhase.DONE)
        running.close()
        count += 1
    assert count > 5


def test_memory_that_vanishes_too_late_ends_the_guest():
    guest = make()
    perform = guest.perform

    def fail(effect: Effect[Any]) -> Any:
        if isinstance(effect, ZeroGuest):
            raise GuestMemoryError(effect.gpa, effect.size, "gone")
        return perform(effect)

    guest.perform = fail  # type: ignore[method-assign]
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert guest.doom
    assert guest.machine.state is VmState.NORMAL
    assert guest.machine.hypervisor.phase is VmPhase.NORMAL


def test_ended_while_the_rest_is_zeroed():
    """By another vCPU's call, or a reset: it does not go on as if it were secure."""
    guest = make()
    perform = guest.perform

    def end(effect: Effect[Any]) -> Any:
        if isinstance(effect, ZeroGuest):
            guest.machine.ultravisor.svm_terminate(guest.machine.turn(), 1)
        return perform(effect)

    guest.perform = end  # type: ignore[method-assign]
    outcome = esm(guest)
    assert outcome.code is U.PARAMETER
    assert outcome.context is None
    assert guest.doom
    assert guest.machine.state is VmState.NORMAL


def test_its_record_gone_meanwhile():
    guest = make()

    async def lose(read: Any, tree: bytes, kernel: int, key: Any) -> Verified:
        guest.machine.ultravisor.vms.clear()
        await read(kernel, 8)
        return Verified()

    outcome = esm(guest, lose)
    assert outcome.code is U.PARAMETER
    assert guest.machine.state is VmState.NORMAL


def test_a_second_one_while_the_first_waits():
    guest = make()
    running = coroutine(guest)
    answer: Any = None
    for _ in range(4):
        answer = guest.perform(running.send(answer))
    with pytest.raises(HcallError) as raised:
        esm(guest)
    assert raised.value.code is U.RETRY
    assert guest.run(guest.machine.touch(0)).code is U.RETRY
    ended: Outcome | None = None
    while ended is None:
        try:
            answer = guest.perform(running.send(answer))
        except StopIteration as stop:
            ended = stop.value
    assert ended.code is U.SUCCESS


def advance(guest: PefGuest, running: Coroutine[Effect[Any], Any, Outcome], count: int) -> Any:
    """Perform some effects; the one that is waited for then."""
    answer: Any = None
    for _ in range(count):
        answer = guest.perform(running.send(answer))
    return running.send(answer)


def to_its_end(
    guest: PefGuest, running: Coroutine[Effect[Any], Any, Outcome], effect: Any
) -> Outcome:
    ended: Outcome
    try:
        while True:
            effect = running.send(guest.perform(effect))
    except StopIteration as stop:
        ended = stop.value
    return ended


def test_another_vcpu_gives_up():
    # H_SVM_INIT_ABORT is a normal VM's to make: KVM does not look at MSR[S].
    count = 0
    while True:
        guest = make()
        before = guest.guest.snapshot()
        running = coroutine(guest)
        effect = advance(guest, running, count)
        if isinstance(effect, ZeroGuest):
            running.close()
            break
        is_begun = guest.machine.hypervisor.phase is VmPhase.STARTED
        code = guest.call(svm.INIT_ABORT, msr=0).code
        assert code is (H.PARAMETER if is_begun else H.UNSUPPORTED)
        outcome = to_its_end(guest, running, effect)
        assert outcome.code is (U.PARAMETER if is_begun else U.SUCCESS)
        if is_begun:
            guest.set_bits(outcome.pages)
            assert is_untouched(guest, before), count
        count += 1
    assert count > 5


def test_nothing_is_read_twice_by_one_request():
    guest = make()
    esm(guest)
    reads = [effect for effect in guest.trail if isinstance(effect, ReadGuest)]
    assert [(one.gpa, one.size) for one in reads] == [
        (TREE_GPA, 8),
        (TREE_GPA, len(TREE)),
        (KERNEL_GPA, 1 << 16),
        (KERNEL_GPA + (1 << 16), len(KERNEL) - (1 << 16)),
    ]
