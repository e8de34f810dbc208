# SPDX-License-Identifier: Apache-2.0
"""The tables of a partition's SQLite file, and what to say when one is not right."""

from __future__ import annotations

import pathlib
import sqlite3
from typing import Final

from hcalld.core.errors import StoreError

APPLICATION_ID: Final = 0x68636C64
"""``hcld``: SQLite's mark for whose file this is."""
SCHEMA_VERSION: Final = 2
STORE_ID_SIZE: Final = 16

_RECORDS: Final = (
    "CREATE TABLE records (namespace TEXT NOT NULL, key BLOB NOT NULL, "
    "lifetime INTEGER NOT NULL, value BLOB NOT NULL, "
    "PRIMARY KEY (namespace, key)) STRICT, WITHOUT ROWID"
)
_REPLIES: Final = (
    "CREATE TABLE replies (vcpu INTEGER PRIMARY KEY, seq INTEGER NOT NULL, "
    "frame BLOB NOT NULL) STRICT"
)
META_V1: Final = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY, partition TEXT NOT NULL, "
    "key_check BLOB NOT NULL, instance BLOB, reset INTEGER, generation INTEGER NOT NULL) STRICT"
)
META_V2: Final = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY, partition TEXT NOT NULL, "
    "store_id BLOB NOT NULL, "
    "key_check BLOB NOT NULL, instance BLOB, reset INTEGER, generation INTEGER NOT NULL) STRICT"
)

SCHEMAS: Final = {
    1: (META_V1, _RECORDS, _REPLIES),
    2: (META_V2, _RECORDS, _REPLIES),
}
"""The tables of each version; ``migrations.py`` leads from one to the next."""
SCHEMA: Final = SCHEMAS[SCHEMA_VERSION]


def check_schema(db: sqlite3.Connection, path: pathlib.Path) -> int:
    """The version of a store; refuses what is not ours, is newer, or has other tables.

    The tables' text is compared too: a trigger or view that somebody planted would run
    with our statements.

    Raises:
        StoreError: it is none of ours to open.
        sqlite3.Error: it is not even a database.
    """
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreError(
            f"{path} is not a store of hcalld, or is damaged: restore it from a backup, or move "
            "the partition's directory away to begin with an empty keystore"
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has store version {version}, this hcalld knows up to {SCHEMA_VERSION}: it "
            "was written by a newer hcalld, upgrade to that one. Nothing was changed"
        )
    statements = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL")}
    (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    if statements != set(SCHEMAS.get(version, ())) or mode != "wal":
        raise StoreError(
            f"{path} is damaged (unexpected tables or version {version}): restore it from a "
            "backup, or move the partition's directory away to begin with an empty keystore"
        )
    return int(version)


_ADVICE: Final = {
    "SQLITE_FULL": "the disk is full; make room, then try again",
    "SQLITE_IOERR": "the disk reports errors; check it",
    "SQLITE_READONLY": "it is not writable for the daemon's user; check owner and mode",
    "SQLITE_CANTOPEN": "it cannot be opened; check owner and mode of the file and its directory",
    "SQLITE_PERM": "no permission; check owner and mode",
    "SQLITE_BUSY": "another program has it open; close that program",
    "SQLITE_LOCKED": "another program has it open; close that program",
    "SQLITE_TOOBIG": "a value is larger than any that hcalld writes: the file is damaged",
}
_DAMAGED: Final = (
    "it is damaged: restore it from a backup, or move the partition's directory away to begin "
    "with an empty keystore"
)


def explain(error: sqlite3.Error, path: pathlib.Path) -> StoreError:
    """An error of SQLite in words that say what to do."""
    # Extended codes have the primary one's name first: SQLITE_IOERR_FSYNC.
    name = "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])
    return StoreError(f"{path}: {_ADVICE.get(name, _DAMAGED)} ({error})")
