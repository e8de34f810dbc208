# SPDX-License-Identifier: Apache-2.0
"""One end of the wire on a blocking socket: what the fake daemon and the fake shim share."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from types import TracebackType
from typing import Self, TypeVar

from tests.e2e.patience import patience

from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.wire import frames as f
from hcallproto.wire.schema import MAX_DESCRIPTORS

_F = TypeVar("_F")
_RECEIVE_SIZE = 1 << 16


class PeerClosed(Exception):
    """The other side has closed the connection."""


class Wire:
    """A connected socket and the protocol's state on it.

    Args:
        sock: A connected stream socket; owned from now on.
        role: Which side we are.

    Attributes:
        connection: The protocol's state; it judges what the other side sends.
        descriptors: File descriptors received and not taken.
    """

    def __init__(self, sock: socket.socket, role: Role) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.connection = Connection(role)
        self.descriptors: list[int] = []
        self._pending: list[f.Frame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, as a process that dies does."""
        self.sock.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    # -- sending ----------------------------------------------------------------------------

    def send(self, frame: f.Frame) -> None:
        """Sends a frame that is right to send now.

        Raises:
            PeerClosed: The other side has said goodbye.
        """
        if self.connection.state is State.CLOSED:
            raise PeerClosed("it said goodbye")
        self.send_bytes(self.connection.send(frame))

    def send_bytes(self, data: bytes) -> None:
        """Sends anything.

        Raises:
            PeerClosed: The other side is gone.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                select.select([], [self.sock], [], patience(10))
            except OSError as error:
                raise PeerClosed(str(error)) from error

    # -- receiving --------------------------------------------------------------------------

    def receive(self, seconds: float = 20) -> f.Frame:
        """Waits for the next frame.

        Raises:
            PeerClosed: The other side closed the connection instead.
            TimeoutError: Nothing came.
        """
        end = time.monotonic() + patience(seconds)
        while True:
            if self._pending:
                return self._pending.pop(0)
            self._take()
            if self._pending:
                continue
            if self.connection.state is State.CLOSED:
                raise PeerClosed("closed")
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                raise TimeoutError(f"no frame within {patience(seconds):.0f} s")
            self._read()

    def expect(self, kind: type[_F], seconds: float = 20) -> _F:
        """Waits for the next frame, which must be of this kind.

        Raises:
            AssertionError: It is another one.
        """
        frame = self.receive(seconds)
        if not isinstance(frame, kind):
            raise AssertionError(f"received {frame!r}, expected {kind.__name__}")
        return frame

    def wait_closed(self, seconds: float = 20) -> list[f.Frame]:
        """Waits until the other side closes; gives the frames that came before.

        Raises:
            TimeoutError: It does not.
        """
        frames: list[f.Frame] = []
        end = time.monotonic() + patience(seconds)
        with contextlib.suppress(PeerClosed):
            while True:
                frames.append(self.receive(max(0.0, end - time.monotonic())))
        return frames

    def nothing_comes(self, seconds: float) -> bool:
        """Says whether the other side is silent, and connected, for so long."""
        try:
            self._pending.insert(0, self.receive(seconds))
        except TimeoutError:
            return True
        except PeerClosed:
            return False
        return False

    def _take(self) -> None:
        while (frame := self.connection.next_frame()) is not None:
            self._pending.append(frame)

    def _read(self) -> None:
        size = array.array("i").itemsize
        try:
            if self.sock.family == socket.AF_UNIX:
                data, descriptors, _, _ = socket.recv_fds(
                    self.sock, _RECEIVE_SIZE, MAX_DESCRIPTORS * size
                )
                self.descriptors += descriptors
            else:
                data = self.sock.recv(_RECEIVE_SIZE)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self.connection.receive_data(data)
