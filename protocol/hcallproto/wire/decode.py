# SPDX-License-Identifier: Apache-2.0
"""Bytes to frames, quickly. ``schema.py`` is the truth this is held equal to.

``decode`` checks the layout, every enumeration, and the bounds of docs/wire.rst; whether
a frame may come now is the connection's business.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

from hcallproto.errors import Breach, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import layout
from hcallproto.wire import schema as s
from hcallproto.wire.layout import Layout

__all__ = ["Header", "decode", "decode_header"]

EnumT = TypeVar("EnumT", bound=enum.IntEnum)
_U64 = struct.Struct(">Q")

REPLY_REGISTER_MASK = sum(1 << n for n in s.REGISTERS if n != 3)
"""Registers that a REPLY may set beside r3."""


class Header(NamedTuple):
    """The header of a frame."""

    type: s.FrameType
    flags: int
    size: int
    vcpu: int
    reset: int
    request: int
    seq: int


def _breach(breach: Breach, text: str) -> NoReturn:
    raise RemoteProtocolError(breach, text)


_TYPES: dict[int, s.FrameType] = {int(t): t for t in s.FrameType}
_RESENDABLE = (s.FrameType.CALL, s.FrameType.COMMAND)


def decode_header(data: bytes | bytearray, offset: int = 0) -> Header:
    """Parse the 32 bytes at ``offset``.

    Raises:
        RemoteProtocolError: wrong magic, unknown type, undefined flags, or a size below
            the header's own. The upper bound of ``size`` is the connection's.
    """
    if data[offset : offset + 4] != _MAGIC_BYTES[: len(data) - offset]:
        _breach(Breach.MAGIC, f"frame begins with {bytes(data[offset : offset + 4]).hex()}")
    number, flags, size, vcpu, reset, request, seq = layout.HEADER.unpack_from(data, offset)
    frame_type = _TYPES.get(number)
    if frame_type is None:
        _breach(Breach.TYPE, f"unknown frame type {number}")
    if size < s.HEADER_SIZE:
        _breach(Breach.SIZE, f"frame size {size} is below the header's {s.HEADER_SIZE}")
    if flags and not (flags == s.FLAG_RESENT and frame_type in _RESENDABLE):
        _breach(Breach.LAYOUT, f"{frame_type.name} has undefined flags 0x{flags:x}")
    return Header(frame_type, flags, size, vcpu, reset, request, seq)


_MAGIC_BYTES = s.MAGIC.to_bytes(4, "big")


class _Reader:
    """The payload of one frame, read front to back."""

    __slots__ = ("data", "end", "offset", "what")

    def __init__(self, data: bytes | bytearray, offset: int, end: int, what: str) -> None:
        self.data = data
        self.offset = offset
        self.end = end
        self.what = what

    def fixed(self, part: Layout) -> tuple[Any, ...]:
        after = self.offset + part.size
        if after > self.end:
            _breach(Breach.LAYOUT, f"{self.what} ends inside its {part.name}")
        values = part.unpack_from(self.data, self.offset)
        self.offset = after
        return values

    def take(self, size: int) -> bytes:
        after = self.offset + size
        if after > self.end:
            _breach(Breach.LAYOUT, f"{self.what} ends inside {size} bytes of data")
        value = bytes(self.data[self.offset : after])
        self.offset = after
        return value

    def sized(self, max_size: int, of: str) -> bytes:
        size = int.from_bytes(self.take(2), "big")
        value = self.take(size)
        if size > max_size:
            _breach(Breach.BOUNDS, f"{self.what}: {of} has {size} bytes, at most {max_size}")
        return value

    def text(self, encoding: str = "utf-8", max_size: int = s.MAX_TEXT_SIZE) -> str:
        raw = self.sized(max_size, "text")
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            _breach(Breach.LAYOUT, f"{self.what}: text is not {encoding}")

    def count(self, value: int, max_count: int, of: str) -> int:
        if value > max_count:
            _breach(Breach.BOUNDS, f"{self.what} has {value} {of}, at most {max_count}")
        return value

    def enum(self, kind: type[EnumT], value: int) -> EnumT:
        try:
            return kind(value)
        except ValueError:
            _breach(Breach.LAYOUT, f"{self.what}: {value} is no {kind.__name__}")

    def finish(self) -> None:
        if self.offset != self.end:
            _breach(Breach.LAYOUT, f"{self.what} has {self.end - self.offset} bytes too many")


# -- payloads, decoding -----------------------------------------------------------------


def _hello(h: Header, r: _Reader) -> f.Hello:
    (
        version_min,
        version_max,
        max_frame_size,
        features,
        instance,
        uuid,
        connection,
        vcpu_count,
        vcpu_max,
        pending,
        page_shift,
    ) = r.fixed(layout.HELLO)
    return f.Hello(
        version_min,
        version_max,
        max_frame_size,
        s.Feature(features),
        instance,
        uuid,
        connection,
        vcpu_count,
        vcpu_max,
        pending,
        page_shift,
        r.text(),
        r.text(),
        h.reset,
    )


def _announcement(r: _Reader) -> f.Announcement:
    call_count, string_count, property_count = r.fixed(layout.ANNOUNCEMENT)
    r.count(call_count, s.MAX_CALLS, "calls")
    r.count(string_count, s.MAX_DT_STRINGS, "strings")
    r.count(property_count, s.MAX_DT_PROPERTIES, "properties")
    calls = []
    for _ in range(call_count):
        number, level, disposition, flags, buffer_count, deadline, timeout, lost = r.fixed(
            layout.CALL_SPEC
        )
        r.count(buffer_count, s.MAX_BUFFERS, "buffers of a call")
        buffers = []
        for _ in range(buffer_count):
            address_register, kind, direction, size_register, max_size = r.fixed(layout.BUFFER_SPEC)
            if not 1 <= direction <= 3:
                _breach(Breach.LAYOUT, f"{r.what}: {direction} is no Direction")
            buffers.append(
                f.BufferSpec(
                    address_register,
                    r.enum(s.BufferKind, kind),
                    s.Direction(direction),
                    size_register,
                    max_size,
                )
            )
        calls.append(
            f.CallSpec(
                number,
                level,
                r.enum(s.Disposition, disposition),
                flags,
                deadline,
                timeout,
                lost,
                tuple(buffers),
            )
        )
    strings = tuple(r.text("ascii", s.MAX_DT_STRING_SIZE) for _ in range(string_count))
    properties = tuple(
        (r.text("ascii", s.MAX_DT_NAME_SIZE), r.sized(s.MAX_DT_VALUE_SIZE, "property value"))
        for _ in range(property_count)
    )
    return f.Announcement(tuple(calls), strings, properties)


def _welcome(h: Header, r: _Reader) -> f.Welcome:
    version, max_frame_size, features = r.fixed(layout.WELCOME)
    return f.Welcome(version, max_frame_size, s.Feature(features), _announcement(r), h.reset)


def _accept(h: Header, r: _Reader) -> f.Accept:
    refused_count, active = r.fixed(layout.ACCEPT)
    if active > 1:
        _breach(Breach.LAYOUT, f"ACCEPT: active is {active}, expected 0 or 1")
    r.count(refused_count, s.MAX_CALLS, "refused calls")
    refused = []
    for _ in range(refused_count):
        number, level, reason = r.fixed(layout.REFUSED_CALL)
        refused.append(f.RefusedCall(number, level, r.enum(s.RefusedReason, reason)))
    return f.Accept(tuple(refused), bool(active), h.request, h.reset)


def _announce(h: Header, r: _Reader) -> f.Announce:
    return f.Announce(_announcement(r), h.request, h.reset)


def _ram(h: Header, r: _Reader) -> f.Ram:
    region_count, descriptor_count = r.fixed(layout.RAM)
    r.count(region_count, s.MAX_RAM_REGIONS, "regions")
    r.count(descriptor_count, s.MAX_DESCRIPTORS, "descriptors")
    regions = []
    end = 0
    for _ in range(region_count):
        region = f.RamRegion(*r.fixed(layout.RAM_REGION))
        if region.gpa < end or region.size == 0 or region.gpa + region.size > 1 << 64:
            _breach(Breach.BOUNDS, f"RAM region at 0x{region.gpa:x} is empty or out of order")
        if region.fd_index != s.NO_DESCRIPTOR and region.fd_index >= descriptor_count:
            _breach(Breach.BOUNDS, f"RAM region names descriptor {region.fd_index}")
        end = region.gpa + region.size
        regions.append(region)
    return f.Ram(tuple(regions), descriptor_count, h.reset)


def _goodbye(h: Header, r: _Reader) -> f.Goodbye:
    (reason,) = r.fixed(layout.GOODBYE)
    return f.Goodbye(r.enum(s.GoodbyeReason, reason), r.text(), h.reset)


def _shim_goodbye(h: Header, r: _Reader) -> f.ShimGoodbye:
    return f.ShimGoodbye(*_goodbye(h, r))


def _call(h: Header, r: _Reader) -> f.Call:
    values = r.fixed(layout.CALL)
    segments: tuple[f.Segment, ...] = ()
    if values[1]:
        segments = _call_segments(r, values[1])
    return f.Call(
        h.vcpu,
        h.reset,
        h.seq,
        h.flags != 0,
        values[0],
        values[2:15],
        values[15],
        values[16],
        values[17],
        values[18],
        segments,
    )


def _call_segments(r: _Reader, count: int) -> tuple[f.Segment, ...]:
    r.count(count, s.MAX_BUFFERS, "segments")
    segments = []
    for _ in range(count):
        gpa, size, buffer, status = r.fixed(layout.CALL_SEGMENT)
        segments.append(f.Segment(buffer, gpa, r.enum(s.SegmentStatus, status), r.take(size)))
    return tuple(segments)


def _write_segments(r: _Reader, count: int) -> tuple[f.WriteSegment, ...]:
    r.count(count, s.MAX_SEGMENTS, "segments")
    segments = []
    for _ in range(count):
        gpa, size, flags = r.fixed(layout.WRITE_SEGMENT)
        if flags & ~s.WRITE_FLAG_ZERO:
            _breach(Breach.LAYOUT, f"write segment has undefined flags 0x{flags:x}")
        data = None if flags & s.WRITE_FLAG_ZERO else r.take(size)
        segments.append(f.WriteSegment(gpa, size, data))
    return tuple(segments)


def _reply(h: Header, r: _Reader) -> f.Reply:
    status, mask, context, write_count, nip, msr, msr_mask = r.fixed(layout.REPLY)
    if mask & ~REPLY_REGISTER_MASK:
        _breach(Breach.BOUNDS, f"REPLY sets registers 0x{mask:x}")
    if context & ~(s.CONTEXT_NIP | s.CONTEXT_MSR):
        _breach(Breach.LAYOUT, f"REPLY has undefined context bits 0x{context:x}")
    registers: tuple[tuple[int, int], ...] = ()
    if mask:
        numbers = [n for n in s.REGISTERS if mask >> n & 1]
        raw = r.take(8 * len(numbers))
        registers = tuple(
            (n, _U64.unpack_from(raw, 8 * index)[0]) for index, n in enumerate(numbers)
        )
    writes = _write_segments(r, write_count) if write_count else ()
    return f.Reply(h.vcpu, h.reset, h.seq, status, registers, writes, context, nip, msr, msr_mask)


def _cancel(h: Header, r: _Reader) -> f.Cancel:
    (reason,) = r.fixed(layout.CANCEL)
    return f.Cancel(h.vcpu, h.reset, h.seq, r.enum(s.CancelReason, reason))


def _cancelled(h: Header, r: _Reader) -> f.Cancelled:
    (effect,) = r.fixed(layout.CANCELLED)
    return f.Cancelled(h.vcpu, h.reset, h.seq, r.enum(s.Effect, effect))


def _command(h: Header, r: _Reader) -> f.Command:
    command, size = r.fixed(layout.COMMAND)
    return f.Command(h.vcpu, h.reset, h.seq, h.flags != 0, command, r.take(size))


def _command_reply(h: Header, r: _Reader) -> f.CommandReply:
    status, size = r.fixed(layout.COMMAND_REPLY)
    return f.CommandReply(h.vcpu, h.reset, h.seq, status, r.take(size))


def _read(h: Header, r: _Reader) -> f.Read:
    (count,) = r.fixed(layout.READ)
    r.count(count, s.MAX_SEGMENTS, "segments")
    segments = tuple(r.fixed(layout.READ_SEGMENT) for _ in range(count))
    return f.Read(h.vcpu, h.reset, h.seq, h.request, segments)


def _read_reply(h: Header, r: _Reader) -> f.ReadReply:
    (count,) = r.fixed(layout.READ_REPLY)
    r.count(count, s.MAX_SEGMENTS, "segments")
    segments = []
    for _ in range(count):
        size, status = r.fixed(layout.READ_DATA)
        segments.append((r.enum(s.AccessStatus, status), r.take(size)))
    return f.ReadReply(h.vcpu, h.reset, h.seq, h.request, tuple(segments))


def _write(h: Header, r: _Reader) -> f.Write:
    (count,) = r.fixed(layout.WRITE)
    return f.Write(h.vcpu, h.reset, h.seq, h.request, _write_segments(r, count))


def _write_reply(h: Header, r: _Reader) -> f.WriteReply:
    status, index = r.fixed(layout.WRITE_REPLY)
    return f.WriteReply(h.vcpu, h.reset, h.seq, h.request, r.enum(s.AccessStatus, status), index)


def _event(h: Header, r: _Reader) -> f.Event:
    (kind,) = r.fixed(layout.EVENT)
    return f.Event(r.enum(s.EventKind, kind), h.vcpu, h.reset)


def _event_ack(h: Header, r: _Reader) -> f.EventAck:
    (kind,) = r.fixed(layout.EVENT_ACK)
    return f.EventAck(r.enum(s.EventKind, kind), h.reset)


def _control(h: Header, r: _Reader) -> f.Control:
    (action,) = r.fixed(layout.CONTROL)
    return f.Control(r.enum(s.ControlAction, action), r.text(), h.reset)


_DECODERS: dict[s.FrameType, Callable[[Header, _Reader], f.Frame]] = {
    s.FrameType.HELLO: _hello,
    s.FrameType.WELCOME: _welcome,
    s.FrameType.ACCEPT: _accept,
    s.FrameType.ANNOUNCE: _announce,
    s.FrameType.RAM: _ram,
    s.FrameType.GOODBYE: _goodbye,
    s.FrameType.SHIM_GOODBYE: _shim_goodbye,
    s.FrameType.CALL: _call,
    s.FrameType.REPLY: _reply,
    s.FrameType.CANCEL: _cancel,
    s.FrameType.CANCELLED: _cancelled,
    s.FrameType.COMMAND: _command,
    s.FrameType.COMMAND_REPLY: _command_reply,
    s.FrameType.READ: _read,
    s.FrameType.READ_REPLY: _read_reply,
    s.FrameType.WRITE: _write,
    s.FrameType.WRITE_REPLY: _write_reply,
    s.FrameType.EVENT: _event,
    s.FrameType.EVENT_ACK: _event_ack,
    s.FrameType.CONTROL: _control,
}


def decode(header: Header, data: bytes | bytearray, offset: int = 0) -> f.Frame:
    """The frame whose header has been parsed and whose bytes are all in ``data``.

    Args:
        header: what ``decode_header`` gave for ``offset``.
        data: holds at least ``header.size`` bytes from ``offset`` on.
        offset: where the frame's header begins.

    Raises:
        RemoteProtocolError: the payload breaks the layout or a bound.
    """
    reader = _Reader(data, offset + s.HEADER_SIZE, offset + header.size, header.type.name)
    frame = _DECODERS[header.type](header, reader)
    reader.finish()
    return frame
