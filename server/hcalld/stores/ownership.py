# SPDX-License-Identifier: Apache-2.0
"""One owner at a time: a lock file in a partition's directory.

``flock`` on an open file: the kernel releases it when the owner dies, however it dies,
and it holds between two owners in one process as well. The file's content, the owner's
process id, is for people only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib

from hcalld.core.errors import StoreError

LOCK_NAME = "lock"
_MAX_CONTENT = 32


class Ownership:
    """The ownership of a directory, from construction to ``release``."""

    def __init__(self, directory: pathlib.Path, what: str) -> None:
        """Take it.

        Args:
            directory: an existing directory.
            what: whose it is, for messages (``partition web1``).

        Raises:
            StoreError: somebody else has it, or the lock file cannot be used.
        """
        path = directory / LOCK_NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot open the lock file of {what} ({error.strerror}); it must be a "
                "file that the daemon's user may write"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _content(fd)
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreError(f"{path}: cannot lock ({error.strerror})") from None
            who = f"process {holder}" if holder else "another process"
            raise StoreError(
                f"{what} is in use by {who}; shut its guest down, or stop the daemon, first"
            ) from None
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the text
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give it back. May be called twice."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def holder_of(directory: pathlib.Path) -> str | None:
    """Who owns a directory now: a process id, "unknown", or None when nobody does.

    Looks into /proc/locks instead of trying the lock, which would make an owner that
    comes in that moment fail.
    """
    path = directory / LOCK_NAME
    try:
        status = path.stat()
        locks = pathlib.Path("/proc/locks").read_text("ascii", "replace")
        content = path.read_bytes()[:_MAX_CONTENT]
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unknown ({error.strerror})"
    # "7: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF", device numbers in hexadecimal
    name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    is_locked = any(
        fields[1:2] == ["FLOCK"] and name in fields for fields in map(str.split, locks.splitlines())
    )
    return (_process_id(content) or "unknown") if is_locked else None


def _content(fd: int) -> str:
    """The process id in the file, or "" for anything that is not a number."""
    try:
        return _process_id(os.pread(fd, _MAX_CONTENT, 0))
    except OSError:
        return ""


def _process_id(content: bytes) -> str:
    text = content.decode("ascii", "replace").strip()
    return text if text.isascii() and text.isdigit() else ""
