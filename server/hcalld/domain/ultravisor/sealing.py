# SPDX-License-Identifier: Apache-2.0
"""Pages that leave secure memory: AES-256-GCM.

The text says AES-IAPM, the firmware has AES-128-GCM; nobody but the ultravisor reads what
it writes. The key is one VM's, made when its first page leaves. The nonce is four random
bytes and the version, a number that never comes twice in the VM's life. VM, page and
version are authenticated; tag, nonce and version stay here. So what comes back is the
page's last content, or is refused: altered, another page's, another VM's, or older.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hcalld.core.secret import Secret
from hcalld.domain.ultravisor.abi import KEY_SIZE, PAGE_SHIFT, PAGE_SIZE, SALT_SIZE

TAG_SIZE: Final = 16
NONCE_SIZE: Final = 12
IDENTITY_SIZE: Final = 16
_NONCE: Final = struct.Struct(f">{SALT_SIZE}sQ")
_ASSOCIATED: Final = struct.Struct(f">8s{IDENTITY_SIZE}sQQ")
_LABEL: Final = b"uv page\0"
MAX_VERSION: Final = 1 << 40
"""Pages that leave under one key."""


class Sealed(NamedTuple):
    """What is kept of a page that has left."""

    version: int
    nonce: bytes
    tag: bytes


class SealError(Exception):
    """What came back is not the page that left."""


class Sealer:
    """One VM's key. Raises ValueError if it is not 32 bytes."""

    __slots__ = ("_aead", "_identity", "key")

    def __init__(self, identity: bytes, key: Secret) -> None:
        if len(key) != KEY_SIZE:
            raise ValueError(f"a page key of {len(key)} bytes, expected {KEY_SIZE}")
        self.key = key
        self._aead = AESGCM(key.reveal())
        self._identity = identity

    def _associated(self, gpa: int, version: int) -> bytes:
        return _ASSOCIATED.pack(_LABEL, self._identity, gpa >> PAGE_SHIFT, version)

    def seal(self, gpa: int, data: bytes, salt: bytes, version: int) -> tuple[bytes, Sealed]:
        """Encrypt a page.

        Returns:
            The ciphertext, as large as the page, and what to keep.
        """
        if len(data) != PAGE_SIZE:
            raise ValueError(f"a page of {len(data)} bytes, expected {PAGE_SIZE}")
        nonce = _NONCE.pack(salt, version)
        sealed = self._aead.encrypt(nonce, data, self._associated(gpa, version))
        return sealed[:-TAG_SIZE], Sealed(version, nonce, sealed[-TAG_SIZE:])

    def open(self, gpa: int, ciphertext: bytes, kept: Sealed) -> bytes:
        """Decrypt a page.

        Raises:
            SealError: it is not the one that left.
        """
        if len(ciphertext) != PAGE_SIZE:
            raise SealError(f"{len(ciphertext)} bytes, expected {PAGE_SIZE}")
        try:
            return self._aead.decrypt(
                kept.nonce, ciphertext + kept.tag, self._associated(gpa, kept.version)
            )
        except InvalidTag:
            raise SealError("the content does not match its tag") from None
