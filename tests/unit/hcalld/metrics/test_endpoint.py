# SPDX-License-Identifier: Apache-2.0
"""The metrics' endpoint: who asks well is answered, and who does not holds nobody up."""

from __future__ import annotations

import contextlib
import http.client
import io
import pathlib
import socket
import threading
from typing import Final

import pytest
import trio
import trio.testing
from tests.unit.hcalld.metrics.test_collector import guest_stats, stats

from hcalld.control.messages import Stats
from hcalld.metrics import endpoint
from hcalld.metrics.address import MetricsOptions, listen
from hcalld.metrics.collector import render
from hcalld.metrics.endpoint import IDLE_SECONDS, REQUEST_SECONDS, MetricsEndpoint
from hcalld.testing.logs import capture_logs

GET: Final = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
NUMBERS: Final = stats(guest_stats("lpar7", state="secure"))


class Daemon:
    """An endpoint in the test's event loop."""

    def __init__(self, nursery: trio.Nursery, path: pathlib.Path) -> None:
        self.path = path
        self._nursery = nursery
        self._listener = listen(MetricsOptions(path=path))
        self.endpoint: MetricsEndpoint | None = None
        self._streams: list[trio.SocketStream] = []

    def start(self, numbers: Stats | None = NUMBERS, max_clients: int = 2) -> None:
        def now() -> Stats:
            assert numbers is not None, "a bug"
            return numbers

        self.endpoint = MetricsEndpoint(now, max_clients=max_clients)
        self._nursery.start_soon(self.endpoint.listen, self._listener)

    async def connect(self) -> trio.SocketStream:
        stream = await trio.open_unix_socket(self.path)
        self._streams.append(stream)
        return stream

    async def close(self) -> None:
        for stream in self._streams:
            await stream.aclose()
        self._listener.close()


@pytest.fixture
async def daemon(nursery: trio.Nursery, tmp_path: pathlib.Path):
    """An endpoint that is not started."""
    daemon = Daemon(nursery, tmp_path / "metrics")
    yield daemon
    await daemon.close()


class _Said(socket.socket):
    """What http.client reads a response from."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def makefile(self, *_: object, **__: object) -> io.BytesIO:  # type: ignore[override]
        return io.BytesIO(self._data)


async def said(stream: trio.SocketStream, size: int = 1 << 20) -> bytes:
    """All that comes until the end of the connection, or until nothing comes any more."""
    data = b""
    with trio.move_on_after(0.3):
        while chunk := await stream.receive_some(size):
            data += chunk
    return data


def response(data: bytes, method: str = "GET") -> tuple[int, str, bytes]:
    """Status, type and body, as Python's own client reads them."""
    with contextlib.closing(_Said(data)) as sock:
        found = http.client.HTTPResponse(sock, method=method)
        found.begin()
        return found.status, found.headers["Content-Type"], found.read()


async def ask(stream: trio.SocketStream, request: bytes) -> bytes:
    with contextlib.suppress(trio.BrokenResourceError):  # what it says may be there all the same
        await stream.send_all(request)
    return await said(stream)


async def test_get_when_metrics_are_asked_for_then_they_come(daemon: Daemon):
    daemon.start()
    stream = await daemon.connect()
    for _ in range(2):  # on one connection
        status, content_type, body = response(await ask(stream, GET))
        assert status == 200
        assert content_type.startswith("text/plain; version=")
        assert body == render(NUMBERS)


async def test_head_when_it_is_asked_then_there_is_no_body(daemon: Daemon):
    daemon.start()
    data = await ask(await daemon.connect(), GET.replace(b"GET", b"HEAD"))
    assert response(data, "HEAD")[0] == 200
    assert data.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET.replace(b"/metrics", b"/"), 404),
        (GET.replace(b"/metrics", b"/../metrics"), 404),
        (GET.replace(b"GET", b"DELETE"), 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    ],
)
async def test_get_when_it_is_wrong_then_the_status_says_so(
    daemon: Daemon, request_: bytes, status: int
):
    daemon.start()
    told, _, body = response(await ask(await daemon.connect(), request_))
    assert told == status
    assert b"the metrics are at /metrics" in body
    assert response(await ask(await daemon.connect(), GET))[0] == 200


async def test_get_when_there_is_a_bug_then_it_costs_this_client_its_reply(daemon: Daemon):
    daemon.start(None)
    with capture_logs() as logs:
        assert response(await ask(await daemon.connect(), GET))[0] == 500
    assert [entry["event"] for entry in logs] == ["bug in the metrics"]


async def test_clients_when_there_are_too_many_then_the_one_idle_longest_makes_room(daemon: Daemon):
    daemon.start()
    first = await daemon.connect()
    await trio.testing.wait_all_tasks_blocked()
    second = await daemon.connect()
    await trio.testing.wait_all_tasks_blocked()
    # It has asked since the second came.
    assert response(await ask(first, GET))[0] == 200
    assert response(await ask(await daemon.connect(), GET))[0] == 200
    assert await ask(second, GET) == b""
    assert response(await ask(first, GET))[0] == 200
    assert daemon.endpoint is not None
    assert daemon.endpoint.client_count == 2


async def test_clients_when_all_are_being_answered_then_the_last_is_turned_away(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    may_go_on = threading.Event()

    def slowly(numbers: Stats) -> bytes:
        assert may_go_on.wait(20)
        return render(numbers)

    monkeypatch.setattr(endpoint, "render", slowly)
    daemon.start()
    clients = [await daemon.connect(), await daemon.connect()]
    for client in clients:
        await client.send_all(GET)
    await trio.testing.wait_all_tasks_blocked(0.05)
    third = await daemon.connect()
    with contextlib.suppress(trio.BrokenResourceError):
        assert await third.receive_some() == b""
    may_go_on.set()
    for client in clients:
        assert response(await said(client))[0] == 200


@pytest.mark.parametrize(
    ("begin", "seconds"),
    [(b"", REQUEST_SECONDS), (b"GET /met", REQUEST_SECONDS), (GET, IDLE_SECONDS)],
)
async def test_clients_when_one_does_not_go_on_then_it_is_ended(
    daemon: Daemon,
    autojump_clock: trio.testing.MockClock,
    begin: bytes,
    seconds: float,
):
    daemon.start()
    stream = await daemon.connect()
    await stream.send_all(begin)
    assert daemon.endpoint is not None
    while daemon.endpoint.client_count == 0:  # noqa: ASYNC110  # nothing tells of it
        await trio.sleep(0.01)
    began = trio.current_time()
    if begin == GET:
        assert response(await stream.receive_some(1 << 20))[0] == 200
    with contextlib.suppress(trio.BrokenResourceError):
        assert await stream.receive_some() == b""
    assert trio.current_time() - began <= seconds + 1
    assert daemon.endpoint.client_count == 0
