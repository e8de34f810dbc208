# SPDX-License-Identifier: Apache-2.0
"""A capture's bytes, from a file, a pipe, or a file that is still being written."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Final

import click

CHUNK_SIZE: Final = 1 << 18
FOLLOW_SECONDS: Final = 0.2
PROGRESS_SECONDS: Final = 0.5


def nothing() -> None:
    """Is done before a wait if nothing else is."""


def chunks(
    stream: IO[bytes], *, is_followed: bool = False, before_wait: Callable[[], None] = nothing
) -> Iterator[bytes]:
    """The bytes of a file, as they come.

    Args:
        stream: the file, from its beginning.
        is_followed: wait for more at its end, until the user has had enough (Ctrl-C).
        before_wait: is called before each read, which may take long.
    """
    # A pipe is not waited for until a whole chunk is there.
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    with contextlib.suppress(KeyboardInterrupt) if is_followed else contextlib.nullcontext():
        while True:
            before_wait()
            data = read(CHUNK_SIZE)
            if data:
                yield data
            elif is_followed:
                time.sleep(FOLLOW_SECONDS)
            else:
                return


class Progress:
    """How far a file is read, on a terminal that shows nothing else."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._name = name
        self._stream = stream
        self._size = _size_of(stream)
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._is_shown = False
        self._is_wanted = bool(self._size) and sys.stderr.isatty() and not sys.stdout.isatty()

    def show(self) -> None:
        """To be called now and then."""
        if self._is_wanted and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            self._is_shown = True
            percent = 100 * self._stream.tell() // self._size
            click.echo(f"\r{self._name}: {percent} %\x1b[K", err=True, nl=False)

    def end(self) -> None:
        """Take it away."""
        if self._is_shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def _size_of(stream: IO[bytes]) -> int:
    """Of a file; 0: it has none, like a pipe's."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
