# SPDX-License-Identifier: Apache-2.0
"""Keys of files that are for others to open: by a passphrase, or by a private key.

How a key is made is written into its file as JSON, one of:

``{"type": "scrypt", ...}``
    The key is scrypt's of a passphrase, with the parameters that are there (RFC 7914).
``{"type": "x25519", "recipient": ..., "ephemeral": ...}``
    The key is HKDF-SHA256(X25519(ephemeral, recipient), salt = ephemeral || recipient,
    info = "hcalld:export x25519"). Whoever has the public key can make such a file: it
    does not say who did.

A check is written beside it, which tells a wrong passphrase from a damaged file.
"""

from __future__ import annotations

from typing import Annotated, Final, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hcalld.core.errors import StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.passphrase import CHECK_SIZE, ScryptParameters, key_check
from hcalld.crypto.seal import KEY_SIZE

_X25519_SIZE: Final = 32
_INFO: Final = b"hcalld:export x25519"

_PublicBytes = Annotated[bytes, msgspec.Meta(min_length=_X25519_SIZE, max_length=_X25519_SIZE)]
Check = Annotated[bytes, msgspec.Meta(min_length=CHECK_SIZE, max_length=CHECK_SIZE)]
"""``crypto.passphrase.key_check`` of a file's key."""


class ByPassphrase(
    ScryptParameters, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="scrypt"
):
    """The account of a passphrase."""


class ForRecipient(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="x25519"
):
    """The account of a recipient."""

    recipient: _PublicBytes
    ephemeral: _PublicBytes


KeyInfo = ByPassphrase | ForRecipient


class Lock(Protocol):
    """Makes the key of a new file."""

    def lock(self) -> tuple[KeyInfo, Secret]:
        """A fresh key, and how to come by it again."""


class Unlock(Protocol):
    """Comes by the key of a file."""

    def unlock(self, info: KeyInfo) -> Secret:
        """The key.

        Raises:
            StoreError: the file is locked in another way, or for somebody else.
        """


class Passphrase:
    """Both, with a passphrase."""

    def __init__(self, passphrase: Secret) -> None:
        self._passphrase = passphrase

    def lock(self) -> tuple[KeyInfo, Secret]:
        """See Lock."""
        info = ByPassphrase.fresh()
        return info, info.derive(self._passphrase)

    def unlock(self, info: KeyInfo) -> Secret:
        """See Unlock."""
        if not isinstance(info, ByPassphrase):
            raise StoreError("the file is for a recipient; open it with identity:FILE")
        return info.derive(self._passphrase)


class Recipient:
    """Locks for whoever has the private key."""

    def __init__(self, public: X25519PublicKey) -> None:
        self._public = public

    def lock(self) -> tuple[KeyInfo, Secret]:
        """See Lock."""
        ephemeral = X25519PrivateKey.generate()
        info = ForRecipient(
            recipient=self._public.public_bytes_raw(),
            ephemeral=ephemeral.public_key().public_bytes_raw(),
        )
        return info, _agreed(ephemeral, self._public, info)


class Identity:
    """Unlocks with the private key."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private

    def unlock(self, info: KeyInfo) -> Secret:
        """See Unlock."""
        if not isinstance(info, ForRecipient):
            raise StoreError("the file has a passphrase; open it with passphrase-file:PATH")
        if info.recipient != self._private.public_key().public_bytes_raw():
            raise StoreError("the file is for another recipient; use that one's private key")
        try:
            return _agreed(self._private, X25519PublicKey.from_public_bytes(info.ephemeral), info)
        except ValueError:
            raise StoreError("the file is damaged (bad ephemeral key); copy it again") from None


def _agreed(private: X25519PrivateKey, public: X25519PublicKey, info: ForRecipient) -> Secret:
    hkdf = HKDF(SHA256(), KEY_SIZE, salt=info.ephemeral + info.recipient, info=_INFO)
    return Secret(hkdf.derive(private.exchange(public)))


def opened(info: KeyInfo, check: bytes, unlock: Unlock) -> Secret:
    """The key of a file.

    Args:
        info: how it is made.
        check: what tells it from others.
        unlock: what whoever reads the file has.

    Raises:
        StoreError: it is locked in another way, or for somebody else.
    """
    key = unlock.unlock(info)
    if key_check(key) != check:
        raise StoreError("wrong passphrase; give the one that the file was written with")
    return key
