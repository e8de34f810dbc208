# SPDX-License-Identifier: Apache-2.0
"""cpio archives of the form ``newc``, as an initrd is, and as a blob is put before one.

Source: Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``. Read are heads,
one at a time, because the archive is in a guest's memory; written are small archives of
files, with their directories. An enemy may have written what is read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from construct import Bytes, Const, Struct

MAGIC: Final = b"070701"
HEAD_SIZE: Final = 110
TRAILER: Final = b"TRAILER!!!"
ALIGNMENT: Final = 4
ARCHIVE_ALIGNMENT: Final = 512
"""cpio(1) fills an archive up to a multiple of this."""

MAX_NAME_SIZE: Final = 4096
"""Bytes of a name with its NUL (Linux PATH_MAX)."""

HEAD = Struct(
    "magic" / Const(MAGIC),
    "ino" / Bytes(8),
    "mode" / Bytes(8),
    "uid" / Bytes(8),
    "gid" / Bytes(8),
    "nlink" / Bytes(8),
    "mtime" / Bytes(8),
    "file_size" / Bytes(8) * "bytes of data",
    "dev_major" / Bytes(8),
    "dev_minor" / Bytes(8),
    "rdev_major" / Bytes(8),
    "rdev_minor" / Bytes(8),
    "name_size" / Bytes(8) * "bytes of the name, with its NUL",
    "check" / Bytes(8) * "0 in this form",
)
"""All fields but the magic are hexadecimal; name and data follow, each filled up to 4."""

_FIELDS = struct.Struct("6s48x8s32x8s8x")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{8}")

_DIRECTORY: Final = 0o040755
_FILE: Final = 0o100600


class CpioError(ValueError):
    """Not an archive that can be taken; the text says why."""


class Head(NamedTuple):
    """What a head says of the entry behind it."""

    name_size: int
    file_size: int

    @property
    def data_offset(self) -> int:
        """Where the data begin, counted from the head."""
        return aligned(HEAD_SIZE + self.name_size, ALIGNMENT)

    @property
    def end_offset(self) -> int:
        """Where the next head is, counted from this one."""
        return aligned(self.data_offset + self.file_size, ALIGNMENT)


def aligned(offset: int, alignment: int) -> int:
    """The next multiple of ``alignment``."""
    return offset + -offset % alignment


def parse_head(data: bytes) -> Head:
    """Read the head of an entry.

    Raises:
        CpioError: it is none.
    """
    if len(data) < HEAD_SIZE:
        raise CpioError(f"{len(data)} bytes, expected a head of {HEAD_SIZE}")
    magic, file_size, name_size = _FIELDS.unpack_from(data)
    if magic != MAGIC:
        raise CpioError(f"magic {magic!r}, expected {MAGIC!r}")
    if not _HEX.fullmatch(file_size) or not _HEX.fullmatch(name_size):
        raise CpioError("a size is not eight hexadecimal digits")
    head = Head(int(name_size, 16), int(file_size, 16))
    if not 1 <= head.name_size <= MAX_NAME_SIZE:
        raise CpioError(f"name of {head.name_size} bytes, expected 1 to {MAX_NAME_SIZE}")
    return head


def parse_name(data: bytes) -> bytes:
    """The name, from as many bytes as its head says.

    Raises:
        CpioError: its only NUL is not at its end.
    """
    if not data or data.find(b"\0") != len(data) - 1:
        raise CpioError("a name does not end with its only NUL")
    return data[:-1]


def build(files: Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of files, each after the directories that it needs.

    All belong to root and have the time 0, so the same files give the same bytes.

    Raises:
        CpioError: a path is not one that can be unpacked where it should.
    """
    parts: list[bytes] = []
    there: set[str] = set()
    for path, data in files:
        names = path.split("/")
        if any(name in ("", ".", "..") for name in names) or "\0" in path:
            raise CpioError(f"{path!r}: expected a relative path without . and ..")
        for count in range(1, len(names)):
            directory = "/".join(names[:count])
            if directory not in there:
                there.add(directory)
                parts.append(_entry(directory, b"", _DIRECTORY, len(there)))
        if path in there:
            raise CpioError(f"{path!r} is there twice")
        there.add(path)
        parts.append(_entry(path, data, _FILE, len(there)))
    parts.append(_entry(TRAILER.decode(), b"", 0, 0))
    archive = b"".join(parts)
    return archive + bytes(-len(archive) % ARCHIVE_ALIGNMENT)


def _entry(path: str, data: bytes, mode: int, inode: int) -> bytes:
    name = path.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % ALIGNMENT) + data + bytes(-len(data) % ALIGNMENT)
