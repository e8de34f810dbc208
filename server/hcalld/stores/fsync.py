# SPDX-License-Identifier: Apache-2.0
"""Making files and their names durable."""

from __future__ import annotations

import os
import pathlib


def sync_directory(path: pathlib.Path) -> None:
    """Wait until the names in a directory are on stable storage."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(path: pathlib.Path) -> None:
    """Wait until a file's bytes are on stable storage, whoever wrote them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def make_directory(path: pathlib.Path) -> None:
    """Make a directory that only its owner may enter, and its parents, durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_directory(path.parent)


def write_new(path: pathlib.Path, content: bytes, *, replace: bool = False) -> None:
    """Make a file with this content that only its owner may use: whole or not at all, durably.

    Args:
        path: where.
        content: all of it.
        replace: put it in the place of a file that is there.

    Raises:
        FileExistsError: there is a file, and ``replace`` was not asked for.
        OSError: it cannot be written; nothing is left of it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        if replace:
            temporary.rename(path)
        else:
            # A link, unlike a rename, never replaces anything.
            os.link(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
