# SPDX-License-Identifier: Apache-2.0
"""Ultracalls, and MSR[S], which an ultravisor sets and nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.fakedaemon import FakeDaemon, Peer, announcement, forward
from tests.e2e.gdb import MSR, Gdb, gdb_options
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Machine, Memory
from tests.e2e.ultravisor import Pager, enter, ultracall

from hcallproto.abi.families import svm, uv
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
                # The stub's first one is made with MSR[EE] clear, while another CPU runs.
                assert frame.is_alone is bool(frame.msr & MSR_EE)
                if frame.is_alone:
                    enter(peer, frame, registers=(RESULT,))
                    return calls
                peer.reply(frame, U.RETRY)
            case uv.ESMB_GET_FILE.number:
                assert frame.msr & MSR_PR
                peer.reply(frame, FILE_STATUS)
            case uv.SHARE_PAGE.number:
                assert not frame.msr & MSR_PR
                peer.reply(frame, U.SUCCESS)
            case number:
                raise AssertionError(f"call 0x{number:x} was not announced")


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


def test_an_ultravisor_that_secures_one_of_many_ends_the_guest(lab: Lab) -> None:
    _, peer, machine = start(lab, smp=2)
    while (call := peer.call(60)).number != uv.ESM.number:
        peer.reply(call, FILE_STATUS if call.number == uv.ESMB_GET_FILE.number else U.SUCCESS)
    assert not call.is_alone
    qmp = machine.qmp
    enter(peer, call, registers=(RESULT,))
    qmp.wait_event("GUEST_PANICKED")
    assert machine.wait() != 0
    assert "cannot be made secure: other vCPUs run; the guest is terminated" in machine.messages()


RANDOM = forward(svm.RANDOM.number)._replace(flags=s.CALL_FLAG_WAIT | s.CALL_FLAG_SECURE)
HOSTS_RANDOM = 0x5EED5EED0BADCAFE
"""What the stub's tests/secure_host.c expects."""


@pytest.mark.parametrize(
    "device", [[], ["-object", "rng-builtin,id=r", "-device", "spapr-rng,rng=r"]]
)
def test_random_numbers(device: list[str], lab: Lab) -> None:
    daemon = lab.fake_daemon()
    append = f"secure_random random={int(bool(device))} require=1"
    machine = lab.stub(append, daemon, smp=1, extra=device)
    peer = daemon.accept()
    peer.greet()
    accept = peer.welcome(announcement([ultracall(uv.ESM), RANDOM]), s.Feature.SC2)
    assert not accept.refused
    enter(peer, peer.call(60))
    for _ in range(3):
        call = peer.call()
        assert (call.number, call.level) == (svm.RANDOM.number, 1)
        peer.reply(call, registers=((4, HOSTS_RANDOM),))
    machine.report().must_pass("secure_random")


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
    # On one thread a CPU's turn takes a tenth of a second.
    rounds = 50 if threads == "multi" else 12
    append = f"page rounds={rounds} require=1"
    machine = lab.stub(append, daemon, threads=threads, memory=memory)
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


@pytest.mark.parametrize("is_secure", [False, True])
def test_debugger_does_not_change_it(is_secure: bool, lab: Lab) -> None:
    path = lab.socket_dir / "gdb.sock"
    _, peer, machine = start(lab, smp=1, extra=gdb_options(path))
    if is_secure:
        serve(peer)
    call = peer.call()
    assert bool(call.msr & MSR_S) is is_secure
    with Gdb(path) as gdb:
        before = gdb.register(MSR)
        assert before == call.msr
        assert gdb.set_register(MSR, before ^ MSR_S) == "OK"
        assert gdb.register(MSR) == before
        # All of them at once.
        everything = gdb.ask("g")
        forged = (before ^ MSR_S).to_bytes(8, "little").hex()
        gdb.ask("G" + everything.replace(before.to_bytes(8, "little").hex(), forged))
        assert gdb.register(MSR) == before
    assert machine.is_alive
