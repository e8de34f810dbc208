# SPDX-License-Identifier: Apache-2.0
"""Where the control socket is in the file system.

A socket's path has 107 bytes at most, and a state directory may be deep: all go by a
descriptor of the directory, so that only the name has to fit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import stat
import struct
from collections.abc import Iterator
from typing import Final

from hcalld.core.errors import ConfigError

NAME: Final = "control"
"""Of the socket in the state directory."""
MODE: Final = 0o600
BACKLOG: Final = 128
_PROBE_SECONDS: Final = 1
_LIVING: Final = frozenset({errno.EAGAIN, errno.ETIMEDOUT})
"""What connecting says to a socket whose owner has no time to accept."""


@contextlib.contextmanager
def _through(path: pathlib.Path) -> Iterator[str]:
    """A short path to the same, while it is needed."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Endpoint:
    """A listening control socket; ``close`` removes it.

    Args:
        path: where; a socket that nobody listens on is replaced.

    Raises:
        ConfigError: the path is in use, or cannot be made.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            self.socket, self._identity = _listen(path)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot listen: {error.strerror or error}; expected a path in a directory "
                "that exists and that we may write, or --no-control"
            ) from None

    def close(self) -> None:
        """Remove the socket, unless somebody else's is in its place by now."""
        self.socket.close()
        with contextlib.suppress(OSError), _through(self.path) as path:
            if _identity(path) == self._identity:
                os.unlink(path)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _listen(path: pathlib.Path) -> tuple[socket.socket, tuple[int, int]]:
    with _through(path) as short:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                _bind(sock, short)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_stale(path, short)
                _bind(sock, short)
            sock.listen(BACKLOG)
            return sock, _identity(short)
        except BaseException:
            sock.close()
            raise


def _bind(sock: socket.socket, path: str) -> None:
    # Nobody else may connect even before a chmod would be over.
    mask = os.umask(0o777 & ~MODE)
    try:
        sock.bind(path)
    finally:
        os.umask(mask)


def _remove_stale(path: pathlib.Path, short: str) -> None:
    if not stat.S_ISSOCK(os.lstat(short).st_mode):
        raise ConfigError(
            f"{path}: exists and is not a socket; remove it, or give another path by --control"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(short)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                os.unlink(short)
                return
            if error.errno not in _LIVING and not isinstance(error, TimeoutError):
                raise
    raise ConfigError(f"{path}: another daemon listens here; give another path by --control")


def connect(path: pathlib.Path, seconds: float) -> socket.socket:
    """Connect to a daemon's control socket.

    Raises:
        ConfigError: nobody is there, or he does not let us in.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a timeout of Python's, a full queue of clients would be an error at once.
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        with _through(path) as short:
            sock.connect(short)
        sock.settimeout(seconds)
    except OSError as error:
        sock.close()
        gone = (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED)
        why = "nobody listens" if error.errno in gone else error.strerror or str(error)
        if error.errno == errno.EAGAIN:
            raise ConfigError(
                f"{path}: the daemon takes no client within {seconds:g} s; see its log"
            ) from None
        raise ConfigError(
            f"no daemon answers at {path} ({why}): is 'hcalld serve' running with this state "
            "directory? Else give its --state-dir, or its --control"
        ) from None
    return sock
