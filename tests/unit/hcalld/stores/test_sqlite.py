# SPDX-License-Identifier: Apache-2.0
"""The SQLite store: damage, foreign files, full and failing disks, deaths."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from hcalld.core.errors import StoreError
from hcalld.core.records import Delete, Lifetime, Put, Record, RecordedReply, Run
from hcalld.stores import sqlite as module
from hcalld.stores.directory import StateDirectory
from hcalld.stores.sqlite import SqliteStore

RUN = Run(b"instance 1......", 0)
PLANTED = b"planted secret 0123456789"


def put(key: bytes, value: bytes = b"value", lifetime: Lifetime = Lifetime.PERSISTENT) -> Put:
    return Put(Record("pks", key, value, lifetime))


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


@pytest.fixture
def database(directory: StateDirectory) -> pathlib.Path:
    """The file of a partition with one record, closed."""
    store = directory.open("guest")
    store.begin_run(RUN)
    store.commit([put(b"key"), put(b"pw", lifetime=Lifetime.RUN)], RecordedReply(0, 1, b"r"))
    store.close()
    return directory.folder("guest") / "keystore.db"


@contextlib.contextmanager
def edited(database: pathlib.Path) -> Iterator[sqlite3.Connection]:
    """Somebody else's hands on the file."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
        yield db


def refused(directory: StateDirectory, match: str) -> str:
    """Opening and loading is refused; the file stays byte for byte as it was."""
    database = directory.folder("guest") / "keystore.db"
    before = database.read_bytes() if database.is_file() else None

    def open_and_load() -> None:
        with contextlib.closing(directory.open("guest")) as store:
            store.load()

    with pytest.raises(StoreError, match=match) as raised:
        open_and_load()
    after = database.read_bytes() if database.is_file() else None
    assert after == before
    message = str(raised.value)
    assert "\n" not in message
    return message


# -- files that are not right ---------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-4096],
        lambda data: bytes(len(data)),
        lambda data: b"not a database" * 1000,
        lambda data: bytes(100) + data[100:],
        lambda data: data[:4096] + os.urandom(4096) + data[8192:],
    ],
    ids=["empty", "head only", "cut", "zeros", "text", "no head", "page"],
)
def test_a_damaged_file_is_refused_and_kept(
    directory: StateDirectory, database: pathlib.Path, damage: Callable[[bytes], bytes]
):
    database.write_bytes(damage(database.read_bytes()))

    message = refused(directory, "restore it from a backup")
    assert str(database) in message


def test_a_foreign_database_is_refused(directory: StateDirectory, database: pathlib.Path):
    database.unlink()
    with edited(database) as db:
        db.execute("CREATE TABLE records (a)")

    refused(directory, "not a store of hcalld")


@pytest.mark.parametrize("version", [3, 99, (1 << 31) - 1])
def test_a_newer_store_says_to_upgrade(
    directory: StateDirectory, database: pathlib.Path, version: int
):
    with edited(database) as db:
        db.execute(f"PRAGMA user_version={version}")
        db.execute("ALTER TABLE records ADD COLUMN surprise BLOB")

    refused(directory, f"has store version {version}, this hcalld knows up to 2: .* upgrade")


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version=0",
        "PRAGMA user_version=-1",
        "PRAGMA journal_mode=DELETE",
        "DROP TABLE replies",
        "CREATE TABLE more (a)",
        "CREATE INDEX more ON records (lifetime)",
        "CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END",
        "DELETE FROM meta",
        "INSERT INTO meta SELECT 2, partition, store_id, key_check, instance, reset, 0 FROM meta",
        "UPDATE meta SET generation = -1",
        "UPDATE meta SET instance = NULL",
        "UPDATE meta SET reset = -1",
        "UPDATE records SET key = x'00' WHERE key = CAST('key' AS BLOB)",
        "UPDATE records SET namespace = 'tpm'",
        "UPDATE records SET lifetime = 1",
        "UPDATE records SET lifetime = 7",
        "UPDATE records SET lifetime = -1",
        "UPDATE records SET value = x''",
        "UPDATE records SET value = zeroblob(3000000)",
        "UPDATE records SET value = zeroblob(5000000)",
        "UPDATE records SET value = CAST(x'02' || substr(value, 2) AS BLOB)",
        "UPDATE replies SET seq = 2",
        "UPDATE replies SET vcpu = 1",
        "UPDATE replies SET vcpu = -1",
        "UPDATE replies SET frame = x''",
        "UPDATE meta SET reset = 1",
    ],
)
def test_a_store_that_somebody_changed_is_refused(
    directory: StateDirectory, database: pathlib.Path, statement: str
):
    with edited(database) as db:
        db.execute(statement)

    refused(directory, "damaged")


