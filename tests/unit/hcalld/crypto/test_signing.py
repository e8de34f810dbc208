# SPDX-License-Identifier: Apache-2.0
"""Private keys and certificates that are made here; ``test_cms.py`` has the signatures."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from hcalld.crypto.signing import (
    PassphraseNeededError,
    PrivateKeyError,
    load_private_key,
    make_identity,
)
from hcalld.testing.secvars import identity

BEGIN = datetime.datetime(2026, 1, 1)
END = datetime.datetime(2027, 1, 1)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, secret: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(secret) if secret else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_key_when_in_pem_then_it_is_loaded(form: PrivateFormat):
    key = identity("signing").key
    data = key.private_bytes(Encoding.PEM, form, NoEncryption())
    assert load_private_key(data).private_numbers() == key.private_numbers()


def test_key_when_encrypted_then_a_passphrase_is_needed():
    key = identity("signing").key
    data = pem(key, b"secret")
    with pytest.raises(PassphraseNeededError):
        load_private_key(data)
    assert load_private_key(data, b"secret").private_numbers() == key.private_numbers()
    with pytest.raises(PrivateKeyError, match="wrong passphrase"):
        load_private_key(data, b"wrong")


def test_key_when_not_encrypted_then_a_passphrase_is_refused():
    with pytest.raises(PrivateKeyError, match="the private key: "):
        load_private_key(pem(identity("signing").key), b"secret")


@pytest.mark.parametrize("data", [b"", b"text", identity("signing").certificate_pem])
def test_key_when_there_is_none_then_it_is_refused(data: bytes):
    with pytest.raises(PrivateKeyError, match=r"^no private key in PEM$"):
        load_private_key(data)


def test_key_when_not_rsa_or_of_another_size_then_it_is_refused():
    with pytest.raises(PrivateKeyError, match="not an RSA key"):
        load_private_key(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(PrivateKeyError, match="has 1024 bits, expected 2048"):
        load_private_key(pem(rsa.generate_private_key(65537, 1024)))


def test_identity_when_made_then_key_and_certificate_belong_together():
    made = make_identity("name", 2048, is_ca=True, not_before=BEGIN, not_after=END)
    assert made.certificate.public_key() == made.key.public_key()
    assert x509.load_der_x509_certificate(made.der) == made.certificate
    assert x509.load_pem_x509_certificate(made.certificate_pem) == made.certificate
    assert load_private_key(made.key_pem).private_numbers() == made.key.private_numbers()
    made.certificate.verify_directly_issued_by(made.certificate)


@pytest.mark.parametrize("is_ca", [True, False])
def test_identity_when_issued_then_it_leads_to_its_issuer(is_ca: bool):
    issuer = identity("issuer")
    made = make_identity("leaf", 2048, is_ca=is_ca, not_before=BEGIN, not_after=END, issuer=issuer)
    made.certificate.verify_directly_issued_by(issuer.certificate)
    extensions = made.certificate.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is is_ca
    assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is is_ca
    by = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    own = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert by == own.value.digest
