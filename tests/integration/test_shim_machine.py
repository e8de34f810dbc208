# SPDX-License-Identifier: Apache-2.0
"""The device in its machine: starting without a daemon, what it forbids, what it tells."""

from __future__ import annotations

import struct
import subprocess

import pytest
from tests.e2e.fakedaemon import Peer, announcement, forward
from tests.e2e.lab import Lab
from tests.e2e.machine import FIRMWARE_DIR, socket_chardev
from tests.e2e.patience import patience
from tests.e2e.qmp import ExecuteError

from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

pytestmark = pytest.mark.qemu

NUMBER = 0xFFF8
HOLD = f"hold number={NUMBER} gap-ms=60000 run-ms=0"
CALLS = announcement([forward(NUMBER)])


# -- with and without a daemon --------------------------------------------------------------


def test_nobody_listens(lab: Lab) -> None:
    machine = lab.stub(
        "dt",
        chardev=socket_chardev(lab.socket_dir / "nobody"),
        device_options="connect-timeout-ms=300",
    )
    assert machine.wait() == 1
    messages = machine.messages()
    assert "no daemon has answered on chardev 'hc'" in messages
    assert "within 300 ms" in messages
    assert "optional=on" in messages
    assert machine.console.text == ""


def test_daemon_that_says_nothing(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("dt", daemon, device_options="connect-timeout-ms=300")
    daemon.accept().greet()
    assert machine.wait() == 1
    assert "no daemon has answered" in machine.messages()


@pytest.mark.parametrize("reason", [s.GoodbyeReason.REFUSED, s.GoodbyeReason.VERSION])
def test_daemon_that_refuses(reason: s.GoodbyeReason, lab: Lab) -> None:
    """QEMU ends with the daemon's own words, and does not wait for the time to pass."""
    daemon = lab.fake_daemon()
    machine = lab.stub("dt", daemon, device_options="connect-timeout-ms=600000")
    peer = daemon.accept()
    peer.greet()
    peer.send(f.Goodbye(reason, "this guest is not known here"))
    peer.close()
    assert machine.wait() == 1
    assert "this guest is not known here" in machine.messages()


def test_daemon_that_comes_late(lab: Lab) -> None:
    path = lab.socket_dir / "fake.sock"
    machine = lab.stub(HOLD, chardev=socket_chardev(path), smp=2)
    assert machine.console.text == ""
    daemon = lab.fake_daemon()
    peer = daemon.accept()
    assert peer.negotiate(CALLS).is_active
    peer.reply(peer.call(), 5)
    machine.report().must_pass("hold")


def test_daemon_that_dies_before_it_welcomes(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    for _ in range(3):
        peer = daemon.accept()
        peer.greet()
        peer.close()
    peer = daemon.accept()
    peer.negotiate(CALLS)
    peer.reply(peer.call(), 5)
    machine.report().must_pass("hold")


def test_optional(lab: Lab) -> None:
    machine = lab.stub(
        "self dt pks=0",
        chardev=socket_chardev(lab.socket_dir / "nobody"),
        device_options="optional=on,connect-timeout-ms=300",
    )
    machine.report().must_pass("dt", "smp")
    assert "no daemon has answered" in machine.messages()


def test_optional_daemon_that_refuses(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("dt pks=0", daemon, device_options="optional=on")
    peer = daemon.accept()
    peer.greet()
    peer.send(f.Goodbye(s.GoodbyeReason.REFUSED, "this guest is not known here"))
    peer.close()
    machine.report().must_pass("dt")
    assert "this guest is not known here" in machine.messages()


def test_set_that_is_announced_later_holds_from_the_next_reset(lab: Lab) -> None:
    append = f"dt hold number={NUMBER} gap-ms=600000 run-ms=60000 pks=1 secure-boot=2"
    machine = lab.stub(
        append,
        chardev=socket_chardev(lab.socket_dir / "fake.sock"),
        device_options="optional=on,connect-timeout-ms=300",
        can_reboot=True,
        smp=2,
    )
    machine.console.expect("# hold ready")
    daemon = lab.fake_daemon()
    peer = daemon.accept()
    two = struct.pack(">I", 2)
    accept = peer.negotiate(
        announcement([forward(NUMBER)], ["hcall-pks"], [("ibm,secure-boot", two)])
    )
    assert not accept.is_active
    # The first boot's call, which the shim did not take, is over.
    assert peer.nothing_comes(0.2)
    machine.qmp.execute("system_reset")
    peer.reply(peer.call(), 5)
    machine.console.expect("Subtest: dt")
    machine.console.expect("^  ok .* hcall-pks as expected")
    machine.console.expect("^  ok .* ibm,secure-boot is 2")
    assert [event.kind for event in peer.events] == [s.EventKind.RESET]


def test_chardev_that_is_no_socket(lab: Lab) -> None:
    """Nobody ever answers on it, and it says so."""
    machine = lab.stub(
        "dt", chardev="null,id=hc", device_options="connect-timeout-ms=300", extra=["-S"]
    )
    assert machine.wait() == 1
    assert "no daemon has answered" in machine.messages()


def test_no_chardev(lab: Lab) -> None:
    machine = lab.stub("dt", extra=["-device", "spapr-hcall-proxy"])
    assert machine.wait() == 1
    assert "needs a chardev that leads to a daemon" in machine.messages()


def test_two_devices(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    # One chardev that connects: of two, either could be the first to be accepted.
    first = socket_chardev(daemon.path).replace("id=hc", "id=hc1")
    machine = lab.stub(
        "dt",
        chardev="null,id=hc",
        extra=["-chardev", first, "-device", "spapr-hcall-proxy,chardev=hc1,id=other"],
    )
    daemon.accept().negotiate(CALLS)
    assert machine.wait() == 1
    assert "only one spapr-hcall-proxy" in machine.messages()


@pytest.mark.parametrize("machine", ["none", "powernv"])
def test_other_machines(machine: str, lab: Lab) -> None:
    """Only pseries has hypercalls to forward."""
    words = ["-machine", machine, "-nodefaults", "-display", "none", "-S"]
    words += ["-chardev", "null,id=hc", "-device", "spapr-hcall-proxy,chardev=hc"]
    ended = subprocess.run(
        [lab.require("qemu"), "-L", FIRMWARE_DIR, *words],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert ended.returncode == 1
    assert "spapr-hcall-proxy needs a pseries machine" in ended.stderr


# -- what it forbids ------------------------------------------------------------------------


def test_not_hot_pluggable(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    with pytest.raises(ExecuteError, match="hotplug"):
        machine.qmp.execute("device_del", id="proxy")
    with pytest.raises(ExecuteError, match="hotplug"):
        machine.qmp.execute("device_add", driver="spapr-hcall-proxy", chardev="hc", id="two")
    peer.reply(call, 5)
    machine.report().must_pass("hold")


def test_no_migration_and_no_snapshot(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    why = "spapr-hcall-proxy does not support migration and snapshots yet"
    with pytest.raises(ExecuteError, match=why):
        machine.qmp.execute("migrate", uri=f"file:{lab.artifacts / 'migration'}")
    said = machine.qmp.execute("human-monitor-command", command_line="savevm one")
    assert why in said
    assert why in machine.qmp.execute("query-migrate")["blocked-reasons"]
    peer.reply(call, 5)
    machine.report().must_pass("hold")


def test_migration_is_allowed_without_the_device(lab: Lab) -> None:
    machine = lab.stub("hold gap-ms=600000 run-ms=60000")
    machine.console.expect("# hold ready")
    machine.qmp.execute("migrate", uri=f"file:{lab.artifacts / 'migration'}")


def test_incoming_migration(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("dt", daemon, extra=["-incoming", "defer"])
    assert machine.wait() == 1
    assert "does not support incoming migration yet" in machine.messages()


# -- events ---------------------------------------------------------------------------------


def test_hello_names_the_machine(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    uuid = "0badc0de-0000-4000-8000-00000000cafe"
    lab.stub("dt", daemon, smp=3, name="lpar7", extra=["-uuid", uuid, "-smp", "3,maxcpus=8"])
    peer = daemon.accept()
    hello = peer.greet()
    assert hello.name == "lpar7"
    assert hello.uuid == bytes.fromhex(uuid.replace("-", ""))
    assert (hello.vcpu_count, hello.vcpu_max) == (3, 8)
    assert (hello.connection, hello.pending, hello.reset) == (0, 0, 0)
    assert hello.program.startswith("QEMU 10.")
    assert any(hello.instance)


def test_instances_differ(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    seen = set()
    for _ in range(2):
        lab.stub("dt", daemon, smp=1)
        seen.add(daemon.accept().greet().instance)
    assert len(seen) == 2


def test_events(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2, can_reboot=True)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    peer.call()
    machine.qmp.execute("stop")
    peer.wait_event(s.EventKind.STOP)
    machine.qmp.execute("cont")
    peer.wait_event(s.EventKind.CONTINUE)
    machine.qmp.execute("system_reset")
    assert peer.wait_event(s.EventKind.RESET).reset == 1
    peer.reply(peer.call(), 5)
    machine.report().must_pass("hold")
    peer.wait_event(s.EventKind.SHUTDOWN)
    assert isinstance(peer.wait_closed()[-1], f.ShimGoodbye)


def test_panic(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("crash", daemon, failures=())
    peer = daemon.accept()
    peer.negotiate(CALLS)
    peer.wait_event(s.EventKind.PANIC)
    peer.wait_event(s.EventKind.SHUTDOWN)
    assert machine.wait() == 1


def test_vcpu_that_is_plugged(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, extra=["-smp", "2,maxcpus=4"])
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    slots = machine.qmp.execute("query-hotpluggable-cpus")
    free = min(
        (slot for slot in slots if "qom-path" not in slot),
        key=lambda slot: slot["props"]["core-id"],
    )
    machine.qmp.execute("device_add", driver=free["type"], id="core", **free["props"])
    assert peer.wait_event(s.EventKind.VCPU_ADDED).vcpu == free["props"]["core-id"]
    peer.reply(call, 5)
    machine.report().must_pass("hold")


# -- what the daemon asks for ---------------------------------------------------------------


def control(peer: Peer, action: s.ControlAction) -> None:
    peer.send(f.Control(action, "on behalf of the test", peer.connection.reset))


def test_daemon_stops_the_machine(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    control(peer, s.ControlAction.STOP)
    peer.wait_event(s.EventKind.STOP)
    assert machine.qmp.status() == "paused"
    assert "on behalf of the test" in machine.messages()
    machine.qmp.execute("cont")
    peer.reply(call, 5)
    machine.report().must_pass("hold")


def test_daemon_resets_the_machine(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2, can_reboot=True)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    peer.call()
    control(peer, s.ControlAction.RESET)
    call = peer.call()
    assert call.reset == 1
    peer.reply(call, 5)
    machine.report().must_pass("hold")


def test_daemon_terminates_the_guest(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    peer.call()
    control(peer, s.ControlAction.TERMINATE)
    peer.wait_event(s.EventKind.PANIC)
    assert machine.wait() == 1
    assert "on behalf of the test" in machine.messages()
