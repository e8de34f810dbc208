# SPDX-License-Identifier: Apache-2.0
"""Where the master key of a state directory comes from.

Everything in the directory is encrypted under it (``hcalld.crypto.seal``); who loses it
loses the guests' keystores, so it is never made anew while there is something that only
the old one opens.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
from typing import Final, Protocol

from hcalld.core.errors import StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.seal import KEY_SIZE
from hcalld.stores.fsync import sync_directory

KEY_FILE_NAME: Final = "key"
_PREFIX: Final = b"hcalld-key-v1 "
_FILE_SIZE: Final = len(_PREFIX) + 2 * KEY_SIZE + 1


class KeySource(Protocol):
    """A place that holds a master key."""

    @property
    def description(self) -> str:
        """What to call it in messages (``key file /var/lib/hcalld/key``)."""

    def load(self) -> Secret | None:
        """The master key; None if there is none yet.

        Raises:
            StoreError: there is one that cannot be used.
        """

    def create(self) -> Secret:
        """Make a master key and keep it.

        Raises:
            StoreError: it cannot be kept.
        """


class FileKeySource:
    """A key file, readable by its owner only: ``hcalld-key-v1``, a space, 64 hex digits."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    @property
    def description(self) -> str:
        """See KeySource."""
        return f"key file {self.path}"

    def load(self) -> Secret | None:
        """See KeySource."""
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(self.path, flags)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot read the key file ({error.strerror}); it must be a file "
                "that the daemon's user may read"
            ) from None
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise StoreError(f"{self.path}: the key file is not a regular file")
            if mode & 0o077:
                raise StoreError(
                    f"{self.path}: mode {stat.S_IMODE(mode):04o} lets others at the key file; "
                    f"run: chmod 0600 {self.path}"
                )
            content = os.pread(fd, _FILE_SIZE + 1, 0)
        finally:
            os.close(fd)
        return self._parse(content)

    def _parse(self, content: bytes) -> Secret:
        if len(content) == _FILE_SIZE and content.startswith(_PREFIX) and content.endswith(b"\n"):
            with contextlib.suppress(ValueError):
                key = bytes.fromhex(content[len(_PREFIX) : -1].decode("ascii", "replace"))
                if len(key) == KEY_SIZE:
                    return Secret(key)
        raise StoreError(
            f"{self.path}: not a key file of hcalld, or damaged; restore it from a backup "
            f"(expected {_PREFIX.decode()}and {2 * KEY_SIZE} hexadecimal digits)"
        )

    def create(self) -> Secret:
        """See KeySource. If another process makes one at the same time, its key wins."""
        key = os.urandom(KEY_SIZE)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(_PREFIX + key.hex().encode() + b"\n")
                file.flush()
                os.fsync(fd)
            with contextlib.suppress(FileExistsError):
                # A link, unlike a rename, never replaces a key.
                os.link(temporary, self.path)
            temporary.unlink()
            sync_directory(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot create the key file ({error.strerror}); the state directory "
                "must be writable for the daemon's user"
            ) from None
        loaded = self.load()
        if loaded is None:
            raise StoreError(f"{self.path}: the key file vanished while it was created")
        return loaded
