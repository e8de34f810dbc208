# SPDX-License-Identifier: Apache-2.0
"""A vCPU that waits for its call, and what can happen to it meanwhile."""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

import pytest
from tests.e2e.fakedaemon import FakeDaemon, Peer, announcement, forward
from tests.e2e.lab import Lab
from tests.e2e.machine import Machine
from tests.e2e.patience import patience
from tests.e2e.wire import PeerClosed

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Config
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

pytestmark = pytest.mark.qemu

NUMBER = 0xFFF8
"""A hypercall that nobody else gives a meaning."""

HOLD = f"hold number={NUMBER} gap-ms=60000 run-ms=0"
"""The stub's CPU 0 makes one call; the others run code that they have just written."""

STATUS = 77
LOST = -1
TIMEOUT = -77

RESPONSIVE_S = 1.5
"""The monitor answers in a few milliseconds; more than this is one that waits for the call."""


def start(
    lab: Lab, append: str = HOLD, spec: f.CallSpec | None = None, **options: Any
) -> tuple[FakeDaemon, Peer, Machine]:
    """A guest whose call we answer."""
    daemon = lab.fake_daemon()
    machine = lab.stub(append, daemon, **options)
    peer = daemon.accept()
    spec = forward(NUMBER, timeout_status=TIMEOUT, lost_status=LOST) if spec is None else spec
    accept = peer.negotiate(announcement([spec]))
    assert accept.is_active
    assert not accept.refused
    return daemon, peer, machine


def code_of(machine: Machine) -> int:
    """What the guest says that it was told."""
    found = re.search(r"# hold number=0x\w+ code=(-?\d+)", machine.console.text)
    assert found is not None
    return int(found.group(1))


def finish(machine: Machine, code: int) -> None:
    """The guest must have gone on with this code, and end well."""
    machine.report().must_pass("hold", may_skip=machine.guest.smp == 1)
    assert code_of(machine) == code


@pytest.mark.parametrize("threads", ["multi", "single"])
def test_held_call_delays_nobody(threads: str, lab: Lab) -> None:
    """Tlbie waits for all vCPUs, and fresh code for exclusive sections: not for a parked one."""
    hold_call(lab, threads, 2.0)


def hold_call(lab: Lab, threads: str, hold_s: float) -> None:
    """Holds a call so long, and uses the monitor meanwhile; make soak has 5 s."""
    append = f"hold number={NUMBER} hold-ms={hold_s * 1000:.0f} gap-ms={hold_s * 750:.0f} run-ms=0"
    _, peer, machine = start(lab, append, threads=threads)
    machine.qmp.status()
    call = peer.call()
    end = time.monotonic() + hold_s + 0.2
    times: dict[str, list[float]] = {"query-status": [], "stop": [], "cont": []}
    while time.monotonic() < end:
        for command, samples in times.items():
            samples.append(machine.qmp.timed(command))
        time.sleep(0.1)
    for command, samples in times.items():
        assert max(samples) < patience(RESPONSIVE_S), command
    peer.reply(call, STATUS)
    finish(machine, STATUS)
    lab.measure(
        gap_us=max(map(int, re.findall(r"max_gap_us=(\d+)", machine.console.text))),
        **{f"{command}_ms": round(1000 * max(samples), 2) for command, samples in times.items()},
    )


def test_call_carries_registers_and_reply_sets_them(lab: Lab) -> None:
    _, peer, machine = start(lab, "hcall", smp=1)
    call = peer.call()
    registers = call.registers()
    assert (registers[3], registers[4], registers[5], registers[6]) == (NUMBER, 1, 2, 3)
    assert (call.vcpu, call.level, call.is_resent) == (0, 1, False)
    assert call.msr >> 63 == 1
    # Registers that are not named keep their value, which the stub checks; r4 and r6 too.
    peer.reply(call, H.FUNCTION, ((5, 0x1234), (12, registers[12])))
    machine.report().must_pass("hcall")


def test_reply_that_changes_registers_is_seen(lab: Lab) -> None:
    _, peer, machine = start(lab, "hcall", smp=1)
    peer.reply(peer.call(), H.FUNCTION, ((4, 99),))
    report = machine.report()
    assert list(report.failures()) == ["hcall: not ok: leaves the other registers alone"]


