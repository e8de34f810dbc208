# SPDX-License-Identifier: Apache-2.0
"""Options that say what opens a file for others: a passphrase, or a private key."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from hcalld.cli.state.files import read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    from hcalld.crypto.locks import Lock, Unlock
    from hcalld.stores.keys.passphrase import PassphraseFrom

PASSPHRASES = "passphrase: (asked for), passphrase-file:PATH, passphrase-credential:NAME, "
PASSPHRASES += "passphrase-fd:N"
LOCKS = f"{PASSPHRASES} or recipient:FILE (X25519 public key, PEM)"
UNLOCKS = f"{PASSPHRASES} or identity:FILE (X25519 private key, PEM)"

_MAX_PEM_SIZE = 65536


def lock_of(how: str, what: str, option: str = "--with") -> Lock:
    """What a new file is locked with.

    Args:
        how: as ``LOCKS`` says.
        what: what to ask for on the terminal, if it is a passphrase.
        option: which option has it, for messages.

    Raises:
        HcalldError: it cannot be understood or read.
    """
    from hcalld.crypto.locks import Passphrase, Recipient

    passphrase = _passphrase(how, what, option)
    if passphrase is not None:
        return Passphrase(passphrase.get(is_new=True))
    return Recipient(recipient_of(how, option))


def recipient_of(how: str, option: str = "--with") -> X25519PublicKey:
    """The public key that ``recipient:FILE`` names.

    Raises:
        ConfigError: it names none, or it cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from hcalld.core.errors import ConfigError

    kind, _, where = how.partition(":")
    if kind != "recipient" or not where:
        raise ConfigError(f"{option}: expected {PASSPHRASES} or recipient:FILE")
    try:
        public = load_pem_public_key(read_file(pathlib.Path(where), _MAX_PEM_SIZE))
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, X25519PublicKey):
        raise ConfigError(
            f"{where}: no X25519 public key in PEM; make one: openssl pkey -in PRIVATE -pubout"
        )
    return public


def unlock_of(how: str, what: str, option: str = "--with") -> Unlock:
    """What opens a file.

    Args:
        how: as ``UNLOCKS`` says.
        what: what to ask for on the terminal, if it is a passphrase.
        option: which option has it, for messages.

    Raises:
        HcalldError: it cannot be understood or read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from hcalld.core.errors import ConfigError
    from hcalld.crypto.locks import Identity, Passphrase

    passphrase = _passphrase(how, what, option)
    if passphrase is not None:
        return Passphrase(passphrase.get())
    kind, _, where = how.partition(":")
    if kind != "identity" or not where:
        raise ConfigError(f"{option}: expected {PASSPHRASES} or identity:FILE")
    try:
        private = load_pem_private_key(read_file(pathlib.Path(where), _MAX_PEM_SIZE), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, X25519PrivateKey):
        raise ConfigError(
            f"{where}: no X25519 private key in PEM without a passphrase; make one: openssl "
            "genpkey -algorithm x25519"
        )
    return Identity(private)


def _passphrase(how: str, what: str, option: str) -> PassphraseFrom | None:
    from hcalld.core.errors import ConfigError
    from hcalld.stores.keys.describe import passphrase_from

    try:
        return passphrase_from(how, what)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
