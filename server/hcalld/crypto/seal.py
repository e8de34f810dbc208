# SPDX-License-Identifier: Apache-2.0
"""Values encrypted at rest: AES-256-GCM, bound to what they are.

Layout of a sealed value::

    version  u8        1
    salt     16 bytes  names the key
    counter  12 bytes  the nonce
    ciphertext, then the tag of 16 bytes

The key of a value is HKDF-SHA256(partition key, salt); the partition key is derived from
the state directory's master key and the partition's name. A ``Sealer`` draws its salt
once, at random, when it is made, and counts its nonces from 0. So a (key, nonce) pair
repeats only if two sealers draw the same 128-bit salt: not because a process was killed,
a machine was cloned, or an old backup was restored and written to again, as it could be
with a counter that is stored, and not after 2^32 values, as with random nonces (NIST SP
800-38D, 8.3).

The additional data are the version and the caller's identity of the value, so a value
that was moved to another record, partition or run does not open. An old value put back
in its own place does: whoever can write the file can also put the whole old file back.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hcalld.core.secret import Secret

KEY_SIZE: Final = 32
SALT_SIZE: Final = 16
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
VERSION: Final = b"\x01"

_HEAD_SIZE: Final = 1 + SALT_SIZE + NONCE_SIZE
OVERHEAD: Final = _HEAD_SIZE + TAG_SIZE
"""How many bytes a sealed value has more than the plain one."""

_MAX_CIPHERS: Final = 64
"""Keys kept ready for opening; one for each time the store was opened and written to."""


class SealError(Exception):
    """A sealed value does not open: altered, moved, or another key."""


def derive_key(master: Secret, purpose: str) -> Secret:
    """A key for one purpose only, from a master key.

    Args:
        master: at least 16 bytes of full entropy.
        purpose: what for and whose; different texts give independent keys.
    """
    hkdf = HKDF(SHA256(), KEY_SIZE, salt=None, info=b"hcalld:" + purpose.encode())
    return Secret(hkdf.derive(master.reveal()))


class Sealer:
    """Seals and opens the values of one partition.

    Args:
        key: the partition's key, 32 bytes.
        salt: 16 random bytes, fresh for each sealer.
    """

    def __init__(self, key: Secret, salt: bytes) -> None:
        if len(key) != KEY_SIZE or len(salt) != SALT_SIZE:
            raise ValueError(
                f"key of {len(key)} and salt of {len(salt)} bytes, expected {KEY_SIZE} and "
                f"{SALT_SIZE}"
            )
        self._key = key
        self._salt = salt
        self._head = VERSION + salt
        self._counter = 0
        self._ciphers: dict[bytes, AESGCM] = {}

    def _cipher(self, salt: bytes) -> AESGCM:
        cipher = self._ciphers.get(salt)
        if cipher is None:
            if len(self._ciphers) >= _MAX_CIPHERS:
                self._ciphers.clear()
            hkdf = HKDF(SHA256(), KEY_SIZE, salt=salt, info=b"hcalld:sealed value")
            cipher = self._ciphers[salt] = AESGCM(hkdf.derive(self._key.reveal()))
        return cipher

    def seal(self, value: bytes, identity: bytes) -> bytes:
        """Encrypt ``value``; only the same ``identity`` opens it."""
        nonce = self._counter.to_bytes(NONCE_SIZE, "big")
        self._counter += 1
        sealed = self._cipher(self._salt).encrypt(nonce, value, VERSION + identity)
        return self._head + nonce + sealed

    def open(self, sealed: bytes, identity: bytes) -> bytes:
        """Decrypt what ``seal`` made.

        Raises:
            SealError: it is not what was sealed under this key for this identity.
        """
        if len(sealed) < OVERHEAD:
            raise SealError(f"sealed value has {len(sealed)} bytes, expected {OVERHEAD} or more")
        if sealed[:1] != VERSION:
            raise SealError(f"sealed value of format {sealed[0]}, expected {VERSION[0]}")
        salt = sealed[1 : 1 + SALT_SIZE]
        nonce = sealed[1 + SALT_SIZE : _HEAD_SIZE]
        try:
            return self._cipher(salt).decrypt(nonce, sealed[_HEAD_SIZE:], VERSION + identity)
        except InvalidTag:
            raise SealError("sealed value was altered, moved, or sealed with another key") from None
