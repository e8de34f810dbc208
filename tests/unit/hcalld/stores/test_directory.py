# SPDX-License-Identifier: Apache-2.0
"""The state directory: names that come over the wire, one owner, one key."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from hcalld.core.errors import StoreError
from hcalld.core.records import Put, Record
from hcalld.core.secret import Secret
from hcalld.stores.directory import MAX_FOLDER_SIZE, StateDirectory, folder_name
from hcalld.stores.keys import Kept
from hcalld.stores.ownership import Ownership, holder_of


@pytest.mark.parametrize(
    ("partition", "folder"),
    [
        ("web1", "web1"),
        ("My-Guest_2", "My-Guest_2"),
        ("a.b", "a.b"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "%2E.%2E"),
        (".hidden", "%2Ehidden"),
        ("../../etc", "%2E.%2F..%2Fetc"),
        ("/etc/passwd", "%2Fetc%2Fpasswd"),
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("%2F", "%252F"),
        ("grün", "gr%C3%BCn"),
        ("a\\b", "a%5Cb"),
        ("~root", "%7Eroot"),
        ("-rf", "-rf"),
    ],
)
def test_a_partitions_folder_is_a_name_and_no_path(partition: str, folder: str):
    assert folder_name(partition) == folder
    assert "/" not in folder


@pytest.mark.parametrize("partition", ["", "\0", "a\0b", "a\nb", "\x1b[2J", "a\u202eb", "\udc80"])
def test_a_name_that_people_cannot_read_is_refused(partition: str):
    with pytest.raises(StoreError, match="-name"):
        folder_name(partition)


def test_a_name_too_long_for_a_folder_is_refused():
    assert len(folder_name("x" * MAX_FOLDER_SIZE)) == MAX_FOLDER_SIZE
    with pytest.raises(StoreError, match="too long"):
        folder_name("x" * (MAX_FOLDER_SIZE + 1))
    with pytest.raises(StoreError, match="too long"):
        folder_name("/" * (MAX_FOLDER_SIZE // 3 + 1))


def test_different_names_have_different_folders(tmp_path: pathlib.Path):
    names = ["a/b", "a%2Fb", "a%2fb", "A/b", "a.b", "a b"]
    directory = StateDirectory(tmp_path)
    for name in names:
        directory.open(name).close()

    assert directory.partitions() == sorted(names)
    assert len(os.listdir(tmp_path / "partitions")) == len(names)


def test_everything_is_private(tmp_path: pathlib.Path):
    old = os.umask(0)
    try:
        store = StateDirectory(tmp_path / "new" / "state").open("guest")
        store.commit([Put(Record("pks", b"k", b"v"))], None)
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")
        }
        store.close()
    finally:
        os.umask(old)

    assert modes == {
        "state": 0o700,
        "key": 0o600,
        "key-source": 0o600,
        "partitions": 0o700,
        "guest": 0o700,
        "lock": 0o600,
        "keystore.db": 0o600,
        "keystore.db-wal": 0o600,
    }


def test_nothing_is_made_before_a_store_is_opened(tmp_path: pathlib.Path):
    directory = StateDirectory(tmp_path / "state")

    assert directory.partitions() == []
    assert directory.holder_of("guest") is None
    assert not (tmp_path / "state").exists()


def test_strange_folders_are_no_partitions(tmp_path: pathlib.Path):
    directory = StateDirectory(tmp_path)
    directory.open("guest").close()
    for name in ("a%2fb", "%41", "%", "x%00y", "empty"):
        folder = tmp_path / "partitions" / name
        folder.mkdir()
        if name != "empty":
            (folder / "keystore.db").touch()

    assert directory.partitions() == ["guest"]


def test_without_create_a_missing_partition_is_named_with_those_there_are(tmp_path: pathlib.Path):
    directory = StateDirectory(tmp_path)
    with pytest.raises(StoreError, match="there are: none"):
        directory.open("guest", create=False)
    directory.open("web1").close()
    with pytest.raises(StoreError, match=r"no partition 'guest' in .* there are: web1"):
        directory.open("guest", create=False)
    assert directory.partitions() == ["web1"]


def test_a_lost_key_is_not_made_anew_while_partitions_need_it(tmp_path: pathlib.Path):
    StateDirectory(tmp_path).open("guest").close()
    (tmp_path / "key").unlink()

    for name in ("guest", "new"):
        with pytest.raises(StoreError, match="key is missing, but the partitions guest are"):
            StateDirectory(tmp_path).open(name)
    assert not (tmp_path / "key").exists()


def test_a_directory_whose_first_open_died_gets_its_key(tmp_path: pathlib.Path):
    (tmp_path / "partitions" / "guest").mkdir(parents=True)

    StateDirectory(tmp_path).open("guest").close()


def test_another_key_source_is_asked(tmp_path: pathlib.Path):
    class Fixed:
        kind = "fixed"
        description = "fixed key"

        def load(self, kept: Kept) -> Secret:
            return Secret(b"k" * 32)

        def keep(self, master: Secret) -> Kept:
            assert master == self.load({}), "there is one"
            return {}

        def forget(self) -> str:
            raise AssertionError("nobody asked")

    StateDirectory(tmp_path, Fixed()).open("guest").close()
    assert not (tmp_path / "key").exists()
    StateDirectory(tmp_path, Fixed()).open("guest").close()


def test_a_symbolic_link_instead_of_a_folder_is_refused(tmp_path: pathlib.Path):
    (tmp_path / "partitions").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "partitions" / "guest").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreError, match="symbolic link"):
        StateDirectory(tmp_path).open("guest")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_instead_of_the_directory_is_refused(tmp_path: pathlib.Path):
    (tmp_path / "state").write_text("")

    with pytest.raises(StoreError, match="--state-dir"):
        StateDirectory(tmp_path / "state").open("guest")
    with pytest.raises(StoreError, match="--state-dir"):
        StateDirectory(tmp_path / "state").partitions()


# -- ownership ------------------------------------------------------------------------------


def test_the_holder_is_named_by_its_process_id(tmp_path: pathlib.Path):
    directory = StateDirectory(tmp_path)
    store = directory.open("guest")

    assert directory.holder_of("guest") == str(os.getpid())
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}; shut its guest down"):
        directory.open("guest")
    store.close()
    assert directory.holder_of("guest") is None


def test_ownership_holds_between_processes_and_ends_with_a_kill(tmp_path: pathlib.Path):
    script = (
        "import pathlib, sys, time\n"
        "from hcalld.stores.ownership import Ownership\n"
        "owner = Ownership(pathlib.Path(sys.argv[1]), 'it')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(StoreError, match=f"in use by process {child.pid}"):
            Ownership(tmp_path, "it")
        assert holder_of(tmp_path) == str(child.pid)
        child.kill()
        child.wait()
    assert holder_of(tmp_path) is None
    owner = Ownership(tmp_path, "it")
    owner.release()
    owner.release()


def test_a_lock_file_with_nonsense_names_nobody(tmp_path: pathlib.Path):
    owner = Ownership(tmp_path, "it")
    (tmp_path / "lock").write_bytes(b"\xff\x1b[2J")

    assert holder_of(tmp_path) == "unknown"
    with pytest.raises(StoreError, match="in use by another process"):
        Ownership(tmp_path, "it")
    owner.release()


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_lock_that_is_no_file_is_refused(tmp_path: pathlib.Path, kind: str):
    if kind == "directory":
        (tmp_path / "lock").mkdir()
    else:
        (tmp_path / "lock").symlink_to(tmp_path / "target")

    with pytest.raises(StoreError, match="cannot open the lock file"):
        Ownership(tmp_path, "it")
    assert not (tmp_path / "target").exists()
