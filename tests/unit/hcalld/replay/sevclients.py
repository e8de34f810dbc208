# SPDX-License-Identifier: Apache-2.0
"""Programs that use a SEV platform of a daemon in the test's own event loop."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import trio
from tests.unit.hcalld.runtime.daemon import Daemon

T = TypeVar("T")


@contextlib.asynccontextmanager
async def listening(daemon: Daemon) -> AsyncIterator[pathlib.Path]:
    """A socket that takes clients to the daemon."""
    with tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as folder:
        path = pathlib.Path(folder) / "sock"
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(os.fspath(path))
            listener.listen()

            async def accept() -> None:
                while True:
                    taken, _ = await listener.accept()
                    daemon.nursery.start_soon(
                        daemon.server.serve_socket, socket.socket(fileno=taken.detach())
                    )

            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                yield path
                nursery.cancel_scope.cancel()


async def clients(daemon: Daemon, story: Callable[[pathlib.Path], T]) -> T:
    """Have blocking clients do something; they have gone afterwards."""
    async with listening(daemon) as path:
        result = await trio.to_thread.run_sync(story, path)
        with trio.fail_after(20):
            await daemon.gone()
    return result
