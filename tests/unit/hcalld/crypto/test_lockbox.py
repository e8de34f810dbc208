# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.esm import private_key, private_pem, public_pem

from hcalld.core.secret import Secret
from hcalld.crypto.lockbox import (
    LockboxError,
    decrypt,
    encrypt,
    fingerprint,
    fingerprints,
    load_public_key,
    open_key,
    public_key_pem,
    seal_key,
)

KEY = Secret(bytes(range(32)))


def test_key_when_sealed_then_its_recipient_opens_it():
    sealed = seal_key(private_key(1).public_key(), KEY)
    assert open_key(private_key(1), sealed) == KEY
    for wrong in (sealed[:-1], sealed + b"\0", sealed[:-1] + bytes([sealed[-1] ^ 1]), b""):
        with pytest.raises(LockboxError, match="does not open"):
            open_key(private_key(1), wrong)
    with pytest.raises(LockboxError, match="does not open"):
        open_key(private_key(2), sealed)


def test_key_when_it_has_another_size_then_refused():
    sealed = seal_key(private_key(1).public_key(), Secret(bytes(16)))
    with pytest.raises(LockboxError, match="holds 16 bytes, expected a key of 32"):
        open_key(private_key(1), sealed)


def test_public_key_when_loaded_then_it_is_rsa():
    assert public_key_pem(load_public_key(public_pem(1))) == public_pem(1)
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = curve.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for wrong, why in (
        (private_pem(1), "a private key"),
        (b"nothing", "no public key"),
        (pem, "not an RSA key"),
        (public_pem(1, 1024), "1024 bits, expected 2048 to 8192"),
    ):
        with pytest.raises(LockboxError, match=why):
            load_public_key(wrong)


def test_fingerprints_when_listed_then_each_form_of_the_file_is_there():
    pem = public_pem(1)
    found = fingerprints(private_key(1).public_key())
    assert fingerprint(pem) == hashlib.sha256(pem).digest()
    assert found[:2] == (fingerprint(pem), fingerprint(pem.rstrip(b"\n")))
    assert len(set(found)) == 4


def test_encrypt_when_anything_is_altered_then_it_does_not_decrypt():
    iv = bytes(range(16))
    ciphertext, mac = encrypt(KEY, iv, b"plaintext")
    assert decrypt(KEY, iv, mac, ciphertext) == b"plaintext"
    for values in (
        (Secret(bytes(32)), iv, mac, ciphertext),
        (KEY, bytes(16), mac, ciphertext),
        (KEY, iv, bytes(16), ciphertext),
        (KEY, iv, mac, ciphertext[:-1]),
    ):
        with pytest.raises(LockboxError, match="altered"):
            decrypt(*values)
