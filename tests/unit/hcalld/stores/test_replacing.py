# SPDX-License-Identifier: Apache-2.0
"""Whole partitions taken out and put in, all or nothing."""

from __future__ import annotations

import os
import pathlib
import shutil
import sqlite3
from collections.abc import Callable

import pytest

from hcalld.core.errors import ConfigError, HcalldError, StoreError
from hcalld.core.records import Lifetime, Put, Record, RecordedReply, Run
from hcalld.stores.directory import StateDirectory
from hcalld.stores.replacing import put_copy, put_records, take_copy, take_export
from hcalld.stores.sqlite import SqliteStore

RUN = Run(bytes(16), 3)


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> StateDirectory:
    """With a partition that a guest has used."""
    directory = StateDirectory(tmp_path / "state")
    store = directory.open("guest")
    store.begin_run(RUN)
    store.commit(
        [
            Put(Record("pks", b"a", b"value a")),
            Put(Record("pks", b"b", b"value b")),
            Put(Record("partition", b"c", b"value c")),
            Put(Record("pks", b"p", b"password", Lifetime.RUN)),
        ],
        RecordedReply(0, 1, b"reply"),
    )
    store.close()
    return directory


def content(directory: StateDirectory, partition: str = "guest") -> dict[bytes, bytes]:
    store = directory.open(partition, create=False)
    try:
        return {record.key: record.value for record in store.load().records}
    finally:
        store.close()


def snapshot(directory: StateDirectory) -> dict[str, bytes]:
    """Every file below the state directory, but for locks."""
    return {
        str(path.relative_to(directory.path)): path.read_bytes()
        for path in directory.path.rglob("*")
        if path.is_file() and path.name != "lock"
    }


LASTING = {b"a": b"value a", b"b": b"value b", b"c": b"value c"}


# -- exports ----------------------------------------------------------------------------------


def test_an_export_has_what_outlives_a_run(directory: StateDirectory):
    export = take_export(directory, "guest")

    assert {record.key: record.value for record in export.records} == LASTING
    assert export.partition == "guest"
    assert export.generation == 2


def test_records_make_a_new_partition(directory: StateDirectory):
    records = [exported.record() for exported in take_export(directory, "guest").records]
    put_records(directory, "copy", records, replace=False)

    assert content(directory, "copy") == LASTING
    assert content(directory) == {**LASTING, b"p": b"password"}


def test_records_replace_what_lasts_and_leave_the_run(directory: StateDirectory):
    with pytest.raises(ConfigError, match="guest is there already; use --replace"):
        put_records(directory, "guest", [Record("pks", b"n", b"new")], replace=False)
    put_records(directory, "guest", [Record("pks", b"n", b"new")], replace=True)

    assert content(directory) == {b"n": b"new", b"p": b"password"}


def test_an_emptied_partition_is_not_taken_for_a_new_one(directory: StateDirectory):
    put_records(directory, "guest", [], replace=True)
    store = directory.open("guest")
    store.begin_run(Run(bytes(16), 4))
    store.close()

    with pytest.raises(ConfigError, match="use --replace"):
        put_records(directory, "guest", [], replace=False)


