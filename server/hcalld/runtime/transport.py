# SPDX-License-Identifier: Apache-2.0
"""Byte streams under a session: sockets, with descriptors or TLS.

A transport has two ways to move bytes. ``try_receive`` and ``try_send`` never wait and
never enter the event loop: a call that comes within microseconds of the last reply is
answered without a turn of the loop, which costs more than the call. ``receive`` and
``send`` wait.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from typing import Any, Protocol

import trio

from hcallproto.wire.schema import DEFAULT_MAX_FRAME, MAX_DESCRIPTORS

_RECEIVE_SIZE = 64 * 1024
_DESCRIPTOR_SIZE = array.array("i").itemsize
_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_DESCRIPTORS * _DESCRIPTOR_SIZE)

# One buffer for the process: it is filled and emptied without an await between.
_SHARED_BUFFER = bytearray(_RECEIVE_SIZE)
_SHARED_VIEW = memoryview(_SHARED_BUFFER)


ACCEPT_AGAIN_SECONDS = 0.1
"""After a connection could not be accepted, as when we are out of descriptors."""


async def accept(listener: socket.socket, log: Any, complaint: str) -> socket.socket:
    """Wait for the next connection to a socket that does not block.

    Args:
        listener: where.
        log: is told what goes wrong; it does not end the waiting.
        complaint: in these words.
    """
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            continue
        except OSError as error:
            # Out of descriptors, or the peer left already: neither ends the daemon.
            log.error(complaint, reason=str(error))
            await trio.sleep(ACCEPT_AGAIN_SECONDS)
            continue
        return sock


def make_room(sock: socket.socket) -> None:
    """Have a unix socket take a whole frame at once, as far as the system allows.

    Of a large WRITE what has no room waits for turns of the event loop, three or four of them.
    """
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DEFAULT_MAX_FRAME)


class TransportClosed(Exception):
    """The peer is gone, or the socket is broken."""


class Transport(Protocol):
    """What a session needs of a stream."""

    peer: str
    passes_descriptors: bool

    def try_receive(self, room: memoryview | None = None) -> memoryview | bytes | None:
        """Bytes that are there now, ``b""`` at end of file, None if there are none.

        Args:
            room: where to put them, if not into memory of the transport's own; then what is
                returned is its first part, or ``b""``.

        Returns:
            A memoryview is valid until the next call.
        """

    async def receive(self, room: memoryview | None = None) -> memoryview | bytes:
        """Wait for bytes; ``b""`` at end of file. As ``try_receive``."""

    def try_send(self, data: bytes | memoryview) -> int:
        """Send what can be sent now; returns how many bytes that was."""

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""

    def take_descriptors(self, count: int) -> list[int]:
        """The oldest ``count`` file descriptors received; the caller owns them.

        Raises:
            TransportClosed: fewer have come.
        """

    async def aclose(self) -> None:
        """Close, and close descriptors that nobody took."""


class SocketTransport:
    """A non-blocking stream socket, unix or TCP."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._descriptors: list[int] = []
        self.passes_descriptors = sock.family == socket.AF_UNIX
        self.peer = describe_peer(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def try_receive(self, room: memoryview | None = None) -> memoryview | bytes | None:
        """See Transport."""
        if room is None:
            room = _SHARED_VIEW
        try:
            if not self.passes_descriptors:
                size = self._sock.recv_into(room)
                return room[:size]
            size, ancillary, flags, _ = self._sock.recvmsg_into(
                [room], _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise TransportClosed(str(error)) from error
        if ancillary or flags & socket.MSG_CTRUNC:
            self._take_ancillary(ancillary, flags)
        return room[:size]

    def _take_ancillary(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_SIZE])
                self._descriptors.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > MAX_DESCRIPTORS:
            raise TransportClosed(f"more than {MAX_DESCRIPTORS} file descriptors received")

    async def receive(self, room: memoryview | None = None) -> memoryview | bytes:
        """See Transport."""
        while True:
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError as error:
                raise TransportClosed("closed") from error
            data = self.try_receive(room)
            if data is not None:
                return data

    def try_send(self, data: bytes | memoryview) -> int:
        """See Transport."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise TransportClosed(str(error)) from error

    async def send(self, data: bytes | memoryview) -> None:
        """See Transport."""
        view = memoryview(data)
        while view:
            sent = self.try_send(view)
            view = view[sent:]
            if view:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                except trio.ClosedResourceError as error:
                    raise TransportClosed("closed") from error

    def take_descriptors(self, count: int) -> list[int]:
        """See Transport."""
        if count > len(self._descriptors):
            raise TransportClosed(
                f"{count} file descriptors announced, {len(self._descriptors)} received"
            )
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return taken

    async def aclose(self) -> None:
        """See Transport."""
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors = []
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


class StreamTransport:
    """Any trio stream; used for TLS."""

    passes_descriptors = False

    def __init__(self, stream: trio.abc.Stream, peer: str) -> None:
        self._stream = stream
        self.peer = peer

    def try_receive(self, room: memoryview | None = None) -> memoryview | bytes | None:
        """See Transport; a stream cannot be asked without waiting."""
        return None

    async def receive(self, room: memoryview | None = None) -> memoryview | bytes:
        """See Transport."""
        try:
            if room is None:
                return bytes(await self._stream.receive_some(_RECEIVE_SIZE))
            data = await self._stream.receive_some(min(len(room), _RECEIVE_SIZE))
            room[: len(data)] = data
            return room[: len(data)]
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportClosed(str(error.__cause__ or error)) from error

    def try_send(self, data: bytes | memoryview) -> int:
        """See Transport; a stream cannot send without waiting."""
        return 0

    async def send(self, data: bytes | memoryview) -> None:
        """See Transport."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportClosed(str(error.__cause__ or error)) from error

    def take_descriptors(self, count: int) -> list[int]:
        """See Transport; a stream passes none."""
        if count:
            raise TransportClosed(f"{count} file descriptors announced on a stream without any")
        return []

    async def aclose(self) -> None:
        """See Transport."""
        with trio.move_on_after(1):
            await trio.aclose_forcefully(self._stream)


def peer_uid(sock: socket.socket) -> int | None:
    """The user id of a unix socket's peer, None for other sockets."""
    if sock.family != socket.AF_UNIX:
        return None
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", raw)[1]
    return uid


def describe_peer(sock: socket.socket) -> str:
    """For the log: ``unix pid 123 uid 0``, or host and port."""
    try:
        if sock.family == socket.AF_UNIX:
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid, uid, _ = struct.unpack("3i", raw)
            return f"unix pid {pid} uid {uid}"
        host, port = sock.getpeername()[:2]
        return f"{host}:{port}"
    except OSError:
        return "unconnected"