@pytest.mark.parametrize("threads", ["multi", "single"])
def test_calls_of_all_vcpus_in_any_order(threads: str, lab: Lab) -> None:
    """Four GEN_PASSWORD are in flight at once; the last is answered first."""
    daemon = lab.fake_daemon()
    machine = lab.stub("soak ops=1", daemon, threads=threads)
    peer = daemon.accept()
    get_config, gen_password = pks.GET_CONFIG.number, pks.GEN_PASSWORD.number
    numbers = [pks.READ_OBJECT.number, pks.WRITE_OBJECT.number, pks.REMOVE_OBJECT.number]
    numbers += [pks.CONFIRM_OBJECT_FLUSHED.number, get_config, gen_password]
    peer.negotiate(announcement(map(forward, numbers), ["hcall-pks"]))
    call = peer.call()
    assert call.number == get_config
    config = Config(
        flags=0,
        objoverhead=32,
        maxpwsize=64,
        maxobjlabelsize=255,
        maxobjsize=4096,
        totalsize=65536,
        usedspace=0,
        supportedpolicies=0,
        maxlargeobjectsize=0,
        signedupdatealgorithms=0,
        wrappingfeatures=0,
    ).build()
    peer.reply(call, H.SUCCESS, (), (f.WriteSegment(call.registers()[4], len(config), config),))
    for _ in range(3):
        calls = [peer.call() for _ in range(4)]
        assert sorted(call.vcpu for call in calls) == [0, 1, 2, 3]
        assert {call.number for call in calls} == {gen_password}
        assert peer.nothing_comes(0.1)
        for call in reversed(calls):
            peer.reply(call, H.SUCCESS if call.vcpu == 2 else H.IN_USE)
    machine.qmp.execute("quit")
    assert machine.wait() == 0


def test_reply_while_stopped(lab: Lab) -> None:
    _, peer, machine = start(lab)
    call = peer.call()
    machine.qmp.execute("stop")
    peer.wait_event(s.EventKind.STOP)
    peer.reply(call, STATUS)
    assert machine.qmp.status() == "paused"
    machine.qmp.execute("cont")
    peer.wait_event(s.EventKind.CONTINUE)
    finish(machine, STATUS)


def test_interrupts_do_not_wake_it(lab: Lab) -> None:
    """An NMI stays pending until the reply; then it comes, and the stub tells of it."""
    _, peer, machine = start(lab, "hcall", smp=1, failures=())
    call = peer.call()
    machine.qmp.execute("inject-nmi")
    assert peer.nothing_comes(0.3)
    assert "EXIT:" not in machine.console.text
    peer.reply(call, H.FUNCTION)
    machine.wait()
    report = machine.report()
    assert report.status == 2
    assert "0x100" in machine.console.text


def test_nmi_with_others_running(lab: Lab) -> None:
    """The running CPUs take it, and end the run while CPU 0 still waits."""
    _, peer, machine = start(lab, failures=())
    peer.call()
    machine.qmp.execute("inject-nmi")
    assert machine.wait() == 1
    assert machine.report().status == 2


def test_quit(lab: Lab) -> None:
    _, peer, machine = start(lab)
    peer.call()
    machine.qmp.execute("quit")
    peer.wait_event(s.EventKind.SHUTDOWN)
    last = peer.expect(f.ShimGoodbye)
    assert last.reason is s.GoodbyeReason.SHUTDOWN
    assert not peer.wait_closed()
    assert machine.wait() == 0


@pytest.mark.parametrize("is_stopped", [False, True])
def test_system_reset(is_stopped: bool, lab: Lab) -> None:
    _, peer, machine = start(lab, can_reboot=True)
    peer.acknowledges = False
    call = peer.call()
    if is_stopped:
        machine.qmp.execute("stop")
    machine.qmp.execute("system_reset")
    if is_stopped:
        machine.qmp.execute("cont")
    again = peer.call()
    resets = [event for event in peer.events if event.kind is s.EventKind.RESET]
    assert [event.reset for event in resets] == [1]
    assert (again.reset, again.is_resent) == (1, False)
    assert again.seq > call.seq
    # What was sent for the run before is dropped until the reset is acknowledged.
    late = f.Reply(call.vcpu, call.reset, call.seq, 1234)
    peer.send_bytes(encode(late))
    peer.send(f.EventAck(s.EventKind.RESET, resets[0].request, 1))
    peer.reply(again, STATUS)
    finish(machine, STATUS)


def test_reply_of_before_a_reset_that_was_acknowledged(lab: Lab) -> None:
    daemon, peer, machine = start(lab, can_reboot=True)
    call = peer.call()
    machine.qmp.execute("system_reset")
    again = peer.call()
    peer.send_bytes(encode(f.Reply(call.vcpu, call.reset, call.seq, 1234)))
    assert any(isinstance(frame, f.ShimGoodbye) for frame in peer.wait_closed())
    peer = daemon.accept()
    peer.negotiate(announcement([forward(NUMBER)]))
    resent = peer.call()
    assert (resent.seq, resent.is_resent) == (again.seq, True)
    peer.reply(resent, STATUS)
    finish(machine, STATUS)


