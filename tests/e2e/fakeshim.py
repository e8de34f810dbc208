# SPDX-License-Identifier: Apache-2.0
"""A shim that does what a test says, on a socket to a real daemon."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.wire import Wire

from hcallproto.conn.states import Role
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

RAM_SIZE = 1 << 20
NO_FEATURES = s.Feature(0)


def connect(path: Path) -> socket.socket:
    """Connects to a daemon's unix socket."""
    # Without a timeout: with one, a full queue of connections is an error at once.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.fspath(path))
    except OSError:
        sock.close()
        raise
    return sock


def hello(
    name: str = "",
    *,
    instance: bytes = bytes(range(16)),
    features: s.Feature = NO_FEATURES,
    reset: int = 0,
    connection: int = 0,
    version: tuple[int, int] = (s.VERSION, s.VERSION),
    vcpus: int = 4,
) -> f.Hello:
    """A HELLO like QEMU's."""
    return f.Hello(
        *version,
        s.DEFAULT_MAX_FRAME,
        features,
        instance,
        bytes(16),
        connection,
        vcpus,
        vcpus,
        0,
        16,
        name,
        "fake shim",
        reset,
    )


class FakeShim(Wire):
    """A connection to a daemon.

    Args:
        sock: Connected to it.
        ram_size: Bytes of the guest's memory, from address 0 on.
    """

    def __init__(self, sock: socket.socket, ram_size: int = RAM_SIZE) -> None:
        super().__init__(sock, Role.SHIM)
        self.ram = bytearray(ram_size)
        self.announced: dict[int, f.CallSpec] = {}
        self._seq = 0

    def negotiate(self, greeting: f.Hello) -> f.Welcome:
        """Says HELLO and goes on until the connection is ready."""
        self.send(greeting)
        welcome = self.expect(f.Welcome)
        self.announced = {spec.number: spec for spec in welcome.announcement.calls}
        self.send(f.Accept((), True, 0, greeting.reset))
        self.send(f.Ram((f.RamRegion(0, len(self.ram)),), 0, greeting.reset))
        return welcome

    def frame(self, number: int, *arguments: int, vcpu: int = 0) -> f.Call:
        """A CALL with its buffers, as QEMU sends it; the next sequence number is taken."""
        self._seq += 1
        registers: Mapping[int, int] = {
            3: number,
            **{4 + place: value for place, value in enumerate(arguments)},
        }
        segments = []
        spec = self.announced.get(number)
        for index, buffer in enumerate(() if spec is None else spec.buffers):
            gpa = registers.get(buffer.address_register, 0)
            size = buffer.max_size
            if buffer.kind is s.BufferKind.SIZED:
                size = registers.get(buffer.size_register, 0)
            elif buffer.kind is s.BufferKind.PAGE_BOUNDED:
                size = min(size, s.BUFFER_PAGE_SIZE - gpa % s.BUFFER_PAGE_SIZE)
            if gpa + size > len(self.ram):
                segments.append(f.Segment(index, gpa, s.SegmentStatus.NOT_RAM, b""))
            else:
                data = bytes(self.ram[gpa : gpa + size])
                segments.append(f.Segment(index, gpa, s.SegmentStatus.OK, data))
        gpr = tuple(registers.get(n, 0) for n in s.REGISTERS)
        return f.Call(
            vcpu,
            self.connection.reset,
            self._seq,
            False,
            1,
            gpr,
            0,
            0,
            0,
            0,
            tuple(segments),
        )

    def call(self, number: int, *arguments: int, vcpu: int = 0) -> f.Reply:
        """Makes a call, carries out what the reply writes, gives the reply."""
        self.send(self.frame(number, *arguments, vcpu=vcpu))
        return self.finish()

    def finish(self) -> f.Reply:
        """Serves the daemon's requests for memory until the reply comes."""
        while True:
            frame = self.receive()
            match frame:
                case f.Reply():
                    self._apply(frame.writes)
                    return frame
                case f.Read():
                    data = tuple(
                        (s.AccessStatus.OK, bytes(self.ram[gpa : gpa + size]))
                        for gpa, size in frame.segments
                    )
                    self.send(f.ReadReply(frame.vcpu, frame.reset, frame.seq, frame.request, data))
                case f.Write():
                    self._apply(frame.segments)
                    status = s.AccessStatus.OK
                    self.send(
                        f.WriteReply(frame.vcpu, frame.reset, frame.seq, frame.request, status, 0)
                    )
                case _:
                    raise AssertionError(f"received {frame!r}, expected a reply")

    def _apply(self, writes: tuple[f.WriteSegment, ...]) -> None:
        for write in writes:
            data = bytes(write.size) if write.data is None else write.data
            self.ram[write.gpa : write.gpa + write.size] = data
