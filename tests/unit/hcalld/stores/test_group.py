# SPDX-License-Identifier: Apache-2.0
"""Partitions flushed together: one sync, and nothing of it is lost whoever dies when.

``PowerCut`` keeps of the files what was synced and drops the rest; the long form of that,
with every write torn, is in tests/e2e/powercut.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from hcalld.core.errors import StoreError
from hcalld.core.records import Delete, Lifetime, Put, Record, RecordedReply, Run
from hcalld.stores import group as module
from hcalld.stores import journal_format as fmt
from hcalld.stores import sqlite
from hcalld.stores.directory import StateDirectory
from hcalld.stores.sqlite import SqliteStore

RUN = Run(b"instance 1......", 0)
NAMES = ("a", "b", "c")


def put(key: bytes, value: bytes = b"value", lifetime: Lifetime = Lifetime.PERSISTENT) -> Put:
    return Put(Record("pks", key, value, lifetime))


class Syncs:
    """The files that are synced, by name; and disks that fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.failing = ""
        self._fdatasync, self._fsync = os.fdatasync, os.fsync
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fdatasync(self, fd: int) -> None:
        self._note(fd)
        self._fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._note(fd)
        self._fsync(fd)

    def _note(self, fd: int) -> None:
        name = pathlib.Path(os.readlink(f"/proc/self/fd/{fd}")).name
        if self.failing and name.endswith(self.failing):
            raise OSError(errno.EIO, "Input/output error")
        self.names.append(name)

    def take(self) -> list[str]:
        names, self.names = self.names, []
        return names


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(tmp_path / "state")
    yield directory
    directory.close()


@pytest.fixture
def stores(directory: StateDirectory) -> Iterator[list[SqliteStore]]:
    """Three partitions, made, in a run, and flushed."""
    stores = [directory.open(name) for name in NAMES]
    for store in stores:
        store.begin_run(RUN)
        store.flush()
    yield stores
    for store in stores:
        store.close()


def commit(stores: list[SqliteStore], n: int) -> None:
    """One commit for each store: a record, a password, a removal, a reply."""
    for store in stores:
        value = f"{store.partition} {n}".encode()
        store.commit(
            [
                put(b"last", value),
                put(b"key %d" % n, value),
                put(b"pw", value, Lifetime.RUN),
                Delete("pks", b"key %d" % (n - 1)),
            ],
            RecordedReply(n % 3, (1 << 64) - 1 - n, value),
        )


def is_at(store: SqliteStore, n: int) -> None:
    """The store holds what commit ``n`` left, wholly."""
    loaded = store.load()
    value = f"{store.partition} {n}".encode()
    assert {record.key: record.value for record in loaded.records} == {
        b"last": value,
        b"pw": value,
        b"key %d" % n: value,
    }
    assert RecordedReply(n % 3, (1 << 64) - 1 - n, value) in loaded.replies
    assert not store.begin_run(RUN)
    store.verify()


def journals(directory: StateDirectory) -> list[pathlib.Path]:
    return sorted((directory.path / "journals").glob("*.log"))


class PowerCut:
    """The state directory as it is after a power cut in which unsynced logs are lost.

    Taken when every partition's file is synced; ``after`` adds today's journals to it.
    """

    def __init__(self, directory: StateDirectory, to: pathlib.Path) -> None:
        self._directory = directory
        self._to = to
        shutil.copytree(directory.path, to / "base")
        self._count = 0

    def after(self) -> StateDirectory:
        """What the next boot finds."""
        self._count += 1
        image = self._to / f"image{self._count}"
        shutil.copytree(self._to / "base", image)
        shutil.rmtree(image / "journals", ignore_errors=True)
        if (self._directory.path / "journals").exists():
            shutil.copytree(self._directory.path / "journals", image / "journals")
        return StateDirectory(image)


# -- flushing ----------------------------------------------------------------------------------


