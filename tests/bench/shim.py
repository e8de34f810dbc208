# SPDX-License-Identifier: Apache-2.0
"""A shim of a few lines: connects to a daemon, negotiates, makes frames to send."""

from __future__ import annotations

import itertools
import os
import pathlib
import socket

from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

RAM_SIZE = 1 << 20
_INSTANCES = itertools.count(1)


class BenchShim:
    """One negotiated connection to a daemon, with guest RAM in a memfd."""

    def __init__(self, path: pathlib.Path, name: str, *, shared_ram: bool) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(os.fspath(path))
        self.connection = Connection(Role.SHIM)
        self.ram_fd = os.memfd_create(name)
        os.ftruncate(self.ram_fd, RAM_SIZE)
        self.seq = 0
        features = s.Feature.SHARED_RAM if shared_ram else s.Feature(0)
        self._send(
            f.Hello(
                s.VERSION,
                s.VERSION,
                s.DEFAULT_MAX_FRAME,
                features,
                next(_INSTANCES).to_bytes(16, "big"),
                bytes(16),
                0,
                1,
                1,
                0,
                12,
                name,
                "bench",
                0,
            )
        )
        welcome = self._receive()
        assert isinstance(welcome, f.Welcome), welcome
        self.announced = {call.number: call for call in welcome.announcement.calls}
        self._send(f.Accept((), True, 0, 0))
        if shared_ram:
            region = f.RamRegion(0, RAM_SIZE, 0, 0)
            data = self.connection.send(f.Ram((region,), 1, 0))
            socket.send_fds(self.sock, [data], [self.ram_fd])
        else:
            self._send(f.Ram((f.RamRegion(0, RAM_SIZE),), 0, 0))
        assert self.connection.state is State.READY

    def _send(self, frame: f.Frame) -> None:
        self.sock.sendall(self.connection.send(frame))

    def _receive(self) -> f.Frame:
        while (frame := self.connection.next_frame()) is None:
            self.connection.receive_data(self.sock.recv(1 << 16))
        return frame

    def frame(self, number: int, arguments: tuple[int, ...], buffers: dict[int, bytes]) -> bytes:
        """A CALL frame as the shim would send it, with sequence number ``self.seq``.

        Args:
            number: r3.
            arguments: r4 and on.
            buffers: what is in guest RAM, by address; also put into the RAM.
        """
        for gpa, data in buffers.items():
            os.pwrite(self.ram_fd, data, gpa)
        registers = {3: number, **{4 + i: value for i, value in enumerate(arguments)}}
        segments = []
        for index, buffer in enumerate(self.announced[number].buffers):
            gpa = registers[buffer.address_register]
            size = buffer.max_size
            if buffer.kind is s.BufferKind.SIZED:
                size = registers[buffer.size_register]
            elif buffer.kind is s.BufferKind.PAGE_BOUNDED:
                size = min(size, s.BUFFER_PAGE_SIZE - gpa % s.BUFFER_PAGE_SIZE)
            data = os.pread(self.ram_fd, size, gpa)
            segments.append(f.Segment(index, gpa, s.SegmentStatus.OK, data))
        gpr = tuple(registers.get(n, 0) for n in s.REGISTERS)
        return encode(f.Call(0, 0, self.seq, False, 1, gpr, 0, 0, 0, 0, tuple(segments)))

    def call(self, number: int, arguments: tuple[int, ...], buffers: dict[int, bytes]) -> f.Reply:
        """Make one call and wait for its reply."""
        self.seq += 1
        data = self.frame(number, arguments, buffers)
        self.sock.sendall(data)
        raw = b""
        while len(raw) < s.HEADER_SIZE or len(raw) < int.from_bytes(raw[8:12], "big"):
            raw += self.sock.recv(1 << 16)
        from hcallproto.wire.decode import decode, decode_header

        reply = decode(decode_header(raw), raw)
        assert isinstance(reply, f.Reply), reply
        return reply

    def close(self) -> None:
        """End the connection."""
        self.sock.close()
        os.close(self.ram_fd)
