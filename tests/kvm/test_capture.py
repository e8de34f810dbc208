# SPDX-License-Identifier: Apache-2.0
"""A launch by QEMU, captured and played again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.e2e.daemon import COMMAND, run_hcalld
from tests.e2e.machine import Machine
from tests.e2e.patience import patience
from tests.e2e.sevqemu import (
    GOOD,
    Launched,
    SevGuest,
    inject,
    read_launched,
    run_to_end,
    secret_lines,
)
from tests.kvm.conftest import SevLab

from hcalld.guest.sevhost import sev_environment

pytestmark = [pytest.mark.kvm]

SECRET = b"a secret that no capture shows"
PASSPHRASE = "lucky lucky lucky"

Opened = tuple[str, Path]
"""How a capture is opened, and where it is."""


def hcalld(*words: object) -> subprocess.CompletedProcess[str]:
    done = run_hcalld(*map(str, words))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def must_be_the_same_to_another(
    sev: SevLab, guest: SevGuest, launched: Launched, secret: tuple[str, str], opened: Opened
) -> None:
    """Another QEMU, whose platform is the capture: even the packet is for its measurement."""
    how, capture = opened
    socket = sev.daemon.socket.with_name("replay")
    words = ("replay", "machine", "--socket-path", socket, "--secrets", how, capture)
    with subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        assert "waiting for a guest" in daemon.stdout.readline()
        environ = sev_environment(sev.library, socket)
        with Machine(guest, sev.artifacts, name="again", environ=environ) as machine:
            assert read_launched(machine) == launched
            inject(machine, *secret)
            assert run_to_end(machine) == GOOD
            assert any(SECRET.decode() in line for line in secret_lines(machine))
        told, _ = daemon.communicate(timeout=patience(20))
    assert daemon.returncode == 0, told
    assert "0 not in the capture" in told


def test_capture_when_qemu_launched_a_guest_then_its_replay_is_the_same(
    sev: SevLab, tmp_path: Path
):
    passphrase = tmp_path / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text(PASSPHRASE)
    capture, how = tmp_path / "launch.pcapng", f"passphrase-file:{passphrase}"
    control = ("--state-dir", sev.daemon.state_dir)
    hcalld("ctl", "capture", "start", *control, "--secrets", how, capture)
    guest = sev.guest()
    machine = sev.start(guest)
    launched = read_launched(machine)
    header, payload, _ = sev.owner.secret(launched, guest, ("luks-key", SECRET))
    inject(machine, header, payload)
    run_to_end(machine)
    hcalld("ctl", "capture", "stop", *control)
    shown = capture.read_bytes()
    # The firmware and the secret are the guest's memory.
    assert SECRET not in shown
    assert sev.firmware.read_bytes()[-4096:] not in shown
    calls = [json.loads(line) for line in hcalld("decode", "--json", capture).stdout.splitlines()]
    assert {one["call"] for one in calls} >= {
        "KVM_SEV_LAUNCH_START",
        "KVM_SEV_LAUNCH_UPDATE_DATA",
        "KVM_SEV_LAUNCH_SECRET",
        "KVM_SEV_LAUNCH_FINISH",
    }
    must_be_the_same_to_another(sev, guest, launched, (header, payload), (how, capture))
    replay = hcalld("replay", "code", "--secrets", how, capture)
    assert f"no differences, {len(calls)} calls, {len(calls)} compared" in replay.stdout
