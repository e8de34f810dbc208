# SPDX-License-Identifier: Apache-2.0
"""Frames on their way out: whole and in order, however slowly they are taken."""

from __future__ import annotations

import trio
import trio.testing
from tests.unit.hcalld.runtime.shim import RAM, hello

from hcalld.runtime.outbox import Outbox
from hcalld.runtime.transport import TransportClosed
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

BYTES_OF_A_FRAME = 32


class Narrow:
    """A transport that takes so many bytes, then waits until more are allowed."""

    peer = "narrow"
    passes_descriptors = False

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = bytearray()
        self.more = trio.Event()

    def try_receive(self, room: memoryview | None = None) -> bytes | None:
        return None

    async def receive(self, room: memoryview | None = None) -> bytes:
        return b""

    def try_send(self, data: bytes | memoryview) -> int:
        size = min(self.room, len(data))
        self.taken += data[:size]
        self.room -= size
        return size

    async def send(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        while data:
            size = self.try_send(data)
            data = data[size:]
            if data:
                self.more = trio.Event()
                await self.more.wait()

    def allow(self, room: int) -> None:
        self.room += room
        self.more.set()

    def take_descriptors(self, count: int) -> list[int]:
        raise TransportClosed("none here")

    async def aclose(self) -> None:
        return


def ready_daemon() -> tuple[Connection, Connection]:
    """A daemon's end that may send, and the shim's that judges what it sends."""
    daemon, shim = Connection(Role.DAEMON), Connection(Role.SHIM)
    daemon.receive_data(shim.send(hello()))
    daemon.next_frame()
    welcome = f.Welcome(s.VERSION, s.DEFAULT_MAX_FRAME, s.Feature(0), f.Announcement(), 0)
    shim.receive_data(daemon.send(welcome))
    shim.next_frame()
    daemon.receive_data(shim.send(f.Accept((), True, 0, 0)) + shim.send(RAM))
    while daemon.next_frame() is not None:
        pass
    return daemon, shim


def control(number: int) -> f.Control:
    return f.Control(s.ControlAction.STOP, f"number {number}" * 10, 0)


def received(shim: Connection, data: bytes) -> list[f.Frame]:
    shim.receive_data(data)
    frames = []
    while (frame := shim.next_frame()) is not None:
        frames.append(frame)
    return frames


def test_send_now_when_nothing_is_queued_then_nothing_is_left():
    connection, _ = ready_daemon()
    transport = Narrow(0)
    assert Outbox(connection, transport).send_now()
    assert transport.taken == b""


def test_send_now_when_there_is_room_then_all_goes():
    connection, shim = ready_daemon()
    transport = Narrow(1 << 20)
    outbox = Outbox(connection, transport)
    outbox.queue(control(1))
    outbox.queue(control(2))
    assert outbox.send_now()
    assert received(shim, bytes(transport.taken)) == [control(1), control(2)]


async def test_flush_when_there_is_room_for_half_a_frame_then_the_rest_follows():
    connection, shim = ready_daemon()
    transport = Narrow(50)
    outbox = Outbox(connection, transport)
    outbox.queue(control(1))
    assert not outbox.send_now()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.flush)
        await trio.testing.wait_all_tasks_blocked()
        outbox.queue(control(2))
        assert not outbox.send_now(), "somebody is at it"
        transport.allow(1 << 20)
    assert received(shim, bytes(transport.taken)) == [control(1), control(2)]


async def test_flush_when_many_do_it_then_frames_stay_whole_and_in_order():
    connection, shim = ready_daemon()
    transport = Narrow(0)
    outbox = Outbox(connection, transport)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            outbox.queue(control(number))
            nursery.start_soon(outbox.flush)
        while len(transport.taken) < 20 * BYTES_OF_A_FRAME:
            await trio.testing.wait_all_tasks_blocked()
            transport.allow(37)
        transport.allow(1 << 20)
    assert received(shim, bytes(transport.taken)) == [control(number) for number in range(20)]


async def test_flush_when_everything_went_meanwhile_then_it_ends_without_waiting():
    connection, _ = ready_daemon()
    transport = Narrow(1 << 20)
    outbox = Outbox(connection, transport)
    outbox.queue(control(1))
    assert outbox.send_now()
    await outbox.flush()
