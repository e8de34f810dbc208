# SPDX-License-Identifier: Apache-2.0
"""How guests and the daemon end, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from qemu.qmp import ExecuteError, QMPError
from tests.e2e.machine import Machine
from tests.e2e.patience import wait_until
from tests.e2e.sevqemu import GOOD, inject, physical, read_launched, run_to_end, secret_lines
from tests.kvm.conftest import SevLab
from tests.kvm.test_secret import BAD_MEASUREMENT, SECRET_BASE, SECRET_SIZE

from hcalld.guestowner.client import SevClient
from hcalld.guestowner.platform import Platform
from hcallproto.payloads.sev.constants import PlatformState

pytestmark = [pytest.mark.kvm]


def wait_for_guests(sev: SevLab, count: int) -> None:
    """Waits until the platform has so many guests."""
    wait_until(lambda: sev.platform().guest_count == count, f"the platform has {count} guests")


def end_itself(machine: Machine) -> None:
    assert run_to_end(machine) == GOOD


def quit_it(machine: Machine) -> None:
    machine.close()


def kill_it(machine: Machine) -> None:
    machine.process.kill()
    machine.process.wait()


@pytest.mark.parametrize("end", [end_itself, quit_it, kill_it])
def test_guest_when_qemu_ends_then_the_platform_has_none(
    sev: SevLab, end: Callable[[Machine], None]
):
    # Somebody else uses the platform too, so it lives on.
    with SevClient(sev.daemon.socket) as client:
        platform = Platform(client)
        machine = sev.start(sev.guest())
        assert machine.qmp.status() == "prelaunch"
        status = platform.status()
        assert (status.guest_count, status.state) == (1, PlatformState.WORKING)
        end(machine)
        wait_until(lambda: platform.status().guest_count == 0, "the platform has no guest")
        assert platform.status().state == PlatformState.INIT
    if end is kill_it:
        # It was not the machine that failed.
        machine.must_not_have_crashed = lambda: None  # type: ignore[method-assign]


def test_guests_when_there_are_two_then_each_has_its_own_secret(sev: SevLab):
    guests = [sev.guest(policy=policy) for policy in (1, 3)]
    machines = [sev.start(guest) for guest in guests]
    launches = [read_launched(machine) for machine in machines]
    assert launches[0].facts["handle"] != launches[1].facts["handle"]
    assert sev.platform().guest_count == 2
    packets = [
        sev.owner.secret(
            launched, guest, ("luks-key", f"for {number}".encode()), name=f"to{number}"
        )
        for number, (launched, guest) in enumerate(zip(launches, guests, strict=True))
    ]
    for machine, (header, payload, _) in zip(machines, reversed(packets), strict=True):
        with pytest.raises(ExecuteError, match=BAD_MEASUREMENT):
            inject(machine, header, payload)
        assert physical(machine, SECRET_BASE, SECRET_SIZE, sev.artifacts) == bytes(SECRET_SIZE)
    for machine, (header, payload, _) in zip(machines, packets, strict=True):
        inject(machine, header, payload)
    for number, machine in enumerate(machines):
        end_itself(machine)
        assert secret_lines(machine)[0].endswith(f"5 bytes, text: for {number}")
        wait_for_guests(sev, 1 - number)


def test_daemon_when_it_is_killed_then_qemu_says_so_and_does_not_hang(sev: SevLab):
    guest = sev.guest()
    machine = sev.start(guest)
    launched = read_launched(machine)
    header, payload, _ = sev.owner.secret(launched, guest, ("luks-key", b"x"))
    sev.daemon.kill()
    with pytest.raises(ExecuteError, match="failed to inject secret ret=-19 "):
        inject(machine, header, payload)
    assert machine.qmp.status() == "prelaunch"
    assert physical(machine, SECRET_BASE, SECRET_SIZE, sev.artifacts) == bytes(SECRET_SIZE)
    # QEMU gives up a guest whose launch cannot be finished.
    with pytest.raises((QMPError, EOFError)):
        machine.qmp.execute("cont")
    assert machine.wait() == 1
    assert "LAUNCH_FINISH ret=-" in machine.messages()
    assert machine.console.text == ""
    # Another daemon knows nothing of the guest, and takes new ones.
    sev.daemon.start()
    assert sev.platform().guest_count == 0
    end_itself(sev.start(sev.guest()))


def test_daemon_when_it_is_killed_while_a_guest_runs_then_the_guest_goes_on(sev: SevLab):
    machine = sev.start(sev.guest(can_end=False))
    machine.qmp.execute("cont")
    machine.console.expect("firmware: done")
    sev.daemon.kill()
    assert machine.qmp.status() == "running"
    machine.close()


def test_start_when_there_is_no_daemon_then_qemu_ends_and_says_why(sev: SevLab):
    guest = sev.guest()
    sev.daemon.terminate()
    machine = sev.start(guest)
    assert machine.wait() == 1
    assert str(sev.daemon.socket) in machine.messages()


def test_platform_when_the_daemon_starts_again_then_sessions_still_fit(sev: SevLab):
    """The platform's keys are the machine's, not the process's."""
    guest = sev.guest()
    assert sev.daemon.terminate() == 0
    sev.daemon.start()
    machine = sev.start(guest)
    assert sev.owner.validate(read_launched(machine), guest).status == 0
