# SPDX-License-Identifier: Apache-2.0
"""A shim whose guest becomes a secure VM: kernel, initrd and device tree in a memfd.

It does what QEMU does for UV_ESM: states of pages are taken note of by nobody, memory that
is to be zeroed is taken out of the memfd.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from pathlib import Path

from tests.e2e.wire import Wire
from tests.esm import RTAS_BASE, RTAS_SIZE, boot_tree

from hcalld.domain.esm.digests import RTAS_TEXT
from hcalld.domain.esm.flat_kernel import flat_kernel
from hcallproto.abi.families import uv
from hcallproto.abi.registers import MSR_S
from hcallproto.abi.spec import Hcall
from hcallproto.conn.states import Role
from hcallproto.payloads import fdt
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

RAM_SIZE = 1 << 30
KERNEL_AT = 0x40_0000
TREE_AT = 0x1000_0000
INITRD_AT = 0x1800_0000
_FEATURES = s.Feature.SHARED_RAM | s.Feature.SC2 | s.Feature.PAGE_STATES
_PUNCH_HOLE_KEEP_SIZE = 3

_libc = ctypes.CDLL(None, use_errno=True)


def discard(fd: int, offset: int, size: int) -> None:
    """Takes memory out of a file, as QEMU's ram_block_discard_range() does: it reads zeros."""
    at, length = ctypes.c_long(offset), ctypes.c_long(size)
    if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, at, length):
        raise OSError(ctypes.get_errno(), "fallocate")


class SecureShim:
    """One guest of 1 GiB on a socket to a daemon.

    Args:
        path: the daemon's socket.
        partition: the machine's name.
        kernel: a vmlinux.
        initrd: with its blob.
        cmdline: what the blob was made for.
    """

    def __init__(
        self, path: Path, partition: str, kernel: bytes, initrd: bytes, cmdline: str
    ) -> None:
        self.ram = os.memfd_create(partition)
        os.ftruncate(self.ram, RAM_SIZE)
        tree = boot_tree(len(initrd), cmdline)
        ends = INITRD_AT, INITRD_AT + len(initrd)
        names = "linux,initrd-start", "linux,initrd-end"
        places = dict(zip(names, (at.to_bytes(8, "big") for at in ends), strict=True))
        tree.node("/chosen").properties.update(places)
        rtas = RTAS_TEXT.ljust(RTAS_SIZE, b"\0")
        for at, data in (
            (KERNEL_AT, flat_kernel(kernel)),
            (INITRD_AT, initrd),
            (TREE_AT, tree.build()),
            (RTAS_BASE, rtas),
        ):
            os.pwrite(self.ram, data, at)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(os.fspath(path))
        self.sock = sock
        self.wire = Wire(sock, Role.SHIM)
        self.seq = 0
        greeting = (s.VERSION, s.VERSION, s.DEFAULT_MAX_FRAME, _FEATURES, os.urandom(16), bytes(16))
        self.wire.send(f.Hello(*greeting, 0, 1, 1, 0, 12, partition, "bench", 0))
        self.wire.expect(f.Welcome)
        self.wire.send(f.Accept((), True, 0, 0))
        ram = self.wire.connection.send(f.Ram((f.RamRegion(0, RAM_SIZE, 0, 0),), 1, 0))
        socket.send_fds(sock, [ram], [self.ram])

    def frame(self, hcall: Hcall, *arguments: int, msr: int = MSR_S) -> f.Call:
        """The next call, without buffers."""
        self.seq += 1
        registers = {3: hcall.number, **dict(enumerate(arguments, start=4))}
        gpr = tuple(registers.get(n, 0) for n in s.REGISTERS)
        return f.Call(0, 0, self.seq, False, int(hcall.level), gpr, 0, msr, 0, 0)

    def bytes_of(self, hcall: Hcall, *arguments: int) -> bytes:
        """The same, as it is sent."""
        return encode(self.frame(hcall, *arguments))

    def call(self, call: f.Call) -> f.Reply:
        """Makes a call; does meanwhile what QEMU does."""
        self.wire.send(call)
        while True:
            frame = self.wire.receive()
            match frame:
                case f.Reply():
                    for segment in frame.writes:
                        self._write(segment)
                    return frame
                case f.Pages():
                    name = (frame.vcpu, frame.reset, frame.seq, frame.request)
                    self.wire.send(f.PagesReply(*name, s.AccessStatus.OK, 0))
                case f.Write():
                    for segment in frame.segments:
                        self._write(segment)
                    name = (frame.vcpu, frame.reset, frame.seq, frame.request)
                    self.wire.send(f.WriteReply(*name, s.AccessStatus.OK, 0))
                case _:
                    raise AssertionError(frame)

    def _write(self, segment: f.WriteSegment) -> None:
        if segment.data is None:
            discard(self.ram, segment.gpa, segment.size)
        else:
            os.pwrite(self.ram, segment.data, segment.gpa)

    def enter(self) -> float:
        """Makes UV_ESM, which must succeed; gives the seconds it takes."""
        call = self.frame(uv.ESM, KERNEL_AT, TREE_AT, msr=0)
        start = time.perf_counter()
        reply = self.call(call)
        took = time.perf_counter() - start
        assert reply.context, reply
        assert fdt.parse(os.pread(self.ram, 1 << 16, TREE_AT)[:], 1 << 16)
        return took

    def close(self) -> None:
        """Ends the connection."""
        self.wire.close()
        os.close(self.ram)