def test_many_resets(lab: Lab) -> None:
    _, peer, machine = start(lab, can_reboot=True)
    for count in range(8):
        call = peer.call()
        assert call.reset == count
        machine.qmp.execute("system_reset")
    peer.reply(peer.call(), STATUS)
    finish(machine, STATUS)


def test_daemon_dies_and_comes_back(lab: Lab) -> None:
    daemon, peer, machine = start(lab)
    call = peer.call()
    hello = peer.hello
    assert hello is not None
    for connection in (1, 2):
        peer.close()
        peer = daemon.accept()
        again = peer.greet()
        assert (again.instance, again.reset) == (hello.instance, 0)
        assert (again.connection, again.pending) == (connection, 1)
        peer.welcome(announcement([forward(NUMBER)]))
        resent = peer.call()
        assert resent == call._replace(is_resent=True)
    peer.reply(resent, STATUS)
    finish(machine, STATUS)


def test_daemon_dies_in_negotiation(lab: Lab) -> None:
    daemon, peer, machine = start(lab)
    call = peer.call()
    peer.close()
    daemon.accept().close()
    peer = daemon.accept()
    peer.greet()
    peer.close()
    peer = daemon.accept()
    peer.greet()
    peer.send(
        f.Welcome(s.VERSION, s.MIN_MAX_FRAME, s.Feature(0), announcement([forward(NUMBER)]), 0)
    )
    peer.close()
    peer = daemon.accept()
    peer.negotiate(announcement([forward(NUMBER)]))
    resent = peer.call()
    assert (resent.seq, resent.is_resent) == (call.seq, True)
    peer.reply(resent, STATUS)
    finish(machine, STATUS)


def test_lost_call_that_does_not_wait(lab: Lab) -> None:
    spec = forward(NUMBER, is_waiting=False, lost_status=LOST)
    daemon, peer, machine = start(lab, spec=spec)
    peer.call()
    peer.close()
    daemon.close()
    finish(machine, LOST)


def test_call_while_there_is_no_daemon(lab: Lab) -> None:
    """Issued without a connection: it waits for one, and is sent as new."""
    daemon, peer, machine = start(lab, HOLD + " start-ms=500")
    machine.console.expect("# hold ready")
    peer.close()
    peer = daemon.accept()
    time.sleep(1)
    peer.negotiate(announcement([forward(NUMBER)]))
    call = peer.call()
    assert not call.is_resent
    peer.reply(call, STATUS)
    finish(machine, STATUS)


def test_new_daemon_does_not_know_the_call(lab: Lab) -> None:
    daemon, peer, machine = start(lab)
    peer.call()
    peer.close()
    peer = daemon.accept()
    peer.negotiate(announcement([]))
    finish(machine, LOST)


def test_stop_while_the_daemon_is_gone(lab: Lab) -> None:
    daemon, peer, machine = start(lab)
    peer.call()
    machine.qmp.execute("stop")
    peer.close()
    peer = daemon.accept()
    peer.negotiate(announcement([forward(NUMBER)]))
    peer.reply(peer.call(), STATUS)
    machine.qmp.execute("cont")
    finish(machine, STATUS)


def test_reset_while_the_daemon_is_gone(lab: Lab) -> None:
    daemon, peer, machine = start(lab, can_reboot=True)
    call = peer.call()
    machine.qmp.execute("stop")
    peer.close()
    peer = daemon.accept()
    machine.qmp.execute("system_reset")
    # The connection was there already: HELLO has the count before it, an event the new one.
    hello = peer.greet()
    if hello.reset == 0:
        assert hello.pending in (0, 1)
    peer.welcome(announcement([forward(NUMBER)]))
    machine.qmp.execute("cont")
    again = peer.call()
    assert again.reset == 1
    assert again.seq > call.seq
    assert not again.is_resent
    peer.reply(again, STATUS)
    finish(machine, STATUS)


def test_quit_while_the_daemon_is_gone(lab: Lab) -> None:
    daemon, peer, machine = start(lab)
    peer.call()
    peer.close()
    daemon.close()
    machine.qmp.execute("quit")
    assert machine.wait() == 0


# -- deadlines ------------------------------------------------------------------------------


def deadline_spec(deadline_ms: int = 200) -> f.CallSpec:
    return forward(NUMBER, deadline_ms=deadline_ms, timeout_status=TIMEOUT, lost_status=LOST)


