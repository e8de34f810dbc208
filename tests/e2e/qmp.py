# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor, by the library that QEMU's own tests use, without an event loop to be seen."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError
from tests.e2e.patience import patience

__all__ = ["ExecuteError", "Qmp"]

_T = TypeVar("_T")


class Qmp:
    """A connected monitor.

    Args:
        sock: The other end of the monitor's socket; owned from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("monitor")
        try:
            self._run(self._client.connect(sock), 30)
        except BaseException:
            self._loop.close()
            sock.close()
            raise

    def execute(self, command: str, seconds: float = 20, **arguments: object) -> Any:
        """Runs a command; gives what it returns.

        Underscores in names of arguments stand for hyphens.

        Raises:
            ExecuteError: QEMU refuses it; the text says why.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._run(self._client.execute(command, named), seconds)

    def timed(self, command: str) -> float:
        """Runs a command; gives the seconds until its answer."""
        start = time.perf_counter()
        self.execute(command)
        return time.perf_counter() - start

    def wait_event(self, name: str, seconds: float = 20) -> dict[str, Any]:
        """Waits for an event, passing over others.

        Raises:
            TimeoutError: It did not come.
        """

        async def wait() -> dict[str, Any]:
            while True:
                message = await self._client.events.get()
                if message["event"] == name:
                    return dict(message)

        return self._run(wait(), seconds)

    def status(self) -> str:
        """Gives the machine's run state."""
        return str(self.execute("query-status")["status"])

    def close(self) -> None:
        """Ends the connection; QEMU may have ended before."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(QMPError, EOFError, OSError, TimeoutError):
            self._run(self._client.disconnect(), 5)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T], seconds: float) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(work, patience(seconds)))
