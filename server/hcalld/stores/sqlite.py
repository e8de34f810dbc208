# SPDX-License-Identifier: Apache-2.0
"""A partition's records in one SQLite file, encrypted value by value.

Durability. The file is in WAL mode with ``synchronous=NORMAL``: a commit is a write to
the write-ahead log and waits for nothing, and survives the daemon's death because the
kernel has it. ``flush`` calls ``fdatasync`` on the log: that puts every frame that was
written before, by whatever file descriptor, on stable storage, and SQLite recovers all
committed transactions from a log that is there. SQLite itself syncs the log's header
when it starts the log anew, the log before a checkpoint, and the database after one. No
other process has the file open, so nothing else checkpoints. The log's name is synced
with the first flush after it was made.

``flush`` is not the only way to stable storage: until it is called, what was committed
since the last time is kept in memory too (``unflushed``), up to a bound, so that the
commits of several partitions can be written to one journal and synced there together
(``group.py``). ``sync`` makes this file hold by itself what it told of as flushed; it is
called before the file is closed. If the machine loses power before, ``replay`` commits
again what the journal has and the file has not.

Once a sync has failed, nobody knows what is on the disk, and a second sync would say
"done" of pages that the kernel has dropped: the store refuses everything from then on.

What is in the clear: record keys (labels of objects, which the guest's kernel documents)
and sizes. Values and replies are sealed (``hcalld.crypto.seal``) for their partition,
namespace, key, lifetime and, if they live for one run, that run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.core.records import (
    Change,
    Lifetime,
    Loaded,
    Put,
    Record,
    RecordedReply,
    Run,
)
from hcalld.core.secret import Secret
from hcalld.crypto.seal import SALT_SIZE, Sealer, SealError, derive_key
from hcalld.stores.fsync import sync_data, sync_directory
from hcalld.stores.journal_format import (
    DeleteRow,
    Entry,
    PutRow,
    ReplyRow,
    Row,
    RunRow,
    StoreName,
    encode_entry,
)
from hcalld.stores.ownership import Ownership
from hcalld.stores.sqlite_file import (
    DATABASE_NAME,
    LOG_SUFFIX,
    create_database,
    damaged,
    has_database,
    identity_of,
    open_database,
)
from hcalld.stores.sqlite_schema import explain

MAX_RECORDS: Final = 1 << 16

FLUSH_CHECKPOINT_SIZE: Final = 8 << 20
"""A flush that finds a longer log moves it into the database."""
COMMIT_CHECKPOINT_SIZE: Final = 64 << 20
"""So does a commit, for a guest that never asks for a flush."""
_CHECK_EVERY: Final = 256
"""Commits between two looks at the log's size."""
UNFLUSHED_LIMIT: Final = 2 << 20
"""Bytes of commits kept for a journal; with more the store has to be flushed by itself."""

_SIGN: Final = 1 << 63

_MALFORMED: Final = (ValueError, TypeError, AttributeError, OverflowError, struct.error)
"""What values of a wrong type or range lead to, in a file that somebody made by hand."""

_INSERT_RECORD: Final = "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)"
_DELETE_RECORD: Final = "DELETE FROM records WHERE namespace = ? AND key = ?"
_INSERT_REPLY: Final = "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)"
_SET_GENERATION: Final = "UPDATE meta SET generation = ?"


@dataclasses.dataclass(frozen=True, slots=True)
class Unflushed:
    """The commits that no flush has covered, for a journal."""

    generation: int
    """That of the last of them."""
    entries: list[bytes]
    size: int


