# SPDX-License-Identifier: Apache-2.0
"""Secrets: the guest has what its owner sent, and nothing else gets in."""

from __future__ import annotations

import base64
import secrets

import pytest
from qemu.qmp import ExecuteError
from tests.e2e.machine import Machine
from tests.e2e.sevqemu import GOOD, inject, physical, read_launched, run_to_end, secret_lines
from tests.kvm.conftest import SevLab

pytestmark = [pytest.mark.kvm]

GUID = "736869e5-84f0-4973-92ec-06879ce3da0b"
OTHER_GUID = "c0ffee00-1234-4567-89ab-0123456789ab"

# guest_stub/x86/firmware.h: the footer table of the firmware.
SECRET_BASE = 0x0080C000
SECRET_SIZE = 0x0C00

BAD_MEASUREMENT = "fw_error=11 'Bad measurement'"


def flipped(text: str, at: int) -> str:
    """The base64 of the same bytes with one bit changed."""
    data = bytearray(base64.b64decode(text))
    data[at] ^= 1
    return base64.b64encode(data).decode()


def must_have_no_secret(sev: SevLab, machine: Machine) -> None:
    """Checks that the guest waits, without a byte of a secret, and goes on without one."""
    assert machine.qmp.status() == "prelaunch"
    assert machine.qmp.execute("query-sev")["state"] == "launch-secret"
    assert machine.console.text == ""
    assert physical(machine, SECRET_BASE, SECRET_SIZE, sev.artifacts) == bytes(SECRET_SIZE)


# hdr: flags 4 bytes, IV 16, MAC 32.
@pytest.mark.parametrize(
    ("part", "at"),
    [
        ("header", 4),
        ("header", 19),
        ("header", 20),
        ("header", 51),
        ("payload", 0),
        ("payload", -1),
    ],
)
def test_inject_when_one_bit_is_another_then_it_is_refused(sev: SevLab, part: str, at: int):
    guest = sev.guest()
    machine = sev.start(guest)
    launched = read_launched(machine)
    header, payload, _ = sev.owner.secret(launched, guest, ("luks-key", b"not to be seen"))
    bad = {"header": header, "payload": payload}
    bad[part] = flipped(bad[part], at)
    with pytest.raises(ExecuteError, match=BAD_MEASUREMENT) as refused:
        inject(machine, bad["header"], bad["payload"])
    sev.transcript.add(f"{part} with a bit changed in byte {at}", refused.value)
    must_have_no_secret(sev, machine)
    # A refused secret is not in the way of the right one.
    inject(machine, header, payload)
    assert run_to_end(machine) == GOOD
    assert secret_lines(machine)[0] == f"{GUID} 14 bytes, text: not to be seen"


def test_inject_when_nothing_but_bad_secrets_came_then_the_guest_runs_without(sev: SevLab):
    guest = sev.guest()
    machine = sev.start(guest)
    header, payload, _ = sev.owner.secret(read_launched(machine), guest, ("luks-key", b"x"))
    with pytest.raises(ExecuteError, match=BAD_MEASUREMENT):
        inject(machine, flipped(header, 20), payload)
    must_have_no_secret(sev, machine)
    assert run_to_end(machine) == GOOD
    assert secret_lines(machine) == ["none"]


def test_inject_when_the_secret_was_for_another_launch_then_it_is_refused(sev: SevLab):
    """With the same session, firmware and policy: the nonce of the measurement is another."""
    guest = sev.guest()
    first = sev.start(guest)
    header, payload, _ = sev.owner.secret(read_launched(first), guest, ("luks-key", b"once"))
    inject(first, header, payload)
    second = sev.start(guest)
    with pytest.raises(ExecuteError, match=BAD_MEASUREMENT):
        inject(second, header, payload)
    must_have_no_secret(sev, second)


def test_inject_when_there_are_several_secrets_then_the_guest_has_all(sev: SevLab):
    guest = sev.guest()
    machine = sev.start(guest)
    noise = secrets.token_bytes(1000)
    header, payload, _ = sev.owner.secret(
        read_launched(machine), guest, ("luks-key", b"first"), (OTHER_GUID, noise)
    )
    inject(machine, header, payload)
    table = physical(machine, SECRET_BASE, SECRET_SIZE, sev.artifacts)
    assert noise in table
    assert run_to_end(machine) == GOOD
    assert secret_lines(machine) == [
        f"{GUID} 5 bytes, text: first",
        f"{OTHER_GUID} 1000 bytes, hex: {noise.hex()}",
        "end of the table",
    ]


def test_inject_when_made_twice_then_the_later_is_there(sev: SevLab):
    """The platform takes secrets for as long as the guest waits."""
    guest = sev.guest()
    machine = sev.start(guest)
    launched = read_launched(machine)
    for number in range(2):
        header, payload, _ = sev.owner.secret(
            launched, guest, ("luks-key", f"number {number}".encode()), name=f"secret{number}"
        )
        inject(machine, header, payload)
    assert run_to_end(machine) == GOOD
    assert secret_lines(machine)[0] == f"{GUID} 8 bytes, text: number 1"


def test_inject_when_the_guest_runs_then_it_is_refused(sev: SevLab):
    guest = sev.guest(can_end=False)
    machine = sev.start(guest)
    header, payload, _ = sev.owner.secret(read_launched(machine), guest, ("luks-key", b"late"))
    machine.qmp.execute("cont")
    machine.console.expect("firmware: done")
    with pytest.raises(ExecuteError, match="SEV: Not in correct state"):
        inject(machine, header, payload)
    assert physical(machine, SECRET_BASE, SECRET_SIZE, sev.artifacts) == bytes(SECRET_SIZE)


def test_inject_when_hcalld_made_the_secret_then_the_guest_has_it(sev: SevLab):
    """The owner's own tool, in place of libvirt's."""
    guest = sev.guest()
    machine = sev.start(guest)
    launched = read_launched(machine)
    header, payload = sev.owner.hcalld_secret(launched, guest, (GUID, b"by hcalld"))
    inject(machine, header, payload)
    assert run_to_end(machine) == GOOD
    assert secret_lines(machine)[0] == f"{GUID} 9 bytes, text: by hcalld"


def test_logs_when_a_secret_was_injected_then_they_do_not_tell_it(sev: SevLab):
    guest = sev.guest()
    machine = sev.start(guest)
    launched = read_launched(machine)
    text = b"a passphrase that nobody else sees"
    header, payload, _ = sev.owner.secret(launched, guest, ("luks-key", text))
    inject(machine, header, payload)
    assert run_to_end(machine) == GOOD
    assert sev.daemon.terminate() == 0
    assert guest.session is not None
    written = sev.daemon.log.read_bytes() + sev.daemon.trace.read_bytes()
    stored = b"".join(
        path.read_bytes() for path in sev.daemon.state_dir.rglob("*") if path.is_file()
    )
    for secret in (text, guest.session.tik.read_bytes(), guest.session.tek.read_bytes()):
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert form not in written
            assert form not in stored
