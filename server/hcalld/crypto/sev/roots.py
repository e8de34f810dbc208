# SPDX-License-Identifier: Apache-2.0
"""Test roots: an ARK and an ASK of our own, which no AMD part trusts.

A root is one PEM file: both certificates, in AMD's format, and both private keys (PKCS #8).
Its key ids are random, and so are never those of AMD's keys.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import secrets
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from hcalld.core.secret import Secret
from hcalld.crypto.sev.certificates import make_cek
from hcalld.crypto.sev.chains import verify_amd
from hcalld.crypto.sev.errors import KeyFormatError
from hcalld.crypto.sev.keys import sign_rsa
from hcallproto.payloads.sev import (
    AMD_CERTIFICATE_SIZES,
    AmdCertificate,
    Api,
    CertificateError,
    EcPublicKey,
    RsaPublicKey,
    SevCertificate,
    Usage,
    build_amd_pair,
)

ROOT_SIZES: Final = tuple(AMD_CERTIFICATE_SIZES)
"""Bits of a root's keys: 2048 as Naples has, 4096 as Rome has."""
_EXPONENT: Final = 65537
_ID_SIZE: Final = 16
_HEAD: Final = (
    "A test root of hcalld, not AMD's. No AMD part trusts it. Its keys are not encrypted.\n"
)
_LABEL: Final = "SEV {} CERTIFICATE"
_KEY_LABEL: Final = "PRIVATE KEY"
_BLOCK = re.compile(
    r"^-----BEGIN ([A-Z0-9 ]+)-----\s([A-Za-z0-9+/=\s]+)^-----END \1-----$", re.MULTILINE
)
_LINE_SIZE: Final = 64
MAX_PEM_SIZE: Final = 65536


@dataclasses.dataclass(frozen=True, slots=True)
class Root:
    """An ARK and an ASK with their private keys."""

    ark: AmdCertificate
    ask: AmdCertificate
    ark_key: RSAPrivateKey = dataclasses.field(repr=False)
    ask_key: RSAPrivateKey = dataclasses.field(repr=False)

    @classmethod
    def generate(cls, bits: int = 2048) -> Root:
        """Make a root; its entropy is OpenSSL's and the system's.

        Args:
            bits: 2048 or 4096.
        """
        if bits not in ROOT_SIZES:
            raise ValueError(f"a root's keys of {bits} bits, expected 2048 or 4096")
        ark_key, ask_key = (rsa.generate_private_key(_EXPONENT, bits) for _ in range(2))
        ark_id, ask_id = (secrets.token_bytes(_ID_SIZE) for _ in range(2))
        ark = make_amd(Usage.ARK, ark_key, ark_id, ark_key, ark_id)
        ask = make_amd(Usage.ASK, ask_key, ask_id, ark_key, ark_id)
        return cls(ark, ask, ark_key, ask_key)

    @property
    def certificates(self) -> bytes:
        """ASK, ARK, as AMD publishes its own."""
        return build_amd_pair(self.ask, self.ark)

    def make_cek(self, cek: EcPublicKey, api: Api) -> SevCertificate:
        """A chip's endorsement key, signed by the ASK.

        Args:
            cek: its public key.
            api: the version in the certificate.
        """
        return make_cek(cek, self.ask, self.ask_key, api)

    def to_pem(self) -> Secret:
        """The root as a file."""
        parts = [_HEAD]
        for certificate, key in ((self.ark, self.ark_key), (self.ask, self.ask_key)):
            parts.append(_pem(_LABEL.format(certificate.usage.name), certificate.build()))
            parts.append(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ).decode()
            )
        return Secret("".join(parts).encode())

    @classmethod
    def from_pem(cls, data: bytes) -> Root:
        """Read what ``to_pem`` wrote, in any order; keys belong to the certificates they fit.

        Raises:
            KeyFormatError: something is missing or does not fit; the text says what.
            CertificateError: a certificate is malformed, or its signature is wrong.
        """
        if len(data) > MAX_PEM_SIZE:
            raise KeyFormatError(f"root: {len(data)} bytes, expected at most {MAX_PEM_SIZE}")
        blocks = _BLOCK.findall(data.decode("latin-1").replace("\r\n", "\n"))
        keys = [_load_key(body) for label, body in blocks if label == _KEY_LABEL]
        ark, ask = (_load_certificate(blocks, usage) for usage in (Usage.ARK, Usage.ASK))
        verify_amd(ark, ark)
        verify_amd(ask, ark)
        return cls(ark, ask, _fitting(keys, ark), _fitting(keys, ask))


def make_amd(
    usage: Usage, key: RSAPrivateKey, key_id: bytes, signer: RSAPrivateKey, signer_id: bytes
) -> AmdCertificate:
    """A root certificate, signed.

    Args:
        usage: ARK or ASK.
        key: whose certificate it is.
        key_id: 16 bytes that name the key.
        signer: the ARK's key.
        signer_id: what names that.
    """
    numbers = key.public_key().public_numbers()
    unsigned = AmdCertificate(
        key_id=key_id,
        certifying_id=signer_id,
        usage=usage,
        key=RsaPublicKey(numbers.n, numbers.e, key.key_size),
    )
    signature = sign_rsa(signer, unsigned.signed(), unsigned.algorithm)
    return dataclasses.replace(unsigned, signature=signature)


def _pem(label: str, data: bytes) -> str:
    text = base64.b64encode(data).decode()
    lines = [text[start : start + _LINE_SIZE] for start in range(0, len(text), _LINE_SIZE)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def _load_key(body: str) -> RSAPrivateKey:
    try:
        key = serialization.load_der_private_key(base64.b64decode(body), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFormatError("root: a private key that is no PKCS #8, expected RSA") from None
    if not isinstance(key, RSAPrivateKey):
        raise KeyFormatError("root: a private key of another kind, expected RSA")
    return key


def _load_certificate(blocks: list[tuple[str, str]], usage: Usage) -> AmdCertificate:
    label = _LABEL.format(usage.name)
    bodies = [body for found, body in blocks if found == label]
    if len(bodies) != 1:
        raise KeyFormatError(f"root: {len(bodies)} blocks {label!r}, expected 1")
    try:
        data = base64.b64decode(bodies[0])
    except ValueError:
        raise KeyFormatError(f"root: block {label!r} is no base64") from None
    certificate = AmdCertificate.parse(data, f"{usage.name} certificate")
    if certificate.usage is not usage:
        raise CertificateError(label, "usage", certificate.usage.name, usage.name)
    return certificate


def _fitting(keys: list[RSAPrivateKey], certificate: AmdCertificate) -> RSAPrivateKey:
    for key in keys:
        if key.public_key().public_numbers().n == certificate.key.modulus:
            return key
    raise KeyFormatError(f"root: no private key fits the {certificate.usage.name} certificate")
