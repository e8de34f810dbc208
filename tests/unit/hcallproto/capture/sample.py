# SPDX-License-Identifier: Apache-2.0
"""Captures made up for tests."""

from __future__ import annotations

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.capture import pcapng
from hcallproto.capture.pcapng import Direction, LinkType
from hcallproto.capture.records import Record, Start, encode
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode as encode_frame

TIME = 1_795_285_506_000_000_000
"""2026-11-21T18:25:06Z."""


class Capture:
    """Puts a capture together; a microsecond passes from packet to packet."""

    def __init__(self) -> None:
        self.data = pcapng.section("hcalld 0")
        self.time_ns = TIME
        self._guests: dict[str, int] = {}

    def guest(self, name: str, *, has_start: bool = True) -> None:
        """A guest connects."""
        self._guests[name] = 2 * len(self._guests)
        for link in (LinkType.FRAMES, LinkType.RECORDS):
            self.data += pcapng.interface(link, name, f"connection of {name}")
        if has_start:
            self.record(Start(program="hcalld 0", partition=name, profile={}), name)

    def record(self, record: Record | bytes, guest: str = "lpar7") -> None:
        data = record if isinstance(record, bytes) else encode(record)
        self._packet(self._guests[guest] + 1, data, Direction.UNKNOWN, "")

    def frame(self, frame: f.Frame | bytes, guest: str = "lpar7", comment: str = "") -> None:
        data = frame if isinstance(frame, bytes) else encode_frame(frame)
        kind = int.from_bytes(data[4:6], "big")
        direction = Direction.INBOUND if kind % 2 else Direction.OUTBOUND
        self._packet(self._guests[guest], data, direction, comment)

    def _packet(self, number: int, data: bytes, direction: Direction, comment: str) -> None:
        self.data += pcapng.packet(number, self.time_ns, data, direction, comment)
        self.time_ns += 1000


def call(
    hcall: Hcall, seq: int, *segments: f.Segment, vcpu: int = 3, reset: int = 0, **args: int
) -> f.Call:
    """A CALL with values for its arguments by name; others are 0."""
    values = {arg.register: args.get(arg.name, 0) for arg in hcall.args} | {3: hcall.number}
    gpr = tuple(values.get(register, 0) for register in s.REGISTERS)
    return f.Call(vcpu, reset, seq, False, hcall.level, gpr, 0, 0, 0, 0, segments)


def read_of_db() -> Capture:
    """Two guests; one reads a label that is there, the other one that is not."""
    capture = Capture()
    for name in ("lpar7", "lpar8"):
        capture.guest(name)
        inline = f.BufferSpec(5, s.BufferKind.SIZED, s.Direction.IN, 6, 255)
        spec = f.CallSpec(
            pks.READ_OBJECT.number, 1, s.Disposition.FORWARD, 0, 1, -54, -54, (inline,)
        )
        capture.frame(f.Announce(f.Announcement((spec,)), 1, 0), name)
    label = f.Segment(0, 0x2000, s.SegmentStatus.OK, b"db\0")
    read = call(pks.READ_OBJECT, 1, label, label=0x2000, label_size=3, out=0x3000, out_size=64)
    capture.frame(read)
    capture.frame(f.Read(3, 0, 1, 1, ((0x1000, 4),)))
    capture.frame(read, "lpar8")
    capture.frame(f.ReadReply(3, 0, 1, 1, ((s.AccessStatus.NOT_RAM, b""),)))
    capture.frame(f.Reply(3, 0, 1, H.NOT_FOUND), "lpar8", "no object has this label")
    capture.frame(f.Reply(3, 0, 1, 0, ((4, 4), (5, 1)), (f.WriteSegment(0x3000, 4, bytes(4)),)))
    return capture
