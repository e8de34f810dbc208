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
