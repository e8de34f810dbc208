# SPDX-License-Identifier: Apache-2.0
"""Credentials that systemd hands to a service (systemd.exec(5), LoadCredential=).

Their mode is not looked at: systemd puts them where only the service may go, and shows
the rights of its access control list as those of a group.
"""

from __future__ import annotations

import os
import pathlib
from typing import Final

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.seal import KEY_SIZE
from hcalld.stores.keys.source import KEY_TEXT_SIZE, Kept, parse_key_text

DIRECTORY_VARIABLE: Final = "CREDENTIALS_DIRECTORY"


def credential_path(name: str) -> pathlib.Path:
    """Where a credential is.

    Raises:
        ConfigError: that is no name, or this is no service with credentials.
    """
    if not name or "/" in name or name in (".", ".."):
        raise ConfigError(f"credential name {name!r}: expected a plain file name")
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if not directory:
        raise ConfigError(
            f"credential {name}: {DIRECTORY_VARIABLE} is not set; run hcalld as a systemd "
            f"service with LoadCredential={name} or LoadCredentialEncrypted={name}"
        )
    return pathlib.Path(directory) / name


def read_credential(name: str, limit: int) -> bytes:
    """At most ``limit`` + 1 bytes of a credential.

    Raises:
        ConfigError: there is none of this name.
        StoreError: it cannot be read.
    """
    path = credential_path(name)
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"credential {name}: the service was given none of this name; check its "
            f"LoadCredential= or LoadCredentialEncrypted={name}"
        ) from None
    except OSError as error:
        raise StoreError(f"credential {name}: cannot be read ({error.strerror})") from None


class CredentialKeySource:
    """A credential that is the master key: 32 bytes, or the text of a key file."""

    kind = "credential"

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def description(self) -> str:
        """See KeySource."""
        return f"credential {self.name}"

    def load(self, kept: Kept) -> Secret | None:
        """See KeySource. There is always one: systemd made it, or the service."""
        content = read_credential(self.name, KEY_TEXT_SIZE)
        key = Secret(content) if len(content) == KEY_SIZE else parse_key_text(content)
        if key is None:
            raise StoreError(
                f"{self.description} is no key; expected {KEY_SIZE} bytes, or the text of a key "
                "file of hcalld"
            )
        return key

    def keep(self, master: Secret) -> Kept:
        """See KeySource. Only systemd can make credentials: the key must be there."""
        if self.load({}) != master:
            raise StoreError(
                f"{self.description} holds another key; make it of the present one: write that "
                "to a file (hcalld state rekey --new-key file:PATH), then run systemd-creds "
                f"encrypt --name={self.name} PATH"
            )
        return {}

    def forget(self) -> str:
        """See KeySource."""
        return f"{self.description} still holds the key; remove it where the service gets it from"
