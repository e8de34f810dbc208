# SPDX-License-Identifier: Apache-2.0
"""SEV's certificates: made, signed, and looked at before use.

Sources: 55766 appendices B and C, AMDESE/sev-tool ``sevcert.cpp`` and ``amdcert.cpp``.
Who signs whom is in ``chains.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from hcalld.crypto.sev.keys import EcPrivateKey, ec_public, rsa_public, sign_rsa
from hcallproto.payloads.sev import (
    CERTIFICATE_SIZE,
    Algorithm,
    AmdCertificate,
    Api,
    CertificateError,
    EcPublicKey,
    RsaPublicKey,
    SevCertificate,
    Slot,
    Usage,
)

OWNER_API: Final = Api(0, 0)
"""The version in certificates that no platform made; sev-tool insists on it for an OCA."""

# -- making ---------------------------------------------------------------------------------


def make_oca(oca: EcPrivateKey, api: Api = OWNER_API) -> SevCertificate:
    """An owner's certificate authority, which signs itself.

    Args:
        oca: its key.
        api: the platform's version, if the platform owns itself.
    """
    return sign(_unsigned(Usage.OCA, oca.public, api), Usage.OCA, oca)


def make_csr(pek: EcPrivateKey, api: Api) -> SevCertificate:
    """What PEK_CSR gives: a PEK's certificate with nobody's signature."""
    return _unsigned(Usage.PEK, pek.public, api)


def make_pek(pek: EcPrivateKey, oca: EcPrivateKey, cek: EcPrivateKey, api: Api) -> SevCertificate:
    """A platform's endorsement key, signed by its owner and its chip."""
    return sign(sign(make_csr(pek, api), Usage.OCA, oca), Usage.CEK, cek)


def make_pdh(pdh: EcPrivateKey, pek: EcPrivateKey, api: Api) -> SevCertificate:
    """A platform's Diffie-Hellman key, signed by its PEK."""
    return sign(_unsigned(Usage.PDH, pdh.public, api), Usage.PEK, pek)


def make_cek(
    cek: EcPublicKey, ask: AmdCertificate, ask_key: RSAPrivateKey, api: Api
) -> SevCertificate:
    """A chip's endorsement key, signed by a root's ASK.

    Args:
        cek: its public key.
        ask: the signer's certificate, which says with which algorithm.
        ask_key: its private key.
        api: the version in the certificate.
    """
    unsigned = _unsigned(Usage.CEK, cek, api)
    signature = sign_rsa(ask_key, unsigned.signed(), ask.algorithm)
    return _with_slot(unsigned, Slot.of_rsa(Usage.ASK, ask.algorithm, signature))


def make_owner_dh(private: EcPrivateKey, *, is_self_signed: bool = False) -> SevCertificate:
    """A guest owner's Diffie-Hellman certificate, for LAUNCH_START.

    Nobody verifies a signature in it.

    Args:
        private: the owner's key.
        is_self_signed: as sev-tool does, which claims that a PEK signed; if not, there is
            no signature, as sevctl does.
    """
    unsigned = _unsigned(Usage.PDH, private.public, OWNER_API)
    return sign(unsigned, Usage.PEK, private) if is_self_signed else unsigned


def sign(
    certificate: SevCertificate,
    usage: Usage,
    key: EcPrivateKey,
    algorithm: Algorithm = Algorithm.ECDSA_SHA256,
) -> SevCertificate:
    """Put a signature into the first empty slot.

    Args:
        certificate: what is signed.
        usage: the signer's.
        key: the signer's.
        algorithm: of the signer's key.

    Raises:
        ValueError: no slot is empty.
    """
    r, s = key.sign(certificate.signed(), algorithm)
    return _with_slot(certificate, Slot.of_ec(usage, algorithm, r, s))


def _unsigned(usage: Usage, key: EcPublicKey, api: Api) -> SevCertificate:
    algorithm = Algorithm.ECDH_SHA256 if usage is Usage.PDH else Algorithm.ECDSA_SHA256
    return SevCertificate(api=api, usage=usage, algorithm=algorithm, key=key)


def _with_slot(certificate: SevCertificate, slot: Slot) -> SevCertificate:
    sig1, sig2 = certificate.slots
    if sig1.is_empty:
        return dataclasses.replace(certificate, slots=(slot, sig2))
    if sig2.is_empty:
        return dataclasses.replace(certificate, slots=(sig1, slot))
    raise ValueError(f"{certificate.usage.name} certificate: both signature slots are in use")


# -- looking --------------------------------------------------------------------------------

_SIGNS: Final = (Algorithm.ECDSA_SHA256, Algorithm.ECDSA_SHA384)
_AGREES: Final = (Algorithm.ECDH_SHA256, Algorithm.ECDH_SHA384)
_SIGNS_ANYHOW: Final = (*_SIGNS, Algorithm.RSA_SHA256, Algorithm.RSA_SHA384)
ALGORITHMS: Final = {
    Usage.PDH: _AGREES,
    Usage.PEK: _SIGNS,
    Usage.OCA: _SIGNS_ANYHOW,
    Usage.CEK: _SIGNS,
}
"""What a key of each usage may be for."""


def check_role(certificate: SevCertificate, usage: Usage, what: str | None = None) -> None:
    """See that a certificate is of a usage, and its key one that can be used for it.

    Args:
        certificate: any.
        usage: what it must be.
        what: its name, for errors.

    Raises:
        CertificateError: it is not.
    """
    what = what or name_of(usage)
    if certificate.usage is not usage:
        raise CertificateError(what, "usage", certificate.usage.name, usage.name)
    allowed = ALGORITHMS[usage]
    if certificate.algorithm not in allowed:
        names = " or ".join(algorithm.name for algorithm in allowed)
        raise CertificateError(what, "algorithm", certificate.algorithm.name, names)
    check_key(certificate, what)


def check_key(certificate: SevCertificate | AmdCertificate, what: str) -> None:
    """See that a certificate's key can be used: for P-384, that it is on the curve.

    Raises:
        CertificateError: it cannot.
    """
    if isinstance(certificate.key, RsaPublicKey):
        rsa_public(certificate.key, what)
    else:
        ec_public(certificate.key, what)


def public_point(certificate: SevCertificate) -> EcPublicKey:
    """The key of a certificate whose role was checked.

    Raises:
        CertificateError: it is an RSA key.
    """
    if isinstance(certificate.key, RsaPublicKey):
        raise CertificateError(name_of(certificate.usage), "public key", "an RSA key", "a point")
    return certificate.key


def parse_owner_dh(data: bytes) -> SevCertificate:
    """A guest owner's certificate, or a platform's PDH, as LAUNCH_START takes it.

    Signatures in it are not looked at, and what follows it neither.

    Raises:
        CertificateError: malformed, or not of a P-384 Diffie-Hellman key.
    """
    what = "guest owner's certificate"
    certificate = SevCertificate.parse(data[:CERTIFICATE_SIZE], what)
    check_role(certificate, Usage.PDH, what)
    return certificate


def name_of(usage: Usage) -> str:
    """How errors name a certificate."""
    return f"{usage.name} certificate"
