# SPDX-License-Identifier: Apache-2.0
"""Owners of platforms: their certificate authority (OCA), and what it signs."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hcalld.core.secret import Secret
from hcalld.crypto.sev.certificates import check_role, sign
from hcalld.crypto.sev.chains import verify
from hcalld.crypto.sev.keys import SCALAR_SIZE, EcPrivateKey
from hcalld.guestowner.errors import GuestOwnerError
from hcallproto.payloads.sev.certificates import SevCertificate
from hcallproto.payloads.sev.constants import Algorithm, Usage


def key_to_pem(key: EcPrivateKey) -> Secret:
    """A private key as a file, PKCS #8, not encrypted."""
    value = int.from_bytes(key.scalar.reveal())
    private = ec.derive_private_key(value, ec.SECP384R1())
    return Secret(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def key_from_pem(data: bytes) -> EcPrivateKey:
    """A private key from a file.

    Raises:
        GuestOwnerError: it is no P-384 key, or encrypted.
    """
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise GuestOwnerError(
            "no private key that can be read; expected PEM that is not encrypted, as hcalld sev "
            "oca make writes it"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise GuestOwnerError("a private key of another kind; expected one on the curve P-384")
    value = key.private_numbers().private_value
    return EcPrivateKey(Secret(value.to_bytes(SCALAR_SIZE)))


def sign_csr(csr: SevCertificate, oca: SevCertificate, key: EcPrivateKey) -> SevCertificate:
    """A platform's PEK, signed by its new owner: what PEK_CERT_IMPORT takes.

    Args:
        csr: what PEK_CSR gave.
        oca: the owner's certificate.
        key: its private key.

    Raises:
        GuestOwnerError: the request is signed already, or the key is not the certificate's.
        CertificateError: a certificate is not what it must be.
    """
    check_role(csr, Usage.PEK, "signing request")
    check_role(oca, Usage.OCA)
    verify(oca, oca)
    if oca.key != key.public:
        raise GuestOwnerError("the private key is not that of the OCA's certificate")
    if csr.algorithm is not Algorithm.ECDSA_SHA256:
        raise GuestOwnerError(
            f"the request is of a key for {csr.algorithm.name}; expected "
            f"{Algorithm.ECDSA_SHA256.name}"
        )
    if not all(slot.is_empty for slot in csr.slots):
        raise GuestOwnerError(
            "the request is signed already; expected what hcalld sev csr has just written"
        )
    return sign(csr, Usage.OCA, key, oca.algorithm)
