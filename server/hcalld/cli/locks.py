# SPDX-License-Identifier: Apache-2.0
"""Options that say what opens a file for others: a passphrase, or a private key."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.files import read_file
from hcalld.core.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    from hcalld.crypto.locks import Lock, Unlock
    from hcalld.stores.keys.passphrase import PassphraseFrom

PASSPHRASES = "passphrase: (asked for), passphrase-file:PATH, passphrase-credential:NAME, "
PASSPHRASES += "passphrase-fd:N"
LOCKS = f"{PASSPHRASES} or recipient:FILE (X25519 public key, PEM)"
UNLOCKS = f"{PASSPHRASES} or identity:FILE (X25519 private key, PEM)"

_MAX_PEM_SIZE = 65536


def with_option(ways: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--with``, which arrives as ``how``; ``ways`` are LOCKS or UNLOCKS."""
    return click.option(
        "--with",
        "how",
        default="passphrase:",
        show_default=True,
        metavar="HOW",
        help=f"What opens it: {ways}.",
    )


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
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    where, public = _pem_key(how, option, "recipient", load_pem_public_key)
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
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from hcalld.crypto.locks import Identity, Passphrase

    passphrase = _passphrase(how, what, option)
    if passphrase is not None:
        return Passphrase(passphrase.get())
    where, private = _pem_key(
        how, option, "identity", lambda data: load_pem_private_key(data, None)
    )
    if not isinstance(private, X25519PrivateKey):
        raise ConfigError(
            f"{where}: no X25519 private key in PEM without a passphrase; make one: openssl "
            "genpkey -algorithm x25519"
        )
    return Identity(private)


def _pem_key(
    how: str, option: str, word: str, load: Callable[[bytes], object]
) -> tuple[str, object]:
    """The key in the file that ``word:FILE`` names, and that file; None if there is none in it.

    Args:
        how: what the option has.
        option: which option, for messages.
        word: what stands before the file.
        load: reads PEM.

    Raises:
        ConfigError: it names no file, or it cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm

    kind, _, where = how.partition(":")
    if kind != word or not where:
        raise ConfigError(f"{option}: expected {PASSPHRASES} or {word}:FILE")
    try:
        return where, load(read_file(pathlib.Path(where), _MAX_PEM_SIZE))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # TypeError: it has a passphrase.
        return where, None


def _passphrase(how: str, what: str, option: str) -> PassphraseFrom | None:
    from hcalld.stores.keys.describe import passphrase_from

    try:
        return passphrase_from(how, what)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
