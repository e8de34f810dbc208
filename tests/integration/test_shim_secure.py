# SPDX-License-Identifier: Apache-2.0
"""Ultracalls, and MSR[S], which an ultravisor sets and nobody else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.fakedaemon import FakeDaemon, Peer, announcement
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Machine, Memory
from tests.e2e.ultravisor import Pager, enter, ultracall

from hcallproto.abi.families import uv
from hcallproto.abi.returns import U
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

pytestmark = pytest.mark.qemu

MSR_S = s.MSR_S
MSR_EE = s.MSR_EE
MSR_PR = 1 << 14

FILE_STATUS = 42
RESULT = (5, 7)
"""What the stub expects of the host in tests/secure.c."""

GDB_MSR = 65
"""Number of the MSR in gdb's description of the core (gdb-xml/power64-core.xml)."""


ULTRAVISOR = announcement(
    [
        ultracall(uv.ESM),
        ultracall(uv.SHARE_PAGE),
        ultracall(uv.ESMB_GET_FILE, from_problem_state=True),
    ]
)


def start(
    lab: Lab, append: str = "secure require=1", **options: Any
) -> tuple[FakeDaemon, Peer, Machine]:
    """A guest whose ultravisor we are."""
    daemon = lab.fake_daemon()
    machine = lab.stub(append, daemon, **options)
    peer = daemon.accept()
    hello = peer.greet()
    assert s.Feature.SC2 in hello.features
    accept = peer.welcome(ULTRAVISOR, s.Feature.SC2)
    assert accept.is_active
    assert not accept.refused
    return daemon, peer, machine


def serve(peer: Peer, is_secure: bool = False) -> list[f.Call]:
    """Plays the ultravisor until the guest has become secure, or to the end if it is."""
    calls: list[f.Call] = []
    while True:
        frame = peer.receive(60)  # SLOF takes its time
        if isinstance(frame, f.ShimGoodbye):
            return calls
        assert isinstance(frame, f.Call)
        calls.append(frame)
        assert frame.level == 2
        assert bool(frame.msr & MSR_S) is is_secure, hex(frame.msr)
        match frame.number:
            case uv.ESM.number:
                enter(peer, frame, registers=(RESULT,))
                if not others_run(calls):
                    return calls
            case uv.ESMB_GET_FILE.number:
                assert frame.msr & MSR_PR
                peer.reply(frame, FILE_STATUS)
            case uv.SHARE_PAGE.number:
                assert not frame.msr & MSR_PR
                peer.reply(frame, U.SUCCESS)
            case number:
                raise AssertionError(f"call 0x{number:x} was not announced")


def others_run(calls: list[f.Call]) -> bool:
    """The stub's first UV_ESM is made with MSR[EE] clear, while another CPU runs."""
    return not calls[-1].msr & MSR_EE


@pytest.mark.parametrize("threads", ["multi", "single"])
@pytest.mark.parametrize("cpu", ["power9", "power10"])
def test_secure_state(cpu: str, threads: str, lab: Lab) -> None:
    _, peer, machine = start(lab, threads=threads, extra=["-cpu", cpu])
    serve(peer)
    calls = serve(peer, is_secure=True)
    machine.report().must_pass("secure")
    # Twice on each CPU.
    shared = [call.vcpu for call in calls if call.number == uv.SHARE_PAGE.number]
    assert sorted(shared) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("byte_order", ["le", "be"])
def test_secure_state_under_slof(byte_order: ByteOrder, lab: Lab) -> None:
    _, peer, machine = start(lab, smp=1, byte_order=byte_order, firmware="slof")
    serve(peer)
    serve(peer, is_secure=True)
    machine.report().must_pass("secure")


def test_reset_ends_secure_state(lab: Lab) -> None:
    _, peer, machine = start(lab, can_reboot=True, smp=2)
    serve(peer)
    call = peer.call()
    assert call.msr & MSR_S
    machine.qmp.execute("system_reset")
    peer.wait_event(s.EventKind.RESET)
    # The stub sees to it that the bit is clear, on all CPUs, and begins anew.
    serve(peer)
    serve(peer, is_secure=True)
    machine.report().must_pass("secure")


