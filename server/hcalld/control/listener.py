# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of the control socket: lines in, lines out.

Each client has a task of its own, in which nothing is awaited but that client and what it
asked for: who reads slowly, sends half a line or nothing waits alone, and is ended after a
while. Requests of one client are carried out one after the other, with a turn of the event
loop between them, so that guests get theirs.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import trio

from hcalld import __version__
from hcalld.control.messages import (
    BY_NAME,
    MAX_REQUEST_SIZE,
    PROTOCOL,
    Failure,
    Greeting,
    Kind,
    MalformedRequest,
    Reply,
    Request,
    decode_request,
    encode,
    name_of,
)
from hcalld.core.errors import HcalldError
from hcalld.core.log import Log
from hcalld.runtime.transport import (
    SocketTransport,
    TransportClosed,
    accept,
    describe_peer,
    peer_uid,
)

MAX_CLIENTS: Final = 32
IDLE_SECONDS: Final = 120
"""A client that asks nothing for so long gives up its place."""
READ_SECONDS: Final = 10
"""A client that has not read its reply by then is ended."""

Answer = Callable[[Any], Awaitable[Reply]]


class Refusal(Exception):
    """A command refuses."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Ended(Exception):
    """There will be no more requests."""


class ControlListener:
    """Answers the requests of all clients.

    Args:
        functions: command to what carries it out.
        allowed_uids: who may connect.
        max_clients: how many at a time.
    """

    def __init__(
        self,
        functions: Mapping[type[Request[Reply]], Answer],
        allowed_uids: Collection[int],
        *,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        self._functions = functions
        self._allowed_uids = allowed_uids
        self._max_clients = max_clients
        self.client_count = 0
        self._log = Log()
        self._greeting = encode(
            Greeting(
                protocol=PROTOCOL,
                version=__version__,
                pid=os.getpid(),
                commands=sorted(BY_NAME),
            )
        )

    async def listen(self, listener: socket.socket) -> None:
        """Accept clients for ever, each in a task of its own."""
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                sock = await accept(listener, self._log, "cannot accept on the control socket")
                refusal = self._refusal(sock)
                if refusal is not None:
                    _turn_away(sock, refusal)
                    continue
                self.client_count += 1
                nursery.start_soon(self._serve, sock)

    def _refusal(self, sock: socket.socket) -> Failure | None:
        uid = peer_uid(sock)
        if uid not in self._allowed_uids:
            message = f"uid {uid} may not control this daemon; run it as its user, or as root"
            self._log.warning("control client refused", peer=describe_peer(sock), reason=message)
            return Failure(kind=Kind.NOT_ALLOWED, message=message)
        if self.client_count >= self._max_clients:
            return Failure(
                kind=Kind.TOO_MANY_CLIENTS,
                message=f"{self.client_count} clients are connected, at most {self._max_clients} "
                "may be; try again later",
            )
        return None

    async def _serve(self, sock: socket.socket) -> None:
        client = _Client(sock)
        try:
            await client.send(self._greeting)
            while True:
                try:
                    reply = await self._reply(client, await client.line())
                except MalformedRequest as error:
                    await client.send(encode(Failure(kind=error.kind, message=str(error))))
                    if error.kind is Kind.TOO_LONG:
                        # What follows is not known to begin a line.
                        return
                else:
                    await client.send(reply)
        except (_Ended, TransportClosed, trio.TooSlowError):
            return
        finally:
            self.client_count -= 1
            with trio.CancelScope(shield=True):
                await client.aclose()

    async def _reply(self, client: _Client, line: bytes) -> bytes:
        # Guests first: a client may have sent many requests at once.
        await trio.lowlevel.checkpoint()
        request = decode_request(line)
        reply = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.until_gone, nursery.cancel_scope)
            reply = await self._carry_out(request)
            nursery.cancel_scope.cancel()
        if not reply:
            raise _Ended  # it is gone, and so is what it asked for
        return reply

    async def _carry_out(self, request: Request[Reply]) -> bytes:
        try:
            return encode(await self._functions[type(request)](request))
        except Refusal as refusal:
            failure = Failure(kind=refusal.kind, message=str(refusal))
        except HcalldError as error:
            failure = Failure(kind=Kind.FAILED, message=str(error))
        except Exception:
            # Our bug. It costs this client its reply.
            self._log.exception("bug in a control command", command=name_of(type(request)))
            failure = Failure(kind=Kind.INTERNAL, message="internal error, see hcalld's log")
        return encode(failure)


class _Client:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._transport = SocketTransport(sock)
        # It has no use for descriptors; those that come are closed by the kernel.
        self._transport.passes_descriptors = False
        self._sock = sock
        self._data = bytearray()

    async def send(self, line: bytes) -> None:
        """Send a line.

        Raises:
            TransportClosed: the client is gone.
            trio.TooSlowError: it does not read.
        """
        with trio.fail_after(READ_SECONDS):
            await self._transport.send(line)

    async def line(self) -> bytes:
        """The next line.

        Raises:
            MalformedRequest: it is too long.
            _Ended: there is none, or only a part of one.
            TransportClosed: the client is gone.
            trio.TooSlowError: it has nothing to say.
        """
        data = self._data
        start = 0
        with trio.fail_after(IDLE_SECONDS):
            while (end := data.find(b"\n", start)) < 0:
                start = len(data)
                if start >= MAX_REQUEST_SIZE:
                    break
                chunk = await self._transport.receive()
                if not chunk:
                    raise _Ended
                data += chunk
        if not 0 <= end < MAX_REQUEST_SIZE:
            raise MalformedRequest(
                Kind.TOO_LONG, f"a line has more than {MAX_REQUEST_SIZE} bytes, its end included"
            )
        line = bytes(data[:end])
        del data[: end + 1]
        return line

    async def until_gone(self, scope: trio.CancelScope) -> None:
        """Cancel what is done for a client that is gone, and not only done asking."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                peeked = self._sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                peeked = b""
            if peeked:
                return  # the next request; it waits
            poll = select.poll()
            poll.register(self._sock, 0)
            if poll.poll(0):  # POLLHUP, which is always told
                scope.cancel()
            return

    async def aclose(self) -> None:
        """End it."""
        await self._transport.aclose()


def _turn_away(sock: socket.socket, failure: Failure) -> None:
    """Tell a client why, as far as that needs no waiting, and end it."""
    with sock:
        sock.setblocking(False)
        try:
            sock.send(encode(failure))
        except OSError:
            return
