# SPDX-License-Identifier: Apache-2.0
"""PKCS#7 SignedData (RFC 5652) as signed updates carry it: parsed from DER, never trusted.

What a verifier of signed updates takes from it are its signatures, and that its first
digest algorithm is SHA-256. Certificates, issuers, serial numbers, attributes and the
algorithms inside a signer's information say nothing that is believed, so they are not
even decoded: any key that the caller trusts is tried on any signature (IBM libstb-secvar
``crypto_openssl.c``; the published updates are verified so by firmware).

This is the only module that knows ``cryptography.hazmat.asn1``, which its makers call
unstable: hence the bounded version in ``pyproject.toml``. It decodes strict DER: no
indefinite lengths, no trailing bytes, sets in order.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

MAX_SIZE: Final = 65535
"""A signed update is no longer than this, so a PKCS#7 in one is not either."""

MAX_SIGNERS: Final = 16
"""Ours: each signature is tried with each key, and a guest chooses how many there are."""

_SIGNED_DATA: Final = ObjectIdentifier("1.2.840.113549.1.7.2")
_OBJECT_IDENTIFIER_TAG: Final = b"\x06"
_SEQUENCE_TAG: Final = b"\x30"

_SHA256_OID: Final = bytes.fromhex("0609608648016503040201")
_SHA256: Final = (_SHA256_OID, _SHA256_OID + b"\x05\x00")
"""Content of an AlgorithmIdentifier for SHA-256: without parameters, and with NULL."""


class CmsError(ValueError):
    """Not a PKCS#7 SignedData that can be used; the text says why."""


@asn1.sequence
class _SignerInfo:
    version: int
    signer: asn1.TLV
    digest_algorithm: asn1.TLV
    signed_attributes: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    signature_algorithm: asn1.TLV
    signature: bytes
    unsigned_attributes: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]


@asn1.sequence
class _SignedData:
    version: int
    digest_algorithms: asn1.SetOf[asn1.TLV]
    content: asn1.TLV
    certificates: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    crls: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]
    signer_infos: asn1.SetOf[_SignerInfo]


@asn1.sequence
class _ContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[_SignedData, asn1.Explicit(0)]


@dataclasses.dataclass(frozen=True, slots=True)
class SignedData:
    """What is taken from a PKCS#7."""

    signatures: tuple[bytes, ...]
    """One a signer; at least one."""
    has_signed_attributes: bool
    """True if a signer signed attributes and not the hash itself: no key will match."""


def parse_signed_data(der: bytes) -> SignedData:
    """Parse a ContentInfo with a SignedData, or a bare SignedData.

    Raises:
        CmsError: neither, not DER, not SHA-256, no signer, or too many.
    """
    if len(der) > MAX_SIZE:
        raise CmsError(f"the PKCS#7 has {len(der)} bytes, expected at most {MAX_SIZE}")
    try:
        parsed = _decode(der)
    except (ValueError, TypeError, OverflowError) as error:
        raise CmsError(f"the PKCS#7 is not SignedData in DER: {error}") from None
    digests = parsed.digest_algorithms.as_list()
    if not digests or digests[0].tag_bytes != _SEQUENCE_TAG or digests[0].data not in _SHA256:
        raise CmsError("the first digest algorithm of the PKCS#7 is not SHA-256")
    signers = parsed.signer_infos.as_list()
    if not 1 <= len(signers) <= MAX_SIGNERS:
        raise CmsError(f"the PKCS#7 has {len(signers)} signers, expected 1 to {MAX_SIGNERS}")
    return SignedData(
        tuple([signer.signature for signer in signers]),
        any(signer.signed_attributes is not None for signer in signers),
    )


def _decode(der: bytes) -> _SignedData:
    if _first_tag(der) != _OBJECT_IDENTIFIER_TAG:
        return asn1.decode_der(_SignedData, der)
    info = asn1.decode_der(_ContentInfo, der)
    if info.content_type != _SIGNED_DATA:
        raise ValueError(f"content type {info.content_type.dotted_string}")
    return info.content


def _first_tag(der: bytes) -> bytes:
    """Tag of a sequence's first element; empty if it is malformed."""
    head = 2 + (der[1] & 0x7F if der[1:2] >= b"\x80" else 0)
    return der[head : head + 1]
