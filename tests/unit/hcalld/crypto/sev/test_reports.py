# SPDX-License-Identifier: Apache-2.0
"""Attestation reports."""

from __future__ import annotations

import dataclasses

import pytest
from tests.sev_platform import chain, flipped, key

from hcalld.crypto.sev.errors import SignatureError
from hcalld.crypto.sev.reports import make_report, verify_report
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev import (
    ATTESTATION_REPORT_SIZE,
    Algorithm,
    AttestationReport,
    CertificateError,
    Policy,
    Usage,
)

REPORT = make_report(
    key("pek"),
    mnonce=made_up("mnonce", 16),
    launch_digest=made_up("digest", 32),
    policy=Policy.ES | Policy.NODBG,
)


def test_report_when_made_then_verified():
    verify_report(REPORT, chain().pek)
    verify_report(AttestationReport.parse(REPORT.build()), chain().pek)
    assert (REPORT.sig_usage, REPORT.sig_algo) == (Usage.PEK, Algorithm.ECDSA_SHA256)


def test_report_when_any_byte_is_altered_then_refused():
    data = REPORT.build()
    reserved = range(60, 64)
    for offset in range(ATTESTATION_REPORT_SIZE):
        altered = AttestationReport.parse(flipped(data, offset))
        if offset in reserved:
            verify_report(altered, chain().pek)
            continue
        with pytest.raises(SignatureError, match="attestation report: sign"):
            verify_report(altered, chain().pek)


def test_report_when_the_pek_is_another_then_refused():
    stranger = dataclasses.replace(chain().pek, key=key("stranger").public)
    with pytest.raises(SignatureError, match="signature is wrong"):
        verify_report(REPORT, stranger)
    with pytest.raises(CertificateError, match="usage is CEK, expected PEK"):
        verify_report(REPORT, chain().cek)