class SqliteStore:
    """One partition's store; see ``hcalld.stores.base.Store``."""

    def __init__(
        self,
        directory: pathlib.Path,
        partition: str,
        master: Callable[[bool], Secret],
        *,
        create: bool = True,
        on_lost: Callable[[str], None] | None = None,
        on_closed: Callable[[SqliteStore], None] | None = None,
    ) -> None:
        """Take the ownership and open the store.

        Args:
            directory: the partition's own directory, existing.
            partition: its name, to which its values are bound.
            master: gives the master key; its argument says whether one may be made.
            create: make the store if there is none.
            on_lost: told in words when a sync has failed.
            on_closed: told when the file is closed and holds by itself all that was flushed,
                just before the ownership is given back.

        Raises:
            StoreError: in use, not there, unreadable, damaged or of a newer version.
        """
        self.path = directory / DATABASE_NAME
        self._log_path = directory / (DATABASE_NAME + LOG_SUFFIX)
        self.partition = partition
        self._store_id = b""
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._failure = ""
        self._on_lost = on_lost
        self._on_closed = on_closed
        self._run: Run | None = None
        self._generation = 0
        self._flushed = -1
        """The generation up to which all is on stable storage, here or in a journal."""
        self._synced = -1
        """The same, in this file by itself."""
        self._unflushed: list[bytes] = []
        self._unflushed_size = 0
        self._kept_from = 0
        """Entries of all commits after this generation are in ``_unflushed``, or flushed."""
        self._is_log_named = False
        self._commits_unchecked = 0
        self._ownership = Ownership(directory, f"partition {partition}")
        try:
            is_new = not has_database(self.path, create)
            key = derive_key(master(is_new), f"partition {partition}")
            self._sealer = Sealer(key, os.urandom(SALT_SIZE))
            if is_new:
                create_database(self.path, partition, self._sealer)
            self._open()
            self._kept_from = self._generation
            if is_new:
                self._flushed = self._synced = self._generation
        except BaseException:
            self.close()
            raise

    # -- opening --------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        db, meta = open_database(self.path, self.partition, self._sealer)
        if meta.generation < self._generation:
            db.close()
            raise damaged(self.path, "another program changed it")
        self._db = db
        self._store_id = meta.store_id
        self._run = meta.run
        self._generation = meta.generation
        self._is_log_named = False
        return db

    def _use(self) -> sqlite3.Connection:
        """The open database; opens it again after ``rest``."""
        if self._failure:
            raise StoreError(self._failure)
        return self._db if self._db is not None else self._open()

    # -- identities and damage --------------------------------------------------------------

    def _identity(self, kind: bytes, *parts: bytes) -> bytes:
        return identity_of(self.partition, kind, *parts)

    def _run_identity(self) -> bytes:
        run = self._run
        return b"" if run is None else run.instance + struct.pack(">Q", run.reset)

    def _record_identity(self, namespace: str, key: bytes, lifetime: int) -> bytes:
        run = self._run_identity() if lifetime == Lifetime.RUN else b""
        return self._identity(b"record", namespace.encode(), key, bytes((lifetime,)), run)

    def _reply_identity(self, vcpu: int, seq: int) -> bytes:
        return self._identity(b"reply", struct.pack(">QQ", vcpu, seq), self._run_identity())

    def _damaged(self, why: str) -> StoreError:
        return damaged(self.path, why)

    # -- Store ----------------------------------------------------------------------------

    def load(self) -> Loaded:
        """See Store."""
        db = self._use()
        with self._lock:
            try:
                (count,) = db.execute("SELECT count(*) FROM records").fetchone()
                if count > MAX_RECORDS:
                    raise self._damaged(f"{count} records, expected at most {MAX_RECORDS}")
                rows = db.execute("SELECT namespace, key, lifetime, value FROM records")
                records = [self._record(*row) for row in rows]
                rows = db.execute("SELECT vcpu, seq, frame FROM replies")
                replies = [self._reply(*row) for row in rows]
            except sqlite3.Error as error:
                raise explain(error, self.path) from error
        return Loaded(records, replies, self._generation)

    def _record(self, namespace: str, key: bytes, lifetime: int, value: bytes) -> Record:
        try:
            identity = self._record_identity(namespace, key, lifetime)
            return Record(namespace, key, self._sealer.open(value, identity), Lifetime(lifetime))
        except (SealError, *_MALFORMED) as error:
            raise self._damaged(f"record {namespace!r}, {key[:64]!r}: {error}") from None

    def _reply(self, vcpu: int, seq: int, frame: bytes) -> RecordedReply:
        try:
            seq &= (1 << 64) - 1
            plain = self._sealer.open(frame, self._reply_identity(vcpu, seq))
        except (SealError, *_MALFORMED) as error:
            raise self._damaged(f"reply of vCPU {vcpu}: {error}") from None
        return RecordedReply(vcpu, seq, plain)

    def verify(self) -> None:
        """Check every page of the file and open every value in it.

        Raises:
            StoreError: something is damaged.
        """
        db = self._use()
        with self._lock:
            try:
                rows = db.execute("PRAGMA integrity_check(1)").fetchall()
            except sqlite3.Error as error:
                raise explain(error, self.path) from error
        if rows != [("ok",)]:
            raise self._damaged(str(rows[0][0]).replace("\n", " "))
        self.load()

    def begin_run(self, run: Run) -> bool:
        """See Store."""
        self._use()
        if run == self._run:
            return False
        self._write([RunRow(run.instance, run.reset)])
        return True

    def commit(self, changes: Sequence[Change], reply: RecordedReply | None) -> None:
        """See Store."""
        seal = self._sealer.seal
        rows: list[Row] = []
        for change in changes:
            if isinstance(change, Put):
                record = change.record
                identity = self._record_identity(record.namespace, record.key, record.lifetime)
                value = seal(record.value, identity)
                rows.append(PutRow(record.namespace, record.key, int(record.lifetime), value))
            else:
                rows.append(DeleteRow(change.namespace, change.key))
        if reply is not None:
            frame = seal(reply.frame, self._reply_identity(reply.vcpu, reply.seq))
            seq = reply.seq - (1 << 64) if reply.seq & _SIGN else reply.seq
            rows.append(ReplyRow(reply.vcpu, seq, frame))
        self._write(rows)
        self._commits_unchecked += 1
        if self._commits_unchecked >= _CHECK_EVERY:
            self._checkpoint_if_above(COMMIT_CHECKPOINT_SIZE)

    def _write(self, rows: list[Row]) -> None:
        """Commit rows as the next generation, and keep them for a journal."""
        db = self._use()
        with self._lock:
            generation = self._generation + 1
            with self._transaction(db):
                run = self._apply(db, rows) or self._run
                db.execute(_SET_GENERATION, (generation,))
            self._generation, self._run = generation, run
            entry = encode_entry(Entry(generation, rows))
            self._unflushed.append(entry)
            self._unflushed_size += len(entry)
            if self._unflushed_size > UNFLUSHED_LIMIT:
                self._forget_unflushed(generation)

    @staticmethod
    def _apply(db: sqlite3.Connection, rows: Sequence[Row]) -> Run | None:
        """Carry out rows; gives the run that they began."""
        run = None
        for row in rows:
            match row:
                case PutRow(namespace, key, lifetime, value):
                    db.execute(_INSERT_RECORD, (namespace, key, lifetime, value))
                case DeleteRow(namespace, key):
                    db.execute(_DELETE_RECORD, (namespace, key))
                case ReplyRow(vcpu, seq, frame):
                    db.execute(_INSERT_REPLY, (vcpu, seq, frame))
                case RunRow(instance, reset):
                    db.execute("DELETE FROM records WHERE lifetime = ?", (int(Lifetime.RUN),))
                    db.execute("DELETE FROM replies")
                    db.execute("UPDATE meta SET instance = ?, reset = ?", (instance, reset))
                    run = Run(instance, reset)
        return run

    @contextlib.contextmanager
    def _transaction(self, db: sqlite3.Connection) -> Iterator[None]:
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    def flush(self) -> None:
        """See Store."""
        if self._generation != self._flushed:
            self._sync_to(self._generation)
            self._checkpoint_if_above(FLUSH_CHECKPOINT_SIZE)

    def sync(self) -> None:
        """Have this file hold by itself what was told of as flushed. Blocks, as ``flush``.

        Raises:
            StoreError: see ``flush``.
        """
        if self._synced < self._flushed:
            self._sync_to(self._generation)

    def _sync_to(self, covered: int) -> None:
        if self._failure:
            raise StoreError(self._failure)
        try:
            # No lock: commits go on meanwhile, and count for the next flush.
            sync_data(self._log_path)
            if not self._is_log_named:
                sync_directory(self.path.parent)
                self._is_log_named = True
        except FileNotFoundError:
            pass  # the log was moved into the database and synced there
        except OSError as error:
            raise self.lose(str(error.strerror)) from None
        with self._lock:
            self._synced = max(self._synced, covered)
            self._mark_flushed(covered)

    def lose(self, why: str) -> StoreError:
        """Refuse everything from now on, for a sync has failed; gives the error to raise."""
        self._failure = (
            f"{self.path}: flushing to disk failed ({why}); what was written since "
            "the last flush may be lost. Check the disk, then restart the daemon"
        )
        if self._on_lost is not None:
            self._on_lost(self._failure)
        return StoreError(self._failure)

    # -- for a journal (group.py) -----------------------------------------------------------

    def unflushed(self) -> Unflushed | None:
        """What a flush has to write; None if that is not known, or too much, for a journal."""
        with self._lock:
            if self._failure or self._kept_from > self._flushed:
                return None
            return Unflushed(self._generation, self._unflushed.copy(), self._unflushed_size)

    def mark_flushed(self, generation: int) -> None:
        """A journal has on stable storage what ``unflushed`` gave, up to a generation."""
        with self._lock:
            self._mark_flushed(generation)
        self._checkpoint_if_above(FLUSH_CHECKPOINT_SIZE)

    def _mark_flushed(self, generation: int) -> None:
        self._flushed = max(self._flushed, generation)
        kept = max(0, self._generation - self._flushed)
        del self._unflushed[: max(0, len(self._unflushed) - kept)]
        self._unflushed_size = sum(map(len, self._unflushed))

    def _forget_unflushed(self, generation: int) -> None:
        self._unflushed.clear()
        self._unflushed_size = 0
        self._kept_from = generation

    def replay(self, entries: Iterable[Entry]) -> None:
        """Commit again what a journal has of this store, and have this file hold it.

        Args:
            entries: by generation; those that the store has seen are left out.

        Raises:
            StoreError: they do not continue this store; nothing was changed.
        """
        db = self._use()
        generation, run = self._generation, self._run
        with self._lock, self._transaction(db):
            for entry in entries:
                if entry.generation <= generation:
                    continue
                if entry.generation != generation + 1:
                    raise StoreError(
                        f"{self.path} is at generation {generation}, but a journal of its state "
                        f"directory goes on with {entry.generation}: the store is older than the "
                        "journal, or damaged. Restore both from one backup; or, to go on with "
                        "this older store, move the files in the directory journals away"
                    )
                generation += 1
                try:
                    run = self._apply(db, entry.rows) or run
                except _MALFORMED as error:
                    raise self._damaged(f"a journal's entry {generation}: {error}") from None
            db.execute(_SET_GENERATION, (generation,))
        self._generation, self._run = generation, run
        self._kept_from = generation
        # Also if nothing was missing: it may be in the kernel's memory only.
        self._sync_to(generation)

    def _checkpoint_if_above(self, size: int) -> None:
        self._commits_unchecked = 0
        with self._lock:
            try:
                if self._db is None or self._log_path.stat().st_size <= size:
                    return
                result = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except (OSError, sqlite3.Error) as error:
                if "FSYNC" in getattr(error, "sqlite_errorname", ""):
                    self.lose(str(error))
                self._failure = f"{self.path}: moving the log into the store failed ({error})"
            else:
                is_busy, left, _ = result
                if not is_busy and not left:
                    # SQLite has synced the log, then the database.
                    self._synced = self._generation
                    self._mark_flushed(self._generation)

    @property
    def name(self) -> StoreName:
        """What a journal calls this store."""
        return StoreName(self.partition, self._store_id)

    @property
    def synced(self) -> int:
        """The generation up to which this file holds everything by itself."""
        return self._synced

    @property
    def dirty(self) -> bool:
        """See Store."""
        return self._generation != self._flushed

    @property
    def generation(self) -> int:
        """See Store."""
        return self._generation

    def rest(self) -> None:
        """See Store."""
        try:
            if self._db is not None and not self._failure:
                self.sync()
        finally:
            self._close_file()

    def _close_file(self) -> None:
        with self._lock:
            db, self._db = self._db, None
            if db is None:
                return
            try:
                db.close()
            except sqlite3.Error as error:
                self._failure = f"{self.path}: closing the store failed ({error})"
                raise explain(error, self.path) from error

    def close(self) -> None:
        """See Store."""
        try:
            if self._db is not None:
                self.rest()
            if self._on_closed is not None and not self._failure:
                self._on_closed(self)
        finally:
            self._ownership.release()
            self._failure = self._failure or f"{self.path} is closed; open the partition again"
