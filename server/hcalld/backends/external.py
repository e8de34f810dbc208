# SPDX-License-Identifier: Apache-2.0
"""TPMs of others: a swtpm that listens on a unix socket, or a TPM's character device.

Neither is started or stopped here; a session is the open connection or device. Where no
resource manager does it, closing a session also frees the contexts that came up in it.
"""

from __future__ import annotations

import abc
import os
import pathlib
import socket
import stat
import termios
import tty
from typing import Final

import trio

from hcalld.backends.channel import Channel, flush_contexts, list_contexts
from hcalld.core.errors import BackendUnavailable
from hcalld.core.log import Log
from hcalld.core.records import Run

OPEN_SECONDS: Final = 5
CLOSE_SECONDS: Final = 2

SYS_DEV_CHAR: Final = pathlib.Path("/sys/dev/char")
_MANAGED: Final = "tpmrm"
"""The device class of /dev/tpmrm0: the kernel's resource manager is behind it."""


class _External(abc.ABC):
    """What both have in common; see TpmBackend.

    Args:
        path: of the socket or device.
        timeout_s: for one command.
        wait_us: how long ``transmit_now`` waits for a response.
    """

    kind = ""

    def __init__(self, path: pathlib.Path, *, timeout_s: float, wait_us: int = 0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._wait_us = wait_us
        self._channel: Channel | None = None
        self._others: frozenset[int] | None = None
        """Contexts that were there before the session; None: not known."""
        self._log = Log(path=str(path))

    @property
    def description(self) -> str:
        """See TpmBackend."""
        return f"TPM {self.kind} {self._path}"

    @property
    def is_open(self) -> bool:
        """See TpmBackend."""
        return self._channel is not None and self._channel.is_usable

    def begin_run(self, run: Run) -> None:  # noqa: B027  nothing here ends with a run
        """See TpmBackend."""

    async def open(self) -> None:
        """See TpmBackend."""
        if self._channel is not None and self._channel.owes and not self._channel.is_broken:
            await self._settle(self._channel)
        if self.is_open:
            return
        self._drop()
        self._others = None
        try:
            with trio.fail_after(OPEN_SECONDS):
                self._channel = await self._reach()
        except trio.TooSlowError:
            raise BackendUnavailable(
                f"{self.description}: not reached within {OPEN_SECONDS} s"
            ) from None
        except OSError as error:
            raise BackendUnavailable(
                f"{self.description}: {error.strerror or error}; expected a TPM that is there, "
                "free and ours to use"
            ) from None
        if not self._is_managed():
            self._others = await list_contexts(self._channel)

    async def transmit(self, command: bytes) -> bytes:
        """See TpmBackend."""
        return await self._usable().transmit(command)

    def transmit_now(self, command: bytes) -> bytes | None:
        """See TpmBackend."""
        return self._usable().transmit_now(command, self._wait_us)

    async def finish(self) -> bytes:
        """See TpmBackend."""
        assert self._channel is not None
        return await self._channel.finish()

    async def close_session(self) -> None:
        """See TpmBackend."""
        if self._channel is None:
            return
        if self._is_managed():
            self._drop()
            return
        others = self._others
        await self.open()
        if others is not None:
            await flush_contexts(self._usable(), others)
        self._drop()

    async def aclose(self) -> None:
        """See TpmBackend."""
        with trio.move_on_after(CLOSE_SECONDS):
            try:
                await self.close_session()
            except BackendUnavailable as error:
                self._log.warning("TPM session not closed in good order", reason=str(error))
        self._drop()

    def _usable(self) -> Channel:
        if self._channel is None or not self._channel.is_usable:
            raise BackendUnavailable(f"{self.description}: the session is lost")
        return self._channel

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    @abc.abstractmethod
    async def _settle(self, channel: Channel) -> None:
        """Deal with a channel that owes a response."""

    @abc.abstractmethod
    async def _reach(self) -> Channel:
        """Open it. Raises OSError."""

    def _is_managed(self) -> bool:
        """True if closing it frees the contexts."""
        return False


class TpmSocket(_External):
    """A swtpm, or what speaks like one, that listens on a unix socket."""

    kind = "socket"

    async def _settle(self, channel: Channel) -> None:
        # A new connection has no old responses.
        channel.close()

    async def _reach(self) -> Channel:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            await sock.connect(os.fspath(self._path))
            return Channel(sock.detach(), self.description, self._timeout_s)


class TpmDevice(_External):
    """A character device: /dev/tpmrm0, /dev/tpm0, or a pty with a TPM at its other end."""

    kind = "device"

    async def _settle(self, channel: Channel) -> None:
        if self._is_managed():
            channel.close()
            return
        # Opened again it would give the old response to the next command.
        await channel.settle()

    async def _reach(self) -> Channel:
        fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISCHR(os.fstat(fd).st_mode):
                raise OSError(0, "not a character device")
            if os.isatty(fd):
                tty.setraw(fd, termios.TCSANOW)
        except (OSError, termios.error):
            os.close(fd)
            raise
        await trio.lowlevel.checkpoint()
        return Channel(fd, self.description, self._timeout_s, is_device=True)

    def _is_managed(self) -> bool:
        try:
            number = os.stat(self._path).st_rdev
            link = SYS_DEV_CHAR / f"{os.major(number)}:{os.minor(number)}" / "subsystem"
            return os.path.basename(os.readlink(link)) == _MANAGED
        except OSError:
            return False
