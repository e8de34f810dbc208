# SPDX-License-Identifier: Apache-2.0
"""A daemon that does what a test says: holds calls, dies, talks nonsense."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.patience import patience
from tests.e2e.wire import Wire

from hcallproto.abi.returns import H
from hcallproto.conn.states import Role
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

NO_FEATURES = s.Feature(0)


def forward(
    number: int,
    *buffers: f.BufferSpec,
    deadline_ms: int = 60_000,
    is_waiting: bool = True,
    timeout_status: int = H.ABORTED,
    lost_status: int = H.HARDWARE,
    level: int = 1,
) -> f.CallSpec:
    """An announced call that the shim is to forward."""
    flags = s.CALL_FLAG_WAIT if is_waiting else 0
    return f.CallSpec(
        number,
        level,
        s.Disposition.FORWARD,
        flags,
        deadline_ms,
        timeout_status,
        lost_status,
        buffers,
    )


def answer(number: int, status: int) -> f.CallSpec:
    """An announced call that the shim is to answer without asking."""
    return f.CallSpec(number, 1, s.Disposition.ANSWER, 0, 0, status, status)


def announcement(
    calls: Iterable[f.CallSpec],
    strings: Iterable[str] = (),
    properties: Iterable[tuple[str, bytes]] = (),
) -> f.Announcement:
    """An announcement."""
    return f.Announcement(tuple(calls), tuple(strings), tuple(properties))


class Peer(Wire):
    """A connection from a shim.

    Events are kept apart from the frames that a test waits for; a reset is acknowledged at once
    unless ``acknowledges`` is set to False.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, Role.DAEMON)
        self.events: list[f.Event] = []
        self.rams: list[f.Ram] = []
        self.hello: f.Hello | None = None
        self.acknowledges = True

    def greet(self) -> f.Hello:
        """Receives HELLO."""
        self.hello = self.expect(f.Hello)
        return self.hello

    def welcome(
        self,
        announced: f.Announcement,
        features: s.Feature = NO_FEATURES,
        max_frame_size: int = s.MIN_MAX_FRAME,
    ) -> f.Accept:
        """Sends WELCOME, and receives what completes the negotiation."""
        assert self.hello is not None
        self.send(f.Welcome(s.VERSION, max_frame_size, features, announced, self.connection.reset))
        accept = self.expect(f.Accept)
        self.rams.append(self.expect(f.Ram))
        return accept

    def negotiate(self, announced: f.Announcement, features: s.Feature = NO_FEATURES) -> f.Accept:
        """Does both."""
        self.greet()
        return self.welcome(announced, features)

    def receive(self, seconds: float = 20) -> f.Frame:
        """See Wire; events and new maps of RAM are dealt with."""
        while True:
            frame = super().receive(seconds)
            match frame:
                case f.Event():
                    self.events.append(frame)
                    if frame.kind is s.EventKind.RESET and self.acknowledges:
                        self.send(f.EventAck(frame.kind, frame.request, frame.reset))
                case f.Ram() if self.rams:
                    self.rams.append(frame)
                case _:
                    return frame

    def wait_event(self, kind: s.EventKind, seconds: float = 20) -> f.Event:
        """Waits for an event; no other frame but events may come before it."""
        while not any(event.kind is kind for event in self.events):
            before = len(self.events)
            frame = super().receive(seconds)
            if not isinstance(frame, f.Event):
                raise AssertionError(f"received {frame!r}, expected an event {kind.name}")
            self.events.append(frame)
            if frame.kind is s.EventKind.RESET and self.acknowledges:
                self.send(f.EventAck(frame.kind, frame.request, frame.reset))
            assert len(self.events) > before
        found = next(event for event in self.events if event.kind is kind)
        self.events.remove(found)
        return found

    def call(self, seconds: float = 20) -> f.Call:
        """Waits for a call."""
        return self.expect(f.Call, seconds)

    def reply(
        self,
        call: f.Call,
        status: int = H.SUCCESS,
        registers: tuple[tuple[int, int], ...] = (),
        writes: tuple[f.WriteSegment, ...] = (),
    ) -> None:
        """Answers a call."""
        self.send(f.Reply(call.vcpu, call.reset, call.seq, status, registers, writes))

    def read_memory(self, call: f.Call, *segments: tuple[int, int]) -> f.ReadReply:
        """Reads guest memory on behalf of a call."""
        self.send(f.Read(call.vcpu, call.reset, call.seq, 1, segments))
        return self.expect(f.ReadReply)

    def write_memory(self, call: f.Call, *segments: f.WriteSegment) -> f.WriteReply:
        """Writes guest memory on behalf of a call."""
        self.send(f.Write(call.vcpu, call.reset, call.seq, 1, segments))
        return self.expect(f.WriteReply)


class FakeDaemon:
    """Listens where QEMU connects.

    Args:
        path: The unix socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._peers: list[Peer] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen(4)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def accept(self, seconds: float = 20) -> Peer:
        """Waits for QEMU to connect.

        Raises:
            TimeoutError: It does not.
        """
        if not select.select([self._listener], [], [], patience(seconds))[0]:
            raise TimeoutError(f"QEMU has not connected within {patience(seconds):.0f} s")
        sock, _ = self._listener.accept()
        peer = Peer(sock)
        self._peers.append(peer)
        return peer

    def has_connection(self) -> bool:
        """Says whether somebody waits to be accepted."""
        return bool(select.select([self._listener], [], [], 0)[0])

    def close(self) -> None:
        """Ends all connections, and listens no more."""
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for peer in self._peers:
            peer.close()
