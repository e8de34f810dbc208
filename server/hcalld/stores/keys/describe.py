# SPDX-License-Identifier: Apache-2.0
"""One way to say where a key or a passphrase is: ``KIND:WHERE``.

======================================  ==================================================
``file:PATH``                           a key file
``credential:NAME``                     a systemd credential that is the key
``passphrase:``                         a passphrase that is asked for on the terminal
``passphrase-file:PATH``                one in a file
``passphrase-credential:NAME``          one in a systemd credential
``passphrase-fd:N``                     one that an inherited file descriptor gives
``tpm:[TCTI][#BANK:N,N...]``            a TPM 2.0, sealed to PCRs if any are named
======================================  ==================================================

No description holds a secret, so it may be an argument or an environment variable.
"""

from __future__ import annotations

import pathlib
from typing import Final

from hcalld.core.errors import ConfigError
from hcalld.stores.keys.credential import CredentialKeySource
from hcalld.stores.keys.file import FileKeySource
from hcalld.stores.keys.passphrase import (
    PassphraseFrom,
    PassphraseKeySource,
    from_credential,
    from_fd,
    from_file,
    from_prompt,
)
from hcalld.stores.keys.source import KeySource
from hcalld.stores.keys.tpm import TpmKeySource

PASSPHRASES: Final = (
    "passphrase:, passphrase-file:PATH, passphrase-credential:NAME or passphrase-fd:N"
)
SOURCES: Final = f"file:PATH, credential:NAME, tpm:[TCTI], {PASSPHRASES}"


def passphrase_from(text: str, what: str = "passphrase") -> PassphraseFrom | None:
    """Where a passphrase is; None if the text describes none.

    Args:
        text: the description.
        what: what to ask for on the terminal.

    Raises:
        ConfigError: of a passphrase, but incomplete.
    """
    kind, colon, where = text.partition(":")
    if not colon or kind.partition("-")[0] != "passphrase":
        return None
    if kind == "passphrase" and not where:
        return from_prompt(what)
    if kind == "passphrase-file" and where:
        return from_file(pathlib.Path(where))
    if kind == "passphrase-credential" and where:
        return from_credential(where)
    if kind == "passphrase-fd" and where.isascii() and where.isdecimal() and len(where) < 7:
        return from_fd(int(where))
    # A passphrase may have been typed here by mistake: it is not repeated.
    raise ConfigError(f"a passphrase is never an argument; expected {PASSPHRASES}")


def key_source(text: str, what: str = "passphrase") -> KeySource:
    """Where the master key is.

    Args:
        text: the description.
        what: what to ask for on the terminal, if it is a passphrase.

    Raises:
        ConfigError: nothing that can be understood.
    """
    passphrase = passphrase_from(text, what)
    if passphrase is not None:
        return PassphraseKeySource(passphrase)
    kind, _, where = text.partition(":")
    if kind == "file" and where:
        return FileKeySource(pathlib.Path(where))
    if kind == "credential" and where:
        return CredentialKeySource(where)
    if kind == "tpm" and ":" in text:
        tcti, _, pcrs = where.partition("#")
        return TpmKeySource(tcti, pcrs)
    raise ConfigError(f"expected {SOURCES}; not what was given")
