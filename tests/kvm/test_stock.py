# SPDX-License-Identifier: Apache-2.0
"""Firmware that this project did not make: Debian's SeaBIOS and OVMF, measured and run.

How far a guest gets is KVM's: one that runs in another machine may not know every instruction of
OVMF's. So a guest with SEV is held against the same one without.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.conftest import Require
from tests.e2e.machine import Machine
from tests.e2e.patience import patience
from tests.e2e.sevqemu import inject, physical, read_launched
from tests.kvm.conftest import SevLab

pytestmark = [pytest.mark.kvm]

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
"""Debian package seabios, which qemu-system-x86 depends on."""

OVMF = Path("/usr/share/ovmf/OVMF.fd")
"""Debian package ovmf: code and variables in one."""

OVMF_PROMPTS = ("BdsDxe:", "UEFI Interactive Shell", "Shell>")
"""What it prints when it looks for something to boot."""

# The footer table of OVMF says that there is no area for secrets; this is free RAM.
ADDRESS = 0x0080C000


CMDLINE = (
    "console=ttyS0 earlyprintk=serial,ttyS0 panic=-1 nokaslr mitigations=off init_on_alloc=0 nosmp"
)

SIMPLE_CPU = ("-cpu", "qemu64,-cx16,-xsave,check=off")
"""A processor for whose instructions Linux has others too, that any KVM emulates."""


def outcome(machine: Machine, seconds: float = 60) -> tuple[str, bool]:
    """Waits until OVMF has come to its end; gives QEMU's run state, and whether it got there."""
    end = time.monotonic() + patience(seconds)
    while True:
        state = machine.qmp.status()
        has_prompt = any(prompt in machine.console.text for prompt in OVMF_PROMPTS)
        if has_prompt or state != "running":
            return state, has_prompt
        assert time.monotonic() < end, f"OVMF prints nothing for {seconds} s: {machine.log_text()}"
        time.sleep(0.05)


def test_seabios_when_its_launch_is_measured_then_it_boots(sev: SevLab):
    guest = sev.guest(firmware=SEABIOS, extra=("-machine", "graphics=off"), can_end=False)
    machine = sev.start(guest)
    launched = read_launched(machine)
    verdict = sev.owner.validate(launched, guest)
    assert verdict.status == 0, verdict.output
    sev.transcript.add("virt-qemu-sev-validate", verdict.output)
    machine.qmp.execute("cont")
    machine.console.expect(r"SeaBIOS \(version .*debian", seconds=60)
    machine.console.expect("No bootable device", seconds=60)
    sev.transcript.add("serial port", machine.console.text)


def test_secret_when_the_firmware_has_no_place_for_it_then_qemu_is_told_one(sev: SevLab):
    guest = sev.guest(firmware=SEABIOS, can_end=False)
    machine = sev.start(guest)
    launched = read_launched(machine)
    header, payload, _ = sev.owner.secret(launched, guest, ("luks-key", b"somewhere"))
    inject(machine, header, payload, gpa=ADDRESS)
    assert b"somewhere" in physical(machine, ADDRESS, 64, sev.artifacts)


@pytest.mark.parametrize("policy", [1, 5])
def test_ovmf_when_its_launch_is_measured_then_it_gets_as_far_as_without_sev(
    sev: SevLab, policy: int
):
    with_sev = sev.guest(policy=policy, firmware=OVMF, memory_mib=128, can_end=False)
    machine = sev.start(with_sev)
    verdict = sev.owner.validate(read_launched(machine), with_sev)
    assert verdict.status == 0, verdict.output
    machine.qmp.execute("cont")
    without = sev.guest(is_sev=False, firmware=OVMF, memory_mib=128, is_paused=False, can_end=False)
    plain = outcome(sev.start(without))
    sev.transcript.add("without SEV: state, and whether it looked for something to boot", plain)
    assert outcome(machine) == plain


@pytest.mark.timeout(300)
def test_linux_when_it_is_debians_then_it_runs_as_a_guest_with_sev(sev: SevLab, require: Require):
    """Not to its end: a KVM that emulates every instruction takes minutes, and may lack one."""
    guest = sev.guest(
        firmware=SEABIOS,
        kernel=require("kernel-x86"),
        append=CMDLINE,
        memory_mib=128,
        can_end=False,
        extra=SIMPLE_CPU,
    )
    machine = sev.start(guest)
    verdict = sev.owner.validate(read_launched(machine), guest)
    assert verdict.status == 0, verdict.output
    machine.qmp.execute("cont")
    machine.console.expect(r"Linux version 6\.\d+.*cloud-amd64", seconds=200)
    machine.console.expect(f"Command line: {CMDLINE}$", seconds=60)
    machine.console.expect("Hypervisor detected: KVM", seconds=60)
    sev.transcript.add("serial port", machine.console.text)
    assert "Memory Encryption Features active" not in machine.console.text
    assert machine.qmp.execute("query-sev")["state"] == "running"
