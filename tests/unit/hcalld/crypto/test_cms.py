# SPDX-License-Identifier: Apache-2.0
"""PKCS#7: what is taken from it, whatever else is in it, and what is refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from hcalld.crypto import cms
from hcalld.crypto.cms import CmsError, SignedData, parse_signed_data
from hcalld.crypto.signing import sign_detached
from hcalld.testing.secvars import identity

SEQUENCE, SET, INTEGER, OCTETS, OID = 0x30, 0x31, 0x02, 0x04, 0x06
SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
DATA = bytes.fromhex("06092a864886f70d010701")
SHA256_OID = bytes.fromhex("0609608648016503040201")
SHA512_OID = bytes.fromhex("0609608648016503040203")
NULL = b"\x05\x00"


def tlv(tag: int, *parts: bytes) -> bytes:
    """One element in DER."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


SHA256 = tlv(SEQUENCE, SHA256_OID, NULL)
SHA256_BARE = tlv(SEQUENCE, SHA256_OID)
SHA512 = tlv(SEQUENCE, SHA512_OID, NULL)
VERSION = tlv(INTEGER, b"\x01")


def signer(
    signature: bytes = b"signature",
    *,
    sid: bytes | None = None,
    attributes: bytes = b"",
    rest: bytes = b"",
) -> bytes:
    identifier = tlv(SEQUENCE, tlv(SEQUENCE), VERSION) if sid is None else sid
    return tlv(
        SEQUENCE, VERSION, identifier, SHA512, attributes, SHA512, tlv(OCTETS, signature), rest
    )


def signed_data(
    *signers: bytes, digests: bytes = SHA256, middle: bytes = b"", content: bytes | None = None
) -> bytes:
    inner = tlv(SEQUENCE, DATA) if content is None else content
    return tlv(SEQUENCE, VERSION, tlv(SET, digests), inner, middle, tlv(SET, *signers))


def content_info(inner: bytes, oid: bytes = SIGNED_DATA) -> bytes:
    return tlv(SEQUENCE, oid, tlv(0xA0, inner))


PLAIN = signed_data(signer())


# -- what is taken ----------------------------------------------------------------------------


@pytest.mark.parametrize("der", [PLAIN, content_info(PLAIN)], ids=["bare", "ContentInfo"])
def test_parse_when_bare_or_wrapped_then_the_signatures_are_there(der: bytes):
    assert parse_signed_data(der) == SignedData((b"signature",), False)


@pytest.mark.parametrize("digests", [SHA256, SHA256_BARE, SHA256 + SHA512])
def test_parse_when_the_first_digest_is_sha256_then_others_may_follow(digests: bytes):
    assert parse_signed_data(signed_data(signer(), digests=digests)).signatures


def test_parse_when_there_are_several_signers_then_all_signatures_are_given():
    der = signed_data(signer(b"one"), signer(b"two"))
    assert parse_signed_data(der).signatures == (b"one", b"two")


@pytest.mark.parametrize(
    "der",
    [
        signed_data(signer(sid=tlv(0x80, b"key identifier"))),
        signed_data(signer(rest=tlv(0xA1, tlv(SEQUENCE, b"whatever")))),
        signed_data(signer(), middle=tlv(0xA0, tlv(SEQUENCE, b"no certificate"))),
        signed_data(signer(), middle=tlv(0xA0) + tlv(0xA1, tlv(OCTETS, b"no list"))),
        signed_data(signer(), content=tlv(SEQUENCE, SHA512_OID, tlv(0xA0, tlv(OCTETS, b"x")))),
    ],
    ids=["key identifier", "unsigned attributes", "certificates", "CRLs", "content"],
)
def test_parse_when_it_holds_what_is_not_looked_at_then_that_may_be_anything(der: bytes):
    assert parse_signed_data(der) == SignedData((b"signature",), False)


def test_parse_when_attributes_are_signed_then_that_is_told():
    der = signed_data(signer(attributes=tlv(0xA0, tlv(SEQUENCE, DATA))))
    assert parse_signed_data(der) == SignedData((b"signature",), True)


@pytest.mark.parametrize("padding", [0, 0x80 - 40, 0x100, 0x10000 - 200])
def test_parse_when_lengths_take_more_bytes_then_both_forms_are_told_apart(padding: int):
    der = signed_data(signer(bytes(max(padding, 1))))
    assert parse_signed_data(der).signatures == parse_signed_data(content_info(der)).signatures


