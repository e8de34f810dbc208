# SPDX-License-Identifier: Apache-2.0
"""Attestation reports of GET_ATTESTATION_REPORT, signed by a platform's PEK."""

from __future__ import annotations

import dataclasses

from hcalld.crypto.sev.certificates import check_role, name_of
from hcalld.crypto.sev.errors import SignatureError
from hcalld.crypto.sev.keys import EcPrivateKey, is_signature
from hcallproto.payloads.sev import (
    Algorithm,
    AttestationReport,
    Policy,
    SevCertificate,
    Slot,
    Usage,
)


def make_report(
    pek: EcPrivateKey, *, mnonce: bytes, launch_digest: bytes, policy: Policy
) -> AttestationReport:
    """Say what was launched.

    Args:
        pek: the platform's key.
        mnonce: the caller's nonce.
        launch_digest: SHA-256 of what was launched.
        policy: the guest's.
    """
    report = AttestationReport(mnonce=mnonce, launch_digest=launch_digest, policy=policy)
    r, s = pek.sign(report.signed(), Algorithm.ECDSA_SHA256)
    return dataclasses.replace(report, sig_r=r, sig_s=s)


def verify_report(report: AttestationReport, pek: SevCertificate) -> None:
    """See that a PEK signed a report; whose PEK it is, its chain says.

    Raises:
        SignatureError: it did not.
        CertificateError: no PEK's certificate.
    """
    check_role(pek, Usage.PEK)
    if report.sig_usage != pek.usage or report.sig_algo != pek.algorithm:
        raise SignatureError(
            "attestation report",
            "signer",
            f"usage {report.sig_usage:#x} with algorithm {report.sig_algo:#x}",
            f"usage {pek.usage:#x} with algorithm {pek.algorithm:#x}",
        )
    slot = Slot.of_ec(pek.usage, pek.algorithm, report.sig_r, report.sig_s)
    if not is_signature(pek.key, pek.algorithm, slot, report.signed(), name_of(pek.usage)):
        raise SignatureError("attestation report", "signature", "wrong", "one by the PEK's key")
