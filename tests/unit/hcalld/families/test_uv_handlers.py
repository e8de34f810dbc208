# SPDX-License-Identifier: Apache-2.0
"""Ultracalls by registers and MSR: contexts first, then arguments, codes of the table."""

from __future__ import annotations

import functools
import itertools

import pytest

from hcalld.core.secret import Secret
from hcalld.domain.pef.machine import PefSettings
from hcalld.domain.ultravisor.caller import MSR_TS
from hcalld.families.svm.handlers import HANDLERS as SVM
from hcalld.families.uv.handlers import HANDLERS as UV
from hcalld.testing.pef import (
    HOST,
    KERNEL,
    KERNEL_GPA,
    RAM_SIZE,
    SECURE_KERNEL,
    SECURE_USER,
    TREE_GPA,
    USER,
    PefGuest,
)
from hcallproto.abi.families import svm, uv
from hcallproto.abi.registers import MSR_HV, MSR_PR, MSR_S
from hcallproto.abi.returns import H, U
from hcallproto.abi.spec import Caller, Hcall

CONTEXTS = [s | hv | pr for s in (0, MSR_S) for hv in (0, MSR_HV) for pr in (0, MSR_PR)]
ALLOWED = {
    Caller.HYPERVISOR: {MSR_HV, MSR_HV | MSR_S},
    Caller.KERNEL: {0, MSR_S},
    Caller.SECURE_KERNEL: {MSR_S},
    Caller.ANY: set(CONTEXTS),
}
GFN = 0x60
NAME = [int.from_bytes(b"rootd\0\0\0", "big"), *[0] * 7]


def secure(shift: int = 16) -> PefGuest:
    guest = PefGuest(PefSettings(page_shift=shift))
    assert guest.enter({b"rootd": Secret(b"0123456789" * 10)}).code is U.SUCCESS
    return guest


@functools.cache
def shared_guest(is_secure: bool) -> PefGuest:
    """A guest for tests that change nothing, and see to it that they do not."""
    return secure() if is_secure else PefGuest()


def everything(guest: PefGuest) -> object:
    """All that a refused call must not change."""
    records = sorted((r.namespace, r.key, r.value) for r in guest.store.load().records)
    return guest.guest.snapshot(), guest.bits(), guest.doom, records, guest.machine.state


WRONG = [
    (hcall, msr)
    for hcall in uv.FAMILY.calls
    for msr in CONTEXTS
    if msr not in ALLOWED[hcall.caller]
]


@pytest.mark.parametrize("is_secure", [True, False])
@pytest.mark.parametrize(
    ("hcall", "msr"), WRONG, ids=lambda value: getattr(value, "name", None) or f"{value:x}"
)
def test_wrong_context_before_arguments(hcall: Hcall, msr: int, is_secure: bool):
    guest = shared_guest(is_secure)
    before = everything(guest)
    for value in (0, 1, (1 << 64) - 1):
        outcome = guest.call(hcall, *itertools.repeat(value, len(hcall.args)), msr=msr)
        assert outcome.code is U.PERMISSION
        assert "made by the" in outcome.why
    assert everything(guest) == before


@pytest.mark.parametrize(
    "hcall",
    [
        hcall
        for hcall in uv.FAMILY.calls
        if hcall.caller is Caller.HYPERVISOR and hcall != uv.RETURN
    ],
    ids=lambda hcall: hcall.name,
)
def test_hypervisor_in_a_transaction(hcall: Hcall):
    guest = shared_guest(True)
    before = everything(guest)
    outcome = guest.call(hcall, *[0] * len(hcall.args), msr=HOST | MSR_TS)
    assert outcome.code is U.BAD_MODE
    assert everything(guest) == before


def test_return_in_a_transaction_is_as_any_other():
    guest = secure()
    outcome = guest.call(uv.RETURN, *[0] * len(uv.RETURN.args), msr=HOST | MSR_TS)
    assert outcome.code is U.PERMISSION
    assert "cookie" in guest.doom


@pytest.mark.parametrize("hcall", uv.FAMILY.calls, ids=lambda hcall: hcall.name)
def test_any_arguments_give_a_declared_code(hcall: Hcall):
    """``PefGuest`` raises for a code or a register that the table does not declare."""
    guest = secure()
    for value in (0, 1, 2, 12, 16, 0xB4, 0x10000, 1 << 48, (1 << 63), (1 << 64) - 1):
        for msr in CONTEXTS:
            if not guest.machine.is_secure:
                guest = secure()
            guest.call(hcall, *itertools.repeat(value, len(hcall.args)), msr=msr)


def test_every_call_has_a_handler():
    assert set(UV.by_call) == set(uv.FAMILY.calls)
    assert set(SVM.by_call) == set(svm.FAMILY.calls)