def test_parse_when_signed_here_then_the_signature_is_found():
    pair = identity("cms")
    der = sign_detached(b"data", pair.certificate, pair.key)
    (signature,) = parse_signed_data(der).signatures
    assert len(signature) == 256
    assert not parse_signed_data(der).has_signed_attributes


def test_sign_when_the_key_is_another_then_it_is_refused():
    with pytest.raises(ValueError, match="not the one of the certificate"):
        sign_detached(b"data", identity("cms").certificate, identity("another").key)


def test_parse_when_another_maker_signed_with_attributes_then_that_is_told():
    pair = identity("cms")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(b"data")
    builder = builder.add_signer(pair.certificate, pair.key, hashes.SHA256())
    der = builder.sign(Encoding.DER, [pkcs7.PKCS7Options.DetachedSignature])
    assert parse_signed_data(der).has_signed_attributes


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "digests",
    [b"", SHA512, tlv(SEQUENCE, SHA512_OID) + SHA256, tlv(SEQUENCE, SHA256_OID, b"\4\0"), VERSION],
    ids=["none", "SHA-512", "SHA-512 first", "parameters", "no sequence"],
)
def test_parse_when_the_first_digest_is_not_sha256_then_it_is_refused(digests: bytes):
    with pytest.raises(CmsError, match="SHA-256"):
        parse_signed_data(signed_data(signer(), digests=digests))


@pytest.mark.parametrize("count", [0, cms.MAX_SIGNERS + 1])
def test_parse_when_there_are_none_or_too_many_signers_then_it_is_refused(count: int):
    der = signed_data(*(signer(bytes([number])) for number in range(count)))
    with pytest.raises(CmsError, match=f"has {count} signers, expected 1 to 16"):
        parse_signed_data(der)


def test_parse_when_there_are_as_many_signers_as_may_be_then_all_are_given():
    der = signed_data(*(signer(bytes([number])) for number in range(cms.MAX_SIGNERS)))
    assert len(parse_signed_data(der).signatures) == cms.MAX_SIGNERS


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30",
        b"\x30\x80",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\xff" + bytes(200),
        b"\x30\x00",
        b"\x30\x02\x06\x00",
        tlv(SEQUENCE, SIGNED_DATA),
        tlv(SEQUENCE, VERSION),
        content_info(PLAIN, oid=DATA),
        content_info(b""),
        content_info(PLAIN + PLAIN),
        tlv(SEQUENCE, SIGNED_DATA, tlv(0xA1, PLAIN)),
        PLAIN + b"\0",
        content_info(PLAIN) + b"\0",
        PLAIN[:-1],
        tlv(SET, PLAIN[2:]),
        tlv(SEQUENCE, VERSION, tlv(SEQUENCE, SHA256), tlv(SEQUENCE, DATA), tlv(SET, signer())),
        signed_data(tlv(SEQUENCE, VERSION)),
        signed_data(signer(b"two"), signer(b"one")),
        signed_data(signer(rest=b"\0\0")),
        b"\x30\x80" + PLAIN[2:] + b"\0\0",
        b"\x30\x81" + PLAIN[1:],
    ],
)
def test_parse_when_not_signed_data_in_der_then_it_is_refused(der: bytes):
    with pytest.raises(CmsError, match="not SignedData in DER"):
        parse_signed_data(der)


def test_parse_when_too_long_then_it_is_refused_unread():
    with pytest.raises(CmsError, match="has 65536 bytes, expected at most 65535"):
        parse_signed_data(bytes(65536))


@pytest.mark.parametrize("der", [PLAIN, content_info(PLAIN)], ids=["bare", "ContentInfo"])
def test_parse_when_cut_anywhere_then_it_is_refused(der: bytes):
    for size in range(len(der)):
        with pytest.raises(CmsError):
            parse_signed_data(der[:size])


def test_parse_when_deeply_nested_then_nothing_overflows():
    der = b""
    while len(der) < 60000:
        der = tlv(SEQUENCE, der)
    with pytest.raises(CmsError):
        parse_signed_data(der)
    assert parse_signed_data(signed_data(signer(), content=der)).signatures
