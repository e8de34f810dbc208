# SPDX-License-Identifier: Apache-2.0
"""What only a hypervisor can do to a secure VM, over the wire, against the daemon itself.

A guest of TCG never has MSR[HV]; a peer that speaks the wire may set what it likes. It makes
the calls of a hypervisor that our own half makes, in any order and with lies, of a VM that
became secure by a blob and a TPM. Codes are open-power/ultravisor's ``core/uvcall.c``,
``core/svm_host.c`` and ``core/page_encrypt.c``, as numbers; what else may be is docs/pef.md's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from tests.e2e.hypervisor_peer import HIDDEN, HOST, MARKER, OUT, PAGE, RAM_SIZE, HypervisorPeer
from tests.e2e.lab import Lab
from tests.e2e.secure import SecureLab
from tests.e2e.wire import PeerClosed

from hcallproto.abi.families import svm, uv
from hcallproto.abi.registers import MSR_HV, MSR_PR, MSR_S
from hcallproto.abi.spec import Hcall
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

SUCCESS: Final = 0
PARAMETER: Final = -4
PERMISSION: Final = -11
P2: Final = -55
P3: Final = -56
P4: Final = -57
P5: Final = -58
BAD_MODE: Final = -59
STATE: Final = -75

VM: Final = 1
"""The guest's LPID."""
NOBODY: Final = 7
NOT_SET: Final = 0
SECURE_ADDRESS: Final = 1 << 48
ORDER: Final = 16
A: Final = HIDDEN
B: Final = HIDDEN + PAGE
ALIAS: Final = 1 << 44
"""The real address of the guest's page 0."""
MSR_TS: Final = 1 << 33


@pytest.fixture
def lab_of_peers(lab: Lab) -> SecureLab:
    """A daemon whose guest may be secure."""
    return SecureLab(lab)


@pytest.fixture
def peer(lab_of_peers: SecureLab) -> Iterator[HypervisorPeer]:
    """A guest that is secure; whatever a test did, no secret went where it must not."""
    with HypervisorPeer(lab_of_peers) as found:
        found.enter()
        yield found
        found.must_have_seen_no_secret()
    log = lab_of_peers.daemon.log_text() + "\n".join(lab_of_peers.daemon.trace_lines())
    assert MARKER.decode() not in log
    assert MARKER.hex() not in log


# -- every call -----------------------------------------------------------------------------------

ZEROS: Final = (
    (uv.WRITE_PATE, SUCCESS),
    (uv.RESTRICTED_SPR_WRITE, PARAMETER),
    (uv.RESTRICTED_SPR_READ, PARAMETER),
    (uv.READ_SCOM, PARAMETER),
    (uv.WRITE_SCOM, PARAMETER),
    (uv.RETURN, PERMISSION),
    (uv.REGISTER_MEM_SLOT, PARAMETER),
    (uv.UNREGISTER_MEM_SLOT, PARAMETER),
    (uv.PAGE_IN, P5),
    (uv.PAGE_OUT, P5),
    (uv.PAGE_INVAL, P3),
    (uv.SVM_TERMINATE, SUCCESS),
    (uv.READ_MEM, PARAMETER),
    (uv.WRITE_MEM, PARAMETER),
    (uv.SEND_SBE_COMMAND, PARAMETER),
)
"""Arguments of zeros, when there is no secure VM: the first that is wrong."""

