# SPDX-License-Identifier: Apache-2.0
"""The master key sealed under a passphrase, and where passphrases come from.

The master key is random; the passphrase's key (scrypt) seals it, and the sealed key is in
the state directory's note. So a passphrase is changed without touching any store.
A passphrase is never an argument or an environment variable: other users can see those.
"""

from __future__ import annotations

import getpass
import os
import pathlib
import shlex
from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.passphrase import CHECK_SIZE, ScryptParameters, key_check
from hcalld.crypto.seal import KEY_SIZE, OVERHEAD, SALT_SIZE, Sealer, SealError
from hcalld.stores.keys.credential import read_credential
from hcalld.stores.keys.source import Kept, read_private

MAX_PASSPHRASE_SIZE: Final = 1024
MIN_NEW_SIZE: Final = 8
"""Bytes of a passphrase that is set; shorter ones are tried before scrypt slows anybody."""

_IDENTITY: Final = b"hcalld master key"


# -- where passphrases come from ----------------------------------------------------------


class PassphraseFrom:
    """A passphrase that is read when it is first needed, and then remembered."""

    def __init__(self, read: Callable[[bool], bytes], description: str) -> None:
        """Nothing is read yet.

        Args:
            read: gives the bytes; told whether the passphrase is being set.
            description: where it comes from, for messages.
        """
        self.description = description
        self._read = read
        self._value: Secret | None = None

    def get(self, *, is_new: bool = False) -> Secret:
        """The passphrase, without the line end.

        Args:
            is_new: it is being set: asked for twice, and not too short.

        Raises:
            HcalldError: it cannot be read, is empty, too long or too short.
        """
        if self._value is None:
            content = self._read(is_new)
            if len(content) > MAX_PASSPHRASE_SIZE + 1:
                raise ConfigError(
                    f"{self.description}: too long, expected at most {MAX_PASSPHRASE_SIZE} bytes"
                )
            value = content.removesuffix(b"\n").removesuffix(b"\r")
            if not value:
                raise ConfigError(f"{self.description}: empty, expected a passphrase")
            self._value = Secret(value)
        if is_new and len(self._value) < MIN_NEW_SIZE:
            raise ConfigError(
                f"{self.description}: too short, expected at least {MIN_NEW_SIZE} bytes"
            )
        return self._value

    def drop(self) -> None:
        """Forget it."""
        self._value = None


def from_file(path: pathlib.Path) -> PassphraseFrom:
    """A passphrase in a file that only its owner may use."""

    def read(is_new: bool) -> bytes:
        content = read_private(path, "passphrase file", MAX_PASSPHRASE_SIZE + 1)
        if content is None:
            make = f"; to make one: (umask 077; openssl rand -hex 16 > {shlex.quote(str(path))})"
            raise ConfigError(f"{path}: no such passphrase file{make if is_new else ''}")
        return content

    return PassphraseFrom(read, f"passphrase file {path}")


def from_credential(name: str) -> PassphraseFrom:
    """A passphrase in a systemd credential."""
    return PassphraseFrom(
        lambda _is_new: read_credential(name, MAX_PASSPHRASE_SIZE + 1),
        f"passphrase in credential {name}",
    )


def from_fd(fd: int) -> PassphraseFrom:
    """A passphrase from an inherited file descriptor, to its end."""

    def read(_is_new: bool) -> bytes:
        content = b""
        try:
            while len(content) <= MAX_PASSPHRASE_SIZE + 1:
                part = os.read(fd, MAX_PASSPHRASE_SIZE + 2)
                if not part:
                    break
                content += part
        except OSError as error:
            raise ConfigError(
                f"passphrase on file descriptor {fd}: cannot be read ({error.strerror}); expected "
                "one that hcalld inherits, such as 3 with 3<FILE"
            ) from None
        return content

    return PassphraseFrom(read, f"passphrase on file descriptor {fd}")


def from_prompt(what: str) -> PassphraseFrom:
    """A passphrase that the user types; two times if it is being set."""

    def read(is_new: bool) -> bytes:
        try:
            # getpass would read standard input, with echo, if there is no terminal.
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            raise ConfigError(
                f"no terminal to ask for the {what}; use passphrase-file:PATH, "
                "passphrase-credential:NAME or passphrase-fd:N"
            ) from None
        try:
            value = getpass.getpass(f"{what.capitalize()}: ")
            if is_new and getpass.getpass("Again: ") != value:
                raise ConfigError(f"the {what} was not typed twice the same")
        except EOFError:
            raise ConfigError(f"no {what} was typed") from None
        return value.encode("utf-8", "surrogateescape")

    return PassphraseFrom(read, what)


# -- the key source -------------------------------------------------------------------------


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    scrypt: ScryptParameters
    check: Annotated[bytes, msgspec.Meta(min_length=CHECK_SIZE, max_length=CHECK_SIZE)]
    sealed: Annotated[
        bytes, msgspec.Meta(min_length=KEY_SIZE + OVERHEAD, max_length=KEY_SIZE + OVERHEAD)
    ]


class PassphraseKeySource:
    """A master key that a passphrase opens."""

    kind = "passphrase"

    def __init__(self, passphrase: PassphraseFrom) -> None:
        """Nothing is asked yet."""
        self._passphrase = passphrase
        self._tried: tuple[ScryptParameters, Secret] | None = None
        """A key that was derived, for who asks again: scrypt takes its time."""

    @property
    def description(self) -> str:
        """See KeySource."""
        return self._passphrase.description

    def load(self, kept: Kept) -> Secret | None:
        """See KeySource."""
        if not kept:
            return None
        try:
            record = msgspec.convert(kept, _Kept)
        except msgspec.ValidationError as error:
            raise StoreError(
                f"what the state directory keeps of its passphrase is damaged ({error}); restore "
                "the file key-source from a backup"
            ) from None
        key = self._derive(record.scrypt, self._passphrase.get())
        if key_check(key) != record.check:
            raise StoreError(f"{self.description}: wrong passphrase; give the one that was set")
        try:
            master = Secret(Sealer(key, bytes(SALT_SIZE)).open(record.sealed, _IDENTITY))
        except SealError:
            raise StoreError(
                "the passphrase is right, but the key that it opens is damaged; restore the file "
                "key-source from a backup"
            ) from None
        self._passphrase.drop()
        self._tried = None
        return master

    def _derive(self, scrypt: ScryptParameters, passphrase: Secret) -> Secret:
        if self._tried is None or self._tried[0] != scrypt:
            self._tried = scrypt, scrypt.derive(passphrase)
        return self._tried[1]

    def keep(self, master: Secret) -> Kept:
        """See KeySource."""
        scrypt = ScryptParameters.fresh()
        key = self._derive(scrypt, self._passphrase.get(is_new=True))
        sealed = Sealer(key, os.urandom(SALT_SIZE)).seal(master.reveal(), _IDENTITY)
        kept = msgspec.to_builtins(_Kept(scrypt=scrypt, check=key_check(key), sealed=sealed))
        assert isinstance(kept, dict)
        return kept

    def forget(self) -> str:
        """See KeySource: all of it was in the note."""
        return ""