@pytest.mark.parametrize("step", ["commit", "flush", "load"])
@pytest.mark.parametrize("partition", ["guest", "new"])
def test_records_that_cannot_be_put_change_nothing(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch, step: str, partition: str
):
    if step == "flush" and partition == "guest":
        return  # committed, and the store refuses everything until it is opened again
    before = content(directory)

    def refuse(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(SqliteStore, step, refuse)
    with pytest.raises(StoreError, match="disk is full"):
        put_records(directory, partition, [Record("pks", b"n", b"new")], replace=True)
    monkeypatch.undo()
    directory = StateDirectory(directory.path)
    assert content(directory) == before
    assert directory.partitions() == ["guest"]


@pytest.mark.parametrize(
    "action",
    [
        lambda directory: take_export(directory, "guest"),
        lambda directory: take_copy(directory, "guest"),
        lambda directory: put_records(directory, "guest", [], replace=True),
    ],
    ids=["export", "copy", "records"],
)
def test_a_partition_in_use_is_left_alone(
    directory: StateDirectory, action: Callable[[StateDirectory], object]
):
    store = directory.open("guest")
    with pytest.raises(StoreError, match="in use by process"):
        action(directory)
    store.close()


# -- copies -----------------------------------------------------------------------------------


def test_a_copy_is_whole_and_a_store_by_itself(directory: StateDirectory, tmp_path: pathlib.Path):
    copy, generation = take_copy(directory, "guest")

    (tmp_path / "copy.db").write_bytes(copy)
    with sqlite3.connect(tmp_path / "copy.db") as db:  # SQLite itself as the witness
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count(*) FROM records").fetchone() == (4,)
    db.close()
    assert generation == 2
    assert b"value a" not in copy


def test_a_copy_has_what_only_the_log_had(directory: StateDirectory, tmp_path: pathlib.Path):
    """As after the death of a daemon."""
    store = directory.open("guest")
    store.commit([Put(Record("pks", b"late", b"in the log"))], None)
    shutil.copytree(directory.path, tmp_path / "killed")
    store.close()
    killed = StateDirectory(tmp_path / "killed")
    assert (killed.folder("guest") / "keystore.db-wal").exists()
    copy, _ = take_copy(killed, "guest")
    put_copy(directory, "guest", copy, replace=True)

    assert content(directory)[b"late"] == b"in the log"


def change(directory: StateDirectory) -> None:
    store = directory.open("guest")
    store.commit([Put(Record("pks", b"a", b"newer"))], None)
    store.close()


def test_a_restored_copy_is_the_store_as_it_was_without_its_run(directory: StateDirectory):
    copy, _ = take_copy(directory, "guest")
    change(directory)
    with pytest.raises(ConfigError, match="use --replace"):
        put_copy(directory, "guest", copy, replace=False)
    assert content(directory)[b"a"] == b"newer"
    assert put_copy(directory, "guest", copy, replace=True) == 3

    assert content(directory) == LASTING
    store = directory.open("guest")
    assert store.load().replies == []
    assert store.begin_run(RUN), "the run in which it was copied is over"
    store.close()
    assert sorted(os.listdir(directory.folder("guest"))) == ["keystore.db", "lock"]


def test_a_copy_restores_a_lost_partition(directory: StateDirectory):
    copy, _ = take_copy(directory, "guest")
    shutil.rmtree(directory.folder("guest"))

    put_copy(directory, "guest", copy, replace=False)
    assert content(directory) == LASTING


@pytest.mark.parametrize("damage", ["database", "log alone", "both"])
def test_a_copy_replaces_a_damaged_store_which_is_set_aside(directory: StateDirectory, damage: str):
    copy, _ = take_copy(directory, "guest")
    folder = directory.folder("guest")
    if damage != "log alone":
        (folder / "keystore.db").write_bytes(b"not a database")
    else:
        (folder / "keystore.db").unlink()
    if damage != "database":
        (folder / "keystore.db-wal").write_bytes(b"a log of another time")
    put_copy(directory, "guest", copy, replace=True)

    assert content(directory) == LASTING
    aside = {name for name in os.listdir(folder) if name.endswith(".replaced")}
    # SQLite itself removes a log that is none while it finds the database to be none.
    assert ("keystore.db.replaced" in aside) == (damage != "log alone")
    assert ("keystore.db-wal.replaced" in aside) or damage != "log alone"
    assert not (folder / "keystore.db-wal").exists()


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_restored_store_is_not_continued_by_an_old_journal(
    directory: StateDirectory, tmp_path: pathlib.Path, is_lost: bool
):
    """Two partitions were flushed together, by a daemon that then died."""
    copy, generation = take_copy(directory, "guest")
    stores = [directory.open("guest"), directory.open("other")]
    directory.flush_stores(stores)  # each by itself: what was before is not in a journal
    for number in range(4):
        for store in stores:
            store.commit([Put(Record("pks", b"a", b"newer %d" % number))], None)
    assert directory.flush_stores(stores) == [None, None]
    shutil.copytree(directory.path, tmp_path / "killed")
    for store in stores:
        store.close()
    killed = StateDirectory(tmp_path / "killed")
    assert any(name.endswith(".log") for name in os.listdir(killed.path / "journals"))
    if is_lost:
        shutil.rmtree(killed.folder("guest"))
    assert put_copy(killed, "guest", copy, replace=True) == generation + 1

    again = StateDirectory(killed.path)
    assert content(again) == LASTING
    assert content(again, "other")[b"a"] == b"newer 3"


def other_key(copy: bytes, tmp_path: pathlib.Path) -> bytes:
    other = StateDirectory(tmp_path / "other")
    other.open("guest").close()
    return take_copy(other, "guest")[0]


def other_partition(copy: bytes, tmp_path: pathlib.Path) -> bytes:
    directory = StateDirectory(tmp_path / "state")
    directory.open("web1").close()
    return take_copy(directory, "web1")[0]


def flipped(copy: bytes, tmp_path: pathlib.Path) -> bytes:
    path = tmp_path / "flipped.db"
    path.write_bytes(copy)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE records SET value = zeroblob(length(value)) WHERE key = ?", (b"a",))
    db.close()
    return path.read_bytes()


BAD: dict[str, tuple[Callable[[bytes, pathlib.Path], bytes], str]] = {
    "empty": (lambda copy, _: b"", "it"),
    "cut": (lambda copy, _: copy[: len(copy) // 2], "damaged"),
    "text": (lambda copy, _: b"hello", "damaged"),
    "an export": (lambda copy, _: b"hcalld-export-v1\n" + bytes(5000), "damaged"),
    "other key": (other_key, "another key"),
    "other partition": (other_partition, "belongs to partition 'web1'"),
    "flipped": (flipped, "damaged"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_bad_copy_changes_nothing(
    directory: StateDirectory, tmp_path: pathlib.Path, name: str, is_there: bool
):
    make, message = BAD[name]
    copy = make(take_copy(directory, "guest")[0], tmp_path)
    if not is_there:
        shutil.rmtree(directory.folder("guest"))
    before = snapshot(directory)

    with pytest.raises(StoreError, match=message) as raised:
        put_copy(StateDirectory(directory.path), "guest", copy, replace=True)
    assert ".restore-" not in str(raised.value)
    assert snapshot(directory) == before


def test_a_partition_in_use_is_not_restored(directory: StateDirectory):
    copy, _ = take_copy(directory, "guest")
    store = directory.open("guest")
    with pytest.raises(StoreError, match="in use by process"):
        put_copy(directory, "guest", copy, replace=True)
    assert store.load().records
    store.close()
    assert sorted(os.listdir(directory.folder("guest"))) == ["keystore.db", "lock"]


@pytest.mark.parametrize("call", range(8))
def test_a_death_while_restoring_leaves_one_of_both(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch, call: int
):
    """Each rename and sync of a directory is a place to die, also for a damaged store."""
    copy, _ = take_copy(directory, "guest")
    change(directory)
    (directory.folder("guest") / "keystore.db").write_bytes(b"not a database")
    done = 0

    class Death(BaseException):
        pass

    def count(_event: str, _args: object) -> None:
        nonlocal done
        if done == call:
            raise Death
        done += 1

    rename = pathlib.Path.rename

    def renamed(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        count("rename", self)
        result = rename(self, target)
        count("renamed", self)
        return result

    monkeypatch.setattr(pathlib.Path, "rename", renamed)
    try:
        put_copy(directory, "guest", copy, replace=True)
    except Death:
        monkeypatch.undo()
        try:
            found = content(StateDirectory(directory.path))
        except HcalldError:
            put_copy(StateDirectory(directory.path), "guest", copy, replace=True)
            found = content(StateDirectory(directory.path))
        assert found == LASTING
    else:
        assert call >= done
