# SPDX-License-Identifier: Apache-2.0
"""The state directory's note of where its master key is: the file ``key-source``.

Three lines: the format's name, a JSON object, the SHA-256 of that object's line. The sum
tells damage from a wrong passphrase. No secret is in it: a key sealed under a passphrase
is as good as the passphrase, though, so the file is its owner's only.
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import Annotated, Final

import msgspec

from hcalld.core.errors import StoreError
from hcalld.crypto.passphrase import CHECK_SIZE
from hcalld.stores.fsync import write_new
from hcalld.stores.keys.source import Kept, read_private

NOTE_NAME: Final = "key-source"
_FORMAT: Final = b"hcalld-key-source-v1"
_NAME: Final = b"hcalld-key-source-"
_MAX_SIZE: Final = 32768


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the master key is."""

    kind: str
    check: Annotated[bytes, msgspec.Meta(min_length=CHECK_SIZE, max_length=CHECK_SIZE)]
    """Tells the master key from others."""
    kept: dict[str, object] = msgspec.field(default_factory=dict)
    """What the source of this kind needs to find it."""


def read_note(path: pathlib.Path) -> Note | None:
    """The note, or None if there is none.

    Raises:
        StoreError: it cannot be read, is damaged, or of a newer version.
    """
    content = read_private(path, "note of the key's source", _MAX_SIZE)
    if content is None:
        return None
    lines = content.split(b"\n")
    if lines[0] != _FORMAT and lines[0].startswith(_NAME) and len(lines[0]) < 40:
        raise StoreError(f"{path}: written by a newer hcalld, use that one")
    try:
        if len(lines) != 4 or lines[0] != _FORMAT or lines[3]:
            raise ValueError("expected three lines")
        if hashlib.sha256(lines[1]).hexdigest().encode() != lines[2]:
            raise ValueError("the sum is wrong")
        return msgspec.json.decode(lines[1], type=Note)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); restore it from a backup") from None


def write_note(path: pathlib.Path, kind: str, check: bytes, kept: Kept, *, replace: bool) -> None:
    """Write the note, durably and whole.

    Raises:
        FileExistsError: there is one, and ``replace`` was not asked for.
        StoreError: it cannot be written; the one before stays.
    """
    line = msgspec.json.encode(Note(kind=kind, check=check, kept=dict(kept)))
    content = b"\n".join((_FORMAT, line, hashlib.sha256(line).hexdigest().encode(), b""))
    try:
        write_new(path, content, replace=replace)
    except FileExistsError:
        raise
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); the state directory must be writable "
            "for the daemon's user"
        ) from None
