# SPDX-License-Identifier: Apache-2.0
"""Launches by an unmodified QEMU: the guest runs, its owner can tell what was launched."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.patience import patience
from tests.e2e.sevqemu import (
    GOOD,
    SevGuest,
    inject,
    made_up_kernel,
    read_launched,
    run_to_end,
    secret_lines,
)
from tests.kvm.conftest import SevLab

from hcalld.guest.sevhost import cbitpos
from hcallproto.payloads.sev.constants import PlatformState

pytestmark = [pytest.mark.kvm]

GUID = "736869e5-84f0-4973-92ec-06879ce3da0b"
"""Of a disk's passphrase: virt-qemu-sev-validate's luks-key."""

CMDLINE = "console=ttyS0 root=/dev/vda quiet"


def direct_boot(sev: SevLab, **values: object) -> SevGuest:
    """A guest whose kernel, initrd and command line are measured too."""
    initrd = sev.artifacts / "initrd"
    initrd.write_bytes(b"an initrd " * 100)
    kernel = made_up_kernel(sev.artifacts / "kernel", b"a kernel " * 1000)
    return sev.guest(kernel=kernel, initrd=initrd, append=CMDLINE, kernel_hashes=True, **values)


def test_launch_when_its_owner_is_convinced_then_the_guest_runs_with_the_secret(sev: SevLab):
    """The whole of it, as people do it; the transcript is for them."""
    note = sev.transcript.add
    guest = sev.guest()
    machine = sev.start(guest)
    launched = read_launched(machine)
    note("QEMU", " ".join([str(guest.qemu), *guest.arguments()]))
    note("query-sev", json.dumps(launched.facts))
    note("query-sev-launch-measure", launched.measurement_text)
    assert launched.facts["enabled"] is True
    assert launched.facts["state"] == "launch-secret"
    assert launched.facts["policy"] == 1
    status = sev.platform()
    assert status.state == PlatformState.WORKING
    assert status.guest_count == 1
    assert launched.facts["api-major"] == status.version.api_major
    assert launched.facts["api-minor"] == status.version.api_minor
    assert launched.facts["build-id"] == status.version.build

    header, payload, verdict = sev.owner.secret(launched, guest, ("luks-key", b"open sesame"))
    note("virt-qemu-sev-validate", verdict.output)
    note("its secret header", header)
    note("its secret payload", payload)
    inject(machine, header, payload)
    note("sev-inject-launch-secret", "taken")

    assert run_to_end(machine) == GOOD
    note("serial port", machine.console.text)
    assert secret_lines(machine) == [f"{GUID} 11 bytes, text: open sesame", "end of the table"]
    assert machine.messages() == ""


def test_launch_when_nobody_owns_the_guest_then_it_runs_all_the_same(sev: SevLab):
    machine = sev.start(sev.guest(session=None, is_paused=False))
    assert machine.wait() == GOOD
    assert secret_lines(machine) == ["none"]


def test_cpuid_when_the_guest_looks_then_it_has_no_sev(sev: SevLab):
    """KVM has none, so a guest that believed QEMU's CPUID would die of a missing MSR."""
    machine = sev.start(sev.guest(is_paused=False))
    assert machine.wait() == GOOD
    assert "cpuid: no SEV\n" in machine.console.text


def test_query_when_the_guest_runs_then_qemu_says_so(sev: SevLab):
    machine = sev.start(sev.guest(can_end=False))
    assert machine.qmp.execute("query-sev")["state"] == "launch-secret"
    machine.qmp.execute("cont")
    machine.console.expect("firmware: done")
    assert machine.qmp.execute("query-sev")["state"] == "running"
    assert machine.qmp.status() == "running"


def test_capabilities_when_queried_then_they_are_the_platforms_certificates(sev: SevLab):
    machine = sev.start(sev.guest())
    found = machine.qmp.execute("query-sev-capabilities")
    whole = sev.owner.certificates.read_bytes()
    pdh, chain = base64.b64decode(found["pdh"]), base64.b64decode(found["cert-chain"])
    assert pdh + chain == whole
    assert len(pdh) == 2084
    sev.transcript.add("hcalld sev verify", sev.owner.verify("verify"))
    assert found["cbitpos"] == cbitpos()
    assert base64.b64decode(found["cpu0-id"]).hex() == sev.owner.ask_platform("id").strip()


# -- what is measured ---------------------------------------------------------------------------


def another_key(sev: SevLab, _guest: SevGuest) -> dict[str, object]:
    path = sev.artifacts / "another.tik"
    path.write_bytes(bytes(16))
    return {"tik": path}


def another_firmware(sev: SevLab, _guest: SevGuest) -> dict[str, object]:
    return {"firmware": sev.firmware_with(at=100)}


def another_kernel(sev: SevLab, _guest: SevGuest) -> dict[str, object]:
    return {"kernel": made_up_kernel(sev.artifacts / "kernel2", b"another kernel")}


