# SPDX-License-Identifier: Apache-2.0
"""The ioctl library over the host's KVM: real vCPUs' save areas, VMs from elsewhere, a sandbox."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Final

import pytest
from sevsnpmeasure.sev_mode import SevMode  # type: ignore[import-untyped]
from sevsnpmeasure.vmsa import VMSA  # type: ignore[import-untyped]
from tests.conftest import Require
from tests.e2e.fakedaemon import FakeDaemon, Peer
from tests.e2e.lab import Lab
from tests.e2e.sevprogram import (
    FAKE_KVM_VARIABLE,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VCPU,
    KVM_GET_DEVICE_ATTR,
    KVM_HAS_DEVICE_ATTR,
    KVM_MEMORY_ENCRYPT_OP,
    PAGE,
    VM_DEFAULT,
    VM_SEV,
    VM_SEV_ES,
    SevProgram,
)
from tests.e2e.sevqemu import GOOD, read_launched, run_to_end
from tests.integration.ioctl_shim.liar import begin, meet
from tests.kvm.conftest import SevLab

from hcalld.guestowner.vmsa import RESET_VECTOR, InitStyle, page
from hcallproto.abi.families import sev as commands
from hcallproto.abi.returns import SevCode
from hcallproto.wire import schema as s

pytestmark = [pytest.mark.kvm]

# uapi/asm/kvm.h, x86.
KVM_GET_REGS: Final = 0x8090_AE81
KVM_SET_REGS: Final = 0x4090_AE82
KVM_GET_SREGS: Final = 0x8138_AE83
KVM_SET_SREGS: Final = 0x4138_AE84
KVM_GET_XSAVE: Final = 0x9000_AEA4
KVM_SET_XSAVE: Final = 0x5000_AEA5
REGS: Final = struct.Struct("<18Q")
RDX, RIP = 3, 16
SEGMENT: Final = struct.Struct("<QIHBBBBBBBBBx")

SIGNATURE: Final = 0x0080_0F12
"""Family 23, model 1, stepping 2."""
AP_ADDRESS: Final = 0x0080_B004

FPU: Final = slice(0x400, None)
"""Of a save area: what ES_INIT leaves zero."""

KVM_CAP_VM_TYPES: Final = 235


@pytest.fixture
def fake(lab: Lab) -> FakeDaemon:
    return lab.fake_daemon()


@pytest.fixture
def program(lab: Lab, require: Require, fake: FakeDaemon) -> Iterator[SevProgram]:
    library = require("sev-library")
    with SevProgram(
        library.with_name("sev-client"),
        library,
        fake.path,
        lab.artifacts / "client.log",
        environ={FAKE_KVM_VARIABLE: "0"},
    ) as started:
        yield started


def segment(base: int, selector: int, kind: int, *, is_system: bool = False) -> bytes:
    """``struct kvm_segment`` in real mode."""
    return SEGMENT.pack(base, 0xFFFF, selector, kind, 1, 0, 0, not is_system, 0, 0, 0, 0)


def reset_vcpu(program: SevProgram, vcpu: int, address: int) -> None:
    """Gives a vCPU the state that QEMU resets it to."""
    sregs = program.map(PAGE)
    program.do("ioctl", vcpu, KVM_GET_SREGS, sregs)
    code = segment(address & 0xFFFF_0000, 0xF000, 0xB)
    data = segment(0, 0, 0x3)
    task, local = segment(0, 0, 0xB, is_system=True), segment(0, 0, 0x2, is_system=True)
    program.set(sregs, code + 5 * data + task + local)
    program.do("ioctl", vcpu, KVM_SET_SREGS, sregs)
    regs = program.map(PAGE)
    program.do("ioctl", vcpu, KVM_GET_REGS, regs)
    values = list(REGS.unpack(program.get(regs, REGS.size)))
    values[RDX], values[RIP] = SIGNATURE, address & 0xFFFF
    program.set(regs, REGS.pack(*values))
    program.do("ioctl", vcpu, KVM_SET_REGS, regs)


def es_vm(program: SevProgram, fake: FakeDaemon, vm_type: int) -> tuple[int, Peer]:
    vm = program.create_vm(vm_type)
    pending = begin(program, vm, commands.INIT2 if vm_type else commands.ES_INIT)
    peer = meet(fake)
    peer.reply(peer.call())
    assert pending.result().status == 0
    return vm, peer


def save_areas(program: SevProgram, vm: int, peer: Peer) -> bytes:
    """What LAUNCH_UPDATE_VMSA hands to the daemon when the program names no structure."""
    argument = program.argument(commands.LAUNCH_UPDATE_VMSA, 0)
    program.send("ioctl", vm, KVM_MEMORY_ENCRYPT_OP, argument)
    call = peer.call()
    address, size = call.gpr[3:5]
    ((status, data),) = peer.read_memory(call, (address, size)).segments
    assert status is s.AccessStatus.OK
    peer.reply(call)
    assert program.answer() == (0, 0)
    return data


def snp_measures(address: int) -> bytes:
    """The save area that sev-snp-measure makes."""
    areas: list[bytes] = list(VMSA(SevMode.SEV_ES, address, SIGNATURE, 0).pages(2))
    return areas[0 if address == RESET_VECTOR else 1]


@pytest.mark.parametrize("vm_type", [VM_DEFAULT, VM_SEV_ES], ids=["ES_INIT", "INIT2"])
def test_save_areas_when_vcpus_are_reset_then_they_are_what_owners_expect(
    program: SevProgram, fake: FakeDaemon, vm_type: int
):
    vm, peer = es_vm(program, fake, vm_type)
    addresses = (RESET_VECTOR, AP_ADDRESS, AP_ADDRESS)
    for number, address in enumerate(addresses):
        reset_vcpu(program, program.do("ioctl", vm, KVM_CREATE_VCPU, number), address)
    data = save_areas(program, vm, peer)
    assert len(data) == len(addresses) * PAGE
    style = InitStyle.INIT2 if vm_type else InitStyle.ES_INIT
    for number, address in enumerate(addresses):
        area = data[number * PAGE :][:PAGE]
        assert area == page(address, SIGNATURE, style), number
        theirs = snp_measures(address)
        assert area[: FPU.start] == theirs[: FPU.start]
        assert area[FPU] == (theirs[FPU] if vm_type else bytes(PAGE - FPU.start))
    assert program.messages() == ""


def test_save_areas_when_registers_are_in_use_then_they_are_there(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = es_vm(program, fake, VM_SEV_ES)
    vcpu = program.do("ioctl", vm, KVM_CREATE_VCPU, 0)
    regs = program.map(PAGE)
    # rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 to r15, rip, rflags
    program.set(regs, REGS.pack(*range(0x101, 0x112), 0x246))
    program.do("ioctl", vcpu, KVM_SET_REGS, regs)
    xsave = program.map(PAGE)
    program.do("ioctl", vcpu, KVM_GET_XSAVE, xsave)
    legacy = bytearray(program.get(xsave, 576))
    struct.pack_into("<HHBxHQQI", legacy, 0, 0x27F, 0x3800, 0x80, 0x123, 0xAA, 0xBB, 0x1FA0)
    registers = [bytes([number] * 10) for number in range(1, 9)]
    for number, value in enumerate(registers):
        legacy[32 + 16 * number : 42 + 16 * number] = value
    legacy[160:416] = bytes(range(256))
    legacy[512] |= 3
    program.set(xsave, bytes(legacy))
    program.do("ioctl", vcpu, KVM_SET_XSAVE, xsave)
    area = save_areas(program, vm, peer)
    fields = {
        0x1F8: 0x101, 0x318: 0x102, 0x308: 0x103, 0x310: 0x104, 0x330: 0x105, 0x338: 0x106,
        0x1D8: 0x107, 0x328: 0x108, 0x340: 0x109, 0x378: 0x110, 0x178: 0x111, 0x170: 0x246,
        0x400: 0xBB, 0x418: 0xAA,
    }  # fmt: skip
    assert {at: struct.unpack_from("<Q", area, at)[0] for at in fields} == fields
    assert struct.unpack_from("<IHHHH", area, 0x408) == (0x1FA0, 0x80, 0x3800, 0x27F, 0x123)
    assert area[0x420:0x470] == b"".join(one[:8] for one in registers) + b"".join(
        one[8:] for one in registers
    )
    assert area[0x470:0x570] == bytes(range(256))


def test_save_areas_when_a_vcpu_is_closed_then_it_cannot_be_read(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = es_vm(program, fake, VM_DEFAULT)
    program.do("close", program.do("ioctl", vm, KVM_CREATE_VCPU, 0))
    result = program.issue(vm, commands.LAUNCH_UPDATE_VMSA, data=0)
    assert result.status == SevCode.EBADF
    assert "vCPU 0: its registers cannot be read: Bad file descriptor" in program.messages()
    assert peer.nothing_comes(0.05)


def test_save_areas_when_a_vcpu_has_another_descriptor_then_it_is_read_by_that(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = es_vm(program, fake, VM_DEFAULT)
    for close in (("close",), ("dup2", 0)):
        vcpu = program.do("ioctl", vm, KVM_CREATE_VCPU, len(close))
        reset_vcpu(program, vcpu, RESET_VECTOR)
        copy = program.do("dup", program.do("dup", vcpu))
        program.do(*close, vcpu)
        program.do("close", copy)
    data = save_areas(program, vm, peer)
    assert data == 2 * page(RESET_VECTOR, SIGNATURE, InitStyle.ES_INIT)


def test_vm_types_when_the_host_has_them_not_then_vms_of_them_are_made(program: SevProgram):
    kvm = program.open("/dev/kvm")
    types = program.do("ioctl", kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES)
    assert types & 0b1101 == 0b1101
    for vm_type in (VM_DEFAULT, VM_SEV, VM_SEV_ES):
        vm = program.create_vm(vm_type)
        assert program.do("ioctl", vm, KVM_CREATE_VCPU, 0) > 2
    value = program.put(b"\xff" * 8)
    attribute = program.put(struct.pack("<IIQQ", 0, 1, 0, value))
    for request in (KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR):
        assert program.do("ioctl", kvm, request, attribute) == 0
    assert program.get(value, 8) == bytes(8)


def test_vm_when_it_came_unseen_then_it_is_one_all_the_same_but_its_vcpus_are_not_known(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.do("rawdup", program.create_vm())
    pending = begin(program, vm, commands.ES_INIT)
    peer = meet(fake)
    peer.reply(peer.call())
    assert pending.result().status == 0
    assert program.issue(vm, commands.LAUNCH_UPDATE_VMSA, data=0).status == SevCode.EINVAL
    assert "a VM that another process has made" in program.messages()


def test_child_when_it_uses_the_parents_vm_then_kvm_refuses_it(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = es_vm(program, fake, VM_DEFAULT)
    argument = program.argument(commands.LAUNCH_FINISH, 0)
    assert program.do("fork") == 0
    assert program.ask("ioctl", vm, KVM_MEMORY_ENCRYPT_OP, argument) == (-1, errno.EIO)
    program.send("exit", 0)
    assert program.answer() == (0, 0)
    program.send("ioctl", vm, KVM_MEMORY_ENCRYPT_OP, argument)
    peer.reply(peer.call())
    assert program.answer() == (0, 0)


SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""What libvirt gives each QEMU."""


def test_qemu_when_in_libvirts_sandbox_then_the_library_still_reaches_its_memory(sev: SevLab):
    guest = sev.guest(policy=5, smp=2, extra=("-sandbox", SANDBOX))
    machine = sev.start(guest)
    launched = read_launched(machine)
    assert sev.owner.validate(launched, guest).status == 0
    assert run_to_end(machine) == GOOD
