# SPDX-License-Identifier: Apache-2.0
"""A control socket with commands of the tests' own, and clients that do what they like."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from hcalld.control.endpoint import Endpoint, connect
from hcalld.control.listener import ControlListener
from hcalld.testing.logs import capture_logs

Logs = list[dict[str, Any]]


@pytest.fixture
def logs() -> Iterator[Logs]:
    """What is logged, as dictionaries."""
    with capture_logs() as entries:
        yield entries


class Client:
    """A client that sends bytes and reads lines."""

    def __init__(self, path: pathlib.Path) -> None:
        self.sock = connect(path, 5)
        self.sock.setblocking(False)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.sock))
        self._data = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def line(self) -> dict[str, Any] | None:
        """The next reply; None at the end of the connection."""
        with trio.fail_after(20):
            while b"\n" not in self._data:
                try:
                    chunk = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    chunk = b""
                if not chunk:
                    assert self._data == b""
                    return None
                self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    async def greeted(self) -> Client:
        """After the greeting."""
        greeting = await self.line()
        assert greeting is not None
        assert greeting["reply"] == "greeting"
        return self

    async def ask(self, **request: object) -> dict[str, Any]:
        """A request and its reply."""
        await self.send(json.dumps(request).encode() + b"\n")
        reply = await self.line()
        assert reply is not None
        return reply

    async def close(self) -> None:
        await self.stream.aclose()


class Control:
    """A listener in the test's own event loop."""

    def __init__(self, nursery: trio.Nursery, folder: pathlib.Path) -> None:
        self.path = folder / "control"
        self._nursery = nursery
        self._endpoint: Endpoint | None = None
        self.listener: ControlListener | None = None
        self._clients: list[Client] = []

    def start(self, functions: Any, *, uids: set[int] | None = None, **more: Any) -> None:
        self._endpoint = Endpoint(self.path)
        allowed = {os.geteuid()} if uids is None else uids
        self.listener = ControlListener(functions, allowed, **more)
        self._nursery.start_soon(self.listener.listen, self._endpoint.socket)

    async def client(self) -> Client:
        """A client that was greeted."""
        return await self.new().greeted()

    def new(self) -> Client:
        """A client."""
        client = Client(self.path)
        self._clients.append(client)
        return client

    async def until(self, count: int) -> None:
        """Waits until so many clients are connected."""
        assert self.listener is not None
        with trio.fail_after(20):
            while self.listener.client_count != count:  # noqa: ASYNC110  # nothing tells of it
                await trio.sleep(0.005)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        if self._endpoint is not None:
            self._endpoint.close()


@pytest.fixture
async def control(nursery: trio.Nursery, tmp_path: pathlib.Path, logs: Logs) -> Any:
    """A control socket; the test says what is on it."""
    control = Control(nursery, tmp_path)
    yield control
    await control.close()
