# SPDX-License-Identifier: Apache-2.0
"""Writes cpio archives in the form that the kernel unpacks into its initramfs.

The form is "newc", as the kernel's Documentation/driver-api/early-userspace/buffer-format.rst
describes it. Written here because cpio(1) needs device nodes to exist before it can archive them,
and making those needs root. The kernel unpacks archives that follow each other, so a test appends
one of its own to a common one.

Everything belongs to root and has the time 0: the same content gives the same bytes.

Standard library alone: ``tests/provision`` uses this before anything is installed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

MAGIC: Final = b"070701"
TRAILER: Final = "TRAILER!!!"
ALIGNMENT: Final = 4
ARCHIVE_ALIGNMENT: Final = 512
"""Between archives there may be any number of zero bytes, in multiples of four."""

MAX_FIELD: Final = 0xFFFFFFFF
"""Greatest value of a header field: eight hexadecimal digits."""


class ArchiveError(ValueError):
    """Something cannot be in such an archive."""


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. Executable unless it says otherwise: most of what guests get is run."""

    data: bytes
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class CharacterDevice:
    """A character device node."""

    major: int
    minor: int
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory. Those that a path needs are made without being named."""

    mode: int = 0o755


Node = File | Symlink | CharacterDevice | Directory


def archive(nodes: Mapping[str, bytes | Node]) -> bytes:
    """Gives an archive, padded so that another may follow.

    Args:
        nodes: Paths, with or without a leading slash, and what is there. Plain bytes stand for an
            executable file.

    Raises:
        ArchiveError: A path is not one, or a file is too large for the form.
    """
    plain = {clean_path(path): _node(content) for path, content in nodes.items()}
    for parent in parents(plain):
        plain.setdefault(parent, Directory())
    # Sorted, a directory comes before what is in it.
    chunks = [
        _entry(number, path, node)
        for number, (path, node) in enumerate(sorted(plain.items()), start=1)
    ]
    chunks.append(_header(0, TRAILER, mode=0, links=1, size=0))
    joined = b"".join(chunks)
    return joined + bytes(-len(joined) % ARCHIVE_ALIGNMENT)


def tree(directory: Path, place: str) -> dict[str, bytes | Node]:
    """Gives what is in a directory, for a place in the guest.

    Args:
        directory: Regular files, symbolic links and directories; others are left out.
        place: Absolute path that the directory gets.
    """
    nodes: dict[str, bytes | Node] = {}
    for path in sorted(directory.rglob("*")):
        name = f"{place.rstrip('/')}/{path.relative_to(directory).as_posix()}"
        if path.is_symlink():
            nodes[name] = Symlink(str(path.readlink()))
        elif path.is_dir():
            nodes[name] = Directory()
        elif path.is_file():
            nodes[name] = File(path.read_bytes(), 0o755 if path.stat().st_mode & 0o111 else 0o644)
    return nodes


def clean_path(path: str) -> str:
    """Gives a path as an archive names it: relative, without dots.

    Raises:
        ArchiveError: It names nothing or leaves the root.
    """
    relative = path.strip("/")
    parts = PurePosixPath(relative).parts
    if not parts or ".." in parts or "\0" in path or relative == TRAILER:
        raise ArchiveError(f"{path!r} is no path of a file in an initramfs; expected /dir/name")
    return "/".join(parts)


def parents(paths: Iterable[str]) -> set[str]:
    """Names the directories above the paths."""
    return {
        parent.as_posix()
        for path in paths
        for parent in PurePosixPath(path).parents
        if parent.as_posix() != "."
    }


def _node(content: bytes | Node) -> Node:
    return File(content) if isinstance(content, bytes) else content


def _entry(number: int, path: str, node: Node) -> bytes:
    match node:
        case File(data, mode):
            return _header(number, path, stat.S_IFREG | mode, 1, len(data)) + _padded(data)
        case Symlink(target):
            data = target.encode()
            return _header(number, path, stat.S_IFLNK | 0o777, 1, len(data)) + _padded(data)
        case CharacterDevice(major, minor, mode):
            return _header(number, path, stat.S_IFCHR | mode, 1, 0, device=(major, minor))
        case Directory(mode):
            return _header(number, path, stat.S_IFDIR | mode, 2, 0)


def _header(
    number: int,
    path: str,
    mode: int,
    links: int,
    size: int,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """Gives the header with the name, both padded as one."""
    name = path.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
    # namesize, check
    fields = (number, mode, 0, 0, links, 0, size, 0, 0, *device, len(name), 0)
    if max(fields) > MAX_FIELD:
        raise ArchiveError(f"{path} has {size} bytes; expected at most {MAX_FIELD} in an archive")
    return _padded(MAGIC + b"".join(b"%08X" % field for field in fields) + name)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
