# SPDX-License-Identifier: Apache-2.0
"""What a place that holds a master key can do, and reading small private files."""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Final, Protocol

from hcalld.core.errors import StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.seal import KEY_SIZE

Kept = Mapping[str, object]
"""What a source wants written into the state directory's note: JSON, and no secret."""

KEY_PREFIX: Final = b"hcalld-key-v1 "
KEY_TEXT_SIZE: Final = len(KEY_PREFIX) + 2 * KEY_SIZE + 1


class KeySource(Protocol):
    """A place that holds a master key."""

    @property
    def kind(self) -> str:
        """Which kind of place: a state directory remembers it (``file``)."""

    @property
    def description(self) -> str:
        """What to call it in messages (``key file /var/lib/hcalld/key``)."""

    def load(self, kept: Kept) -> Secret | None:
        """The master key; None if there is none yet.

        Args:
            kept: what ``keep`` gave when the key was put there; empty if it never was.

        Raises:
            StoreError: there is one that cannot be used.
        """

    def keep(self, master: Secret) -> Kept:
        """Put a master key there, durably. A key that is there already is not replaced.

        Returns:
            What ``load`` needs.

        Raises:
            StoreError: it cannot be kept.
        """

    def forget(self) -> str:
        """Remove what ``keep`` wrote outside of the note, as it is kept elsewhere now.

        Returns:
            What is left for the user to do; "" for nothing.

        Raises:
            StoreError: it cannot be removed.
        """


def key_text(key: Secret) -> bytes:
    """A key as a line of text: ``hcalld-key-v1``, a space, 64 hexadecimal digits."""
    return KEY_PREFIX + key.reveal().hex().encode() + b"\n"


def parse_key_text(content: bytes) -> Secret | None:
    """The key of ``key_text``, or None if that is not what this is."""
    if len(content) != KEY_TEXT_SIZE or not content.startswith(KEY_PREFIX):
        return None
    if not content.endswith(b"\n"):
        return None
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(content[len(KEY_PREFIX) : -1].decode("ascii", "replace"))
        if len(key) == KEY_SIZE:
            return Secret(key)
    return None


def read_private(path: pathlib.Path, what: str, limit: int) -> bytes | None:
    """At most ``limit`` + 1 bytes of a file that nobody but its owner may use.

    Args:
        path: the file.
        what: what it is, for messages (``key file``).
        limit: how many bytes it can have; one more tells that it has too many.

    Returns:
        Its content, or None if there is no such file.

    Raises:
        StoreError: it is not a regular file, others may use it, or it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path}: cannot read the {what} ({error.strerror}); it must be a file that the "
            "daemon's user may read"
        ) from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise StoreError(f"{path}: the {what} is not a regular file")
        if mode & 0o077:
            raise StoreError(
                f"{path}: mode {stat.S_IMODE(mode):04o} lets others at the {what}; "
                f"run: chmod 0600 {path}"
            )
        return os.pread(fd, limit + 1, 0)
    except OSError as error:
        raise StoreError(f"{path}: cannot read the {what} ({error.strerror})") from None
    finally:
        os.close(fd)
