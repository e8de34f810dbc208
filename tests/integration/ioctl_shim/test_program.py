# SPDX-License-Identifier: Apache-2.0
"""The program's side: its descriptors, children and threads, and calls that are none of ours."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable

import pytest
from tests.e2e.fakedaemon import FakeDaemon, Peer
from tests.e2e.patience import patience, wait_until
from tests.e2e.sevprogram import (
    DEBUG_VARIABLE,
    ERROR_BEFORE,
    FAKE_KVM_VARIABLE,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_GET_DEVICE_ATTR,
    KVM_HAS_DEVICE_ATTR,
    KVM_MEMORY_ENCRYPT_OP,
    PAGE,
    READ_ONLY,
    SEV_ISSUE_CMD,
    TIMEOUT_VARIABLE,
    VM_SEV,
    VM_SEV_ES,
    SevProgram,
)
from tests.e2e.wire import PeerClosed
from tests.integration.ioctl_shim.conftest import Built, SevShim
from tests.integration.ioctl_shim.liar import Pending, begin, meet

from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads import sev_abi
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

FIONREAD = 0x541B
KVM_CAP_VM_TYPES = 235
F_DUPFD = 0
F_DUPFD_CLOEXEC = 1030
UINT_MAX = 0xFFFF_FFFF

OPEN_FUNCTIONS = (
    "open",
    "open64",
    "openat",
    "openat64",
    "__open_2",
    "__open64_2",
    "__openat_2",
    "__openat64_2",
)


@pytest.fixture
def fake(shim: SevShim) -> FakeDaemon:
    return shim.lab.fake_daemon()


@pytest.fixture
def program(shim: SevShim, fake: FakeDaemon) -> SevProgram:
    return shim.program(fake.path)


def answered(pending: Pending, peer: Peer) -> None:
    """A command that succeeds."""
    peer.reply(peer.call())
    assert pending.result().status == 0


def connected_vm(program: SevProgram, fake: FakeDaemon, vm_type: int = 0) -> tuple[int, Peer]:
    vm = program.create_vm(vm_type)
    pending = begin(program, vm, sev.INIT2 if vm_type else sev.INIT)
    peer = meet(fake)
    answered(pending, peer)
    return vm, peer


def connected_device(program: SevProgram, fake: FakeDaemon) -> tuple[int, Peer]:
    device = program.open("/dev/sev")
    pending = begin(program, device, sev.PDH_GEN)
    peer = meet(fake)
    answered(pending, peer)
    return device, peer


def assert_alive(program: SevProgram, vm: int, peer: Peer) -> None:
    answered(begin(program, vm, sev.LAUNCH_FINISH), peer)


def assert_ended(peer: Peer) -> None:
    """The library has said goodbye, and says nothing more; the daemon is done, too."""
    goodbye = peer.expect(f.ShimGoodbye)
    assert goodbye.reason is s.GoodbyeReason.SHUTDOWN
    assert select.select([peer.sock], [], [], patience(20))[0]
    assert peer.sock.recv(1) == b""
    peer.close()


def assert_ends(program: SevProgram, peer: Peer, *words: object) -> None:
    """What the program is told to do ends a VM; it goes on when the daemon is done."""
    program.send(*words)
    assert_ended(peer)
    value, error = program.answer()
    assert (value >= 0, error) == (True, 0)


def sockets(pid: int) -> list[int]:
    """A program's descriptors that are sockets; there are none but the library's."""
    folder = f"/proc/{pid}/fd"
    found = []
    for name in os.listdir(folder):
        # One may be closed while we look.
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{folder}/{name}").startswith("socket:"):
                found.append(int(name))
    return found


def fill_queue(fake: FakeDaemon, stack: contextlib.ExitStack) -> int:
    """Connects until the next one has to wait; gives how many are to be accepted."""
    count = 0
    while True:
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.setblocking(False)
        try:
            other.connect(os.fspath(fake.path))
        except BlockingIOError:
            return count
        count += 1


# -- devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", OPEN_FUNCTIONS)
def test_open_when_of_a_device_then_by_any_function_it_is_there(
    program: SevProgram, fake: FakeDaemon, function: str
):
    device = program.open("/dev/sev", function=function)
    pending = begin(program, device, sev.PDH_GEN)
    peer = meet(fake)
    answered(pending, peer)
    kvm = program.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC, function=function)
    assert program.do("ioctl", kvm, 0xAE00, 0) == 12
    assert program.ask("open", function, "/dev/sevx", 0) == (-1, errno.ENOENT)
    assert program.ask("open", function, "/dev", os.O_WRONLY) == (-1, errno.EISDIR)
    assert program.ask("open", function, "dev/sev", 0) == (-1, errno.ENOENT)


def test_open_when_the_path_is_bad_then_the_kernel_refuses_it(program: SevProgram):
    page = program.map(2 * PAGE)
    program.do("unmap", page + PAGE, PAGE)
    program.set(page + PAGE - 4, b"/dev")
    for address in (0, 1, 1 << 47, page + PAGE - 4):
        assert program.ask("openbad", address) == (-1, errno.EFAULT)
    program.set(page + PAGE - 2, b".\0")
    assert program.do("openbad", page + PAGE - 2) > 2


def test_open_when_told_not_to_make_up_kvm_then_it_is_the_hosts(shim: SevShim):
    program = shim.program(None, environ={FAKE_KVM_VARIABLE: "0"})
    value, error = program.ask("open", "open", "/dev/kvm", os.O_RDWR)
    if error:
        assert error in {errno.ENOENT, errno.EACCES, errno.ENODEV, errno.ENXIO}
    else:
        assert os.readlink(f"/proc/{program.pid}/fd/{value}") == "/dev/kvm"


def test_device_when_opened_to_read_then_it_changes_nothing(program: SevProgram, fake: FakeDaemon):
    device = program.open("/dev/sev", os.O_RDONLY)
    pending = begin(program, device, sev.PLATFORM_STATUS)
    peer = meet(fake)
    answered(pending, peer)
    for hcall in (sev.FACTORY_RESET, sev.PEK_GEN, sev.PEK_CSR, sev.PDH_GEN, sev.PEK_CERT_IMPORT):
        result = program.issue(device, hcall)
        assert (result.status, result.error) == (SevCode.EPERM, ERROR_BEFORE), hcall.name
    for hcall in (sev.PDH_CERT_EXPORT, sev.GET_ID, sev.GET_ID2):
        pending = begin(program, device, hcall)
        answered(pending, peer)


def test_device_when_another_file_is_named_then_it_serves(program: SevProgram, fake: FakeDaemon):
    """QEMU's sev-device= may be any file that opens."""
    device = program.open("/dev/null")
    pending = begin(program, device, sev.PLATFORM_STATUS)
    peer = meet(fake)
    answered(pending, peer)
    argument = program.argument(sev.PLATFORM_STATUS, 0)
    assert program.ask("ioctl", 4000, SEV_ISSUE_CMD, argument) == (-1, errno.EBADF)


