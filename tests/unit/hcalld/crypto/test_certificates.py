# SPDX-License-Identifier: Apache-2.0
"""Certificates: what is looked at, what is not, and what is refused."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hcalld.crypto.certificates import CertificateError, load_certificate
from hcalld.testing.secvars import identity

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])


def builder(public_key: Any) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(public_key)
        .serial_number(1)
        .not_valid_before(datetime.datetime(2001, 1, 1))
        .not_valid_after(datetime.datetime(2001, 1, 2))
    )


def signed(certificate: x509.CertificateBuilder, key: Any) -> bytes:
    return certificate.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_load_when_rsa_of_a_good_size_then_its_key_verifies(bits: int):
    pair = identity(f"rsa{bits}", bits)
    certificate = load_certificate(pair.der)
    signature = pair.key.sign(b"data", padding.PKCS1v15(), hashes.SHA256())
    digest = hashlib.sha256(b"data").digest()
    assert certificate.has_signed(signature, digest)
    assert not certificate.has_signed(signature, hashlib.sha256(b"other").digest())
    assert not certificate.has_signed(signature[1:], digest)
    assert not certificate.has_signed(b"", digest)


def test_load_when_of_the_same_bytes_then_it_is_done_once():
    der = identity("cached").der
    assert load_certificate(der) is load_certificate(bytes(bytearray(der)))


def test_load_when_the_signature_is_another_scheme_then_it_does_not_verify():
    pair = identity("scheme")
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    digest = hashlib.sha256(b"data").digest()
    certificate = load_certificate(pair.der)
    assert not certificate.has_signed(pair.key.sign(b"data", pss, hashes.SHA256()), digest)
    sha512 = pair.key.sign(b"data", padding.PKCS1v15(), hashes.SHA512())
    assert not certificate.has_signed(sha512, digest)


def test_load_when_the_certificates_own_signature_is_wrong_then_nobody_looks():
    der = bytearray(identity("altered").der)
    der[-1] ^= 1
    assert load_certificate(bytes(der)).key


@pytest.mark.parametrize("bits", [1024, 2047, 2056, 8192])
def test_load_when_the_key_has_another_size_then_it_is_refused(bits: int):
    # No such key is made, only its public half: a certificate's own signature is not looked at.
    public = rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) + 1).public_key()
    der = signed(builder(public), identity("signer").key)
    with pytest.raises(CertificateError, match=f"has {bits} bits, expected 2048, 3072 or 4096"):
        load_certificate(der)


@pytest.mark.parametrize("bits", [2, 17, 32])
def test_load_when_the_exponent_is_short_then_it_is_taken(bits: int):
    assert load_certificate(with_exponent((1 << (bits - 1)) + 1)).key


@pytest.mark.parametrize("bits", [33, 2047])
def test_load_when_the_exponent_is_long_then_it_is_refused(bits: int):
    der = with_exponent((1 << (bits - 1)) + 1)
    with pytest.raises(CertificateError, match=f"exponent has {bits} bits, expected at most 32"):
        load_certificate(der)


def with_exponent(exponent: int) -> bytes:
    pair = identity("signer")
    public = rsa.RSAPublicNumbers(exponent, pair.key.public_key().public_numbers().n).public_key()
    return signed(builder(public), pair.key)


@pytest.mark.parametrize("serial", [b"\x00", b"\xff"])
def test_load_when_the_serial_number_is_not_positive_then_nobody_looks(serial: bytes):
    pair = identity("serial")
    der = signed(builder(pair.key.public_key()), pair.key)
    assert der.count(b"\x02\x01\x01\x30") == 1
    assert load_certificate(der.replace(b"\x02\x01\x01\x30", b"\x02\x01" + serial + b"\x30")).key


def test_load_when_any_byte_is_changed_then_it_is_used_or_refused():
    pair = identity("bytes")
    names = set()
    for position in range(len(pair.der)):
        for change in (0x01, 0x80, 0xFF):
            der = bytearray(pair.der)
            der[position] ^= change
            try:
                certificate = load_certificate(bytes(der))
            except CertificateError:
                continue
            names.add(certificate.name())
            assert certificate.is_ca() in (True, False)
            assert not certificate.has_signed(b"\1" * 256, bytes(32))
    assert {"CN=bytes", "(unreadable name)"} <= names


def test_load_when_the_key_is_elliptic_then_it_is_refused():
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(CertificateError, match="not an RSA key"):
        load_certificate(signed(builder(key.public_key()), key))


def test_load_when_x509_v1_then_it_is_refused():
    pair = identity("version")
    plain = signed(builder(pair.key.public_key()), pair.key)
    version3 = bytes.fromhex("a003020102")
    assert plain.count(version3) == 1
    # Without its version a certificate is v1; two lengths around it shrink by 5.
    inner = plain.index(version3)
    body = plain[inner + 5 :]
    tbs_size = int.from_bytes(plain[inner - 2 : inner], "big") - 5
    outer_size = int.from_bytes(plain[2:4], "big") - 5
    v1 = b"\x30\x82" + outer_size.to_bytes(2, "big")
    v1 += b"\x30\x82" + tbs_size.to_bytes(2, "big") + body
    with pytest.raises(CertificateError, match=r"X\.509 v1, expected v3"):
        load_certificate(v1)


@pytest.mark.parametrize("der", [b"", b"\x30", b"garbage", b"\x30\x82\xff\xff" + bytes(100)])
def test_load_when_not_a_certificate_then_it_is_refused(der: bytes):
    with pytest.raises(CertificateError, match=r"not an X\.509 certificate"):
        load_certificate(der)


def test_load_when_something_follows_then_it_is_refused():
    with pytest.raises(CertificateError, match=r"not an X\.509 certificate"):
        load_certificate(identity("trailing").der + b"\0")


def test_load_when_too_long_then_it_is_refused_unread():
    with pytest.raises(CertificateError, match="has 65536 bytes"):
        load_certificate(bytes(65536))


def test_ca_when_basic_constraints_say_so_then_it_is():
    assert load_certificate(identity("ca").der).is_ca()
    assert not load_certificate(identity("leaf", is_ca=False).der).is_ca()


def test_ca_when_there_are_no_basic_constraints_then_it_is_not():
    pair = identity("bare")
    assert not load_certificate(signed(builder(pair.key.public_key()), pair.key)).is_ca()


def test_ca_when_the_extension_is_malformed_then_it_is_not():
    pair = identity("malformed")
    oid = x509.BasicConstraints.oid
    extension = x509.UnrecognizedExtension(oid, b"\xff\xff")
    der = signed(builder(pair.key.public_key()).add_extension(extension, critical=True), pair.key)
    assert not load_certificate(der).is_ca()
