# SPDX-License-Identifier: Apache-2.0
"""Keys from passphrases by scrypt (RFC 7914), with the parameters to write down.

A key has a *check*: 16 bytes derived from it that tell a wrong passphrase from damaged
data without opening anything. The check costs whoever guesses as much as the key does.
"""

from __future__ import annotations

import os
from typing import Annotated, Final, Self

import msgspec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hcalld.core.secret import Secret
from hcalld.crypto.seal import KEY_SIZE, SALT_SIZE, derive_key

MAX_MEMORY: Final = 1 << 30
"""Bytes that parameters from a file may ask for: 128 * r * n."""
CHECK_SIZE: Final = 16
LOG_N = 17
"""Cost of new keys: 128 MiB and about half a second."""


class ScryptParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the key depends on beside the passphrase; no secret."""

    log_n: Annotated[int, msgspec.Meta(ge=10, le=20)]
    r: Annotated[int, msgspec.Meta(ge=1, le=32)] = 8
    p: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_SIZE, max_length=SALT_SIZE)]

    def __post_init__(self) -> None:
        """Refuse what would take all of the machine's memory."""
        if 128 * self.r << self.log_n > MAX_MEMORY:
            raise ValueError(f"scrypt parameters take more than {MAX_MEMORY >> 20} MiB")

    @classmethod
    def fresh(cls) -> Self:
        """Parameters of a new key."""
        return cls(log_n=LOG_N, salt=os.urandom(SALT_SIZE))

    def derive(self, passphrase: Secret) -> Secret:
        """The key of a passphrase; takes its time."""
        kdf = Scrypt(self.salt, KEY_SIZE, 1 << self.log_n, self.r, self.p)
        return Secret(kdf.derive(passphrase.reveal()))


def key_check(key: Secret) -> bytes:
    """What tells a key from others, and tells nothing else about it."""
    return derive_key(key, "key check").reveal()[:CHECK_SIZE]
