# SPDX-License-Identifier: Apache-2.0
"""Keys derived from keys (55766 section 2.2), and the two primitives that they are for."""

from __future__ import annotations

import dataclasses
import hmac
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from hcalld.core.secret import Secret

KEY_SIZE: Final = 16
"""Bytes of every symmetric key here."""
_DIGEST_SIZE: Final = 32


def kdf(key: bytes, label: str, context: bytes, size: int) -> bytes:
    """NIST SP 800-108 in counter mode with HMAC-SHA256, its two numbers little-endian.

    Not cryptography's KBKDFHMAC: its numbers are big-endian.

    Args:
        key: what is derived from.
        label: what the result is for; ASCII.
        context: whom it is for.
        size: bytes of the result.
    """
    fixed = label.encode("ascii") + b"\0" + context + (8 * size).to_bytes(4, "little")
    blocks = -(-size // _DIGEST_SIZE)
    stream = b"".join(
        hmac.digest(key, index.to_bytes(4, "little") + fixed, "sha256")
        for index in range(1, blocks + 1)
    )
    return stream[:size]


def master_secret(shared: Secret, nonce: bytes) -> Secret:
    """Of a Diffie-Hellman agreement and a session's nonce."""
    return Secret(kdf(shared.reveal(), "sev-master-secret", nonce, KEY_SIZE))


@dataclasses.dataclass(frozen=True, slots=True)
class WrappingKeys:
    """What transport keys are wrapped with."""

    kek: Secret
    """Key encryption key."""
    kik: Secret
    """Key integrity key."""

    @classmethod
    def of(cls, master: Secret) -> WrappingKeys:
        """Derived from a master secret."""
        key = master.reveal()
        return cls(
            Secret(kdf(key, "sev-kek", b"", KEY_SIZE)), Secret(kdf(key, "sev-kik", b"", KEY_SIZE))
        )


class Mac:
    """HMAC-SHA256 with one key; what is the same for all messages is computed once."""

    __slots__ = ("_begun",)

    def __init__(self, key: Secret) -> None:
        self._begun = HMAC(key.reveal(), SHA256())

    def of(self, message: bytes) -> bytes:
        """The 32 bytes of a message."""
        context = self._begun.copy()
        context.update(message)
        return context.finalize()


@dataclasses.dataclass(frozen=True, slots=True)
class TransportKeys:
    """What a guest's owner and its platform share."""

    tek: Secret
    """Transport encryption key."""
    tik: Secret
    """Transport integrity key."""
    integrity: Mac = dataclasses.field(init=False, repr=False, compare=False)
    """With the TIK."""

    SIZE = 2 * KEY_SIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "integrity", Mac(self.tik))

    @classmethod
    def parse(cls, data: bytes) -> TransportKeys:
        """From 32 bytes, TEK first: sev-tool's ``tmp_tk.bin``.

        Raises:
            ValueError: another size.
        """
        if len(data) != cls.SIZE:
            raise ValueError(f"transport keys: {len(data)} bytes, expected {cls.SIZE}")
        return cls(Secret(data[:KEY_SIZE]), Secret(data[KEY_SIZE:]))

    def build(self) -> bytes:
        """The 32 bytes, which are secret."""
        return self.tek.reveal() + self.tik.reveal()


def aes_ctr(key: Secret, iv: bytes, data: bytes) -> bytes:
    """AES-128 in counter mode, which is its own inverse.

    Args:
        key: 16 bytes.
        iv: the first counter block; the next ones follow as a big-endian number.
        data: plaintext or ciphertext.
    """
    cipher = Cipher(AES(key.reveal()), CTR(iv)).encryptor()
    return cipher.update(data) + cipher.finalize()


def mac(key: Secret, *parts: bytes) -> bytes:
    """HMAC-SHA256 of the parts together."""
    return hmac.digest(key.reveal(), b"".join(parts), "sha256")


def same(left: bytes, right: bytes) -> bool:
    """Compare in a time that does not depend on where the first difference is."""
    return hmac.compare_digest(left, right)