# -- calls of a VM -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [uv.SHARE_PAGE, uv.UNSHARE_PAGE])
@pytest.mark.parametrize(
    ("gfn", "count"),
    [
        (RAM_SIZE >> 16, 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 2),
        ((1 << 64) - GFN, 0xFFFFFFFF),
        (1 << 48, 1),
        (GFN, (RAM_SIZE >> 16) - GFN + 1),
        (GFN, 1 << 32),
        (GFN, (1 << 64) - GFN),
        (GFN, (1 << 64) - 1),
    ],
)
def test_ranges_that_wrap_or_are_not_memory(call: Hcall, gfn: int, count: int):
    guest = secure()
    guest.call(uv.SHARE_PAGE, GFN, 2)
    before = everything(guest)
    assert guest.call(call, gfn, count).code is U.P2
    assert everything(guest) == before


@pytest.mark.parametrize("shift", [12, 16])
def test_sharing_in_frames_of_the_guest(shift: int):
    guest = secure(shift)
    size = 1 << shift
    gpa = GFN * size
    guest.store_bytes(gpa, b"secret")
    guest.store_bytes(gpa + size, b"beside")
    assert guest.call(uv.SHARE_PAGE, GFN, 1).code is U.SUCCESS
    assert guest.load(gpa, 6) == bytes(6)
    guest.store_bytes(gpa, b"public")
    assert guest.seen_by_host(gpa, 6) == b"public"
    assert guest.seen_by_host(gpa + size, 6) == bytes(6)
    assert guest.call(uv.UNSHARE_PAGE, GFN, 1).code is U.SUCCESS
    assert guest.load(gpa, 6) == bytes(6)
    assert guest.load(gpa + size, 6) == b"beside"


def test_a_swiotlb_pool_in_one_call():
    """64 MiB from a frame that is no multiple of 64 KiB, as Linux shares it."""
    from hcalld.testing.guest import FakeGuest

    guest = PefGuest(PefSettings(page_shift=12), guest=FakeGuest([(0, 128 << 20)]))
    guest.enter()
    outcome = guest.call(uv.SHARE_PAGE, 0xE29, 0x4000)
    assert outcome.code is U.SUCCESS
    assert outcome.zeros == ((0xE29000, 64 << 20),)
    assert [(one.gpa, one.size) for one in outcome.pages] == [(0xE29000, 64 << 20)]
    assert guest.machine.ultravisor.vms[1].shared_count == 0x4000
    assert len(guest.store.load().records) < 20


def test_share_survives_the_daemon():
    guest = secure()
    guest.call(uv.SHARE_PAGE, GFN, 2)
    guest.reload()
    assert guest.call(uv.UNSHARE_ALL_PAGES).code is U.SUCCESS
    assert guest.bits_at(GFN << 16) == 1


def test_files_by_registers():
    guest = secure()
    outcome = guest.call(uv.ESMB_GET_FILE, 0, *NAME, msr=SECURE_USER, pidr=7)
    assert outcome.result == 64
    assert outcome.registers[0] == (4, int.from_bytes(b"01234567", "big"))
    guest.reload()
    outcome = guest.call(uv.ESMB_GET_FILE, 64, *NAME, msr=SECURE_USER, pidr=7)
    assert outcome.result == 36
    assert dict(outcome.registers)[8] == int.from_bytes(b"6789".ljust(8, b"\0"), "big")
    assert guest.call(uv.ESMB_GET_FILE, 100, *NAME, msr=SECURE_KERNEL, pidr=7).result == 0
    for offset, pidr in ((0, 7), (99, 7), (100, 8), (65536, 7), ((1 << 64) - 1, 7)):
        outcome = guest.call(uv.ESMB_GET_FILE, offset, *NAME, msr=SECURE_USER, pidr=pidr)
        assert outcome.code is U.PARAMETER
    guest.reset()
    guest.enter({b"rootd": Secret(b"again")})
    assert guest.call(uv.ESMB_GET_FILE, 0, *NAME, msr=SECURE_USER, pidr=8).result == 5


def test_a_failed_look_up_is_remembered_over_the_daemons_restart():
    guest = secure()
    name = [int.from_bytes(b"nothing\0", "big"), *[0] * 7]
    assert guest.call(uv.ESMB_GET_FILE, 0, *name, msr=SECURE_USER, pidr=7).code is U.PARAMETER
    guest.reload()
    outcome = guest.call(uv.ESMB_GET_FILE, 0, *name, msr=SECURE_USER, pidr=8)
    assert "another process" in outcome.why


def test_files_are_not_for_whom_qemu_did_not_make_secure():
    """QEMU refuses to set MSR[S] while another vCPU runs; the VM goes on without."""
    guest = secure()
    before = everything(guest)
    for msr in (KERNEL, USER):
        assert guest.call(uv.ESMB_GET_FILE, 0, *NAME, msr=msr).code is U.PARAMETER
        assert guest.call(svm.RANDOM, msr=msr).code is H.FUNCTION
    assert everything(guest) == before


@pytest.mark.parametrize("msr", [KERNEL, USER, SECURE_USER, SECURE_KERNEL])
def test_a_normal_vm_has_no_files(msr: int):
    assert PefGuest().call(uv.ESMB_GET_FILE, 0, *NAME, msr=msr).code is U.PARAMETER


