# SPDX-License-Identifier: Apache-2.0
"""The state directory: one folder a partition, one master key for all.

Layout::

    <state directory>/            0700
        key-source                where the master key is (``hcalld.stores.keys``)
        key                       the master key, unless it is kept elsewhere
        partitions/<name>/        lock, keystore.db, keystore.db-wal
        journals/                 commits of several partitions, synced together (``group.py``)

A partition's name comes over the wire (QEMU's ``-name``), so it is data and not a path:
every byte that is not a letter, digit, ``-`` or ``_``, or a dot inside, is written as
``%XX``.
"""

from __future__ import annotations

import functools
import pathlib
import re
import urllib.parse
from collections.abc import Sequence
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.seal import derive_key
from hcalld.stores.base import Store
from hcalld.stores.fsync import make_directory, sync_directory
from hcalld.stores.group import JOURNALS_NAME, GroupCommit
from hcalld.stores.keys import KEY_FILE_NAME, FileKeySource, Keyring, KeySource
from hcalld.stores.ownership import holder_of
from hcalld.stores.sqlite import SqliteStore
from hcalld.stores.sqlite_file import DATABASE_NAME

PARTITIONS_NAME: Final = "partitions"
MAX_FOLDER_SIZE: Final = 240
"""Linux file names have at most 255 bytes."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]")


def folder_name(partition: str) -> str:
    """The folder of a partition: its name with every unusual byte as ``%XX``.

    Raises:
        StoreError: the name is empty, too long, or not for people (control characters).
    """
    if not partition or not partition.isprintable():
        raise StoreError(
            f"partition name {partition!r} is empty or has control characters; name the guest "
            "with QEMU's -name, in printable characters"
        )
    last = len(partition) - 1
    folder = "".join(
        char if _PLAIN.match(char) or (char == "." and 0 < index < last) else _escape(char)
        for index, char in enumerate(partition)
    )
    if len(folder) > MAX_FOLDER_SIZE:
        raise StoreError(
            f"partition name {partition[:32]!r}... is too long: as a folder it has {len(folder)} "
            f"characters, at most {MAX_FOLDER_SIZE}; give the guest a shorter -name"
        )
    return folder


def _escape(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


class StateDirectory:
    """All partitions' stores."""

    def __init__(self, path: pathlib.Path, key_source: KeySource | None = None) -> None:
        """Nothing is touched before a store is opened.

        Args:
            path: the state directory.
            key_source: where the master key is; by default the file ``key`` in it.
        """
        self.path = path
        source = key_source or FileKeySource(path / KEY_FILE_NAME)
        self.keyring = Keyring(path, source, self.partitions)
        self._master: Secret | None = None
        self._lost: dict[str, str] = {}
        """Partitions of which a sync failed. Syncing again would claim what is not so."""
        self._group = GroupCommit(path / JOURNALS_NAME)

    def folder(self, partition: str) -> pathlib.Path:
        """Where a partition's files are."""
        return self.path / PARTITIONS_NAME / folder_name(partition)

    def partitions(self) -> list[str]:
        """The names of all partitions that have a store.

        Raises:
            StoreError: the directory cannot be read.
        """
        try:
            folders = list((self.path / PARTITIONS_NAME).iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot read the state directory ({error.strerror}); check its "
                "owner and mode, or give another with --state-dir"
            ) from None
        names = []
        for folder in folders:
            name = urllib.parse.unquote(folder.name, errors="replace")
            if name.isprintable() and name and folder_name(name) == folder.name:
                try:
                    if (folder / DATABASE_NAME).exists():
                        names.append(name)
                except OSError:
                    names.append(name)
        return sorted(names)

    def holder_of(self, partition: str) -> str | None:
        """Who has a partition open: a process id, "unknown", or None."""
        return holder_of(self.folder(partition))

    def open(self, partition: str, *, create: bool = True) -> SqliteStore:
        """Open a partition's store and take its ownership.

        Args:
            partition: its name.
            create: make it if there is none.

        Raises:
            StoreError: in use, not there, unreadable, damaged or of a newer version.
        """
        if partition in self._lost:
            raise StoreError(self._lost[partition])
        folder = self.folder(partition)
        if not create and not folder.is_dir():
            known = ", ".join(self.partitions()) or "none"
            raise StoreError(f"no partition {partition!r} in {self.path}; there are: {known}")
        store = self.open_in(self.make_folder(partition), partition, create=create)
        try:
            self._group.recover(store)
        except BaseException:
            store.close()
            raise
        return store

    def make_folder(self, partition: str) -> pathlib.Path:
        """Make a partition's folder if there is none.

        Raises:
            StoreError: it cannot be made.
        """
        folder = self.folder(partition)
        try:
            make_directory(folder)
            if folder.is_symlink():
                raise StoreError(f"{folder}: expected a directory, found a symbolic link")
            if not (folder / DATABASE_NAME).exists():
                # Whoever made one of these may have died before its name was synced.
                for above in (folder.parent, self.path, self.path.parent):
                    sync_directory(above)
        except OSError as error:
            raise StoreError(
                f"{folder}: cannot make the partition's directory ({error.strerror}); the state "
                "directory must be writable for the daemon's user, or give another with "
                "--state-dir"
            ) from None
        return folder

    def open_in(self, folder: pathlib.Path, partition: str, *, create: bool) -> SqliteStore:
        """Open a store of this directory's key that is in any folder, and own that folder.

        Raises:
            StoreError: as ``open``.
        """
        return SqliteStore(
            folder,
            partition,
            self._key,
            create=create,
            on_lost=functools.partial(self._lost.__setitem__, partition),
            on_closed=self._group.released,
        )

    def flush_stores(self, stores: Sequence[Store]) -> Sequence[StoreError | None]:
        """Flush stores that were opened here, together; see ``hcalld.stores.base.FlushStores``."""
        return self._group.flush([store for store in stores if isinstance(store, SqliteStore)])

    def close(self) -> None:
        """Tidy up when all stores are closed. What is not, is recovered by the next owner."""
        self._group.close()

    def unlock(self) -> None:
        """Get the master key now and not with the first store: it may take a passphrase.

        Raises:
            StoreError: it is missing, damaged, another one, or kept elsewhere.
            ConfigError: the key's source is no such thing.
        """
        self._key(may_create=True)

    def key_for(self, purpose: str) -> Secret:
        """A key for what is kept beside the stores; always the same one for a purpose.

        Raises:
            StoreError, ConfigError: as ``unlock``.
        """
        return derive_key(self._key(may_create=True), purpose)

    def move_key(self, target: KeySource, *, forget: bool) -> str:
        """Keep the master key in another place; see ``Keyring.move``.

        Raises:
            StoreError: it is not there, is not the one of the partitions (or one is in use
                or cannot be read, and nothing else tells), or cannot be moved.
            ConfigError: both places are the same.
        """
        master = self._key(may_create=False)
        if not self.keyring.is_noted:
            for name in self.partitions():
                self.open(name, create=False).close()
        return self.keyring.move(master, target, forget=forget)

    def _key(self, may_create: bool) -> Secret:
        """The master key; made if there is none and nothing needs an older one."""
        if self._master is None:
            self._master = self.keyring.load(may_create=may_create)
        return self._master
