# SPDX-License-Identifier: Apache-2.0
"""One end of a connection that a replay plays: frames in, frames out."""

from __future__ import annotations

import os
import pathlib
import socket

import trio

from hcalld.core.errors import HcalldError
from hcalld.runtime.transport import SocketTransport, TransportClosed
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.errors import RemoteProtocolError
from hcallproto.wire import frames as f


class PeerFailed(Exception):
    """The other side broke the protocol, or is gone; the text says how."""


class Link:
    """A connected socket and the protocol's state on it.

    Args:
        sock: connected; owned from now on.
        role: which side we are.

    Attributes:
        received: how many frames have come.
    """

    def __init__(self, sock: socket.socket, role: Role) -> None:
        self.connection = Connection(role)
        self.received = 0
        self._transport = SocketTransport(sock)
        self._sending = trio.Lock()

    async def send(self, frame: f.Frame) -> None:
        """Send a frame.

        Raises:
            LocalProtocolError: it may not be sent now.
            PeerFailed: nobody receives it.
        """
        data = self.connection.send(frame)
        async with self._sending:
            try:
                await self._transport.send(data)
            except TransportClosed as error:
                raise PeerFailed(f"the connection is lost: {error}") from None

    async def receive(self) -> f.Frame | None:
        """The next frame; None: the other side has closed the connection.

        Raises:
            PeerFailed: it broke the protocol, or the connection did.
        """
        connection = self.connection
        try:
            while not self._is_over():
                frame = connection.next_frame()
                if frame is not None:
                    self.received += 1
                    return frame
                if not self._is_over():
                    connection.receive_data(await self._transport.receive())
            return None
        except RemoteProtocolError as error:
            raise PeerFailed(f"a breach of the protocol: {error}") from None
        except TransportClosed as error:
            raise PeerFailed(f"the connection is lost: {error}") from None

    def _is_over(self) -> bool:
        return self.connection.state in (State.CLOSED, State.ERROR)

    def take_descriptors(self, count: int) -> None:
        """Close the file descriptors that came with a frame: nobody here needs them.

        Raises:
            PeerFailed: fewer came.
        """
        try:
            for descriptor in self._transport.take_descriptors(count):
                os.close(descriptor)
        except TransportClosed as error:
            raise PeerFailed(str(error)) from None

    async def aclose(self) -> None:
        """Close the connection."""
        await self._transport.aclose()


async def connect(path: pathlib.Path) -> Link:
    """Connect to a daemon as a shim does.

    Raises:
        HcalldError: nobody listens there.
    """
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise HcalldError(
            f"{path}: cannot connect: {error.strerror or error}; expected the socket of a running "
            "'hcalld serve'"
        ) from None
    plain = socket.socket(fileno=sock.detach())
    plain.setblocking(False)
    return Link(plain, Role.SHIM)