def test_without_device_it_is_a_system_call(lab: Lab) -> None:
    lab.stub("ucall ucall=0 require=1").report().must_pass("ucall")


@pytest.mark.parametrize("cpu", ["power9", "power10"])
def test_on_either_cpu_without_device(cpu: str, lab: Lab) -> None:
    """Only ISA 3.1 puts LEV into SRR1."""
    machine = lab.stub("ucall ucall=0 require=1", extra=["-cpu", cpu])
    machine.report().must_pass("ucall")


def test_device_without_ultravisor(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("ucall ucall=1 require=1", daemon)
    daemon.accept().negotiate(announcement([]))
    machine.report().must_pass("ucall")


def test_cpu_without_secure_state(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("ucall ucall=1", daemon, extra=["-cpu", "power8"])
    peer = daemon.accept()
    assert s.Feature.SC2 not in peer.greet().features
    accept = peer.welcome(ULTRAVISOR)
    assert {refused.reason for refused in accept.refused} == {s.RefusedReason.LEVEL_NOT_NEGOTIATED}
    machine.report().must_pass("ucall", may_skip=True)


def test_real_daemon_leaves_ultracalls_alone(lab: Lab) -> None:
    lab.stub("ucall ucall=1 require=1", lab.daemon()).report().must_pass("ucall")


@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("threads", ["multi", "single"])
def test_paged_out_memory(threads: str, memory: Memory, lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("page require=1", daemon, threads=threads, memory=memory)
    peer = daemon.accept()
    assert s.Feature.PAGE_STATES in peer.greet().features
    features = s.Feature.SC2 | s.Feature.PAGE_STATES
    peer.welcome(announcement([ultracall(uv.UNSHARE_PAGE)]), features)
    pager = Pager(peer)
    while not isinstance(frame := pager.receive(), f.ShimGoodbye):
        assert isinstance(frame, f.Call)
        assert frame.number == uv.UNSHARE_PAGE.number
        pager.page_out(frame, frame.registers()[4])
        peer.reply(frame, U.SUCCESS)
    machine.report().must_pass("page")
    lab.measure(paged_in=pager.paged_in)


class Gdb:
    """A debugger, as far as needed."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(20)
        self._sock.connect(str(path))
        self._file = self._sock.makefile("rb")

    def ask(self, packet: str) -> str:
        """Sends a packet, and gives the answer's text."""
        checksum = sum(packet.encode()) & 0xFF
        self._sock.sendall(f"${packet}#{checksum:02x}".encode())
        while self._file.read(1) != b"$":
            pass
        text = b""
        while (byte := self._file.read(1)) != b"#":
            text += byte
        self._file.read(2)
        self._sock.sendall(b"+")
        return text.decode()

    def close(self) -> None:
        """Lets the guest run on."""
        self.ask("D")
        self._file.close()
        self._sock.close()


@pytest.mark.parametrize("is_secure", [False, True])
def test_debugger_does_not_change_it(is_secure: bool, lab: Lab) -> None:
    path = lab.socket_dir / "gdb.sock"
    extra = ["-chardev", f"socket,id=gdb,path={path},server=on,wait=off", "-gdb", "chardev:gdb"]
    _, peer, machine = start(lab, smp=1, extra=extra)
    if is_secure:
        serve(peer)
    call = peer.call()
    assert bool(call.msr & MSR_S) is is_secure
    gdb = Gdb(path)
    # Registers are in the byte order that the CPU is in.
    before = int.from_bytes(bytes.fromhex(gdb.ask(f"p{GDB_MSR:x}")), "little")
    assert before == call.msr
    assert gdb.ask(f"P{GDB_MSR:x}={(before ^ MSR_S).to_bytes(8, 'little').hex()}") == "OK"
    after = int.from_bytes(bytes.fromhex(gdb.ask(f"p{GDB_MSR:x}")), "little")
    assert after == before
    gdb.close()
    assert machine.is_alive
