# SPDX-License-Identifier: Apache-2.0
"""Guest RAM behind descriptors, which the peer may shrink, swap or never have had."""

from __future__ import annotations

import os
import pathlib
import socket
from collections.abc import Callable, Iterator

import pytest

from hcalld.runtime.guestram import SharedRam
from hcallproto.wire.frames import RamRegion

SIZE = 0x10000
MakeFile = Callable[[bytes], int]


@pytest.fixture
def memory_file() -> Iterator[MakeFile]:
    """Makes files in memory, and closes those that are still open."""
    made: list[tuple[int, int]] = []

    def make(data: bytes) -> int:
        fd = os.memfd_create("ram")
        os.write(fd, data)
        made.append((fd, os.fstat(fd).st_ino))
        return fd

    yield make
    for fd, inode in made:
        try:
            if os.fstat(fd).st_ino == inode:
                os.close(fd)
        except OSError:
            continue


def pattern(size: int = SIZE) -> bytes:
    return bytes(range(256)) * (size // 256)


def test_read_when_the_range_is_in_a_shared_region_then_its_bytes(memory_file: MakeFile):
    ram = SharedRam([RamRegion(0, SIZE, 0, 0)], [memory_file(pattern())])
    assert ram.read(0, 4) == b"\0\1\2\3"
    assert ram.read(0x1001, 4) == b"\1\2\3\4"
    assert ram.read(SIZE - 4, 4) == b"\xfc\xfd\xfe\xff"
    assert ram.read(0x200, 0) == b""
    ram.close()


@pytest.mark.parametrize(
    ("gpa", "size"),
    [(SIZE - 3, 4), (SIZE, 1), (0xFFF, 2), (1 << 63, 8), ((1 << 64) - 4, 8), (0, SIZE)],
)
def test_read_when_the_range_is_not_wholly_in_it_then_none(
    memory_file: MakeFile, gpa: int, size: int
):
    ram = SharedRam([RamRegion(0x1000, SIZE - 0x1000, 0, 0)], [memory_file(pattern())])
    assert ram.read(gpa, size) is None
    ram.close()


def test_read_when_a_region_begins_inside_its_file_then_the_offset_counts(memory_file: MakeFile):
    fd = memory_file(bytes(0x2000) + b"the second half")
    ram = SharedRam([RamRegion(0x10_0000, 0x1000, 0x2000, 0)], [fd])
    assert ram.read(0x10_0000, 15) == b"the second half"
    ram.close()


def test_read_when_there_are_several_files_then_the_regions_own_is_read(memory_file: MakeFile):
    ram = SharedRam(
        [RamRegion(0, 0x1000, 0, 1), RamRegion(0x1000, 0x1000, 0, 0)],
        [memory_file(b"b" * 0x1000), memory_file(b"a" * 0x1000)],
    )
    assert ram.read(0xFFF, 1) == b"a"
    assert ram.read(0x1000, 1) == b"b"
    # Over the seam: the shim is asked, who knows both.
    assert ram.read(0xFFF, 2) is None
    assert ram.map.contains(0xFFF, 2)
    ram.close()


def test_read_when_a_region_is_not_shared_then_none_but_it_is_ram():
    ram = SharedRam([RamRegion(0, SIZE)])
    assert ram.read(0, 1) is None
    assert ram.map.contains(0, SIZE)


def test_read_when_the_peer_truncates_its_file_then_none_and_no_signal(memory_file: MakeFile):
    fd = memory_file(pattern())
    ram = SharedRam([RamRegion(0, SIZE, 0, 0)], [os.dup(fd)])
    os.ftruncate(fd, 0x1004)
    assert ram.read(0x1000, 4) == b"\0\1\2\3"
    assert ram.read(0x1000, 5) is None
    assert ram.read(0x8000, 1) is None
    ram.close()


def test_read_when_the_file_is_smaller_than_its_region_says_then_none(memory_file: MakeFile):
    ram = SharedRam([RamRegion(0, 1 << 40, 0, 0)], [memory_file(b"short")])
    assert ram.read(0, 5) == b"short"
    assert ram.read(0, 6) is None
    assert ram.read(1 << 39, 1) is None
    ram.close()


def test_read_when_the_offset_is_absurd_then_none(memory_file: MakeFile):
    ram = SharedRam([RamRegion(0, SIZE, (1 << 64) - 1, 0)], [memory_file(pattern())])
    assert ram.read(0, 1) is None
    ram.close()


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket"])
def test_read_when_the_descriptor_is_no_file_then_none(kind: str, tmp_path: pathlib.Path):
    if kind == "pipe":
        fd, other = os.pipe()
        os.close(other)
    elif kind == "directory":
        fd = os.open(tmp_path, os.O_RDONLY)
    else:
        fd = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
    ram = SharedRam([RamRegion(0, SIZE, 0, 0)], [fd])
    assert ram.read(0, 1) is None
    ram.close()


def test_read_when_the_file_may_only_be_written_then_none(tmp_path: pathlib.Path):
    fd = os.open(tmp_path / "ram", os.O_WRONLY | os.O_CREAT)
    os.write(fd, bytes(16))
    ram = SharedRam([RamRegion(0, 16, 0, 0)], [fd])
    assert ram.read(0, 16) is None
    ram.close()


def test_close_when_called_twice_then_descriptors_are_closed_once(memory_file: MakeFile):
    fd = memory_file(pattern())
    ram = SharedRam([RamRegion(0, SIZE, 0, 0)], [fd])
    ram.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    ram.close()
    assert ram.read(0, 1) is None
