# SPDX-License-Identifier: Apache-2.0
"""Files that commands read and write: whole or not at all, and never over another."""

from __future__ import annotations

import pathlib

import click

from hcalld.core.errors import ConfigError

force_option = click.option("--force", is_flag=True, help="Replace a file that is there.")


def check_target(path: pathlib.Path, *, force: bool) -> None:
    """See whether a file can be written, before anything is asked or opened.

    Raises:
        ConfigError: something is in its place, or its directory is not there.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(f"{path}: not a regular file; name another")
    if path.exists() and not force:
        raise ConfigError(f"{path}: is there already; use --force to replace it, or name another")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the directory {path.parent} is not there")


def write_file(path: pathlib.Path, content: bytes, *, force: bool) -> None:
    """Write a file that only its owner may use.

    Raises:
        ConfigError: something is in its place, or it cannot be written.
    """
    from hcalld.stores.fsync import write_new

    check_target(path, force=force)
    try:
        write_new(path, content, replace=force)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); nothing is left of it"
        ) from None


def read_file(path: pathlib.Path, limit: int) -> bytes:
    """At most ``limit`` + 1 bytes of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def read_whole(path: pathlib.Path, limit: int) -> bytes:
    """A file of at most ``limit`` bytes.

    Raises:
        ConfigError: it cannot be read, or is longer.
    """
    data = read_file(path, limit)
    if len(data) > limit:
        raise ConfigError(f"{path}: too long, expected at most {limit} bytes")
    return data
