# SPDX-License-Identifier: Apache-2.0
"""A launch by QEMU, captured and played again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.e2e.daemon import run_hcalld
from tests.e2e.sevqemu import inject, read_launched, run_to_end
from tests.kvm.conftest import SevLab

pytestmark = [pytest.mark.kvm]

SECRET = b"a secret that no capture shows"
PASSPHRASE = "lucky lucky lucky"


def hcalld(*words: object) -> subprocess.CompletedProcess[str]:
    done = run_hcalld(*map(str, words))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


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
    replay = hcalld("replay", "code", "--secrets", how, capture)
    assert f"no differences, {len(calls)} calls, {len(calls)} compared" in replay.stdout
