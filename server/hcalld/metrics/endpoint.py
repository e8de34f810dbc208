# SPDX-License-Identifier: Apache-2.0
"""Where Prometheus fetches the metrics: HTTP/1.1, and no more of it than that takes.

Whoever connects may be anybody on this machine. He gets the metrics or an error, is not
waited for long, and holds up nobody else: if all places are taken, whoever has asked nothing for
the longest time makes room.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import h11
import trio

from hcalld.control.messages import Stats
from hcalld.core.log import Log
from hcalld.metrics.collector import CONTENT_TYPE, render
from hcalld.runtime.transport import accept

PATH: Final = b"/metrics"
MAX_CLIENTS: Final = 16
IDLE_SECONDS: Final = 120
"""A client that asks nothing more for so long is ended; Prometheus keeps its connection."""
REQUEST_SECONDS: Final = 10
"""A client's first request, one that has begun, or a reply, is through by then."""
LINGER_SECONDS: Final = 1


class MetricsEndpoint:
    """Answers requests for the metrics.

    Args:
        now: gives the numbers.
        max_clients: how many at a time.
    """

    def __init__(self, now: Callable[[], Stats], *, max_clients: int = MAX_CLIENTS) -> None:
        self._now = now
        self._rendering = trio.CapacityLimiter(1)
        self._max_clients = max_clients
        self.client_count = 0
        self._waited_for: dict[trio.CancelScope, None] = {}
        """Clients that are to ask, or to take their reply; the longest first."""
        self._log = Log()

    async def listen(self, listener: socket.socket) -> None:
        """Accept clients for ever, each in a task of its own."""
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                sock = await accept(listener, self._log, "cannot accept at the metrics' address")
                if self.client_count >= self._max_clients and not self._make_room():
                    sock.close()
                    continue
                self.client_count += 1
                place = trio.CancelScope()
                self._waited_for[place] = None
                nursery.start_soon(self._serve, sock, place)

    def _make_room(self) -> bool:
        """End whoever is waited for longest; False: all are being answered."""
        place = next(iter(self._waited_for), None)
        if place is None:
            return False
        del self._waited_for[place]
        place.cancel()
        return True

    async def _serve(self, sock: socket.socket, place: trio.CancelScope) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            with place:
                await self._answer_all(stream, place)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        finally:
            self.client_count -= 1
            self._waited_for.pop(place, None)
            await trio.aclose_forcefully(stream)

    async def _answer_all(self, stream: trio.SocketStream, place: trio.CancelScope) -> None:
        connection = h11.Connection(h11.SERVER)
        seconds = REQUEST_SECONDS
        while True:
            try:
                request = await _request(connection, stream, seconds)
            except h11.RemoteProtocolError as error:
                if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                    await self._send(connection, stream, error.error_status_hint, b"GET", b"")
                    await _let_read(stream)
                return
            if request is None:
                return
            self._waited_for.pop(place, None)
            status, text = await self._answer(request)
            self._waited_for[place] = None
            await self._send(connection, stream, status, request.method, text)
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()
            seconds = IDLE_SECONDS

    async def _answer(self, request: h11.Request) -> tuple[int, bytes]:
        if request.target.partition(b"?")[0] != PATH:
            return 404, b""
        if request.method not in {b"GET", b"HEAD"}:
            return 405, b""
        try:
            # Many guests have many lines, and calls go on meanwhile.
            numbers = self._now()
            return 200, await trio.to_thread.run_sync(render, numbers, limiter=self._rendering)
        except Exception:
            # Our bug. It costs this client its reply.
            self._log.exception("bug in the metrics")
            return 500, b""

    async def _send(
        self,
        connection: h11.Connection,
        stream: trio.SocketStream,
        status: int,
        method: bytes,
        text: bytes,
    ) -> None:
        content_type = CONTENT_TYPE if status == 200 else "text/plain"
        headers = [("Content-Type", content_type)]
        if status == 405:
            headers.append(("Allow", "GET, HEAD"))
        if status != 200:
            text = b"%d: the metrics are at %s\n" % (status, PATH)
        headers.append(("Content-Length", str(len(text))))
        data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
        if method != b"HEAD":
            data += connection.send(h11.Data(data=text)) or b""
        data += connection.send(h11.EndOfMessage()) or b""
        with trio.fail_after(REQUEST_SECONDS):
            await stream.send_all(data)


async def _let_read(stream: trio.SocketStream) -> None:
    """Take what still comes: a connection that is closed before is reset, and the reply lost."""
    await stream.send_eof()
    with trio.move_on_after(LINGER_SECONDS):
        while await stream.receive_some(1 << 16):
            pass


async def _request(
    connection: h11.Connection, stream: trio.SocketStream, seconds: float
) -> h11.Request | None:
    """The next request with its end; None: there is none any more.

    Args:
        connection: that it belongs to.
        stream: where it comes from.
        seconds: it has begun by then.

    Raises:
        h11.RemoteProtocolError: it is none.
        trio.TooSlowError: it does not come, or not to its end.
    """
    request: h11.Request | None = None
    with trio.fail_after(seconds) as scope:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(1 << 12)
                if data and connection.our_state is h11.IDLE:
                    scope.deadline = min(scope.deadline, trio.current_time() + REQUEST_SECONDS)
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage):
                return request
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                return None
