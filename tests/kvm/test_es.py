# SPDX-License-Identifier: Apache-2.0
"""SEV-ES: the processors' states are measured too."""

from __future__ import annotations

import base64
import hashlib
import struct
from pathlib import Path

import pytest
from tests.e2e.sevqemu import CPU, GOOD, SevGuest, inject, read_launched, run_to_end, secret_lines
from tests.kvm.conftest import SevLab
from tests.kvm.test_launch import GUID, snp_measure

pytestmark = [pytest.mark.kvm]

ES_POLICY = 5
"""NODBG and ES."""

# In the save area, by AMD publication 24593, table B-4.
VMSA_SIZE = 4096
MXCSR = 0x408
X87_FCW = 0x410


def snp_vmsas(guest: SevGuest, folder: Path) -> list[Path]:
    """The states that sev-snp-measure makes, as KVM has them after ES_INIT.

    It makes those of INIT2, after which KVM fills in what QEMU resets the FPU to.
    """
    snp_measure(
        *("--mode", "seves", "--vcpus", guest.smp, "--vcpu-type", CPU, "--ovmf", guest.firmware),
        "--dump-vmsa",
        folder=folder,
    )
    paths = [folder / f"vmsa{number}.bin" for number in range(guest.smp)]
    for path in paths:
        data = bytearray(path.read_bytes())
        assert len(data) == VMSA_SIZE
        assert struct.unpack_from("<I", data, MXCSR)[0] == 0x1F80
        assert struct.unpack_from("<H", data, X87_FCW)[0] == 0x37F
        struct.pack_into("<I", data, MXCSR, 0)
        struct.pack_into("<H", data, X87_FCW, 0)
        path.write_bytes(data)
    return paths


@pytest.mark.parametrize("smp", [1, 2])
def test_launch_when_the_guest_is_es_then_it_runs_with_the_secret(sev: SevLab, smp: int):
    guest = sev.guest(policy=ES_POLICY, smp=smp)
    machine = sev.start(guest)
    launched = read_launched(machine)
    assert launched.facts["policy"] == ES_POLICY
    # The validator makes the states by itself.
    header, payload, verdict = sev.owner.secret(launched, guest, ("luks-key", b"sealed"))
    sev.transcript.add(f"virt-qemu-sev-validate, {smp} processors", verdict.output)
    inject(machine, header, payload)
    assert run_to_end(machine) == GOOD
    assert secret_lines(machine)[0] == f"{GUID} 6 bytes, text: sealed"


def test_validator_when_the_processors_are_others_then_it_refuses(sev: SevLab):
    guest = sev.guest(policy=ES_POLICY, smp=2)
    launched = read_launched(sev.start(guest))
    assert sev.owner.validate(launched, guest).status == 0
    changes: list[dict[str, object]] = [
        {"num_cpus": 1},
        {"num_cpus": 3},
        {"cpu_stepping": 1},
        {"cpu_model": 49},
    ]
    for changed in changes:
        verdict = sev.owner.validate(launched, guest, **changed)
        assert (verdict.status, "does not match" in verdict.output) == (1, True), changed


def test_validator_when_given_the_states_of_sev_snp_measure_then_it_finds_them_good(
    sev: SevLab,
):
    guest = sev.guest(policy=ES_POLICY, smp=2, can_end=False)
    machine = sev.start(guest)
    launched = read_launched(machine)
    vmsas = snp_vmsas(guest, sev.artifacts)
    unmade: dict[str, object] = dict.fromkeys(("cpu_family", "cpu_model", "cpu_stepping"))
    for order, status in ((vmsas, 0), (vmsas[::-1], 1)):
        given = {f"vmsa_cpu{number}": path for number, path in enumerate(order)}
        verdict = sev.owner.validate(launched, guest, **given, **unmade)
        assert verdict.status == status, verdict.output
    machine.qmp.execute("cont")
    nonce = base64.b64encode(bytes(16)).decode()
    report = machine.qmp.execute("query-sev-attestation-report", mnonce=nonce)
    whole = b"".join(path.read_bytes() for path in (guest.firmware, *vmsas))
    assert base64.b64decode(report["data"])[16:48] == hashlib.sha256(whole).digest()
