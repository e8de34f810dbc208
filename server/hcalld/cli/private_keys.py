# SPDX-License-Identifier: Apache-2.0
"""Private keys that commands read."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from hcalld.cli.files import read_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

MAX_KEY_FILE_SIZE = 65536


def read_private_key(path: pathlib.Path, passphrase_file: pathlib.Path | None) -> RSAPrivateKey:
    """A private key, whose passphrase is asked for if it has one.

    Raises:
        ConfigError: it cannot be used.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.crypto.signing import PassphraseNeededError, PrivateKeyError, load_private_key
    from hcalld.stores.keys.passphrase import from_file, from_prompt

    data = read_whole(path, MAX_KEY_FILE_SIZE)
    try:
        try:
            return load_private_key(data)
        except PassphraseNeededError:
            source = (
                from_prompt(f"passphrase of {path}")
                if passphrase_file is None
                else from_file(passphrase_file)
            )
            return load_private_key(data, source.get().reveal())
    except PrivateKeyError as error:
        raise ConfigError(f"{path}: {error}") from None
