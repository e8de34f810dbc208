# SPDX-License-Identifier: Apache-2.0
"""The ciphers of an ESM blob: RSA-OAEP for its key, AES-256-GCM for all else.

Source: open-power/svm-tools (``svm_tool/esm/esm.py``) for what is made, open-power/ultravisor
(``svm/svm-crypto.c``, ``svm/svm-esmb.c``) for what is read. Of the format's making, and not of
ours: the GCM nonce has 16 bytes, nothing but the ciphertext is authenticated (not which file
it is), and a recipient is named by the digest of the PEM file that its key was in.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hcalld.core.secret import Secret

KEY_SIZE: Final = 32
"""Bytes of the key that the digests and the files of a blob are encrypted with."""
IV_SIZE: Final = 16
MAC_SIZE: Final = 16
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
FINGERPRINT_SIZE: Final = 32

_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


class LockboxError(ValueError):
    """A key is not usable, or does not open what it is tried on; the text says why."""


# -- the key's lockbox ----------------------------------------------------------------------


def seal_key(public: RSAPublicKey, key: Secret) -> bytes:
    """Encrypt a blob's key for a recipient."""
    return public.encrypt(key.reveal(), _OAEP)


def open_key(private: RSAPrivateKey, sealed: bytes) -> Secret:
    """Decrypt a blob's key with a recipient's private key.

    Raises:
        LockboxError: it was sealed for another, was altered, or holds no such key.
    """
    try:
        key = private.decrypt(sealed, _OAEP)
    except ValueError:
        raise LockboxError("the private key does not open it") from None
    return check_key(key)


def check_key(key: bytes) -> Secret:
    """A decrypted key, which must have the size of one.

    Raises:
        LockboxError: it has another.
    """
    if len(key) != KEY_SIZE:
        raise LockboxError(f"the lockbox holds {len(key)} bytes, expected a key of {KEY_SIZE}")
    return Secret(key)


# -- recipients -----------------------------------------------------------------------------


def fingerprint(pem: bytes) -> bytes:
    """What a recipient is called in a blob: the digest of its PEM file, newlines and all."""
    return hashlib.sha256(pem).digest()


def load_public_key(pem: bytes) -> RSAPublicKey:
    """A recipient's public key.

    Raises:
        LockboxError: it is none that can be used.
    """
    if b"PRIVATE KEY" in pem:
        raise LockboxError("a private key, expected a public one: openssl pkey -pubout makes it")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise LockboxError("no public key in PEM") from None
    if not isinstance(key, RSAPublicKey):
        raise LockboxError("the public key is not an RSA key")
    check_bits(key.key_size)
    return key


def check_bits(bits: int) -> None:
    """Raises LockboxError unless an RSA key has a size that is taken."""
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
        raise LockboxError(
            f"the RSA key has {bits} bits, expected {MIN_RSA_BITS} to {MAX_RSA_BITS}"
        )


def public_key_pem(public: RSAPublicKey) -> bytes:
    """A public key as openssl and tpm2-tools write it, with a newline at its end."""
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def fingerprints(public: RSAPublicKey) -> tuple[bytes, ...]:
    """The names that a key may have: PEM has two forms, and tools differ in the last newline."""
    pkcs1 = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    forms = (public_key_pem(public), pkcs1)
    return tuple(fingerprint(pem) for form in forms for pem in (form, form.rstrip(b"\n")))


# -- what the key encrypts ------------------------------------------------------------------


def encrypt(key: Secret, iv: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """Encrypt under a blob's key; gives the ciphertext and its MAC."""
    sealed = AESGCM(key.reveal()).encrypt(iv, plaintext, None)
    return sealed[:-MAC_SIZE], sealed[-MAC_SIZE:]


def decrypt(key: Secret, iv: bytes, mac: bytes, ciphertext: bytes) -> bytes:
    """Decrypt under a blob's key.

    Raises:
        LockboxError: it was altered, or encrypted under another key.
    """
    try:
        return AESGCM(key.reveal()).decrypt(iv, ciphertext + mac, None)
    except InvalidTag:
        raise LockboxError("altered, or encrypted under another key") from None
