# SPDX-License-Identifier: Apache-2.0
"""Certificates of secure variables: X.509 v3 with an RSA key, and nothing else of it.

What the firmware asks of a certificate is its version, its key's kind and size, and of
one in trustedcadb that it is a CA's. Not looked at: its own signature, its dates, its
names and usages (IBM libstb-secvar ``crypto_openssl.c``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256

KEY_SIZES: Final = (2048, 3072, 4096)
"""Bits of a modulus. 3072 has no bit in ``signedupdatealgorithms``, but is accepted."""

MAX_EXPONENT_BITS: Final = 32
"""Of a public exponent, where 17 bits are usual. A guest chooses its keys, and the time of
a verification grows with the exponent."""

MAX_SIZE: Final = 65535
_MAX_CACHED: Final = 128

_PADDING: Final = PKCS1v15()
_SHA256: Final = Prehashed(SHA256())

_BAD_DER = (
    KeyError,
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises at bytes that are no certificate, or one it cannot read."""


class CertificateError(ValueError):
    """Not a certificate that a secure variable can hold; the text says why."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """A certificate whose key can verify signed updates."""

    x509: x509.Certificate
    key: RSAPublicKey

    def has_signed(self, signature: bytes, digest: bytes) -> bool:
        """Whether the signature is its key's: RSASSA-PKCS1-v1_5 over a SHA-256 hash."""
        try:
            self.key.verify(signature, digest, _PADDING, _SHA256)
        except InvalidSignature:
            return False
        return True

    def name(self) -> str:
        """Its subject, for people; what cannot be read is said to be so."""
        try:
            with _no_warnings():
                return self.x509.subject.rfc4514_string()
        except _BAD_DER:
            return "(unreadable name)"

    def is_ca(self) -> bool:
        """Whether its basic constraints say that it is a CA's."""
        try:
            with _no_warnings():
                constraints = self.x509.extensions.get_extension_for_class(x509.BasicConstraints)
        except (*_BAD_DER, x509.ExtensionNotFound):
            return False
        return constraints.value.ca


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Serial numbers below 1 and odd names are against RFC 5280, and no business of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.lru_cache(maxsize=_MAX_CACHED)
def load_certificate(der: bytes) -> Certificate:
    """Load a certificate; the last ones that were good are kept.

    Raises:
        CertificateError: not X.509 v3 in DER, or not RSA of a size that is accepted.
    """
    if len(der) > MAX_SIZE:
        raise CertificateError(f"the certificate has {len(der)} bytes, expected at most {MAX_SIZE}")
    try:
        with _no_warnings():
            certificate = x509.load_der_x509_certificate(der)
        version = certificate.version
        key = certificate.public_key()
    except _BAD_DER as error:
        raise CertificateError(f"not an X.509 certificate in DER: {error}") from None
    if version is not x509.Version.v3:
        raise CertificateError(f"the certificate is X.509 {version.name}, expected v3")
    if not isinstance(key, RSAPublicKey):
        raise CertificateError("the certificate's key is not an RSA key")
    if key.key_size not in KEY_SIZES:
        raise CertificateError(
            f"the certificate's RSA key has {key.key_size} bits, expected 2048, 3072 or 4096"
        )
    exponent = key.public_numbers().e.bit_length()
    if exponent > MAX_EXPONENT_BITS:
        raise CertificateError(
            f"the certificate's public exponent has {exponent} bits, expected at most "
            f"{MAX_EXPONENT_BITS}"
        )
    return Certificate(certificate, key)
