# SPDX-License-Identifier: Apache-2.0
"""A partition's SQLite file: is it there, make it, open it.

Creation is atomic: a database appears under its name complete, or not at all, so that
an empty or cut file is damage and never taken for a new store. An open one is held by
SQLite's exclusive lock, has the current schema, and belongs to this partition and key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sqlite3
import struct
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.core.records import Run
from hcalld.crypto.seal import Sealer, SealError
from hcalld.stores.fsync import sync_data, sync_directory
from hcalld.stores.migrations import migrate
from hcalld.stores.sqlite_schema import (
    APPLICATION_ID,
    SCHEMA,
    SCHEMA_VERSION,
    STORE_ID_SIZE,
    check_schema,
    explain,
)

DATABASE_NAME: Final = "keystore.db"
LOG_SUFFIX: Final = "-wal"

MAX_VALUE_SIZE: Final = 4 << 20
"""Greatest row, in bytes: SQLite refuses more, so a hostile file cannot fill memory."""

_KEY_CHECK: Final = b"hcalld store"
_pack_size: Final = struct.Struct(">I").pack
_LIMIT: Final = 1 << 63
"""SQLite's integers are below this."""

_PRAGMAS: Final = (
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "locking_mode=EXCLUSIVE",
    "synchronous=NORMAL",
    "wal_autocheckpoint=0",
    "cache_size=16",
    "mmap_size=0",
    "temp_store=MEMORY",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Meta:
    """What a file says of itself."""

    store_id: bytes
    run: Run | None
    generation: int


def identity_of(partition: str, kind: bytes, *parts: bytes) -> bytes:
    """An unambiguous name for the additional data of a sealed value."""
    fields = (kind, partition.encode(), *parts)
    return b"".join([_pack_size(len(field)) + field for field in fields])


def damaged(path: pathlib.Path, why: str) -> StoreError:
    """The error for a file that is ours and not right."""
    return StoreError(
        f"{path} is damaged ({why}): restore it from a backup, or move the partition's "
        "directory away to begin with an empty keystore"
    )


def has_database(path: pathlib.Path, create: bool) -> bool:
    """Whether there is a file to be opened; False: it may be made.

    Raises:
        StoreError: there is none and must be one, or something else is in its place.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise StoreError(f"{path}: expected a regular file, found something else")
    if path.exists():
        return True
    log = path.with_name(path.name + LOG_SUFFIX)
    if log.exists():
        raise StoreError(
            f"{path} is missing, but its log {log.name} is there: restore the partition's "
            "directory from a backup, or remove it to begin anew"
        )
    if not create:
        raise StoreError(f"{path}: the partition has no store yet")
    return False


def create_database(path: pathlib.Path, partition: str, sealer: Sealer) -> None:
    """Make the database complete under another name, then give it its own.

    Raises:
        StoreError: it cannot be made.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        # Left over by a death in here; SQLite would take an old log for this file's.
        for suffix in ("", "-journal", LOG_SUFFIX, "-shm"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as db:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA synchronous=OFF")  # synced as a whole below
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("BEGIN")
            for statement in SCHEMA:
                db.execute(statement)
            check = sealer.seal(_KEY_CHECK, identity_of(partition, b"check"))
            db.execute(
                "INSERT INTO meta VALUES (1, ?, ?, ?, NULL, NULL, 0)",
                (partition, os.urandom(STORE_ID_SIZE), check),
            )
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            db.execute("COMMIT")
        sync_data(temporary)
        temporary.rename(path)
        sync_directory(path.parent)
    except sqlite3.Error as error:
        raise explain(error, temporary) from error
    except OSError as error:
        raise StoreError(
            f"{temporary}: cannot create the store ({error.strerror}); check space and permissions"
        ) from None


def open_database(
    path: pathlib.Path, partition: str, sealer: Sealer
) -> tuple[sqlite3.Connection, Meta]:
    """Open the database; an older version is migrated.

    Raises:
        StoreError: in use, not there, unreadable, damaged, of another partition or key, or
            of a newer version.
    """
    try:
        # SQLite says only "unable to open database file".
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError as error:
        raise StoreError(
            f"{path}: cannot open the store ({error.strerror}); it must be a file that the "
            "daemon's user may read and write"
        ) from None
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_SIZE)
        for pragma in _PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        version = check_schema(db, path)
        run, generation = _read_meta(db, path, partition, sealer)
        if version < SCHEMA_VERSION:
            migrate(db, version, path)
        (store_id,) = db.execute("SELECT store_id FROM meta").fetchone()
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        raise explain(error, path) from error
    except BaseException:
        if db is not None:
            db.close()
        raise
    return db, Meta(store_id, run, generation)


def _read_meta(
    db: sqlite3.Connection, path: pathlib.Path, partition: str, sealer: Sealer
) -> tuple[Run | None, int]:
    """Run and generation, of columns that every version has."""
    rows = db.execute(
        "SELECT partition, key_check, instance, reset, generation FROM meta"
    ).fetchall()
    if len(rows) != 1:
        raise damaged(path, f"{len(rows)} rows in table meta, expected 1")
    owner, check, instance, reset, generation = rows[0]
    if owner != partition:
        raise StoreError(
            f"{path} belongs to partition {owner!r}, not {partition!r}; put it back "
            "there, or move it by 'hcalld state export' and 'import'"
        )
    try:
        if sealer.open(check, identity_of(partition, b"check")) != _KEY_CHECK:
            raise damaged(path, "key check holds another text")
    except SealError:
        raise StoreError(
            f"{path} was encrypted with another key than the one given; restore the key that "
            "was used when the store was made"
        ) from None
    if (instance is None) != (reset is None) or not 0 <= generation < _LIMIT:
        raise damaged(path, "bad values in table meta")
    if reset is not None and not 0 <= reset < _LIMIT:
        raise damaged(path, "bad reset count in table meta")
    return (None if instance is None else Run(instance, reset)), generation
