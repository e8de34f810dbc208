# SPDX-License-Identifier: Apache-2.0
"""Owners of platforms, and what they sign."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.sev_platform import API, chain, flipped, key

from hcalld.crypto.sev.certificates import make_csr, make_oca
from hcalld.crypto.sev.chains import check_import
from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.owning import key_from_pem, key_to_pem, sign_csr
from hcallproto.payloads.sev.certificates import SevCertificate
from hcallproto.payloads.sev.constants import Algorithm
from hcallproto.payloads.sev.errors import CertificateError

OWNER = key("owner")
OCA = make_oca(OWNER)
CSR = make_csr(key("pek"), API)


def pem_of(private: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    kind: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        kind = serialization.BestAvailableEncryption(passphrase)
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kind
    )


def test_sign_csr_when_a_platform_imports_it_then_it_is_taken():
    check_import(sign_csr(CSR, OCA, OWNER), OCA, key("pek").public)


@pytest.mark.parametrize(
    ("csr", "oca", "private", "why"),
    [
        (CSR, OCA, key("other"), "the private key is not that of the OCA"),
        (chain().pek, OCA, OWNER, "signed already"),
        (
            dataclasses.replace(CSR, algorithm=Algorithm.ECDSA_SHA384),
            OCA,
            OWNER,
            "ECDSA_SHA384; expected ECDSA_SHA256",
        ),
    ],
)
def test_sign_csr_when_it_would_not_be_taken_then_it_is_refused(
    csr: object, oca: object, private: object, why: str
):
    with pytest.raises(GuestOwnerError, match=why):
        sign_csr(csr, oca, private)  # type: ignore[arg-type]


def test_sign_csr_when_a_certificate_has_another_role_then_it_is_refused():
    with pytest.raises(CertificateError, match="signing request: usage is PDH, expected PEK"):
        sign_csr(chain().pdh, OCA, OWNER)
    with pytest.raises(CertificateError, match="OCA certificate: usage is CEK, expected OCA"):
        sign_csr(CSR, chain().cek, OWNER)


def test_sign_csr_when_the_oca_did_not_sign_itself_then_it_is_refused():
    forged = SevCertificate.parse(flipped(OCA.build(), 0x414 + 20))
    with pytest.raises(CertificateError, match="OCA certificate: signature of the OCA is wrong"):
        sign_csr(CSR, forged, OWNER)


def test_key_when_it_is_written_and_read_then_the_same():
    pem = key_to_pem(OWNER).reveal()
    assert key_from_pem(pem).scalar == OWNER.scalar
    # As any other program reads it.
    read = serialization.load_pem_private_key(pem, None)
    assert isinstance(read, ec.EllipticCurvePrivateKey)
    assert read.public_key().public_numbers().x == OWNER.public.x


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (b"", "no private key that can be read"),
        (b"-----BEGIN PRIVATE KEY-----\n", "no private key that can be read"),
        (pem_of(ec.generate_private_key(ec.SECP384R1()), b"secret"), "PEM that is not encrypted"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "expected one on the curve P-384"),
    ],
)
def test_key_from_pem_when_it_is_no_key_of_this_kind_then_it_says_so(pem: bytes, why: str):
    with pytest.raises(GuestOwnerError, match=why):
        key_from_pem(pem)
