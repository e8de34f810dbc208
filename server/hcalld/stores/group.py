# SPDX-License-Identifier: Apache-2.0
"""Several partitions flushed with one sync: a journal of this process's own.

A partition's file is synced by itself when it is the only one that waits. When several
do, what they committed is appended to ``journals/<random>.log`` below the state
directory, and that one file is synced. Their own files have the commits too, written and
not yet synced; they are synced when the partition is closed, and when the journal has
grown to JOURNAL_LIMIT: then the journal is removed, and the next round begins a new one.

So a power cut finds each flushed commit in the partition's file or in a journal.
``recover`` brings the second into the first, before a partition is used. It looks at
journals whose process is dead: that one has a ``flock`` on its journal. The journal of a
living process is of no concern to whoever gets hold of a partition, for the owner before
has synced the partition's file when it gave it up.

A mark in a journal says that a store needs nothing of what is before. A journal is
removed when all stores named in it have marks, or nobody needs it when its process closes
the last. Nothing of this has to be durable to be right: commits that a store has already
are left out by their generation, so a journal or mark that comes back, or is lost, only
makes somebody look again.

A journal that cannot be made or written (no space, no permission) costs speed and
nothing else: partitions are synced one by one then. If its sync fails, all partitions of
that round are lost to this process, as with a failed sync of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.stores import journal_format as fmt
from hcalld.stores.fsync import make_directory, sync_directory
from hcalld.stores.sqlite import SqliteStore, Unflushed

JOURNALS_NAME: Final = "journals"
_LOCK_NAME: Final = "lock"

JOURNAL_LIMIT: Final = 8 << 20
"""A longer journal is done with: all partitions in it are synced by themselves."""
ROUND_LIMIT: Final = 8 << 20
"""Bytes of one round; partitions that do not fit in are synced by themselves."""

_LOCK_SECONDS: Final = 2.0
_LOCK_POLL_SECONDS: Final = 0.005


class _NotWritten(Exception):
    """A round is not in the journal, and nothing is lost by that."""


@dataclasses.dataclass(slots=True)
class _Journal:
    """The journal that this process writes."""

    path: pathlib.Path
    fd: int
    epoch: bytes
    size: int = fmt.HEAD_SIZE
    frames: int = 0


class GroupCommit:
    """Flushes partitions of one state directory together.

    Args:
        folder: where journals are, below the state directory; made when needed.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._round = threading.Lock()
        """Held while the journal is written, synced or removed."""
        self._lock = threading.Lock()
        """Held for moments, to look at or change what follows."""
        self._journal: _Journal | None = None
        self._needed: dict[fmt.StoreName, tuple[SqliteStore, int]] = {}
        """Who needs the journal, and up to which generation."""
        self._marks: list[fmt.StoreName] = []
        """Who no longer needs what is in it; written with the next round."""

    # -- flushing ---------------------------------------------------------------------------

    def flush(self, stores: Sequence[SqliteStore]) -> list[StoreError | None]:
        """Flush stores; gives for each what went wrong. Blocks."""
        with self._round:
            together = self._flush_together(stores)
            failures: list[StoreError | None] = []
            for store in stores:
                outcome = together.get(id(store))
                try:
                    if isinstance(outcome, StoreError):
                        raise outcome
                    if outcome is not None:
                        store.mark_flushed(outcome)
                    else:
                        store.flush()
                except StoreError as error:
                    failures.append(error)
                else:
                    failures.append(None)
            if self._journal is not None and self._journal.size > JOURNAL_LIMIT:
                self._finish(self._journal)
        return failures

    def _flush_together(self, stores: Sequence[SqliteStore]) -> dict[int, int | StoreError]:
        """Flush by the journal whom that serves: the generation covered, or what went wrong."""
        unflushed: list[tuple[SqliteStore, Unflushed]] = []
        size = 0
        for store in stores:
            part = store.unflushed()
            if part is not None and part.entries and size + part.size <= ROUND_LIMIT:
                unflushed.append((store, part))
                size += part.size
        if len(unflushed) < 2:
            return {}
        try:
            journal = self._journal or self._begin()
            self._write(journal, unflushed)
        except _NotWritten:
            return {}
        try:
            os.fdatasync(journal.fd)
        except OSError as error:
            self._abandon(journal)
            return {id(store): store.lose(str(error.strerror)) for store, _ in unflushed}
        with self._lock:
            for store, part in unflushed:
                self._needed[store.name] = store, part.generation
        return {id(store): part.generation for store, part in unflushed}

    def _write(self, journal: _Journal, unflushed: list[tuple[SqliteStore, Unflushed]]) -> None:
        with self._lock:
            marks, self._marks = self._marks, []
        parts = [fmt.Part(store.name, part.entries) for store, part in unflushed]
        data = fmt.frame(journal.epoch, journal.frames, fmt.Round(marks, parts))
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(journal.fd, data[written:], journal.size + written)
        except OSError:
            try:
                os.ftruncate(journal.fd, journal.size)
            except OSError:
                self._abandon(journal)
            raise _NotWritten from None
        journal.size += len(data)
        journal.frames += 1

    # -- the journal's life -----------------------------------------------------------------

    def _begin(self) -> _Journal:
        """Make a journal. It has its name when it is whole, and ours before others see it."""
        name = os.urandom(8).hex()
        temporary, path = self._folder / f"{name}.new", self._folder / f"{name}.log"
        fd = -1
        try:
            make_directory(self._folder)
            # Whoever made it may have died before its name was synced.
            sync_directory(self._folder.parent)
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal = _Journal(path, fd, os.urandom(fmt.EPOCH_SIZE))
            os.pwrite(fd, fmt.head(journal.epoch), 0)
            os.fsync(fd)
            temporary.rename(path)
            sync_directory(self._folder)
        except OSError:
            if fd >= 0:
                os.close(fd)
            for leftover in (temporary, path):
                with contextlib.suppress(OSError):
                    leftover.unlink()
            raise _NotWritten from None
        self._journal = journal
        return journal

    def _finish(self, journal: _Journal) -> None:
        """Do without the journal: have all stores in it hold by themselves what it has."""
        with self._lock:
            needed = list(self._needed.values())
        for store, generation in needed:
            if store.synced < generation:
                with contextlib.suppress(StoreError):
                    store.sync()
        with self._lock:
            is_needed = any(
                store.synced < generation for store, generation in self._needed.values()
            )
        if not is_needed:
            with contextlib.suppress(OSError):
                journal.path.unlink()
        self._abandon(journal)

    def _abandon(self, journal: _Journal) -> None:
        """Write no more to the journal. If it is still there, the next owners recover it."""
        with self._lock:
            self._needed.clear()
            self._marks.clear()
        self._journal = None
        os.close(journal.fd)

    def released(self, store: SqliteStore) -> None:
        """A store is closed, and its file holds by itself what was flushed."""
        with self._lock:
            if self._needed.pop(store.name, None) is not None:
                self._marks.append(store.name)
            is_needed = bool(self._needed)
        if not is_needed and self._round.acquire(blocking=False):
            try:
                if self._journal is not None:
                    self._finish(self._journal)
            finally:
                self._round.release()

    def close(self) -> None:
        """Give the journal up; it stays if a store needs it still."""
        with self._round:
            if self._journal is not None:
                self._finish(self._journal)

    # -- recovery ---------------------------------------------------------------------------

    def recover(self, store: SqliteStore) -> None:
        """Bring into a store, just opened, what journals of dead processes have of it.

        Raises:
            StoreError: a journal is damaged, or does not go on with the store.
        """
        if not self._journals():
            return
        with self._locked(), contextlib.ExitStack() as stack:
            entries: dict[int, fmt.Entry] = {}
            found = []
            for path in self._journals():
                dead = _open_dead(path)
                if dead is None:
                    continue
                stack.callback(os.close, dead.fd)
                needed = dead.contents.stores()
                if not needed:
                    # Its first round was not whole, or the last mark was the last thing done.
                    with contextlib.suppress(OSError):
                        path.unlink()
                elif store.name in needed:
                    found.append(dead)
                    _collect(entries, dead, store.name)
            if not found:
                return
            store.replay([entries[generation] for generation in sorted(entries)])
            for dead in found:
                dead.mark(store.name)

    def _journals(self) -> list[pathlib.Path]:
        own = self._journal
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(
                f"{self._folder}: cannot read the journals ({error.strerror}); the directory "
                "must be readable for the daemon's user"
            ) from None
        paths = [self._folder / name for name in names if name.endswith(".log")]
        return [path for path in paths if own is None or path != own.path]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time recovers; another one is waited for."""
        path = self._folder / _LOCK_NAME
        deadline = time.monotonic() + _LOCK_SECONDS
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot open the lock of the journals ({error.strerror}); it must be a "
                "file that the daemon's user may write"
            ) from None
        try:
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{path}: another process has been looking at the journals for "
                        f"{_LOCK_SECONDS:.0f} s; end that process, then try again"
                    )
                time.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise StoreError(f"cannot lock a journal ({error.strerror})") from None
    return True


# -- journals of dead processes ---------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Dead:
    """A journal whose process is dead, locked by us."""

    path: pathlib.Path
    fd: int
    contents: fmt.Contents

    def mark(self, name: fmt.StoreName) -> None:
        """Note that a store is done with the journal; the last one removes it."""
        # Without the mark somebody will look again, and that is all.
        with contextlib.suppress(OSError):
            if self.contents.stores() == {name}:
                self.path.unlink()
                return
            # What is before must be whole once there is something behind.
            os.fdatasync(self.fd)
            number = len(self.contents.payloads)
            data = fmt.frame(self.contents.epoch, number, fmt.Round([name], []))
            os.ftruncate(self.fd, self.contents.end)
            os.pwrite(self.fd, data, self.contents.end)


def _open_dead(path: pathlib.Path) -> _Dead | None:
    """Read a journal; None if its process lives, or it has gone meanwhile.

    Raises:
        StoreError: it cannot be read, or is damaged.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path}: cannot open the journal ({error.strerror}); it must be a file that the "
            "daemon's user may read and write"
        ) from None
    try:
        contents = _read_dead(path, fd)
    except BaseException:
        os.close(fd)
        raise
    if contents is None:
        os.close(fd)
        return None
    return _Dead(path, fd, contents)


