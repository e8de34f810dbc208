# SPDX-License-Identifier: Apache-2.0
"""Guest memory over the wire: the shim reads and writes it, for the calls that wait.

A call has one request at a time under way. What a call has asked for is answered before the call
ends: its REPLY or CANCELLED would end the request too, and the shim's answer would be a breach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import trio

from hcalld.core.effects import GuestMemoryError
from hcalld.core.pages import PageRange
from hcalld.runtime.outbox import Outbox
from hcalld.runtime.replies import wire_ranges
from hcallproto.conn.connection import Connection
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

_REQUEST_MAX = 0xFFFF_FFFF

_HEADS_SIZE: Final = 4096
"""Bytes of a frame that are kept for its heads and those of ``schema.MAX_SEGMENTS`` segments."""

MemoryReply = f.ReadReply | f.WriteReply | f.PagesReply


@dataclasses.dataclass(slots=True)
class _Request:
    """A READ, WRITE or PAGES that waits for its reply."""

    frame: f.Read | f.Write | f.Pages
    done: trio.Event = dataclasses.field(default_factory=trio.Event)
    reply: MemoryReply | None = None


class GuestMemory:
    """The memory of one connection's guest (driver.GuestAccess).

    Args:
        connection: the protocol's state; says how large a frame may be.
        outbox: takes the frames.
        nursery: sends what cannot be sent at once; ends with the connection.
    """

    def __init__(self, connection: Connection, outbox: Outbox, nursery: trio.Nursery) -> None:
        self._connection = connection
        self._outbox = outbox
        self._nursery = nursery
        self._requests: dict[tuple[int, int], _Request] = {}
        """What is under way, by its call's vCPU and number."""
        self._next_request = 1

    # -- what handlers do (driver.GuestAccess) ----------------------------------------------

    async def read(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> list[bytes]:
        """See GuestAccess."""
        if not self._fits(sum(size for _, size in segments)):
            return [b"".join(await self._read_parts(call, *segment)) for segment in segments]
        ahead = self._requests.get((call.vcpu, call.seq))
        if ahead is None or not isinstance(ahead.frame, f.Read) or ahead.frame.segments != segments:
            await self._settle(call)
            ahead = self._begin(self._read_frame(call, segments))
        reply = await self._answer_to(ahead)
        assert isinstance(reply, f.ReadReply)
        for (gpa, size), (status, _) in zip(segments, reply.segments, strict=True):
            if status is not s.AccessStatus.OK:
                raise GuestMemoryError(gpa, size, f"the shim says {status.name}")
        return [data for _, data in reply.segments]

    async def _read_parts(self, call: f.Call, gpa: int, size: int) -> list[bytes]:
        """Read what is too large for the frames of this connection."""
        room = self._room
        return [
            (await self.read(call, ((gpa + at, min(room, size - at)),)))[0]
            for at in range(0, size, room)
        ]

    def read_ahead(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> None:
        """See GuestAccess."""
        if self._fits(sum(size for _, size in segments)):
            self._begin(self._read_frame(call, segments))

    async def write(self, call: f.Call, segments: tuple[f.WriteSegment, ...]) -> None:
        """See GuestAccess.

        What is too large for the frames of this connection is written in several, and one that is
        refused leaves those before it as they are.
        """
        await self._settle(call)
        if self._fits(sum(len(one.data) for one in segments if one.data is not None)):
            await self._write(call, segments)
            return
        for segment in segments:
            for part in self._write_parts(segment):
                await self._write(call, (part,))

    def _write_parts(self, segment: f.WriteSegment) -> list[f.WriteSegment]:
        gpa, size, data = segment
        if data is None:
            return [segment]
        room = self._room
        return [
            f.WriteSegment(gpa + at, min(room, size - at), data[at : at + room])
            for at in range(0, size, room)
        ]

    async def _write(self, call: f.Call, segments: tuple[f.WriteSegment, ...]) -> None:
        number = self._request_number()
        frame = f.Write(call.vcpu, call.reset, call.seq, number, segments)
        reply = await self._answer_to(self._begin(frame))
        assert isinstance(reply, f.WriteReply)
        if reply.status is not s.AccessStatus.OK:
            bad = segments[min(reply.bad_segment, len(segments) - 1)]
            raise GuestMemoryError(bad.gpa, bad.size, f"the shim says {reply.status.name}")

    async def set_pages(self, call: f.Call, ranges: Sequence[PageRange]) -> None:
        """See GuestAccess."""
        await self._settle(call)
        number = self._request_number()
        frame = f.Pages(call.vcpu, call.reset, call.seq, number, wire_ranges(ranges))
        reply = await self._answer_to(self._begin(frame))
        assert isinstance(reply, f.PagesReply)
        if reply.status is not s.AccessStatus.OK:
            bad = ranges[min(reply.bad_range, len(ranges) - 1)]
            raise GuestMemoryError(bad.gpa, bad.size, f"the shim says {reply.status.name}")

    # -- what becomes of their calls ----------------------------------------------------------

    def answered(self, reply: MemoryReply) -> None:
        """The shim's answer."""
        request = self._requests.get((reply.vcpu, reply.seq))
        if request is not None and request.frame.request == reply.request:
            request.reply = reply
            request.done.set()

    async def until_answered(self, call: f.Call) -> None:
        """Wait for what a call has asked for."""
        request = self._requests.get((call.vcpu, call.seq))
        if request is not None:
            await request.done.wait()

    def forget(self, call: f.Call) -> None:
        """The call is over."""
        self._requests.pop((call.vcpu, call.seq), None)

    def reset(self) -> None:
        """The machine has been reset: nothing is answered any more."""
        for request in self._requests.values():
            request.done.set()

    # -- sizes --------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        """Bytes of data that one frame takes."""
        return self._connection.max_frame_size - _HEADS_SIZE

    def _fits(self, size: int) -> bool:
        return size <= self._room

    # -- requests -----------------------------------------------------------------------------

    def _read_frame(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> f.Read:
        return f.Read(call.vcpu, call.reset, call.seq, self._request_number(), segments)

    def _request_number(self) -> int:
        number = self._next_request
        self._next_request = number % _REQUEST_MAX + 1
        return number

    async def _settle(self, call: f.Call) -> None:
        """Wait for what was read ahead and is not wanted."""
        ahead = self._requests.get((call.vcpu, call.seq))
        if ahead is not None:
            await self._answer_to(ahead)

    def _begin(self, frame: f.Read | f.Write | f.Pages) -> _Request:
        request = self._requests[frame.vcpu, frame.seq] = _Request(frame)
        self._outbox.queue(frame)
        if not self._outbox.send_now():
            # In a task of its own: a call that is cancelled must not leave half a frame.
            self._nursery.start_soon(self._outbox.flush)
        return request

    async def _answer_to(self, request: _Request) -> MemoryReply | None:
        await request.done.wait()
        del self._requests[request.frame.vcpu, request.frame.seq]
        return request.reply
