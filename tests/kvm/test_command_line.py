# SPDX-License-Identifier: Apache-2.0
"""What people type: the commands of ``hcalld sev`` with a real QEMU."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from tests.e2e.daemon import run_hcalld
from tests.e2e.patience import patience
from tests.e2e.sevqemu import CPU, GOOD, read_launched
from tests.kvm.conftest import SevLab

pytestmark = [pytest.mark.kvm]

OWN_WORDS = f"-cpu {CPU},check=off -m 32M -nodefaults -display none -serial stdio -no-reboot"


def test_qemu_args_when_a_shell_runs_what_it_prints_then_the_guest_runs(sev: SevLab):
    session = sev.owner.session()
    line = sev.owner.ask_platform(
        *("qemu-args", "--policy", "1", "--library", str(sev.library)),
        *("--dh-cert-file", str(session.dh_cert), "--session-file", str(session.session)),
        *("--firmware", str(sev.firmware)),
    ).strip()
    assert shlex.split(line)[0].startswith("LD_PRELOAD=")
    sev.transcript.add("hcalld sev qemu-args", line)
    done = subprocess.run(
        ["sh", "-c", f"{line} {OWN_WORDS} -device isa-debug-exit"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
        # What hcalld printed has all that is needed.
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == GOOD, done.stderr
    assert "firmware: done" in done.stdout
    assert "cpuid: no SEV" in done.stdout


def test_validate_when_qemu_measured_a_launch_then_it_tells_the_right_one(sev: SevLab):
    guest = sev.guest()
    assert guest.session is not None
    launched = read_launched(sev.start(guest))
    words = ["sev", "validate", launched.measurement_text]
    for name, value in {
        "firmware": guest.firmware,
        "api-major": launched.facts["api-major"],
        "api-minor": launched.facts["api-minor"],
        "build-id": launched.facts["build-id"],
        "tik": guest.session.tik,
        "tek": guest.session.tek,
    }.items():
        words += [f"--{name}", str(value)]
    done = run_hcalld(*words, "--policy", "1")
    assert done.returncode == 0, done.stderr
    assert "the measurement is that of the wanted launch" in done.stdout
    sev.transcript.add("hcalld sev validate", done.stdout)
    done = run_hcalld(*words, "--policy", "3")
    sev.transcript.add("the same with another policy", done.stderr)
    assert done.returncode == 1
    assert "it would be if: the guest's policy is 0x1" in done.stderr