def _read_dead(path: pathlib.Path, fd: int) -> fmt.Contents | None:
    if not _try_lock(fd):
        return None
    status = os.fstat(fd)
    if status.st_nlink == 0:
        return None
    advice = (
        "restore the state directory from a backup; or move the journal away, and partitions "
        "may lack what they flushed last"
    )
    if not stat.S_ISREG(status.st_mode) or status.st_size > fmt.MAX_SIZE:
        raise StoreError(
            f"{path}: expected a journal of at most {fmt.MAX_SIZE >> 20} MiB, found something "
            f"else: {advice}"
        )
    try:
        with open(fd, "rb", closefd=False) as file:
            return fmt.Contents(file.read(fmt.MAX_SIZE))
    except fmt.JournalNewer:
        raise StoreError(
            f"{path} was written by a newer hcalld, upgrade to that one. Nothing was changed"
        ) from None
    except fmt.JournalDamaged as error:
        raise StoreError(f"{path} is damaged ({error}): {advice}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot read the journal ({error.strerror})") from None


def _collect(entries: dict[int, fmt.Entry], dead: _Dead, name: fmt.StoreName) -> None:
    """Add a store's entries of one journal."""
    try:
        for entry in dead.contents.entries(name):
            if entries.setdefault(entry.generation, entry) != entry:
                raise fmt.JournalDamaged(
                    f"generation {entry.generation} of partition {name.partition} is there twice, "
                    "in different forms"
                )
    except fmt.JournalDamaged as error:
        raise StoreError(
            f"{dead.path} is damaged ({error}): restore the state directory from a backup, or "
            "move the journal away, and partitions may lack what they flushed last"
        ) from None
