# SPDX-License-Identifier: Apache-2.0
"""A whole partition taken out, or put in, all or nothing: exports and copies of its file.

The guest is off: each function takes the partition's ownership as a daemon would.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from typing import Final

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.records import Change, Delete, Lifetime, Put, Record, Run
from hcalld.stores.directory import StateDirectory
from hcalld.stores.export import Export, ExportedRecord
from hcalld.stores.fsync import sync_data, sync_directory, write_new
from hcalld.stores.ownership import Ownership
from hcalld.stores.sqlite import SqliteStore
from hcalld.stores.sqlite_file import DATABASE_NAME, LOG_SUFFIX
from hcalld.stores.sqlite_schema import STORE_ID_SIZE, explain

SET_ASIDE_SUFFIX: Final = ".replaced"
"""What a store that could not be opened is renamed to when it is replaced."""


# -- exports ----------------------------------------------------------------------------------


def take_export(directory: StateDirectory, partition: str) -> Export:
    """All of a partition that outlives a run.

    Raises:
        StoreError: in use, not there, or damaged.
    """
    store = directory.open(partition, create=False)
    try:
        loaded = store.load()
        records = [
            ExportedRecord(namespace=record.namespace, key=record.key, value=record.value)
            for record in loaded.records
            if record.lifetime is Lifetime.PERSISTENT
        ]
        return Export(partition=partition, generation=store.generation, records=records)
    finally:
        store.close()


def put_records(
    directory: StateDirectory, partition: str, records: Iterable[Record], *, replace: bool
) -> None:
    """Make these a partition's lasting records, in one transaction.

    What lives for the present run stays: passwords, TRANSIENT objects.

    Raises:
        ConfigError: it has some, and ``replace`` was not asked for.
        StoreError: in use, damaged, or not to be written; nothing was changed.
    """
    folder = directory.folder(partition)
    is_new = not (folder / DATABASE_NAME).exists()
    store = directory.open(partition, create=True)
    try:
        old = store.load()
        if not replace and (old.records or old.generation):
            raise ConfigError(
                f"partition {partition} is there already; use --replace, or another name by "
                "--partition"
            )
        lasting = [record for record in old.records if record.lifetime is Lifetime.PERSISTENT]
        changes: list[Change] = [
            *(Delete(record.namespace, record.key) for record in lasting),
            *(Put(record) for record in records),
        ]
        store.commit(changes, None)
        store.flush()
    except BaseException:
        if is_new:
            _unmake(store, folder)
        raise
    finally:
        store.close()


def _unmake(store: SqliteStore, folder: pathlib.Path) -> None:
    """Remove a store that was made for what then failed."""
    with contextlib.suppress(StoreError):
        store.rest()
    for name in (DATABASE_NAME, DATABASE_NAME + LOG_SUFFIX):
        with contextlib.suppress(OSError):
            (folder / name).unlink()


# -- copies of the file -----------------------------------------------------------------------


def take_copy(directory: StateDirectory, partition: str) -> tuple[bytes, int]:
    """A partition's store as it is: one SQLite file, complete without a log.

    Values in it are sealed as they are, so it is restored into a state directory with the
    same master key only. Every page and value is checked first.

    Returns:
        The file, and the generation of the store.

    Raises:
        StoreError: in use, not there, or damaged.
    """
    store = directory.open(partition, create=False)
    try:
        store.verify()
        generation = store.generation
        store.rest()
        try:
            if _log_of(store.path).exists():
                raise StoreError(
                    f"{store.path}: its log could not be moved into it; make room on the disk"
                )
            return store.path.read_bytes(), generation
        except OSError as error:
            raise StoreError(f"{store.path}: cannot be read ({error.strerror})") from None
    finally:
        store.close()


def put_copy(directory: StateDirectory, partition: str, copy: bytes, *, replace: bool) -> int:
    """Make a copy of a partition's store the partition's store, if it is good.

    Passwords, TRANSIENT objects and replies of the run in which it was copied are not
    restored: that run is over.

    Returns:
        The generation of the restored store.

    Raises:
        ConfigError: there is a store, and ``replace`` was not asked for.
        StoreError: in use; or the copy is damaged, or of another partition or key. The store
            that is there stays.
    """
    folder = directory.make_folder(partition)
    database = folder / DATABASE_NAME
    if not replace and (database.exists() or _log_of(database).exists()):
        raise ConfigError(f"partition {partition} is there already; use --replace")
    try:
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=folder) as name:
            made = pathlib.Path(name) / DATABASE_NAME
            write_new(made, copy)
            generation = _prepare(directory, partition, made)
            with _owned_without_log(directory, partition, folder):
                made.rename(database)
                sync_directory(folder)
    except OSError as error:
        raise StoreError(f"{folder}: cannot restore ({error.strerror})") from None
    return generation


def _prepare(directory: StateDirectory, partition: str, made: pathlib.Path) -> int:
    """Check a copy and end its run; gives its generation."""
    try:
        store = directory.open_in(made.parent, partition, create=False)
        try:
            store.verify()
            store.begin_run(Run(os.urandom(16), 0))
            store.flush()
            generation = store.generation
            store.rest()
            # What a dead daemon's journal has of the store that was copied does not go on
            # with this one.
            with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as db:
                db.execute("PRAGMA locking_mode=EXCLUSIVE")
                db.execute("UPDATE meta SET store_id = randomblob(?)", (STORE_ID_SIZE,))
            if _log_of(made).exists():
                raise StoreError("its log could not be moved into it; make room on the disk")
            sync_data(made)
            return generation
        finally:
            store.close()
    except sqlite3.Error as error:
        raise explain(error, pathlib.Path("the copy")) from None
    except StoreError as error:
        # The path is one that the user never gave.
        raise StoreError(f"the copy: {str(error).replace(str(made), 'it')}") from None


@contextlib.contextmanager
def _owned_without_log(
    directory: StateDirectory, partition: str, folder: pathlib.Path
) -> Iterator[None]:
    """Own a partition whose store has no log, which must not meet another database."""
    database = folder / DATABASE_NAME
    log = _log_of(database)
    if database.exists():
        try:
            store = directory.open(partition, create=False)
        except StoreError:
            pass  # in use, which is said again below; or damaged, and so replaced
        else:
            try:
                store.rest()
                if not log.exists():
                    yield
                    return
            finally:
                store.close()
    owner = Ownership(folder, f"partition {partition}")
    try:
        # A database without its log, or a log alone, is refused: each death in between.
        for path in (database, log):
            if path.exists():
                path.rename(path.with_name(path.name + SET_ASIDE_SUFFIX))
        yield
    finally:
        owner.release()


def _log_of(database: pathlib.Path) -> pathlib.Path:
    return database.with_name(database.name + LOG_SUFFIX)
