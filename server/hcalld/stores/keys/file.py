# SPDX-License-Identifier: Apache-2.0
"""The master key in a file of its own."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.seal import KEY_SIZE
from hcalld.stores.fsync import sync_directory, write_new
from hcalld.stores.keys.source import (
    KEY_PREFIX,
    KEY_TEXT_SIZE,
    Kept,
    key_text,
    parse_key_text,
    read_private,
)

KEY_FILE_NAME: Final = "key"


class FileKeySource:
    """A key file, readable by its owner only."""

    kind = "file"

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    @property
    def description(self) -> str:
        """See KeySource."""
        return f"key file {self.path}"

    def load(self, kept: Kept) -> Secret | None:
        """See KeySource."""
        content = read_private(self.path, "key file", KEY_TEXT_SIZE)
        if content is None:
            return None
        key = parse_key_text(content)
        if key is None:
            raise StoreError(
                f"{self.path}: not a key file of hcalld, or damaged; restore it from a backup "
                f"(expected {KEY_PREFIX.decode()}and {2 * KEY_SIZE} hexadecimal digits)"
            )
        return key

    def keep(self, master: Secret) -> Kept:
        """See KeySource. If another process makes one at the same time, its key wins."""
        try:
            with contextlib.suppress(FileExistsError):
                write_new(self.path, key_text(master))
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot create the key file ({error.strerror}); the state directory "
                "must be writable for the daemon's user"
            ) from None
        return {}

    def forget(self) -> str:
        """See KeySource."""
        try:
            self.path.unlink(missing_ok=True)
            sync_directory(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot remove the key file ({error.strerror}); remove it, the key "
                "is kept elsewhere now"
            ) from None
        return ""