def test_esm_by_registers():
    guest = PefGuest()
    assert guest.call(uv.ESM, 0, 0, msr=KERNEL).code is U.P2
    assert guest.call(uv.ESM, KERNEL_GPA, 0, msr=KERNEL).code is U.P3
    outcome = guest.call(uv.ESM, KERNEL_GPA, TREE_GPA, msr=KERNEL)
    assert outcome.code is U.PARAMETER
    assert "device tree" in outcome.why
    guest.enter()
    assert guest.call(uv.ESM, KERNEL_GPA, TREE_GPA, msr=SECURE_KERNEL).code is U.RETRY


def test_a_hypervisor_beside_ours():
    guest = secure()
    gpa = GFN << 16
    lra = guest.machine.memory.allocate()
    assert lra
    guest.store_bytes(gpa, b"secret")
    outcome = guest.call(uv.PAGE_OUT, 1, lra, gpa, 0, 16, msr=HOST)
    assert outcome.code is U.SUCCESS
    assert guest.bits_at(gpa) == 3
    assert guest.call(uv.PAGE_IN, 1, lra, gpa, 0, 12, msr=HOST).code is U.P5
    assert guest.call(uv.PAGE_IN, 1, lra, gpa, 0, 16, msr=HOST).code is U.SUCCESS
    assert guest.load(gpa, 6) == b"secret"
    assert guest.call(uv.RESTRICTED_SPR_WRITE, uv.Spr.DAWR, 5, msr=HOST).code is U.SUCCESS
    assert guest.call(uv.RESTRICTED_SPR_READ, uv.Spr.DAWR, msr=HOST).registers == ((5, 5),)
    assert guest.call(uv.SVM_TERMINATE, 1, msr=HOST).code is U.SUCCESS
    assert guest.guest.snapshot() == (bytes(RAM_SIZE),)


# -- H_SVM_* and H_RANDOM ------------------------------------------------------------------------


OF_THE_ULTRAVISOR = [svm.PAGE_IN, svm.PAGE_OUT, svm.INIT_START, svm.INIT_DONE, svm.INIT_ABORT]


@pytest.mark.parametrize("is_secure", [True, False])
@pytest.mark.parametrize("hcall", OF_THE_ULTRAVISOR, ids=lambda hcall: hcall.name)
def test_a_guest_cannot_make_the_ultravisors_calls(hcall: Hcall, is_secure: bool):
    guest = secure() if is_secure else PefGuest()
    before = everything(guest)
    outcome = guest.call(hcall, *itertools.repeat((1 << 64) - 1, len(hcall.args)), msr=KERNEL)
    expected = H.STATE if is_secure and hcall == svm.INIT_ABORT else H.UNSUPPORTED
    assert outcome.code is expected
    assert everything(guest) == before


@pytest.mark.parametrize(
    ("gpa", "flags", "order", "code"),
    [
        (0, 2, 16, H.P2),
        (0, 0, 11, H.P3),
        (0, 0, 12, H.P3),
        (0, 0, 17, H.P3),
        (RAM_SIZE, 0, 16, H.PARAMETER),
        (0, 0, 16, H.PARAMETER),
    ],
)
def test_pages_asked_for_by_a_secure_vm(gpa: int, flags: int, order: int, code: H):
    guest = secure()
    before = everything(guest)
    assert guest.call(svm.PAGE_IN, gpa, flags, order).code is code
    assert everything(guest) == before


def test_a_secure_vm_pages_itself_out():
    guest = secure()
    guest.store_bytes(0, b"secret")
    assert guest.call(svm.PAGE_OUT, 0, 0, 16).code is H.SUCCESS
    assert guest.bits_at(0) == 3
    assert guest.load(0, 6) == b"secret"
    # It asks the hypervisor to share what it did not share itself: refused by the ultravisor.
    assert guest.call(svm.PAGE_IN, 0, 1, 16).code is H.PARAMETER
    assert guest.bits_at(0) == 1


def test_start_and_done_of_a_secure_vm():
    guest = secure()
    assert guest.call(svm.INIT_START).code is H.STATE
    assert guest.call(svm.INIT_DONE).code is H.STATE
    assert guest.call(svm.INIT_ABORT).code is H.STATE


def test_random_numbers_of_a_secure_vm():
    guest = PefGuest()
    assert guest.call(svm.RANDOM, msr=KERNEL).code is H.FUNCTION
    guest = secure()
    first, second = guest.call(svm.RANDOM), guest.call(svm.RANDOM)
    assert first.code is H.SUCCESS
    assert first.registers != second.registers


@pytest.mark.parametrize("bit", [1 << 4, 1 << 5, 1 << 9, 1 << 10])
def test_esm_is_made_in_real_mode(bit: int):
    guest = PefGuest()
    before = everything(guest)
    outcome = guest.call(uv.ESM, KERNEL_GPA, TREE_GPA, msr=0x8000000000003001 | bit)
    assert outcome.code is U.PARAMETER
    assert "real mode" in outcome.why
    assert guest.trail == []
    assert everything(guest) == before