ARGUMENTS: Final = (
    ((uv.WRITE_PATE, NOBODY, 1, 2), SUCCESS),
    ((uv.WRITE_PATE, 1 << 40, 1, 2), SUCCESS),
    ((uv.RESTRICTED_SPR_WRITE, 0xB4, 1), SUCCESS),
    ((uv.RESTRICTED_SPR_WRITE, 0xBB, 1), SUCCESS),
    ((uv.RESTRICTED_SPR_WRITE, 0xBC, 1), SUCCESS),
    ((uv.RESTRICTED_SPR_WRITE, 0x31F, 1), SUCCESS),
    ((uv.RESTRICTED_SPR_WRITE, 0x352, 1), SUCCESS),
    ((uv.RESTRICTED_SPR_WRITE, 0xB5, 1), PARAMETER),
    ((uv.RESTRICTED_SPR_READ, 0xB4), SUCCESS),
    ((uv.RESTRICTED_SPR_READ, 0xBB), SUCCESS),
    ((uv.RESTRICTED_SPR_READ, 0xBC), SUCCESS),
    ((uv.RESTRICTED_SPR_READ, 0x31F), PARAMETER),
    ((uv.RESTRICTED_SPR_READ, 0x352), PARAMETER),
    ((uv.REGISTER_MEM_SLOT, NOBODY, 0, PAGE, 0, 0), PARAMETER),
    ((uv.REGISTER_MEM_SLOT, VM, 1, PAGE, 0, 1), P2),
    ((uv.REGISTER_MEM_SLOT, VM, RAM_SIZE, 0, 0, 1), P3),
    ((uv.REGISTER_MEM_SLOT, VM, RAM_SIZE, -1 % (1 << 64), 0, 1), P3),
    ((uv.REGISTER_MEM_SLOT, VM, RAM_SIZE - PAGE, PAGE, 0, 1), P3),
    ((uv.REGISTER_MEM_SLOT, VM, RAM_SIZE, PAGE, 0, 512), P5),
    ((uv.REGISTER_MEM_SLOT, VM, 0, RAM_SIZE, 0, 0), SUCCESS),
    ((uv.UNREGISTER_MEM_SLOT, NOBODY, 0), PARAMETER),
    ((uv.UNREGISTER_MEM_SLOT, VM, 511), P2),
    ((uv.PAGE_IN, VM, PAGE, A, 0, 12), P5),
    ((uv.PAGE_IN, VM, 0, A, 0, ORDER), P2),
    ((uv.PAGE_IN, VM, SECURE_ADDRESS | PAGE, A, 0, ORDER), P2),
    ((uv.PAGE_IN, NOBODY, PAGE, A, 0, ORDER), PARAMETER),
    ((uv.PAGE_IN, VM, PAGE, RAM_SIZE, 0, ORDER), P3),
    ((uv.PAGE_IN, VM, PAGE, A, 0, ORDER), P2),
    ((uv.PAGE_IN, VM, ALIAS + A, A, 0, ORDER), P2),
    ((uv.PAGE_IN, VM, ALIAS + A, A, -1 % (1 << 64), ORDER), P2),
    ((uv.PAGE_OUT, VM, PAGE, A, 0, 12), P5),
    ((uv.PAGE_OUT, VM, 0, A, 0, ORDER), P2),
    ((uv.PAGE_OUT, VM, SECURE_ADDRESS | PAGE, A, 0, ORDER), P2),
    ((uv.PAGE_OUT, NOBODY, PAGE, A, 0, ORDER), PARAMETER),
    ((uv.PAGE_OUT, VM, PAGE, RAM_SIZE, 0, ORDER), P3),
    ((uv.PAGE_OUT, VM, ALIAS + A, A, 0, ORDER), P2),
    ((uv.PAGE_OUT, VM, 1 << 30, A, 0, ORDER), P2),
    ((uv.PAGE_INVAL, VM, A, 12), P3),
    ((uv.PAGE_INVAL, NOBODY, A, ORDER), PARAMETER),
    ((uv.PAGE_INVAL, VM, RAM_SIZE, ORDER), P3),
    ((uv.PAGE_INVAL, VM, A, ORDER), P2),
    ((uv.SVM_TERMINATE, NOBODY), SUCCESS),
    ((uv.READ_MEM, PAGE, 0, 0, 1), PERMISSION),
    ((uv.WRITE_MEM, PAGE, 0, 0, 1), PERMISSION),
    ((uv.READ_MEM, PAGE, 0, 0, 1 << 32), P4),
    ((uv.SEND_SBE_COMMAND, 0, 3, 0), PARAMETER),
)
"""One argument is wrong, or none, and the VM is secure; all leave it as it was."""


def arguments_of(hcall: Hcall) -> list[int]:
    return [0 for arg in hcall.args if 4 <= arg.register <= 12]


def by_hypervisors(peer: HypervisorPeer, hcall: Hcall, *arguments: int) -> int:
    """The code of a call; S = 1 beside HV = 1 is as good, and nobody else may make it."""
    codes = {peer.ask(hcall, *arguments, msr=msr) for msr in (MSR_HV, MSR_HV | MSR_S)}
    others = {0, MSR_S, MSR_PR, MSR_S | MSR_PR, MSR_HV | MSR_PR, MSR_S | MSR_HV | MSR_PR}
    assert {peer.ask(hcall, *arguments, msr=msr) for msr in others} == {PERMISSION}
    assert peer.ask(hcall, *arguments, msr=MSR_HV | MSR_TS) == BAD_MODE
    assert peer.ask(hcall, *arguments, msr=MSR_HV | 2 * MSR_TS) == BAD_MODE
    (code,) = codes
    return code