def test_values_of_a_wrong_type_are_damage(directory: StateDirectory, database: pathlib.Path):
    with edited(database) as db:
        db.execute("PRAGMA writable_schema=ON")
        (old,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'records'").fetchone()
        loose = old.replace(") STRICT, ", ") ")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'records'", (loose,))
    with edited(database) as db:
        db.execute("UPDATE records SET key = 'text ' || lifetime, value = 'text'")
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'records'", (old,))

    refused(directory, "damaged")


def test_too_many_records_are_refused(
    directory: StateDirectory, database: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_RECORDS", 1)

    refused(directory, "2 records, expected at most 1")


def test_a_record_moved_to_another_partition_does_not_open(
    directory: StateDirectory, database: pathlib.Path
):
    directory.open("other").close()
    other = directory.folder("other") / "keystore.db"
    with edited(other) as db:
        db.execute(f"ATTACH '{database}' AS guest")
        db.execute("INSERT INTO records SELECT * FROM guest.records")

    store = directory.open("other")
    with pytest.raises(StoreError, match="damaged"):
        store.load()
    store.close()


def test_a_file_of_another_partition_names_it(directory: StateDirectory, database: pathlib.Path):
    directory.open("other").close()
    shutil.copy(directory.folder("other") / "keystore.db", database)

    refused(directory, "belongs to partition 'other', not 'guest'")


def test_a_file_of_another_key_says_so(directory: StateDirectory, database: pathlib.Path):
    (directory.path / "key").write_bytes(b"hcalld-key-v1 " + b"0" * 64 + b"\n")

    refused(StateDirectory(directory.path), "encrypted with another key")


def test_a_missing_file_beside_its_log_is_not_made_anew(
    directory: StateDirectory, database: pathlib.Path
):
    database.rename(database.with_name("keystore.db-wal"))

    refused(directory, "is missing, but its log")


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_what_is_no_file_is_refused(directory: StateDirectory, database: pathlib.Path, kind: str):
    moved = database.rename(database.with_name("moved"))
    match kind:
        case "directory":
            database.mkdir()
        case "link":
            database.symlink_to(moved)
        case _:
            os.mkfifo(database)

    with pytest.raises(StoreError, match="expected a regular file"):
        directory.open("guest")


def test_leftovers_of_a_creation_that_died_are_no_obstacle(directory: StateDirectory):
    folder = directory.folder("guest")
    folder.mkdir(parents=True)
    directory.open("donor").close()
    for suffix in ("", "-wal", "-shm", "-journal"):
        shutil.copy(directory.folder("donor") / "keystore.db", folder / f"keystore.db.new{suffix}")

    store = directory.open("guest")
    assert store.load().records == []
    store.close()
    assert sorted(os.listdir(folder)) == ["keystore.db", "lock"]


def test_another_program_that_has_the_file_open_is_named_as_such(
    directory: StateDirectory, database: pathlib.Path
):
    with edited(database) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program has it open"):
            directory.open("guest")
    directory.open("guest").close()


def test_verify_checks_pages_and_values(directory: StateDirectory, database: pathlib.Path):
    store = directory.open("guest")
    store.verify()
    store.close()
    with edited(database) as db:
        db.execute("PRAGMA ignore_check_constraints=ON")
        db.execute("UPDATE records SET value = randomblob(60)")
    store = directory.open("guest")
    with pytest.raises(StoreError, match="damaged"):
        store.verify()
    store.close()


def test_a_file_without_permission_says_what_it_must_be(
    directory: StateDirectory, database: pathlib.Path
):
    """In a process of an ordinary user: root may do anything."""
    script = (
        "import os, pathlib, sys\n"
        "from hcalld.core.errors import StoreError\n"
        "from hcalld.stores.sqlite import SqliteStore\n"
        "from hcalld.core.secret import Secret\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "os.chdir(folder)\n"
        "if os.geteuid() == 0:\n"
        "    os.setegid(65534); os.seteuid(65534)\n"
        "try:\n"
        "    SqliteStore(pathlib.Path('.'), 'guest', lambda new: Secret(bytes(32)))\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    folder = database.parent
    (folder / "lock").chmod(0o666)
    folder.chmod(0o755)

    def run() -> str:
        result = subprocess.run(
            [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
        )
        return result.stdout

    database.chmod(0o000)
    assert "keystore.db: cannot open the store (Permission denied); it must be" in run()
    (folder / "lock").chmod(0o000)
    assert "lock: cannot open the lock file of partition guest (Permission denied)" in run()


# -- what is on the disk --------------------------------------------------------------------


def test_no_value_or_reply_is_in_the_files_in_the_clear(directory: StateDirectory):
    store = directory.open("guest")
    store.begin_run(RUN)
    store.commit([put(b"label", PLANTED), put(b"pw", PLANTED, Lifetime.RUN)], None)
    store.commit([Delete("pks", b"label")], RecordedReply(0, 1, PLANTED))
    store.flush()
    during = [path.read_bytes() for path in directory.path.rglob("*") if path.is_file()]
    store.close()
    after = [path.read_bytes() for path in directory.path.rglob("*") if path.is_file()]

    for content in during + after:
        assert PLANTED not in content
        assert PLANTED[:8] not in content
    assert any(b"pw" in content for content in during)


def test_no_two_sealed_values_share_their_key_and_nonce(directory: StateDirectory):
    heads = set()
    count = 0
    for _ in range(3):
        store = directory.open("guest")
        for n in range(10):
            store.commit([put(b"%d" % n, b"same")], RecordedReply(0, n, b"same"))
            assert store._db is not None
            values = store._db.execute("SELECT value FROM records WHERE key = ?", (b"%d" % n,))
            frames = store._db.execute("SELECT frame FROM replies")
            for (sealed,) in [*values, *frames]:
                heads.add(sealed[:29])
                count += 1
        store.close()

    assert len(heads) == count == 60


def test_a_restored_backup_goes_on_with_other_nonces(
    directory: StateDirectory, tmp_path: pathlib.Path
):
    store = directory.open("guest")
    store.commit([put(b"a")], None)
    store.close()
    shutil.copytree(directory.path, tmp_path / "backup")
    heads = []
    for _ in range(2):
        shutil.rmtree(directory.path)
        shutil.copytree(tmp_path / "backup", directory.path)
        store = StateDirectory(directory.path).open("guest")
        store.commit([put(b"b")], None)
        assert store._db is not None
        query = store._db.execute("SELECT value FROM records WHERE key = ?", (b"b",))
        heads.append(query.fetchone()[0][:29])
        store.close()

    assert heads[0] != heads[1]


# -- flushing -------------------------------------------------------------------------------


class Synced:
    """What was synced, and a disk that can fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        self.sizes: list[int] = []
        self.error: OSError | None = None
        monkeypatch.setattr(module, "sync_data", self.sync)

    def sync(self, path: pathlib.Path) -> None:
        if self.error is not None:
            raise self.error
        self.sizes.append(path.stat().st_size)
        self.paths.append(path.name)


def test_flush_syncs_the_log_that_holds_the_commits(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
):
    store = directory.open("guest")
    store.flush()
    synced = Synced(monkeypatch)
    store.commit([put(b"a")], None)
    assert synced.paths == []
    store.flush()
    store.flush()
    store.commit([put(b"b")], None)
    store.flush()
    store.close()

    assert synced.paths == ["keystore.db-wal", "keystore.db-wal"]
    assert 0 < synced.sizes[0] < synced.sizes[1]


def test_what_is_in_the_log_when_it_is_synced_is_enough(
    directory: StateDirectory, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """A copy of the files, made by the sync itself, holds all that was committed before."""
    store = directory.open("guest")
    store.begin_run(RUN)
    copies: list[pathlib.Path] = []

    def sync(path: pathlib.Path) -> None:
        copy = tmp_path / f"copy{len(copies)}"
        shutil.copytree(directory.path, copy)
        copies.append(copy)

    monkeypatch.setattr(module, "sync_data", sync)
    for n in range(5):
        store.commit([put(b"%d" % n)], RecordedReply(0, n, b"r%d" % n))
        store.flush()
    store.close()

    for n, copy in enumerate(copies):
        store = StateDirectory(copy).open("guest")
        loaded = store.load()
        assert len(loaded.records) == n + 1
        assert loaded.replies == [RecordedReply(0, n, b"r%d" % n)]
        store.close()


def test_commits_during_a_flush_do_not_wait_and_are_not_covered(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
):
    store = directory.open("guest")
    store.commit([put(b"a")], None)
    started, go_on = threading.Event(), threading.Event()

    def sync(path: pathlib.Path) -> None:
        started.set()
        assert go_on.wait(10)

    monkeypatch.setattr(module, "sync_data", sync)
    flusher = threading.Thread(target=store.flush)
    flusher.start()
    assert started.wait(10)
    store.commit([put(b"b")], None)
    assert len(store.load().records) == 2
    go_on.set()
    flusher.join()

    assert store.dirty
    store.flush()
    assert not store.dirty
    store.close()


def test_after_a_sync_failed_nothing_is_said_to_be_flushed_again(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
):
    store = directory.open("guest")
    store.commit([put(b"a")], None)
    synced = Synced(monkeypatch)
    synced.error = OSError(5, "Input/output error")
    with pytest.raises(StoreError, match=r"flushing to disk failed \(Input/output error\)"):
        store.flush()
    synced.error = None

    assert store.dirty
    for action in (store.flush, store.load, lambda: store.commit([put(b"b")], None)):
        with pytest.raises(StoreError, match="flushing to disk failed"):
            action()
    assert store.dirty
    store.close()
    with pytest.raises(StoreError, match="restart the daemon"):
        directory.open("guest")
    directory.open("other").close()
    restarted = StateDirectory(directory.path).open("guest")
    assert len(restarted.load().records) == 1
    restarted.close()


def test_a_long_log_is_moved_into_the_database_by_a_flush(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "FLUSH_CHECKPOINT_SIZE", 20_000)
    store = directory.open("guest")
    log = directory.folder("guest") / "keystore.db-wal"
    for n in range(10):
        store.commit([put(b"%d" % n, bytes(4000))], None)
    assert log.stat().st_size > 20_000
    store.flush()

    assert log.stat().st_size == 0
    store.commit([put(b"more")], None)
    assert len(store.load().records) == 11
    store.flush()
    store.close()
    store = directory.open("guest")
    assert len(store.load().records) == 11
    store.close()


def test_a_guest_that_never_flushes_does_not_fill_the_disk(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "COMMIT_CHECKPOINT_SIZE", 100_000)
    monkeypatch.setattr(module, "_CHECK_EVERY", 4)
    store = directory.open("guest")
    log = directory.folder("guest") / "keystore.db-wal"
    sizes = []
    for n in range(100):
        store.commit([put(b"key", bytes(4000))], RecordedReply(0, n, b"r"))
        sizes.append(log.stat().st_size)
    store.close()

    assert max(sizes) < 250_000


# -- disks that fail and processes that die -----------------------------------------------------


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def test_a_commit_that_does_not_fit_on_the_disk_changes_nothing(directory: StateDirectory):
    store = directory.open("guest")
    store.commit([put(b"a")], RecordedReply(0, 1, b"1"))
    generation = store.generation
    with (
        file_size_limit(60_000),
        pytest.raises(StoreError, match=r"keystore\.db: .*disk"),
    ):
        store.commit([put(b"a", b"new"), put(b"b", bytes(200_000))], RecordedReply(0, 2, b"2"))

    assert store.generation == generation
    loaded = store.load()
    assert [(record.key, record.value) for record in loaded.records] == [(b"a", b"value")]
    assert loaded.replies == [RecordedReply(0, 1, b"1")]
    store.commit([put(b"b", bytes(200_000))], None)
    store.close()


def test_a_store_that_does_not_fit_on_the_disk_is_not_half_made(directory: StateDirectory):
    directory.open("other").close()
    with file_size_limit(8192), pytest.raises(StoreError, match="disk"):
        directory.open("guest")

    assert directory.partitions() == ["other"]
    directory.open("guest").close()


_WRITER = """
import pathlib, sys
from hcalld.core.records import *
from hcalld.stores.directory import StateDirectory

store = StateDirectory(pathlib.Path(sys.argv[1])).open("guest")
store.begin_run(Run(b"instance 1......", 0))
replies = store.load().replies
n = replies[0].seq if replies else 0
while True:
    n += 1
    value = b"%d" % n
    changes = [Put(Record("pks", b"key %d" % (n % 7), value)), Put(Record("pks", b"last", value)),
               Delete("pks", b"key %d" % ((n + 3) % 7))]
    store.commit(changes, RecordedReply(0, n, value))
    flushed = n % 5 == 0
    if flushed:
        store.flush()
    sys.stdout.write("%d\\n" % n)
    sys.stdout.flush()
"""


def test_a_killed_owner_leaves_whole_commits_and_all_it_told_of(directory: StateDirectory):
    """Changes and their reply are there together; what was told to be done is done."""
    told = 0
    for kill in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(directory.path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        with child:
            for _ in range(1 + kill * 9):
                line = child.stdout.readline()
                told = int(line)
            child.kill()
            told = max([told, *(int(rest) for rest in child.stdout.read().split(b"\n")[:-1])])
        store = directory.open("guest")
        assert not store.begin_run(RUN)
        loaded = store.load()
        (reply,) = loaded.replies
        records = {record.key: record.value for record in loaded.records}
        last = int(reply.frame)
        assert reply.seq == last
        assert told <= last <= told + 1
        assert records[b"last"] == reply.frame
        assert records[b"key %d" % (last % 7)] == reply.frame
        assert b"key %d" % ((last + 3) % 7) not in records
        assert loaded.generation == last + 1
        store.verify()
        store.close()


def test_an_open_store_needs_few_files_and_none_at_rest(directory: StateDirectory):
    def open_files() -> list[str]:
        links = (
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        )
        return sorted(
            pathlib.Path(link).name for link in links if link.startswith(str(directory.path))
        )

    store = directory.open("guest")
    store.commit([put(b"a")], None)
    assert open_files() == ["keystore.db", "keystore.db-wal", "lock"]
    store.rest()
    assert open_files() == ["lock"]
    store.close()
    assert open_files() == []


def test_a_failed_opening_gives_the_ownership_back(
    directory: StateDirectory, database: pathlib.Path
):
    content = database.read_bytes()
    database.write_bytes(b"")
    refused(directory, "not a store")
    database.write_bytes(content)

    store = directory.open("guest")
    assert isinstance(store, SqliteStore)
    assert len(store.load().records) == 2
    store.close()
