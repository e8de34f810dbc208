# SPDX-License-Identifier: Apache-2.0
"""Keys of certificates: private ones made of entropy, public ones looked at before use."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from hcalld.core.secret import Secret
from hcalld.crypto.sev.errors import KeyFormatError
from hcallproto.payloads.sev import (
    Algorithm,
    CertificateError,
    Curve,
    EcPublicKey,
    RsaPublicKey,
    Slot,
)

SCALAR_SIZE: Final = 48
"""Bytes of a P-384 private key, big-endian."""
KEY_ENTROPY_SIZE: Final = 56
"""Bytes of entropy that a P-384 private key is made of: 64 bits more than its own."""
_P384: Final = ec.SECP384R1()
_FIELD: Final = 2**384 - 2**128 - 2**96 + 2**32 - 1
_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
MAX_EXPONENT_BITS: Final = 64
"""Of RSA's public exponent: a verification's time grows with it, and a peer chooses it."""


class EcPrivateKey:
    """A P-384 private key."""

    __slots__ = ("_key", "public")

    def __init__(self, scalar: Secret) -> None:
        """Take the number, 48 bytes big-endian.

        Raises:
            KeyFormatError: another size, or not below the curve's order, or zero.
        """
        value = int.from_bytes(scalar.reveal())
        if len(scalar) != SCALAR_SIZE or not 0 < value < _ORDER:
            raise KeyFormatError(
                f"not a P-384 private key, expected {SCALAR_SIZE} bytes that are a number from 1 "
                "to the curve's order"
            )
        self._key = ec.derive_private_key(value, _P384)
        numbers = self._key.public_key().public_numbers()
        self.public: Final = EcPublicKey(numbers.x, numbers.y)
        """What a certificate shows."""

    @classmethod
    def from_entropy(cls, entropy: bytes) -> EcPrivateKey:
        """Make a key of 56 random bytes, the same of the same (FIPS 186-5, A.2.1)."""
        if len(entropy) != KEY_ENTROPY_SIZE:
            raise ValueError(f"{len(entropy)} bytes of entropy, expected {KEY_ENTROPY_SIZE}")
        value = int.from_bytes(entropy) % (_ORDER - 1) + 1
        return cls(Secret(value.to_bytes(SCALAR_SIZE)))

    @property
    def scalar(self) -> Secret:
        """The number, as the constructor takes it."""
        value = self._key.private_numbers().private_value
        return Secret(value.to_bytes(SCALAR_SIZE))

    def exchange(self, peer: EcPublicKey) -> Secret:
        """Agree on a secret: the shared point's X coordinate, 48 bytes big-endian.

        Raises:
            CertificateError: not a point on P-384.
        """
        return Secret(self._key.exchange(ec.ECDH(), ec_public(peer, "peer's key")))

    def sign(self, data: bytes, algorithm: Algorithm = Algorithm.ECDSA_SHA256) -> tuple[int, int]:
        """The numbers r and s of a signature; always the same ones (RFC 6979)."""
        ecdsa = ec.ECDSA(_hash(algorithm), deterministic_signing=True)
        return decode_dss_signature(self._key.sign(data, ecdsa))


def ec_public(key: EcPublicKey, what: str) -> ec.EllipticCurvePublicKey:
    """A key that can be used.

    Args:
        key: as a certificate shows it.
        what: whose, for errors.

    Raises:
        CertificateError: another curve, or no point on it.
    """
    if key.curve != Curve.P384:
        raise CertificateError(what, "curve", key.curve, f"{Curve.P384:d} (P-384)")
    try:
        # OpenSSL would take a coordinate modulo the field, so that a key had many forms.
        if not (key.x < _FIELD and key.y < _FIELD):
            raise ValueError
        return ec.EllipticCurvePublicNumbers(key.x, key.y, _P384).public_key()
    except ValueError:
        raise CertificateError(what, "public key", "no point on P-384", "one") from None


def rsa_public(key: RsaPublicKey, what: str) -> rsa.RSAPublicKey:
    """A key that can be used.

    Raises:
        CertificateError: not RSA's numbers, or of another size than it says.
    """
    bits = key.modulus.bit_length()
    if bits != key.size:
        raise CertificateError(what, "modulus", f"of {bits} bits", f"{key.size} bits")
    if key.exponent.bit_length() > MAX_EXPONENT_BITS:
        size = key.exponent.bit_length()
        raise CertificateError(
            what, "exponent", f"of {size} bits", f"at most {MAX_EXPONENT_BITS} bits"
        )
    try:
        # OpenSSL takes an even modulus, with which nothing verifies; it is no key.
        if not key.modulus & 1:
            raise ValueError
        return rsa.RSAPublicNumbers(key.exponent, key.modulus).public_key()
    except ValueError:
        raise CertificateError(what, "public key", "no RSA key", "one") from None


def sign_rsa(key: rsa.RSAPrivateKey, data: bytes, algorithm: Algorithm) -> int:
    """An RSA-PSS signature as a number; its salt is random."""
    return int.from_bytes(key.sign(data, _pss(algorithm), _hash(algorithm)))


def is_signature(
    key: EcPublicKey | RsaPublicKey, algorithm: Algorithm, slot: Slot, data: bytes, what: str
) -> bool:
    """Whether a slot holds a key's signature of the data.

    Args:
        key: the signer's.
        algorithm: of the signer's key.
        slot: where the signature is.
        data: what is signed.
        what: the signer's name, for errors.

    Raises:
        CertificateError: the signer's key cannot be used.
    """
    try:
        if isinstance(key, RsaPublicKey):
            public = rsa_public(key, what)
            size = key.size // 8
            if slot.rsa_signature().bit_length() > 8 * size:
                return False
            signature = slot.rsa_signature().to_bytes(size)
            public.verify(signature, data, _pss(algorithm), _hash(algorithm))
        else:
            der = encode_dss_signature(*slot.ec_signature())
            ec_public(key, what).verify(der, data, ec.ECDSA(_hash(algorithm)))
    except InvalidSignature:
        return False
    return True


def _hash(algorithm: Algorithm) -> SHA256 | SHA384:
    return SHA384() if algorithm.is_sha384 else SHA256()


def _pss(algorithm: Algorithm) -> PSS:
    return PSS(MGF1(_hash(algorithm)), PSS.DIGEST_LENGTH)