def test_calls_of_a_hypervisor_without_a_secure_vm(lab_of_peers: SecureLab) -> None:
    named = {hcall.name for hcall, _ in ZEROS}
    assert named == {call.name for call in uv.FAMILY.calls if call.caller.name == "HYPERVISOR"}
    with HypervisorPeer(lab_of_peers) as peer:
        before = bytes(peer.ram)
        for hcall, code in ZEROS:
            assert by_hypervisors(peer, hcall, *arguments_of(hcall)) == code, hcall.name
        assert peer.ram == before
        assert not peer.states
        # All of it was nothing: the guest becomes secure.
        peer.enter()


def test_arguments_of_a_hypervisors_calls(peer: HypervisorPeer) -> None:
    before, states = bytes(peer.ram), dict(peer.states)
    for (hcall, *arguments), code in ARGUMENTS:
        assert by_hypervisors(peer, hcall, *arguments) == code, (hcall.name, arguments)
        assert peer.ram == before, (hcall, arguments)
        assert peer.states == states
    assert not peer.controls


def test_registers_that_are_the_ultravisors(peer: HypervisorPeer) -> None:
    """The value is in r5, and outlives the daemon's reply to anybody else."""
    for number, spr in enumerate((0xB4, 0xBB, 0xBC), start=1):
        assert peer.ask(uv.RESTRICTED_SPR_WRITE, spr, number << 60 | spr) == SUCCESS
    for number, spr in enumerate((0xB4, 0xBB, 0xBC), start=1):
        reply = peer.make(uv.RESTRICTED_SPR_READ, spr, msr=HOST)
        assert (reply.status, reply.registers) == (SUCCESS, ((5, number << 60 | spr),))
        # Who may not, is told nothing.
        reply = peer.make(uv.RESTRICTED_SPR_READ, spr, msr=MSR_S)
        assert (reply.status, reply.registers) == (PERMISSION, ())


# -- lies about pages -----------------------------------------------------------------------------


def addresses(count: int = 70) -> Iterator[int]:
    """Where ciphertext may be: the first pages of normal memory."""
    return (number * PAGE for number in range(1, count))


def bring(peer: HypervisorPeer, gpa: int) -> int:
    """The hypervisor finds out where a page is; it comes in with its own content only.

    Returns:
        The address.
    """
    for source in addresses():
        code = peer.ask(uv.PAGE_IN, VM, source, gpa, 0, ORDER)
        if code == SUCCESS:
            return source
        assert code in (P2, P3)
        assert peer.is_out(gpa)
        assert not any(peer.ram[gpa : gpa + PAGE])
    raise AssertionError(f"page 0x{gpa:x} is nowhere")


