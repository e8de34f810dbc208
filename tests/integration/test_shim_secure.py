# SPDX-License-Identifier: Apache-2.0
"""Ultracalls, and MSR[S], which an ultravisor sets and nobody else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.fakedaemon import FakeDaemon, Peer, announcement, forward
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Machine, Memory

from hcallproto.abi.families import uv
from hcallproto.abi.returns import U
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

pytestmark = pytest.mark.qemu

MSR_S = 1 << 22
MSR_PR = 1 << 14
MSR_EE = 1 << 15

FILE_STATUS = 42
RESULT = (5, 7)
"""What the stub expects of the host in tests/secure.c."""

PAGE = 4096
WRONG = b"\xff\xa5" * (PAGE // 2)
"""What a page reads as that is paged out, if it is read at all."""

GDB_MSR = 65
"""Number of the MSR in gdb's description of the core (gdb-xml/power64-core.xml)."""


def ultracall(call: Any, *, from_problem_state: bool = False) -> f.CallSpec:
    """Announces an ultracall."""
    spec = forward(call.number, level=2, lost_status=U.RETRY)
    if from_problem_state:
        return spec._replace(flags=spec.flags | s.CALL_FLAG_PROBLEM_STATE)
    return spec


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


def enter(peer: Peer, call: f.Call) -> None:
    """Answers UV_ESM: the guest goes on where it asked to, in secure state."""
    registers = call.registers()
    peer.send(
        f.Reply(
            call.vcpu,
            call.reset,
            call.seq,
            U.SUCCESS,
            registers=(RESULT,),
            context=s.CONTEXT_NIP | s.CONTEXT_MSR,
            nip=registers[4],
            msr=MSR_S,
            msr_mask=MSR_S | MSR_EE,
        )
    )


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
                enter(peer, frame)
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


class Pager:
    """Pages out what the guest names by UV_UNSHARE_PAGE, and in what it misses."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stored: dict[int, bytes] = {}
        self._early: list[f.Call] = []
        self.paged_in = 0

    def _answer_to(self, kind: type[f.Frame]) -> Any:
        """The answer to a request; vCPUs that miss a page meanwhile wait."""
        while not isinstance(frame := self._peer.receive(), kind):
            assert isinstance(frame, f.Call)
            assert frame.level == s.LEVEL_SHIM
            self._early.append(frame)
        return frame

    def page_out(self, call: f.Call, gpa: int) -> None:
        """Moves a page's content to us, on behalf of a call."""
        if gpa in self._stored:
            return
        peer = self._peer
        state = s.PageState.UNSHARED | s.PageState.PAGED_OUT
        name = (call.vcpu, call.reset, call.seq)
        peer.send(f.Pages(*name, 1, (f.PageRange(gpa, PAGE, state),)))
        assert self._answer_to(f.PagesReply).status is s.AccessStatus.OK
        peer.send(f.Read(*name, 2, ((gpa, PAGE),)))
        ((status, content),) = self._answer_to(f.ReadReply).segments
        assert status is s.AccessStatus.OK
        self._stored[gpa] = content
        peer.send(f.Write(*name, 3, (f.WriteSegment(gpa, PAGE, WRONG),)))
        assert self._answer_to(f.WriteReply).status is s.AccessStatus.OK

    def page_in(self, call: f.Call) -> None:
        """Moves it back; a page that several vCPUs miss is brought once."""
        gpa = call.registers()[4] & -PAGE
        content = self._stored.pop(gpa, None)
        name = (call.vcpu, call.reset, call.seq)
        if content is None:
            self._peer.send(f.Reply(*name, 0))
            return
        self.paged_in += 1
        pages = (f.PageRange(gpa, PAGE, s.PageState.UNSHARED),)
        writes = (f.WriteSegment(gpa, PAGE, content),)
        self._peer.send(f.Reply(*name, 0, writes=writes, pages=pages))

    def serve(self) -> None:
        """To the end of the guest."""
        while True:
            frame = self._early.pop(0) if self._early else self._peer.receive(60)
            if isinstance(frame, f.ShimGoodbye):
                return
            assert isinstance(frame, f.Call)
            if frame.level == s.LEVEL_SHIM:
                assert frame.number == s.ShimCall.PAGE_IN
                self.page_in(frame)
            else:
                assert frame.number == uv.UNSHARE_PAGE.number
                self.page_out(frame, frame.registers()[4])
                self._peer.reply(frame, U.SUCCESS)


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
    pager.serve()
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