def test_several_dirty_stores_cost_one_sync(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    commit(stores, 1)
    assert directory.flush_stores(stores) == [None] * 3
    (journal,) = journals(directory)
    first = syncs.take()
    assert first.count(journal.name) == 1
    assert not any(name.endswith("-wal") for name in first)
    for n in range(2, 10):
        commit(stores, n)
        assert directory.flush_stores(stores) == [None] * 3
        assert not any(store.dirty for store in stores)
    assert syncs.take() == [journal.name] * 8


def test_a_single_dirty_store_is_synced_by_itself(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    commit(stores[:1], 1)
    assert directory.flush_stores(stores) == [None] * 3
    assert syncs.take() == ["keystore.db-wal"]
    assert journals(directory) == []


def test_the_first_flush_of_an_opened_store_is_of_its_own_file(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    """Whoever had it before may have died with commits that are in no journal."""
    commit(stores, 1)
    for store in stores:
        store.close()
    again = [directory.open(name) for name in NAMES]
    assert all(store.dirty for store in again)
    syncs.take()
    assert directory.flush_stores(again) == [None] * 3
    assert journals(directory) == []
    for store in again:
        store.close()


def test_the_folder_of_journals_that_another_made_has_a_durable_name(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    # Its maker was killed between making it and syncing its name.
    (directory.path / "journals").mkdir()
    commit(stores, 1)
    directory.flush_stores(stores)
    names = syncs.take()
    assert names.index("state") < names.index("journals")


def test_commits_during_a_round_are_not_covered(
    directory: StateDirectory, stores: list[SqliteStore], monkeypatch: pytest.MonkeyPatch
):
    commit(stores, 1)
    started, go_on = threading.Event(), threading.Event()
    real = os.fdatasync

    def sync(fd: int) -> None:
        started.set()
        assert go_on.wait(10)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    flusher = threading.Thread(target=directory.flush_stores, args=(stores,))
    flusher.start()
    assert started.wait(10)
    commit(stores, 2)
    go_on.set()
    flusher.join()
    assert all(store.dirty for store in stores)
    assert directory.flush_stores(stores) == [None] * 3
    assert not any(store.dirty for store in stores)


def test_a_store_with_too_much_to_keep_is_synced_by_itself(
    directory: StateDirectory,
    stores: list[SqliteStore],
    syncs: Syncs,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sqlite, "UNFLUSHED_LIMIT", 10_000)
    commit(stores, 1)
    stores[0].commit([put(b"large", bytes(20_000))], None)
    commit(stores, 2)
    assert stores[0].unflushed() is None
    assert stores[0]._unflushed_size < 10_000
    assert directory.flush_stores(stores) == [None] * 3
    assert syncs.take().count("keystore.db-wal") == 1
    commit(stores, 3)
    assert directory.flush_stores(stores) == [None] * 3
    assert "keystore.db-wal" not in syncs.take(), "it can be kept again"


def test_a_round_has_a_bound(
    directory: StateDirectory,
    stores: list[SqliteStore],
    syncs: Syncs,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "ROUND_LIMIT", 25_000)
    for store in stores:
        store.commit([put(b"large", bytes(10_000))], None)
    assert directory.flush_stores(stores) == [None] * 3
    (journal,) = journals(directory)
    assert syncs.take().count("keystore.db-wal") == 1
    assert 20_000 < journal.stat().st_size < 25_000


def test_a_long_journal_is_done_with(
    directory: StateDirectory,
    stores: list[SqliteStore],
    syncs: Syncs,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "JOURNAL_LIMIT", 30_000)
    seen = set()
    for n in range(1, 40):
        commit(stores, n)
        assert directory.flush_stores(stores) == [None] * 3
        seen |= set(journals(directory))
        assert len(journals(directory)) <= 1
        assert all(path.stat().st_size <= 30_000 for path in journals(directory))
    assert len(seen) > 1
    own = syncs.take().count("keystore.db-wal")
    assert own == 3 * (len(seen) - len(journals(directory)))


def test_checkpoints_of_a_log_are_made_in_rounds_too(
    directory: StateDirectory, stores: list[SqliteStore], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite, "FLUSH_CHECKPOINT_SIZE", 100_000)
    log = directory.folder("a") / "keystore.db-wal"
    for n in range(1, 40):
        commit(stores, n)
        assert directory.flush_stores(stores) == [None] * 3
        assert log.stat().st_size < 150_000


def test_no_value_is_in_a_journal_in_the_clear(
    directory: StateDirectory, stores: list[SqliteStore]
):
    planted = b"planted secret 0123456789"
    for store in stores:
        store.commit([put(b"label", planted)], RecordedReply(0, 1, planted))
    directory.flush_stores(stores)
    (journal,) = journals(directory)
    assert planted[:8] not in journal.read_bytes()
    assert b"label" in journal.read_bytes()


def test_a_journal_is_private(directory: StateDirectory, stores: list[SqliteStore]):
    old = os.umask(0)
    try:
        commit(stores, 1)
        directory.flush_stores(stores)
    finally:
        os.umask(old)
    (journal,) = journals(directory)
    assert journal.stat().st_mode & 0o777 == 0o600
    assert journal.parent.stat().st_mode & 0o777 == 0o700


# -- the journal's end ---------------------------------------------------------------------------


def test_the_journal_goes_with_the_last_store(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    commit(stores, 1)
    directory.flush_stores(stores)
    syncs.take()
    stores[0].close()
    stores[1].close()
    assert len(journals(directory)) == 1
    stores[2].close()
    assert journals(directory) == []
    assert syncs.take().count("keystore.db-wal") == 3
    again = [directory.open(name) for name in NAMES]
    for store in again:
        is_at(store, 1)
        store.close()


def test_a_resting_store_needs_the_journal_no_more(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    commit(stores, 1)
    directory.flush_stores(stores)
    for store in stores:
        store.rest()
    cut = PowerCut(directory, tmp_path)
    after = cut.after()
    for path in journals(after):
        path.unlink()
    for name in NAMES:
        store = after.open(name)
        is_at(store, 1)
        store.close()


def test_close_leaves_a_journal_that_a_lost_store_needs(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    commit(stores, 1)
    directory.flush_stores(stores)
    syncs.failing = "-wal"
    with pytest.raises(StoreError, match="flushing to disk failed"):
        stores[0].close()
    syncs.failing = ""
    stores[1].close()
    stores[2].close()
    directory.close()
    assert len(journals(directory)) == 1
    with pytest.raises(StoreError, match="restart the daemon"):
        directory.open("a")
    restarted = StateDirectory(directory.path)
    store = restarted.open("a")
    is_at(store, 1)
    store.close()


# -- disks that fail -----------------------------------------------------------------------------


def test_when_the_common_sync_fails_then_all_of_the_round_are_lost(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    commit(stores, 1)
    directory.flush_stores(stores)
    commit(stores[:2], 2)
    syncs.failing = ".log"
    failures = directory.flush_stores(stores[:2])
    syncs.failing = ""
    assert ["flushing to disk failed" in str(failure) for failure in failures] == [True, True]
    for store in stores[:2]:
        assert store.dirty
        for action in (store.load, store.flush, lambda store=store: commit([store], 3)):
            with pytest.raises(StoreError, match="restart the daemon"):
                action()
        store.close()
        with pytest.raises(StoreError, match="restart the daemon"):
            directory.open(store.partition)
    commit(stores[2:], 2)
    assert directory.flush_stores(stores[2:]) == [None], "the third was not of that round"
    is_at(stores[2], 2)


def test_the_journal_of_a_failed_sync_is_used_no_more(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    commit(stores, 1)
    directory.flush_stores(stores)
    (failed,) = journals(directory)
    commit(stores[:2], 2)
    syncs.failing = ".log"
    directory.flush_stores(stores[:2])
    syncs.failing = ""
    others = [stores[2], directory.open("d")]
    for n in (2, 3):
        commit(others, n)
        assert directory.flush_stores(others) == [None, None]
    (new,) = set(journals(directory)) - {failed}
    assert new.stat().st_size > fmt.HEAD_SIZE
    others[1].close()


@pytest.fixture
def growing_limit() -> Iterator[None]:
    """A test may limit the size of files, which is like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, old)


@pytest.mark.usefixtures("growing_limit")
def test_when_the_journal_does_not_fit_then_stores_are_synced_by_themselves(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs, tmp_path: pathlib.Path
):
    commit(stores, 1)
    directory.flush_stores(stores)
    (journal,) = journals(directory)
    size = journal.stat().st_size
    commit(stores, 2)
    syncs.take()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    assert directory.flush_stores(stores) == [None] * 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert syncs.take().count("keystore.db-wal") == 3
    assert journal.stat().st_size == size, "half a round is not left behind"
    commit(stores, 3)
    assert directory.flush_stores(stores) == [None] * 3
    assert syncs.take() == [journal.name]
    assert len(fmt.Contents(journal.read_bytes()).payloads) == 2


@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_when_journals_cannot_be_made_then_stores_are_synced_by_themselves(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs, obstacle: str
):
    path = directory.path / "journals"
    if obstacle == "file":
        path.write_text("")
    else:
        path.symlink_to(directory.path / "nowhere")
    commit(stores, 1)
    syncs.take()
    assert directory.flush_stores(stores) == [None] * 3
    assert syncs.take().count("keystore.db-wal") == 3
    path.unlink()


def test_when_a_new_journal_cannot_be_synced_then_nothing_depends_on_it(
    directory: StateDirectory, stores: list[SqliteStore], syncs: Syncs
):
    commit(stores, 1)
    syncs.failing = ".new"
    assert directory.flush_stores(stores) == [None] * 3
    assert list((directory.path / "journals").iterdir()) == []


# -- recovery ------------------------------------------------------------------------------------


def test_a_power_cut_loses_nothing_that_was_flushed(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    for n in range(1, 6):
        commit(stores, n)
        directory.flush_stores(stores)
        commit(stores, n + 100)
        after = cut.after()
        for name in NAMES:
            store = after.open(name)
            is_at(store, n) if n == 1 else None
            loaded = {record.key: record.value for record in store.load().records}
            assert loaded[b"last"] == f"{name} {n}".encode()
            assert not store.dirty
            store.verify()
            store.close()
        assert journals(after) == []


def test_a_run_that_began_is_recovered(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    commit(stores, 1)
    for store in stores:
        store.flush()
    cut = PowerCut(directory, tmp_path)
    second = Run(RUN.instance, 1)
    for store in stores:
        store.begin_run(second)
        store.commit([put(b"pw", b"new", Lifetime.RUN)], RecordedReply(0, 1, b"new"))
    directory.flush_stores(stores)
    store = cut.after().open("b")
    assert not store.begin_run(second)
    loaded = store.load()
    assert {record.key: record.value for record in loaded.records if record.key == b"pw"} == {
        b"pw": b"new"
    }
    assert loaded.replies == [RecordedReply(0, 1, b"new")]
    store.close()


def test_commits_that_the_store_has_are_left_out(
    directory: StateDirectory, stores: list[SqliteStore]
):
    """A kill and no power cut: the kernel has everything, flushed or not."""
    commit(stores, 1)
    directory.flush_stores(stores)
    commit(stores, 2)
    copy = directory.path.with_name("killed")
    shutil.copytree(directory.path, copy)
    killed = StateDirectory(copy)
    for name in NAMES:
        store = killed.open(name)
        loaded = {record.key: record.value for record in store.load().records}
        assert loaded[b"last"] == f"{name} 2".encode()
        assert store.synced == store.generation, "the journal is not needed any more"
        store.close()
    assert journals(killed) == []


def test_a_journal_stays_until_its_last_store_is_recovered(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    for left, name in enumerate(reversed(NAMES)):
        assert len(journals(after)) == 1
        contents = fmt.Contents(journals(after)[0].read_bytes())
        assert len(contents.stores()) == 3 - left
        store = after.open(name)
        is_at(store, 1)
        commit([store], 2)
        store.close()
        store = after.open(name)
        is_at(store, 2)
        store.close()
    assert journals(after) == []


def test_a_second_power_cut_after_recovery_takes_nothing_back(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    """The journal and its marks come back, the stores go on from where they are."""
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    saved = tmp_path / "saved"
    shutil.copytree(after.path / "journals", saved)
    for name in NAMES:
        store = after.open(name)
        commit([store], 2)
        store.flush()
        store.close()
    shutil.rmtree(after.path / "journals")
    shutil.copytree(saved, after.path / "journals")
    for name in NAMES:
        store = after.open(name)
        is_at(store, 2)
        store.close()
    assert journals(after) == []


def test_what_was_recovered_is_synced_before_the_journal_is_marked_or_removed(
    directory: StateDirectory,
    stores: list[SqliteStore],
    tmp_path: pathlib.Path,
    syncs: Syncs,
    monkeypatch: pytest.MonkeyPatch,
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    seen: list[tuple[str, list[str]]] = []
    real = module._Dead.mark

    def mark(dead: module._Dead, name: fmt.StoreName) -> None:
        seen.append((name.partition, syncs.take()))
        real(dead, name)

    monkeypatch.setattr(module._Dead, "mark", mark)
    for name in NAMES:
        syncs.take()
        after.open(name).close()
    assert [name for name, _ in seen] == list(NAMES)
    for _, synced in seen:
        assert synced[-2:] == ["keystore.db-wal", synced[-1]], "the log, then its name"
        assert synced[-1] in NAMES


def test_journals_of_several_dead_processes_are_joined(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    directory._group._abandon(directory._group._journal)  # type: ignore[arg-type]
    commit(stores, 2)
    directory.flush_stores(stores)
    assert len(journals(directory)) == 2
    after = cut.after()
    for name in NAMES:
        store = after.open(name)
        loaded = {record.key: record.value for record in store.load().records}
        assert loaded[b"last"] == f"{name} 2".encode()
        store.close()
    assert journals(after) == []


def test_a_living_process_keeps_its_journal(directory: StateDirectory, stores: list[SqliteStore]):
    """Another daemon takes a partition over that this one has released."""
    commit(stores, 1)
    directory.flush_stores(stores)
    stores[0].close()
    before = journals(directory)
    other = StateDirectory(directory.path)
    taken = other.open("a")
    is_at(taken, 1)
    commit([taken], 2)
    taken.flush()
    assert journals(directory) == before
    commit(stores[1:], 2)
    assert directory.flush_stores(stores[1:]) == [None, None]
    taken.close()


def test_two_daemons_with_partitions_of_their_own_have_a_journal_each(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    other = StateDirectory(directory.path)
    theirs = [other.open(name) for name in ("d", "e")]
    for store in theirs:
        store.begin_run(RUN)
        store.flush()
    cut = PowerCut(directory, tmp_path)
    for n in (1, 2):
        commit(stores, n)
        commit(theirs, n)
        assert directory.flush_stores(stores) == [None] * 3
        assert other.flush_stores(theirs) == [None] * 2
    assert len(journals(directory)) == 2
    after = cut.after()
    for name in (*NAMES, "d", "e"):
        store = after.open(name)
        loaded = {record.key: record.value for record in store.load().records}
        assert loaded[b"last"] == f"{name} 2".encode()
        store.close()
    assert journals(after) == []
    for store in theirs:
        store.close()
    other.close()


def test_a_partition_made_anew_gets_nothing_of_the_old_one(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    moved = tmp_path / "moved"
    after.folder("a").rename(moved)
    store = after.open("a")
    assert store.load().records == []
    store.close()
    for name in NAMES[1:]:
        after.open(name).close()
    assert len(journals(after)) == 1, "the old one may come back"
    shutil.rmtree(after.folder("a"))
    moved.rename(after.folder("a"))
    store = after.open("a")
    is_at(store, 1)
    store.close()
    assert journals(after) == []


def test_a_torn_round_is_as_if_it_had_not_been(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    (journal,) = journals(directory)
    size = journal.stat().st_size
    commit(stores, 2)
    directory.flush_stores(stores)
    after = cut.after()
    (copy,) = journals(after)
    os.truncate(copy, size + 500)
    for name in NAMES:
        store = after.open(name)
        is_at(store, 1)
        store.close()
        for path in journals(after):
            fmt.Contents(path.read_bytes())  # marks go over what was torn
    assert journals(after) == []


def test_a_journal_that_nobody_needs_is_removed_by_whoever_sees_it(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    (journal,) = journals(after)
    os.truncate(journal, fmt.HEAD_SIZE + 100)
    after.open("a").close()
    assert journals(after) == []


def refused(after: StateDirectory, match: str) -> None:
    """A store is not opened, the journals stay as they are, nobody owns it."""
    logs = {path: path.read_bytes() for path in journals(after)}
    for name in NAMES:
        with pytest.raises(StoreError, match=match) as raised:
            after.open(name)
        assert "\n" not in str(raised.value)
        assert after.holder_of(name) is None
    assert {path: path.read_bytes() for path in journals(after)} == logs


def test_a_damaged_journal_is_refused_in_words(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    for n in (1, 2):
        commit(stores, n)
        directory.flush_stores(stores)
    after = cut.after()
    (journal,) = journals(after)
    data = bytearray(journal.read_bytes())
    data[200] ^= 1
    journal.write_bytes(data)
    refused(after, r"\.log is damaged .* restore the state directory .* move the journal away")
    journal.rename(tmp_path / "away")
    store = after.open("a")
    assert store.load().records == [], "it lacks what it flushed, as was said"
    store.close()


def test_a_journal_of_a_newer_version_says_to_upgrade(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    (journal,) = journals(after)
    data = bytearray(journal.read_bytes())
    data[7] += 1
    journal.write_bytes(data)
    refused(after, "written by a newer hcalld, upgrade")


def test_a_store_older_than_its_journal_is_refused(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    for store in stores:
        store.flush()
    commit(stores, 2)
    directory.flush_stores(stores)
    refused(cut.after(), r"is at generation 1, but a journal .* goes on with 3: .* older")


def test_journals_that_contradict_each_other_are_refused(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    (journal,) = journals(after)
    other = StateDirectory(shutil.copytree(directory.path, tmp_path / "other"))
    contents = fmt.Contents(journal.read_bytes())
    parts = [
        fmt.Part(part.store, [fmt.encode_entry(fmt.Entry(2, []))])
        for part in contents.payloads[0].parts
    ]
    data = fmt.head(bytes(16)) + fmt.frame(bytes(16), 0, fmt.Round([], parts))
    journal.with_name("other.log").write_bytes(data)
    refused(after, "generation 2 of partition . is there twice")
    other.close()


@pytest.mark.parametrize(
    "row",
    [
        fmt.PutRow("pks", b"k", 1 << 63, b""),
        fmt.ReplyRow(1 << 63, 0, b""),
        fmt.RunRow(b"", 1 << 63),
    ],
)
def test_an_entry_that_no_store_can_have_is_damage(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path, row: fmt.Row
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    (journal,) = journals(after)
    entries = [fmt.encode_entry(fmt.Entry(2, [row]))]
    parts = [fmt.Part(store.name, entries) for store in stores]
    journal.write_bytes(fmt.head(bytes(16)) + fmt.frame(bytes(16), 0, fmt.Round([], parts)))
    refused(after, "damaged")


@pytest.mark.parametrize("kind", ["directory", "link", "huge"])
def test_what_is_no_journal_is_refused(
    directory: StateDirectory, stores: list[SqliteStore], tmp_path: pathlib.Path, kind: str
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    (journal,) = journals(after)
    match kind:
        case "directory":
            journal.unlink()
            journal.mkdir()
        case "link":
            journal.rename(tmp_path / "moved")
            journal.symlink_to(tmp_path / "moved")
        case _:
            os.truncate(journal, fmt.MAX_SIZE + 1)
    for name in NAMES:
        with pytest.raises(StoreError, match=r"\.log: (cannot open the|expected a) journal"):
            after.open(name)


def test_a_recovery_waits_for_another_one(
    directory: StateDirectory,
    stores: list[SqliteStore],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
):
    cut = PowerCut(directory, tmp_path)
    commit(stores, 1)
    directory.flush_stores(stores)
    after = cut.after()
    lock = os.open(after.path / "journals" / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    timer = threading.Timer(0.05, os.close, (lock,))
    timer.start()
    store = after.open("a")
    timer.join()
    is_at(store, 1)
    store.close()

    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.05)
    lock = os.open(after.path / "journals" / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(StoreError, match="another process has been looking at the journals"):
        after.open("b")
    os.close(lock)


_WRITER = """
import pathlib, sys
from hcalld.core.records import *
from hcalld.stores.directory import StateDirectory

directory = StateDirectory(pathlib.Path(sys.argv[1]))
stores = [directory.open(name) for name in "abc"]
n = max(store.generation for store in stores)
while True:
    n += 1
    for store in stores:
        store.commit([Put(Record("pks", b"last", b"%d" % n))], RecordedReply(0, n, b"%d" % n))
    assert directory.flush_stores(stores) == [None] * 3
    sys.stdout.write("%d\\n" % n)
    sys.stdout.flush()
"""


def test_killed_daemons_leave_journals_that_are_cleared_away(
    directory: StateDirectory, syncs: Syncs
):
    last = dict.fromkeys(NAMES, 0)
    for kill in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(directory.path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        with child:
            for _ in range(2 + kill * 5):
                told = int(child.stdout.readline())
            child.kill()
        for name in NAMES:
            store = directory.open(name)
            (record,) = store.load().records
            assert int(record.value) >= max(told, last[name])
            last[name] = int(record.value)
            store.verify()
            store.close()
        assert journals(directory) == []