def test_pages_that_are_swapped_stay_out(peer: HypervisorPeer) -> None:
    peer.page_out(A, B)
    where = {}
    for gpa in (A, B):
        where[gpa] = bring(peer, gpa)
        assert peer.ram[gpa : gpa + PAGE] == peer.secret(gpa)
        # Twice: it is resident.
        assert peer.ask(uv.PAGE_IN, VM, where[gpa], gpa, 0, ORDER) == P2
        assert peer.ask(uv.PAGE_OUT, VM, where[gpa], gpa, 0, ORDER) == SUCCESS
    assert where[A] != where[B]
    for wrong in (where[A] + 8, where[A] + PAGE // 2, ALIAS + A, ALIAS + B, ALIAS + RAM_SIZE):
        for gpa in (A, B):
            assert peer.ask(uv.PAGE_IN, VM, wrong, gpa, 0, ORDER) in (P2, P3)
            assert peer.is_out(gpa)
    assert not peer.controls
    for gpa in (A, B):
        assert peer.touch(gpa) == SUCCESS
        assert peer.ram[gpa : gpa + PAGE] == peer.secret(gpa)


def test_a_page_over_another_ones_ciphertext(peer: HypervisorPeer) -> None:
    """The hypervisor spoils its own memory: what was there is lost, and the VM ends."""
    peer.page_out(A)
    where = bring(peer, A)
    assert peer.ask(uv.PAGE_OUT, VM, where, A, 0, ORDER) == SUCCESS
    assert peer.ask(uv.PAGE_OUT, VM, where, B, 0, ORDER) == SUCCESS
    assert peer.touch(A) == P3
    assert peer.is_out(A)
    assert not any(peer.ram[A : A + PAGE])
    assert [control.action for control in controls(peer)] == [s.ControlAction.TERMINATE]


def controls(peer: HypervisorPeer) -> list[f.Control]:
    """What the daemon asks of QEMU, but for its calls ATTEND."""
    while not peer.nothing_comes(0.2):
        frame = peer.receive()
        assert isinstance(frame, f.Control)
        peer.controls.append(frame)
    return [control for control in peer.controls if control.action != s.ControlAction.ATTEND]


def test_a_page_that_left_again_is_another_one(peer: HypervisorPeer) -> None:
    """Its older ciphertext is still there, in a page that B's was in: it is no use."""
    peer.page_out(A, B)
    old, other = bring(peer, A), bring(peer, B)
    peer.ram[A : A + 16] = b"a newer content."
    newer = bytes(peer.ram[A : A + PAGE])
    assert peer.ask(uv.PAGE_OUT, VM, other, A, 0, ORDER) == SUCCESS
    assert peer.ask(uv.PAGE_IN, VM, old, A, 0, ORDER) == P3
    assert peer.is_out(A)
    assert peer.ask(uv.PAGE_IN, VM, other, A, 0, ORDER) == SUCCESS
    assert peer.ram[A : A + PAGE] == newer
    assert peer.ram[B : B + PAGE] == peer.secret(B)


def test_a_shared_page_is_no_other_page(peer: HypervisorPeer) -> None:
    """Pages of 64 KiB hold 16 of the guest's; only the shared part is the hypervisor's."""
    assert peer.make(uv.SHARE_PAGE, A >> 12, 16).status == SUCCESS
    shared = b"for all to read." * (PAGE // 16)
    peer.ram[A : A + PAGE] = shared
    peer.page_out(B)
    for source in (ALIAS + B, *addresses(4)):
        assert peer.ask(uv.PAGE_IN, VM, source, A, 0, ORDER) == P2
    assert peer.ask(uv.PAGE_OUT, VM, PAGE, A, 0, ORDER) == PARAMETER
    # A page that is invalidated is the guest's all the same, and comes back valid.
    assert peer.ask(uv.PAGE_INVAL, VM, A, ORDER) == SUCCESS
    assert peer.ask(uv.PAGE_INVAL, VM, A, ORDER) == SUCCESS
    assert peer.states[A] == s.PageState(0)
    assert peer.ask(uv.PAGE_IN, VM, ALIAS + A, A, 0, ORDER) == SUCCESS
    assert peer.ram[A : A + PAGE] == shared
    assert peer.make(uv.UNSHARE_PAGE, A >> 12, 16).status == SUCCESS
    assert not any(peer.ram[A : A + PAGE])


# -- the end of a VM ------------------------------------------------------------------------------


def must_be_aborted(peer: HypervisorPeer) -> None:
    """Nothing more comes out of an aborted VM, and nothing goes in."""
    before = bytes(peer.ram)
    states = dict(peer.states)
    for destination in addresses(4):
        assert peer.ask(uv.PAGE_OUT, VM, destination, B, 0, ORDER) == SUCCESS
    assert peer.ask(uv.PAGE_IN, VM, PAGE, A, 0, ORDER) == STATE
    assert peer.ask(uv.PAGE_INVAL, VM, A, ORDER) == STATE
    assert peer.ask(uv.REGISTER_MEM_SLOT, VM, RAM_SIZE, PAGE, 0, 1) == PARAMETER
    for hcall in (uv.SHARE_PAGE, uv.UNSHARE_PAGE):
        assert peer.make(hcall, A >> 12, 1, msr=MSR_S).status == PERMISSION
    assert peer.make(uv.UNSHARE_ALL_PAGES, msr=MSR_S).status == PERMISSION
    assert peer.make(uv.ESMB_GET_FILE, *[0x726F6F7464000000] * 9, msr=MSR_S).status == PARAMETER
    assert peer.ram == before
    assert peer.states == states


def test_a_made_up_cookie_ends_the_vm(peer: HypervisorPeer) -> None:
    peer.page_out(A)
    assert peer.ask(uv.RETURN, *range(9)) == PERMISSION
    assert [control.action for control in controls(peer)] == [s.ControlAction.TERMINATE]
    must_be_aborted(peer)
    # The page that is out is lost, and the rest is zeroed with the VM's end.
    assert peer.ask(uv.SVM_TERMINATE, VM) == SUCCESS
    must_be_gone(peer)


def must_be_gone(peer: HypervisorPeer) -> None:
    """After UV_SVM_TERMINATE: zeros, no bits, no files, no calls of a secure VM."""
    assert not any(peer.ram)
    assert set(peer.states.values()) == {s.PageState(0)}
    assert peer.make(uv.SHARE_PAGE, A >> 12, 1, msr=MSR_S).status == PERMISSION
    assert peer.ask(uv.PAGE_INVAL, VM, A, ORDER) == PARAMETER
    assert peer.ask(uv.UNREGISTER_MEM_SLOT, VM, 0) == PARAMETER
    name = [int.from_bytes(b"rootd\0\0\0", "big"), *[0] * 7]
    assert peer.make(uv.ESMB_GET_FILE, 0, *name, msr=MSR_S).status == PARAMETER


def test_a_vm_that_is_terminated_leaves_zeros(peer: HypervisorPeer) -> None:
    peer.page_out(A)
    assert peer.make(uv.SHARE_PAGE, B >> 12, 1).status == SUCCESS
    assert peer.ask(uv.SVM_TERMINATE, VM) == SUCCESS
    must_be_gone(peer)
    assert peer.ask(uv.SVM_TERMINATE, VM) == SUCCESS


def test_memory_that_is_taken_away_leaves_zeros(peer: HypervisorPeer) -> None:
    """The slot, with what is out and what is shared of it; then it is another's to give."""
    peer.page_out(A)
    assert peer.make(uv.SHARE_PAGE, B >> 12, 1).status == SUCCESS
    assert peer.ask(uv.UNREGISTER_MEM_SLOT, VM, 0) == SUCCESS
    assert not any(peer.ram)
    assert peer.ask(uv.PAGE_IN, VM, PAGE, A, 0, ORDER) == P3
    assert peer.make(uv.SHARE_PAGE, B >> 12, 1).status == P2
    # What is given back is the VM's, and empty, whatever was put there meanwhile.
    peer.ram[A : A + 16] = b"the hypervisor's"
    assert peer.ask(uv.REGISTER_MEM_SLOT, VM, 0, RAM_SIZE, 0, 3) == SUCCESS
    assert not any(peer.ram)
    assert peer.states[A] == s.PageState.UNSHARED


def test_after_a_reset_nothing_is_left(lab_of_peers: SecureLab, peer: HypervisorPeer) -> None:
    peer.page_out(A, B)
    for reset in range(1, 3):
        event = f.Event(s.EventKind.RESET, s.NO_VCPU, reset, reset)
        peer.send(event)
        while not isinstance(frame := peer.receive(), f.EventAck):
            assert isinstance(frame, f.Control)
        for source in addresses(4):
            assert peer.ask(uv.PAGE_IN, VM, source, A, 0, ORDER) == PARAMETER
        assert peer.ask(svm.PAGE_OUT, A, 0, ORDER, msr=MSR_S) == -67


@pytest.mark.parametrize("is_aborted", [False, True])
def test_a_daemon_that_is_killed_goes_on_with_all_of_it(
    is_aborted: bool, lab_of_peers: SecureLab, peer: HypervisorPeer
) -> None:
    """The same connection comes again: pages that are out, and an abort, are as they were."""
    peer.page_out(A, B)
    if is_aborted:
        assert peer.ask(uv.RETURN, *range(9)) == PERMISSION
    lab_of_peers.daemon.kill()
    with pytest.raises(PeerClosed):
        peer.make(uv.PAGE_INVAL, VM, A, ORDER, msr=HOST)
    lab_of_peers.daemon.start()
    peer.reconnect(lab_of_peers)
    if is_aborted:
        assert [control.action for control in controls(peer)] == [s.ControlAction.TERMINATE]
        must_be_aborted(peer)
        return
    for gpa in (A, B):
        bring(peer, gpa)
        assert peer.ram[gpa : gpa + PAGE] == peer.secret(gpa)
        assert peer.states[gpa] != OUT
