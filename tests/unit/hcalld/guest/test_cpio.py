# SPDX-License-Identifier: Apache-2.0
"""The archive writer, against cpio(1) and byte by byte."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hcalld.guest.cpio import (
    ArchiveError,
    CharacterDevice,
    Directory,
    File,
    Symlink,
    archive,
    clean_path,
    tree,
)

Listing = Callable[[bytes], list[list[str]]]


@pytest.fixture
def listing(require: Callable[[str], Path]) -> Listing:
    """Gives mode, size or device, and name of every entry, as cpio(1) reads them."""
    cpio = require("cpio")

    def _listing(image: bytes) -> list[list[str]]:
        done = subprocess.run(
            [cpio, "--list", "--verbose", "--numeric-uid-gid", "--quiet"],
            input=image,
            capture_output=True,
            check=True,
            env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
        )
        assert not done.stderr
        return [line.split() for line in done.stdout.decode().splitlines()]

    return _listing


def test_archive_when_listed_by_cpio_then_every_node_is_as_given(listing: Listing):
    image = archive(
        {
            "/init": b"#!/bin/sh\n",
            "/etc/secret": File(b"x", mode=0o600),
            "/dev/console": CharacterDevice(5, 1),
            "/bin": Symlink("usr/bin"),
            "/tmp": Directory(mode=0o1777),
        }
    )
    rows = {row[8] if row[0][0] != "c" else row[-1]: row for row in listing(image)}
    assert rows["init"][0] == "-rwxr-xr-x"
    assert rows["init"][4] == "10"
    assert rows["etc/secret"][0] == "-rw-------"
    assert rows["etc"][0] == "drwxr-xr-x"
    assert rows["tmp"][0] == "drwxrwxrwt"
    assert rows["bin"][0].startswith("l")
    assert rows["bin"][-2:] == ["->", "usr/bin"]
    console = rows["dev/console"]
    assert console[0] == "crw-------"
    assert console[4:6] == ["5,", "1"]
    assert {row[2] for row in rows.values()} == {"0"}


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 511, 512, 513, 70000])
def test_archive_when_unpacked_by_cpio_then_content_is_the_same(
    size: int, tmp_path: Path, require: Callable[[str], Path]
):
    data = bytes(index % 251 for index in range(size))
    image = archive({"/dir/file": data})
    subprocess.run(
        [require("cpio"), "--extract", "--make-directories", "--quiet"],
        input=image,
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "dir/file").read_bytes() == data


def test_archive_when_given_twice_then_bytes_are_the_same():
    nodes = {"/b": b"1", "/a/c": b"2"}
    assert archive(nodes) == archive(dict(reversed(nodes.items())))


def test_archive_when_written_then_another_can_follow():
    assert len(archive({"/a": b"abc"})) % 512 == 0


def test_archive_when_header_is_read_then_fields_are_where_the_kernel_expects_them():
    image = archive({"/a": b"abc"})
    assert image[:6] == b"070701"
    fields = [int(image[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
    ino, mode, uid, gid, nlink, mtime, filesize = fields[:7]
    assert (ino, mode, uid, gid, nlink, mtime, filesize) == (1, 0o100755, 0, 0, 1, 0, 3)
    assert fields[7:11] == [0, 0, 0, 0]
    assert fields[11:] == [2, 0]
    assert image[110:112] == b"a\0"
    assert image[112:116] == b"abc\0"


def test_archive_when_parent_is_named_then_its_mode_is_kept(listing: Listing):
    rows = listing(archive({"/tmp/a": b"", "/tmp": Directory(mode=0o1777)}))
    assert [row[0] for row in rows if row[-1] == "tmp"] == ["drwxrwxrwt"]


def test_archive_when_listed_then_directories_come_before_what_is_in_them(listing: Listing):
    names = [row[-1] for row in listing(archive({"/a/b/c": b"", "/a-b": b""}))]
    assert names.index("a") < names.index("a/b") < names.index("a/b/c")


@pytest.mark.parametrize("path", ["", "/", "//", "/a/../b", "..", "a\0b", "TRAILER!!!"])
def test_archive_when_path_is_none_then_it_is_refused(path: str):
    with pytest.raises(ArchiveError, match="no path of a file"):
        archive({path: b""})


@pytest.mark.parametrize(
    ("path", "expected"), [("/a/b", "a/b"), ("a//b", "a/b"), ("./a", "a"), ("/a/", "a")]
)
def test_clean_path_when_path_is_loose_then_it_is_tidied(path: str, expected: str):
    assert clean_path(path) == expected


def test_tree_when_a_directory_is_read_then_modes_links_and_places_are_kept(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "plain").write_bytes(b"x")
    (tmp_path / "a" / "script").write_bytes(b"y")
    (tmp_path / "a" / "script").chmod(0o744)
    (tmp_path / "link").symlink_to("a/plain")
    os.mkfifo(tmp_path / "pipe")
    assert tree(tmp_path, "/place/") == {
        "/place/a": Directory(),
        "/place/a/plain": File(b"x", 0o644),
        "/place/a/script": File(b"y", 0o755),
        "/place/link": Symlink("a/plain"),
    }
