# SPDX-License-Identifier: Apache-2.0
"""Frames on their way to the shim: whole, and in the order in which they were queued."""

from __future__ import annotations

import trio

from hcalld.core.tap import Tap
from hcalld.runtime.transport import Transport
from hcallproto.conn.connection import Connection
from hcallproto.wire import frames as f


class Outbox:
    """What one connection sends."""

    def __init__(self, connection: Connection, transport: Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._queued: list[bytes | memoryview] = []
        """Frames, and of the first one perhaps only the rest. Not joined as they come: large
        ones would be copied, and nearly always there is one."""
        self._lock = trio.Lock()
        self.tap: Tap | None = None
        """Is told of each frame."""

    def queue(self, frame: f.Frame, encoded: bytes | None = None, why: str = "") -> None:
        """Put a frame behind the others; the connection's rules hold from now on.

        Args:
            frame: what is sent.
            encoded: its bytes, if they are known.
            why: what the guest is not told of it, for the tap.
        """
        data = self._connection.send(frame, encoded)
        self._queued.append(data)
        if self.tap is not None:
            self.tap.sent(frame, data, why)

    def send_now(self) -> bool:
        """Send what can be sent without waiting.

        Returns:
            False if something is left: then somebody must ``flush``.
        """
        if not self._queued:
            return True
        if self._lock.locked():
            return False
        data = self._joined()
        sent = self._transport.try_send(data)
        if sent == len(data):
            self._queued.clear()
            return True
        self._queued = [memoryview(data)[sent:] if sent else data]
        return False

    async def flush(self) -> None:
        """Return when all that is queued has been sent.

        To be cancelled only by what ends the connection: part of a frame may be out.
        """
        if self.send_now():
            return
        async with self._lock:
            while self._queued:
                data = self._joined()
                self._queued = []
                await self._transport.send(data)

    def _joined(self) -> bytes | memoryview:
        queued = self._queued
        return queued[0] if len(queued) == 1 else b"".join(queued)