def test_deadline(lab: Lab) -> None:
    """The guest is told, the daemon too, and what it then still sends is without effect."""
    _, peer, machine = start(lab, HOLD.replace("run-ms=0", "run-ms=1500"), deadline_spec())
    call = peer.call()
    cancel = peer.expect(f.Cancel)
    assert (cancel.vcpu, cancel.seq) == (call.vcpu, call.seq)
    assert cancel.reason is s.CancelReason.DEADLINE
    address = call.registers()[4]
    read = peer.read_memory(call, (address, 16))
    assert [status for status, _ in read.segments] == [s.AccessStatus.NO_CALL]
    wrote = peer.write_memory(call, f.WriteSegment(address, 3, b"abc"))
    assert wrote.status is s.AccessStatus.NO_CALL
    peer.reply(call, STATUS)
    peer.send(f.Cancelled(call.vcpu, call.reset, call.seq, s.Effect.NONE))
    finish(machine, TIMEOUT)
    # The late reply was dropped, and broke nothing: QEMU said goodbye in its own time.
    (goodbye,) = (frame for frame in peer.wait_closed() if isinstance(frame, f.ShimGoodbye))
    assert goodbye.reason is s.GoodbyeReason.SHUTDOWN


def test_deadline_runs_on_while_the_daemon_is_gone(lab: Lab) -> None:
    daemon, peer, machine = start(lab, spec=deadline_spec(400))
    peer.call()
    peer.close()
    daemon.close()
    finish(machine, TIMEOUT)


def test_deadline_passes_before_negotiation_is_over(lab: Lab) -> None:
    """A call that is over is not sent again."""
    append = HOLD.replace("run-ms=0", "run-ms=2000")
    daemon, peer, machine = start(lab, append, deadline_spec(300))
    peer.call()
    peer.close()
    peer = daemon.accept()
    peer.greet()
    time.sleep(0.5)
    peer.welcome(announcement([deadline_spec()]))
    assert peer.nothing_comes(0.3)
    finish(machine, TIMEOUT)


BENCH = "bench call=config n=20"
"""The stub's CPU 0 makes 70 calls of GET_CONFIG, one after the other, each to succeed."""


def start_bench(lab: Lab) -> tuple[FakeDaemon, Peer, Machine]:
    """Answers what comes before the calls that count: those are cancelled after 20 ms."""
    daemon = lab.fake_daemon()
    machine = lab.stub(BENCH, daemon, smp=1)
    peer = daemon.accept()
    peer.negotiate(bench_calls())
    passwords = 0
    while passwords < 3:
        frame = peer.receive()
        if isinstance(frame, f.Cancel):
            # One of ours, on a busy machine: the guest takes it for an answer.
            peer.send(f.Cancelled(frame.vcpu, frame.reset, frame.seq, s.Effect.NONE))
            continue
        assert isinstance(frame, f.Call)
        passwords += frame.number == pks.GEN_PASSWORD.number
        peer.reply(frame)
    return daemon, peer, machine


def bench_calls() -> f.Announcement:
    get_config = forward(pks.GET_CONFIG.number, deadline_ms=20, timeout_status=H.SUCCESS)
    return announcement([get_config, forward(pks.GEN_PASSWORD.number)], ["hcall-pks"])


def test_deadline_and_reply_that_cross(lab: Lab) -> None:
    """Replies at about the deadline: whichever is first counts, and none is a breach."""
    _, peer, machine = start_bench(lab)
    cancelled = 0
    with contextlib.suppress(PeerClosed):
        while True:
            frame = peer.receive()
            if isinstance(frame, f.Call):
                time.sleep(0.019)
                peer.reply(frame)
            elif isinstance(frame, f.Cancel):
                cancelled += 1
                peer.send(f.Cancelled(frame.vcpu, frame.reset, frame.seq, s.Effect.DONE))
            else:
                assert isinstance(frame, f.ShimGoodbye)
                assert frame.reason is s.GoodbyeReason.SHUTDOWN
    machine.report().must_pass("bench")
    assert "broke the protocol" not in machine.messages()


def test_cancelled_calls_are_bounded(lab: Lab) -> None:
    """A daemon that never acknowledges loses the connection, and the guest nothing."""
    daemon, peer, machine = start_bench(lab)
    frames = peer.wait_closed()
    cancels = [frame for frame in frames if isinstance(frame, f.Cancel)]
    assert len(cancels) == s.MAX_CANCELLING
    goodbye = frames[-1]
    assert isinstance(goodbye, f.ShimGoodbye)
    assert goodbye.reason is s.GoodbyeReason.BREACH
    peer = daemon.accept()
    peer.negotiate(bench_calls())
    with contextlib.suppress(PeerClosed):
        while True:
            frame = peer.receive()
            if isinstance(frame, f.Call):
                peer.reply(frame)
            elif isinstance(frame, f.Cancel):
                peer.send(f.Cancelled(frame.vcpu, frame.reset, frame.seq, s.Effect.NONE))
    machine.report().must_pass("bench")