# -- KVM --------------------------------------------------------------------------------------


def test_vm_types_when_asked_for_then_those_of_sev_are_there(program: SevProgram):
    kvm = program.open("/dev/kvm")
    vm = program.create_vm()
    for fd in (kvm, vm):
        types = program.do("ioctl", fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES)
        assert types == 1 << 0 | 1 << VM_SEV | 1 << VM_SEV_ES
    for vm_type in (1, 4, 5, 1 << 32):
        refused = program.ask("ioctl", kvm, KVM_CREATE_VM, vm_type)
        assert refused == (-1, errno.EINVAL), vm_type


def test_vmsa_features_when_asked_for_then_there_are_none(program: SevProgram):
    kvm = program.open("/dev/kvm")
    value = program.put(b"\xff" * 16)
    attribute = program.put(struct.pack("<IIQQ", 0, 1, 0, value))
    assert program.do("ioctl", kvm, KVM_HAS_DEVICE_ATTR, attribute) == 0
    assert program.do("ioctl", kvm, KVM_GET_DEVICE_ATTR, attribute) == 0
    assert program.get(value, 16) == bytes(8) + b"\xff" * 8
    other = program.put(struct.pack("<IIQQ", 0, 1, 1, value))
    assert program.ask("ioctl", kvm, KVM_HAS_DEVICE_ATTR, other) == (-1, errno.ENXIO)
    bad = program.put(struct.pack("<IIQQ", 0, 1, 0, 1 << 47))
    assert program.ask("ioctl", kvm, KVM_GET_DEVICE_ATTR, bad) == (-1, errno.EFAULT)


