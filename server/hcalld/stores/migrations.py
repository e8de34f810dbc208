# SPDX-License-Identifier: Apache-2.0
"""From the tables of older versions to today's.

A store is migrated when it is opened, one version after the other, in one transaction:
it is wholly old or wholly new, whenever the machine dies. Before, it is copied to
``keystore.db.v<version>.bak`` beside it, for whoever has to go back to an older hcalld;
the values in the copy are sealed as they are in the store.

Old stores are kept in tests/vectors/stores and opened by tests for ever.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
from collections.abc import Callable
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.stores.fsync import sync_data, sync_directory
from hcalld.stores.sqlite_schema import META_V2, SCHEMA_VERSION, STORE_ID_SIZE, explain


def _add_store_id(db: sqlite3.Connection) -> None:
    """Version 2: a store tells itself from others that had its name."""
    (row,) = db.execute("SELECT partition, key_check, instance, reset, generation FROM meta")
    partition, key_check, instance, reset, generation = row
    # Dropped and made anew: ALTER TABLE would leave another text in the schema.
    db.execute("DROP TABLE meta")
    db.execute(META_V2)
    db.execute(
        "INSERT INTO meta VALUES (1, ?, ?, ?, ?, ?, ?)",
        (partition, os.urandom(STORE_ID_SIZE), key_check, instance, reset, generation),
    )


MIGRATIONS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {1: _add_store_id}
"""What leads from a version to the next one; inside a transaction."""


def backup_name(path: pathlib.Path, version: int) -> pathlib.Path:
    """Where a store is copied to before it is migrated."""
    return path.with_name(f"{path.name}.v{version}.bak")


def migrate(db: sqlite3.Connection, version: int, path: pathlib.Path) -> None:
    """Bring a store of an older version to today's.

    Args:
        db: the store, open, of no one else.
        version: its version, checked.
        path: its file.

    Raises:
        StoreError: there is no copy, and nothing was changed.
        sqlite3.Error: nothing was changed.
    """
    _copy(db, path, backup_name(path, version))
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in range(version, SCHEMA_VERSION):
            MIGRATIONS[step](db)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    # Journals name stores by what is in them now: that must not be lost with the power.
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _copy(db: sqlite3.Connection, path: pathlib.Path, copy: pathlib.Path) -> None:
    """Copy a store with what is in its log; there is a whole copy under the name, or none."""
    temporary = copy.with_name(copy.name + ".new")
    try:
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as target:
            target.execute("PRAGMA synchronous=OFF")  # synced as a whole below
            target.execute("PRAGMA journal_mode=OFF")
            db.backup(target)
        sync_data(temporary)
        temporary.rename(copy)
        sync_directory(copy.parent)
    except sqlite3.Error as error:
        raise explain(error, temporary) from error
    except OSError as error:
        raise StoreError(
            f"{path} is of an older version and cannot be copied before it is brought to "
            f"version {SCHEMA_VERSION} ({error.strerror}); check space and permissions. Nothing "
            "was changed"
        ) from None