def another_initrd(sev: SevLab, _guest: SevGuest) -> dict[str, object]:
    path = sev.artifacts / "initrd2"
    path.write_bytes(b"another initrd")
    return {"initrd": path}


CHANGES: dict[str, Callable[[SevLab, SevGuest], dict[str, object]]] = {
    "TIK": another_key,
    "firmware": another_firmware,
    "kernel": another_kernel,
    "initrd": another_initrd,
    "no kernel": lambda _sev, _guest: {"kernel": None, "initrd": None, "cmdline": None},
    "command line": lambda _sev, guest: {"cmdline": f"{guest.append} init=/bin/sh"},
}


def test_validator_when_one_thing_is_another_then_it_refuses(sev: SevLab):
    guest = direct_boot(sev)
    launched = read_launched(sev.start(guest))
    verdict = sev.owner.validate(launched, guest)
    assert verdict.status == 0, verdict.output
    sev.transcript.add("virt-qemu-sev-validate", verdict.output)
    changes = {what: change(sev, guest) for what, change in CHANGES.items()}
    changes |= {
        name: {name: launched.facts[name] + 1} for name in ("api-minor", "build-id", "policy")
    }
    changes["api-major"] = {"api-major": launched.facts["api-major"] ^ 1}
    # Of the nonce too: QEMU is not to be believed either.
    for at in (0, 47):
        data = bytearray(launched.measurement)
        data[at] ^= 1
        changes[f"byte {at}"] = {"measurement": base64.b64encode(data).decode()}
    for what, changed in changes.items():
        verdict = sev.owner.validate(launched, guest, **changed)
        sev.transcript.add(f"the same with another {what}", verdict.output)
        assert (verdict.status, "does not match" in verdict.output) == (1, True), what


def test_launch_when_the_kernel_is_measured_then_the_guest_has_its_hashes(sev: SevLab):
    guest = direct_boot(sev)
    machine = sev.start(guest)
    assert run_to_end(machine) == GOOD
    assert guest.kernel is not None
    assert guest.initrd is not None
    expected = {
        # With the NUL that ends it.
        "cmdline": f"{CMDLINE}\0".encode(),
        "initrd": guest.initrd.read_bytes(),
        "kernel": guest.kernel.read_bytes(),
    }
    for name, data in expected.items():
        assert f"hashes: {name} {hashlib.sha256(data).hexdigest()}\n" in machine.console.text


def test_launch_when_made_twice_then_only_the_nonce_is_another(sev: SevLab):
    guest = sev.guest()
    first, second = (read_launched(sev.start(guest)) for _ in range(2))
    assert first.measurement[32:] != second.measurement[32:]
    assert first.measurement[:32] != second.measurement[:32]
    for launched in (first, second):
        assert sev.owner.validate(launched, guest).status == 0


@pytest.mark.parametrize("policy", [0, 1, 0x3B])
def test_launch_when_the_policy_is_another_then_all_agree_on_it(sev: SevLab, policy: int):
    guest = sev.guest(policy=policy)
    machine = sev.start(guest)
    launched = read_launched(machine)
    assert launched.facts["policy"] == policy
    assert sev.owner.validate(launched, guest).status == 0


def snp_measure(*words: object, folder: Path | None = None) -> str:
    """What sev-snp-measure computes of a launch, in hexadecimal; files go to the folder."""
    program = Path(sys.executable).with_name("sev-snp-measure")
    done = subprocess.run(
        [program, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
        cwd=folder,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("is_direct", [False, True])
def test_digest_when_computed_by_sev_snp_measure_then_it_is_the_reports(
    sev: SevLab, is_direct: bool
):
    guest = direct_boot(sev, can_end=False) if is_direct else sev.guest(can_end=False)
    machine = sev.start(guest)
    machine.qmp.execute("cont")
    report = machine.qmp.execute(
        "query-sev-attestation-report", mnonce=base64.b64encode(bytes(16)).decode()
    )
    words: list[object] = ["--mode", "sev", "--ovmf", guest.firmware]
    if is_direct:
        words += ["--kernel", guest.kernel, "--initrd", guest.initrd, "--append", guest.append]
    assert base64.b64decode(report["data"])[16:48].hex() == snp_measure(*words)


# -- what QEMU is refused -----------------------------------------------------------------------


def test_start_when_the_session_is_for_another_policy_then_qemu_ends(sev: SevLab):
    session = dataclasses.replace(sev.owner.session(1), policy=3)
    machine = sev.start(sev.guest(session=session))
    assert machine.wait() == 1
    sev.transcript.add("QEMU", machine.messages())
    assert "LAUNCH_START ret=1 fw_error=11 'Bad measurement'" in machine.messages()
    # It has left nothing behind.
    assert sev.platform().guest_count == 0


def test_start_when_the_pdh_is_another_since_then_qemu_ends(sev: SevLab):
    guest = sev.guest()
    sev.owner.ask_platform("pdh-gen")
    machine = sev.start(guest)
    assert machine.wait() == 1
    assert "fw_error=11 'Bad measurement'" in machine.messages()
    assert sev.platform().guest_count == 0