def test_save_areas_when_the_vcpus_are_made_up_then_the_program_must_give_them(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = connected_vm(program, fake, VM_SEV_ES)
    # KVM goes through its vCPUs, of which there are none.
    assert program.issue(vm, sev.LAUNCH_UPDATE_VMSA, data=0).status == 0
    assert peer.nothing_comes(0.05)
    program.do("ioctl", vm, KVM_CREATE_VCPU, 0)
    assert program.issue(vm, sev.LAUNCH_UPDATE_VMSA, data=0).status == SevCode.EINVAL
    assert "there are no registers of 1 vCPUs to measure" in program.messages()


# -- numbers ----------------------------------------------------------------------------------


def test_command_when_unknown_then_nothing_is_written_and_nobody_asked(
    program: SevProgram, fake: FakeDaemon
):
    vm, device = program.create_vm(), program.open("/dev/sev")
    page = program.map(PAGE)
    for number in (23, 99, 100, 101, 0xFFFF, 0x1_0000, 0x1_0002, 0xFFFF_FFFF):
        for fd, request, layout, name in (
            (vm, KVM_MEMORY_ENCRYPT_OP, sev_abi.KVM_SEV_CMD, "id"),
            (device, SEV_ISSUE_CMD, sev_abi.SEV_ISSUE_CMD, "cmd"),
        ):
            values = {name: number, "data": 0, "error": ERROR_BEFORE, "sev_fd": 0}
            program.set(page, layout.build(values))
            program.do("protect", page, PAGE, READ_ONLY)
            assert program.ask("ioctl", fd, request, page) == (-1, errno.EINVAL), number
            program.do("protect", page, PAGE, 3)
    assert not fake.has_connection()


def test_argument_when_it_cannot_be_written_then_it_is_a_fault(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    page = program.map(PAGE)
    program.set(page, sev_abi.KVM_SEV_CMD.build({"id": 7, "data": 0, "error": 0, "sev_fd": 0}))
    program.do("protect", page, PAGE, READ_ONLY)
    program.send("ioctl", vm, KVM_MEMORY_ENCRYPT_OP, page)
    peer = meet(fake)
    peer.reply(peer.call())
    assert program.answer() == (-1, errno.EFAULT)


def test_ioctl_when_of_anything_else_then_it_is_the_kernels(program: SevProgram):
    null = program.open("/dev/null")
    where = program.map(PAGE)
    assert program.ask("ioctl", 0, FIONREAD, where) == (0, 0)
    for request in (KVM_MEMORY_ENCRYPT_OP, KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CHECK_EXTENSION):
        assert program.ask("ioctl", null, request, where) == (-1, errno.ENOTTY)
        assert program.ask("ioctl", 4000, request, where) == (-1, errno.EBADF)
    assert program.messages() == ""


# -- descriptors ------------------------------------------------------------------------------

COPIES: dict[str, Callable[[SevProgram, int], int]] = {
    "dup": lambda program, fd: program.do("dup", fd),
    "dup2": lambda program, fd: program.do("dup2", fd, 77),
    "dup2 over another": lambda program, fd: program.do("dup2", fd, program.open("/dev/sev")),
    "dup2 to itself": lambda program, fd: program.do("dup2", program.do("dup", fd), 78),
    "dup3": lambda program, fd: program.do("dup3", fd, 79, os.O_CLOEXEC),
    "F_DUPFD": lambda program, fd: program.do("fcntl", fd, F_DUPFD, 2000),
    "F_DUPFD_CLOEXEC": lambda program, fd: program.do("fcntl", fd, F_DUPFD_CLOEXEC, 80),
}


@pytest.mark.parametrize("way", COPIES)
def test_vm_when_one_of_its_descriptors_is_closed_then_it_lives_on_by_the_other(
    program: SevProgram, fake: FakeDaemon, way: str
):
    vm, peer = connected_vm(program, fake)
    copy = COPIES[way](program, vm)
    assert_alive(program, copy, peer)
    program.do("close", vm)
    assert_alive(program, copy, peer)
    if way == "dup2 to itself":
        assert program.do("dup2", copy, copy) == copy
        program.do("close_range", 3, copy - 1, 0)
        assert_alive(program, copy, peer)
    assert_ends(program, peer, "close", copy)
    assert program.issue(copy, sev.LAUNCH_FINISH).errno == errno.EBADF


@pytest.mark.parametrize(
    "words", [("close_range", 3, UINT_MAX, 0), ("closefrom", 3), ("dup2", 0, None)]
)
def test_vm_when_all_descriptors_are_closed_then_it_ends(
    program: SevProgram, fake: FakeDaemon, words: tuple[object, ...]
):
    vm, peer = connected_vm(program, fake)
    assert_ends(program, peer, *(vm if word is None else word for word in words))


def flood(peer: Peer) -> None:
    """Sends frames until nobody takes them any more."""
    frames = encode(f.Control(s.ControlAction.STOP, "text", 0)) * 100
    peer.sock.settimeout(patience(20))
    with contextlib.suppress(ConnectionError):
        while True:
            peer.sock.sendall(frames)


@pytest.mark.parametrize("words", [("close", None), ("closefrom", 3), ("dup2", 0, None)])
def test_vm_when_closed_and_the_daemon_does_not_end_it_then_the_program_goes_on(
    program: SevProgram, fake: FakeDaemon, words: tuple[object, ...]
):
    vm, peer = connected_vm(program, fake)
    program.do(*(vm if word is None else word for word in words))
    # The daemon has still not closed its end.
    assert_ended(peer)
    assert program.messages() == ""


def test_vm_when_closed_and_the_daemon_goes_on_talking_then_the_program_goes_on(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = connected_vm(program, fake)
    program.send("close", vm)
    flood(peer)
    assert program.answer() == (0, 0)
    assert program.messages() == ""


def test_vm_when_closed_after_the_daemon_was_lost_then_the_program_goes_on(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = connected_vm(program, fake)
    peer.close()
    program.do("close", vm)


def test_vm_when_a_vcpu_is_open_then_it_lives_on_as_in_kvm(program: SevProgram, fake: FakeDaemon):
    vm, peer = connected_vm(program, fake)
    vcpu = program.do("ioctl", vm, KVM_CREATE_VCPU, 0)
    program.do("close", vm)
    assert peer.nothing_comes(0.1)
    assert_ends(program, peer, "close", vcpu)


def test_vm_when_its_descriptor_was_closed_unseen_then_its_number_is_anothers(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = connected_vm(program, fake)
    while program.open("/dev/null") < vm:
        pass
    program.do("rawclose", vm)
    other = program.open("/dev/sev")
    assert other == vm
    assert_ended(peer)
    pending = begin(program, other, sev.PDH_GEN)
    answered(pending, meet(fake))


def test_vms_when_there_are_many_then_each_has_a_connection(program: SevProgram, fake: FakeDaemon):
    found = [connected_vm(program, fake) for _ in range(5)]
    instances = {peer.hello.instance for _, peer in found if peer.hello is not None}
    assert len(instances) == 5
    for vm, peer in reversed(found):
        assert_alive(program, vm, peer)
    for vm, peer in found:
        assert_ends(program, peer, "close", vm)


def test_socket_when_the_program_closes_everything_then_it_is_not_its_to_close(
    program: SevProgram, fake: FakeDaemon
):
    _, peer = connected_device(program, fake)
    (ours,) = sockets(program.pid)
    assert program.ask("close", ours) == (-1, errno.EBADF)
    program.do("closefrom", 3)
    program.do("close_range", ours, ours, 0)
    assert sockets(program.pid) == [ours]
    answered(begin(program, program.open("/dev/sev"), sev.PDH_GEN), peer)


@pytest.mark.parametrize("way", ["rawclose", "dup2"])
def test_socket_when_it_is_gone_all_the_same_then_nothing_is_written_to_what_is_there(
    program: SevProgram, fake: FakeDaemon, way: str
):
    vm, _ = connected_vm(program, fake)
    (ours,) = sockets(program.pid)
    if way == "rawclose":
        program.do("rawclose", ours)
    else:
        program.do("dup2", program.open("/dev/zero"), ours)
    assert program.issue(vm, sev.LAUNCH_FINISH).status == SevCode.ENODEV
    said = f"the program has closed descriptor {ours}, which was ours"
    assert said in program.messages()


# -- children ---------------------------------------------------------------------------------


def test_child_when_it_uses_the_parents_vm_then_kvm_is_not_for_it(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = connected_vm(program, fake)
    argument = program.argument(sev.LAUNCH_FINISH, 0)
    assert program.do("fork") == 0
    # In place of KVM's -EIO: the descriptor is none of a real KVM here.
    assert program.ask("ioctl", vm, KVM_MEMORY_ENCRYPT_OP, argument) == (-1, errno.ENOTTY)
    assert sockets(program.child_pid()) == []
    program.do("close", vm)
    assert peer.nothing_comes(0.1)
    device = program.open("/dev/sev")
    pending = begin(program, device, sev.PDH_GEN)
    answered(pending, meet(fake))
    own = program.create_vm()
    pending = begin(program, own, sev.INIT)
    answered(pending, meet(fake))
    program.send("exit", 3)
    assert program.answer() == (3, 0)
    assert_alive(program, vm, peer)


def test_child_when_a_sockets_number_is_another_files_then_that_stays_open(
    program: SevProgram, fake: FakeDaemon
):
    connected_vm(program, fake)
    (ours,) = sockets(program.pid)
    program.do("dup2", program.open("/dev/zero"), ours)
    assert program.do("fork") == 0
    assert os.readlink(f"/proc/{program.child_pid()}/fd/{ours}") == "/dev/zero"
    program.send("exit", 0)
    assert program.answer() == (0, 0)


def test_child_when_forked_while_a_thread_connects_then_it_has_no_socket(
    shim: SevShim, fake: FakeDaemon
):
    program = shim.program(fake.path, environ={TIMEOUT_VARIABLE: "600000"})
    vm = program.create_vm()
    argument = program.argument(sev.INIT, 0)
    with contextlib.ExitStack() as stack:
        others = fill_queue(fake, stack)
        program.do("aside", vm, KVM_MEMORY_ENCRYPT_OP, argument)
        wait_until(lambda: sockets(program.pid), "a socket")
        assert program.do("fork") == 0
        assert sockets(program.child_pid()) == []
        program.send("exit", 0)
        assert program.answer() == (0, 0)
        for _ in range(others):
            fake.accept()
        program.send("join")
        peer = meet(fake)
        peer.reply(peer.call())
        assert program.answer() == (0, 0)


def test_child_when_forked_while_a_thread_closes_a_vm_then_it_has_no_socket(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = connected_vm(program, fake)
    program.do("aside", vm, 0, 0)
    # From here on it waits for the daemon.
    assert peer.expect(f.ShimGoodbye).reason is s.GoodbyeReason.SHUTDOWN
    assert program.do("fork") == 0
    assert sockets(program.child_pid()) == []
    peer.close()
    program.send("exit", 0)
    assert program.answer() == (0, 0)
    assert program.do("join") == 0


def test_child_when_it_lives_on_then_the_parents_vm_ends_with_the_parent(
    program: SevProgram, fake: FakeDaemon
):
    _, peer = connected_vm(program, fake)
    assert program.do("fork") == 0
    program.kill()
    with pytest.raises(PeerClosed):
        peer.receive()
    program.send("exit", 0)


def test_child_when_it_shares_memory_then_what_it_closes_is_still_open_here(
    program: SevProgram, fake: FakeDaemon
):
    vm, peer = connected_vm(program, fake)
    assert program.do("vfork", vm) == 0
    assert_alive(program, vm, peer)


@pytest.mark.parametrize("path", ["/dev/sev", "/dev/kvm"])
def test_child_when_it_shares_memory_then_what_it_opens_is_not_taken_for_ours(
    program: SevProgram, fake: FakeDaemon, path: str
):
    vm, peer = connected_vm(program, fake)
    while program.open("/dev/null") < vm:
        pass
    # The number is free, but not in the library's table.
    program.do("rawclose", vm)
    assert program.do("vforkopen", "open", path) == vm
    assert peer.nothing_comes(0.1)
    assert program.open("/dev/null") == vm
    # Had the child's open been noted, the VM's place would be that of another.
    assert_alive(program, vm, peer)


# -- threads ----------------------------------------------------------------------------------


def test_threads_when_they_share_a_device_and_a_vm_then_each_gets_its_answers(shim: SevShim):
    program = shim.program(shim.daemon())
    device, vm = program.open("/dev/sev"), program.create_vm()
    program.command(vm, sev.INIT)
    program.command(vm, sev.LAUNCH_START, sev_fd=device)
    statuses = [
        program.argument(sev.PLATFORM_STATUS, program.structure(sev.PLATFORM_STATUS))
        for _ in range(8)
    ]
    step = statuses[1] - statuses[0]
    assert statuses == [statuses[0] + number * step for number in range(8)]
    assert program.do("threads", 8, 50, device, SEV_ISSUE_CMD, statuses[0], step) == 400
    guests = [
        program.argument(sev.GUEST_STATUS, program.structure(sev.GUEST_STATUS)) for _ in range(8)
    ]
    step = guests[1] - guests[0]
    assert program.do("threads", 8, 50, vm, KVM_MEMORY_ENCRYPT_OP, guests[0], step) == 400
    assert program.messages() == ""


def test_threads_when_they_open_copy_and_close_at_once_then_no_two_race(
    shim: SevShim, threaded: Built
):
    program = shim.sanitized(shim.daemon("asids = 100"), threaded)
    threads, times, shared = 4, 5, program.create_vm()
    statuses = [
        program.argument(sev.PLATFORM_STATUS, program.structure(sev.PLATFORM_STATUS))
        for _ in range(threads)
    ]
    step = statuses[1] - statuses[0]
    # Commands of VMs have no structure here, and as much room each.
    room = program.map(threads * step)
    for number in range(threads):
        values = {"id": sev.INIT.number & 0xFFFF, "data": 0, "error": 0, "sev_fd": 0}
        program.set(room + number * step, sev_abi.KVM_SEV_CMD.build(values))
    good = program.do("churn", threads, times, shared, statuses[0], room, step)
    assert good == 2 * threads * times
    assert program.do("fork") == 0
    program.send("exit", 0)
    assert program.answer() == (0, 0)
    assert program.end() == 0, program.messages()
    assert program.messages() == ""


# -- what it says -----------------------------------------------------------------------------


def test_trace_when_asked_for_then_commands_are_named_and_bytes_are_not(shim: SevShim):
    program = shim.program(shim.daemon(), environ={DEBUG_VARIABLE: "1"})
    vm = program.create_vm()
    program.command(vm, sev.INIT)
    secret = b"a session's keys"
    program.issue(vm, sev.LAUNCH_START, session_uaddr=program.put(secret), session_len=16)
    program.issue(vm, sev.LAUNCH_FINISH)
    said = program.messages()
    assert "VM: KVM_SEV_INIT: 0 (SEV_RET_SUCCESS)" in said
    assert "VM: KVM_SEV_LAUNCH_FINISH: " in said
    assert secret.decode() not in said
    assert secret.hex() not in said


def test_program_when_it_goes_through_a_launch_then_sanitizers_find_nothing(
    shim: SevShim, sanitized: Built
):
    program = shim.sanitized(shim.daemon('memory = "encrypted"'), sanitized)
    device = program.open("/dev/sev")
    for _ in range(3):
        vm = program.create_vm(VM_SEV_ES)
        program.do("ioctl", program.do("dup", vm), KVM_CHECK_EXTENSION, 1)
        program.command(vm, sev.INIT2)
        program.command(vm, sev.LAUNCH_START, sev_fd=device, policy=4)
        vcpu = program.do("ioctl", vm, KVM_CREATE_VCPU, 0)
        data = program.put(bytes(range(256)) * 300)
        program.command(vm, sev.LAUNCH_UPDATE_DATA, uaddr=data, len=256 * 300)
        program.command(vm, sev.LAUNCH_UPDATE_VMSA, uaddr=program.map(PAGE), len=PAGE)
        assert program.issue(vm, sev.LAUNCH_MEASURE).status == SevCode.INVALID_LEN
        program.command(vm, sev.LAUNCH_MEASURE, uaddr=program.map(48), len=48)
        program.command(vm, sev.LAUNCH_FINISH)
        out = program.map(PAGE)
        program.command(vm, sev.DBG_DECRYPT, src_uaddr=data + 3, dst_uaddr=out + 1, len=100)
        assert program.get(out + 1, 100) == (bytes(range(256)) * 2)[3:103]
        program.do("close", vcpu)
        program.do("closefrom", device + 1)
    assert program.end() == 0, program.messages()
    assert program.messages() == ""
