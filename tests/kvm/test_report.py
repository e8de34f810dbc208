# SPDX-License-Identifier: Apache-2.0
"""Attestation reports of running guests, verified by code that knows nothing of the platform's."""

from __future__ import annotations

import base64
import hashlib
import secrets
import struct

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from tests.kvm.conftest import SevLab

pytestmark = [pytest.mark.kvm]

CERT_SIZE = 2084
PEK = 0x1002
ECDSA_SHA256 = 2


def public_key(cert: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a SEV certificate (AMD publication 55766, Appendix C): little-endian P-384."""
    assert struct.unpack_from("<I", cert, 0x10)[0] == 2
    x, y = (int.from_bytes(cert[at : at + 72], "little") for at in (0x14, 0x5C))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()


def verify(report: bytes, pek: bytes) -> None:
    """Checks the signature of a report.

    Raises:
        InvalidSignature: It is not the PEK's.
    """
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (64, 136))
    signature = utils.encode_dss_signature(r, s)
    public_key(pek).verify(signature, report[:52], ec.ECDSA(hashes.SHA256()))


def test_report_when_the_guest_runs_then_the_platforms_pek_vouches_for_it(sev: SevLab):
    machine = sev.start(sev.guest(policy=3, can_end=False))
    pek = sev.owner.certificates.read_bytes()[CERT_SIZE : 2 * CERT_SIZE]
    machine.qmp.execute("cont")
    machine.console.expect("firmware: done")
    nonce = secrets.token_bytes(16)
    answer = machine.qmp.execute(
        "query-sev-attestation-report", mnonce=base64.b64encode(nonce).decode()
    )
    report = base64.b64decode(answer["data"])
    sev.transcript.add("query-sev-attestation-report", answer["data"])
    assert len(report) == 208
    assert report[:16] == nonce
    assert report[16:48] == hashlib.sha256(sev.firmware.read_bytes()).digest()
    assert struct.unpack_from("<III", report, 48) == (3, PEK, ECDSA_SHA256)
    verify(report, pek)
    for at in (0, 16, 48, 64, 136):
        changed = bytearray(report)
        changed[at] ^= 1
        with pytest.raises(InvalidSignature):
            verify(bytes(changed), pek)
    # And by the owner's own tool.
    path = sev.artifacts / "report"
    path.write_bytes(report)
    said = sev.owner.verify("report", str(path), "--mnonce", nonce.hex(), "--policy", "3")
    sev.transcript.add("hcalld sev report", said)
