# SPDX-License-Identifier: Apache-2.0
"""Bytes to frames, quickly. ``schema.py`` is the truth this is held equal to.

``decode`` checks the layout, every enumeration, and the bounds of docs/wire.rst; whether
a frame may come now is the connection's business.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

from hcallproto.errors import Breach, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import layout
from hcallproto.wire import schema as s
from hcallproto.wire.layout import Layout

__all__ = ["Header", "decode", "decode_header", "is_plain"]

EnumT = TypeVar("EnumT", bound=enum.IntEnum)

REPLY_REGISTER_MASK = sum(1 << n for n in s.REGISTERS if n != 3)
"""Registers that a REPLY may set beside r3."""

# An int: with a Feature, any other bits would make an enum member each, kept for ever.
_KNOWN_FEATURES = sum(map(int, s.Feature))


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
_FLAGS = {
    s.FrameType.CALL: s.FLAG_RESENT | s.FLAG_ALONE,
}
_new = tuple.__new__  # a named tuple from its values, at half the cost of the class's own
_MAGIC_BYTES = s.MAGIC.to_bytes(4, "big")


def check_magic(data: bytes | bytearray, offset: int = 0) -> None:
    """Check the first bytes of a frame, of which fewer than four may be there.

    Raises:
        RemoteProtocolError: no frame of this protocol begins so.
    """
    begin = data[offset : offset + len(_MAGIC_BYTES)]
    if not _MAGIC_BYTES.startswith(begin):
        _breach(
            Breach.MAGIC,
            f"frame begins with {begin.hex()}, expected {_MAGIC_BYTES.hex()}; "
            "is the peer a spapr-hcall-proxy?",
        )


def decode_header(data: bytes | bytearray, offset: int = 0) -> Header:
    """Parse the 32 bytes at ``offset``.

    Raises:
        RemoteProtocolError: too short, wrong magic, unknown type, undefined flags, or a size
            below the header's own. The upper bound of ``size`` is the connection's.
    """
    try:
        number, flags, size, vcpu, reset, request, seq = layout.HEADER.unpack(data, offset)
    except struct.error:
        check_magic(data, offset)
        _breach(
            Breach.LAYOUT,
            f"header needs {s.HEADER_SIZE} bytes, {max(0, len(data) - offset)} are there",
        )
    if not data.startswith(_MAGIC_BYTES, offset):
        check_magic(data, offset)
    frame_type = _TYPES.get(number)
    if frame_type is None:
        _breach(Breach.TYPE, f"unknown frame type {number}")
    if size < s.HEADER_SIZE:
        _breach(Breach.SIZE, f"frame size {size} is below the header's {s.HEADER_SIZE}")
    if flags and flags & ~_FLAGS.get(frame_type, 0):
        _breach(Breach.LAYOUT, f"{frame_type.name} has undefined flags 0x{flags:x}")
    return _new(Header, (frame_type, flags, size, vcpu, reset, request, seq))


class _Reader:
    """The payload of one frame, read front to back."""

    __slots__ = ("data", "end", "offset", "type")

    def __init__(
        self, data: bytes | bytearray, offset: int, end: int, frame_type: s.FrameType
    ) -> None:
        self.data = data
        self.offset = offset
        self.end = end
        self.type = frame_type

    @property
    def what(self) -> str:
        """For messages."""
        return self.type.name

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
        data = self.data
        if not isinstance(data, bytes):
            # A slice of a bytearray would be one too, and be copied again.
            value = bytes(memoryview(data)[self.offset : after])
        else:
            value = data[self.offset : after]
        self.offset = after
        return value

    def sized(self, max_size: int, of: str) -> bytes:
        size = int.from_bytes(self.take(2), "big")
        value = self.take(size)
        if size > max_size:
            _breach(Breach.BOUNDS, f"{self.what}: {of} has {size} bytes, at most {max_size}")
        return value

    def text(self) -> str:
        raw = self.sized(s.MAX_TEXT_SIZE, "text")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            _breach(Breach.LAYOUT, f"{self.what}: text {raw!r} is not UTF-8")

    def word(self, allowed: re.Pattern[bytes], max_size: int, of: str) -> str:
        raw = self.sized(max_size, of)
        if allowed.fullmatch(raw) is None:
            _breach(Breach.LAYOUT, f"{self.what}: {of} {raw!r} is not {allowed.pattern!r}")
        return raw.decode("ascii")

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


# -- payloads ---------------------------------------------------------------------------

_DT_STRING = re.compile(rb"[a-z0-9-]+")
_DT_NAME = re.compile(rb"[A-Za-z0-9,._+?#-]+")
_CALL_FLAGS = s.CALL_FLAG_WAIT | s.CALL_FLAG_PROBLEM_STATE | s.CALL_FLAG_SECURE


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
        # A newer shim may offer more; nobody here wants it.
        s.Feature(features & _KNOWN_FEATURES),
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
        if flags & ~_CALL_FLAGS:
            _breach(Breach.LAYOUT, f"{r.what}: call has undefined flags 0x{flags:x}")
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
    strings = tuple(r.word(_DT_STRING, s.MAX_DT_STRING_SIZE, "string") for _ in range(string_count))
    properties = tuple(
        (
            r.word(_DT_NAME, s.MAX_DT_NAME_SIZE, "property name"),
            r.sized(s.MAX_DT_VALUE_SIZE, "property value"),
        )
        for _ in range(property_count)
    )
    return f.Announcement(tuple(calls), strings, properties)


def _welcome(h: Header, r: _Reader) -> f.Welcome:
    version, max_frame_size, features = r.fixed(layout.WELCOME)
    if features & ~_KNOWN_FEATURES:
        _breach(Breach.FEATURE, f"WELCOME has undefined features 0x{features:x}")
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


def _call(h: Header, data: bytes | bytearray, offset: int) -> f.Call:
    """The frame that every call costs the daemon: without a reader unless data follow."""
    _, flags, size, vcpu, reset, _, seq = h
    begin = offset + s.HEADER_SIZE
    after = begin + layout.CALL.size
    end = offset + size
    if after > end:
        _breach(Breach.LAYOUT, "CALL ends inside its registers")
    values = layout.CALL.unpack_from(data, begin)
    segments: tuple[f.Segment, ...] = ()
    if values[1]:
        reader = _Reader(data, after, end, h.type)
        segments = _call_segments(reader, values[1])
        reader.finish()
    elif after != end:
        _breach(Breach.LAYOUT, f"CALL has {end - after} bytes too many")
    return _new(
        f.Call,
        (
            vcpu,
            reset,
            seq,
            bool(flags & s.FLAG_RESENT),
            values[0],
            values[2:15],
            values[15],
            values[16],
            values[17],
            values[18],
            segments,
            bool(flags & s.FLAG_ALONE),
        ),
    )


def _call_segments(r: _Reader, count: int) -> tuple[f.Segment, ...]:
    r.count(count, s.MAX_BUFFERS, "segments")
    segments = []
    next_buffer = 0
    for _ in range(count):
        gpa, size, buffer, number = r.fixed(layout.CALL_SEGMENT)
        if not next_buffer <= buffer < s.MAX_BUFFERS:
            _breach(Breach.BOUNDS, f"CALL has a segment for buffer {buffer} out of order")
        next_buffer = buffer + 1
        status = r.enum(s.SegmentStatus, number)
        if size and status is not s.SegmentStatus.OK:
            _breach(Breach.LAYOUT, f"CALL has a segment with data and status {status.name}")
        segments.append(f.Segment(buffer, gpa, status, r.take(size)))
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
    if context or nip or msr or msr_mask:
        check_context(context, nip, msr, msr_mask)
    registers: tuple[tuple[int, int], ...] = ()
    if mask:
        numbers = [n for n in s.REGISTERS if mask >> n & 1]
        values = struct.unpack(f">{len(numbers)}Q", r.take(8 * len(numbers)))
        registers = tuple(zip(numbers, values, strict=True))
    writes = _write_segments(r, write_count) if write_count else ()
    pages: tuple[f.PageRange, ...] = ()
    if context & s.CONTEXT_PAGES:
        context &= ~s.CONTEXT_PAGES
        pages = _page_ranges(r)
        if not pages:
            _breach(Breach.LAYOUT, "REPLY announces page states and has none")
        if any(s.PageState.PAGED_OUT in state for _, _, state in pages):
            _breach(Breach.BOUNDS, "REPLY pages out, which only PAGES can")
    return _new(
        f.Reply,
        (h.vcpu, h.reset, h.seq, status, registers, writes, context, nip, msr, msr_mask, pages),
    )


_CONTEXT_BITS = s.CONTEXT_NIP | s.CONTEXT_MSR | s.CONTEXT_PAGES


def check_context(context: int, nip: int, msr: int, msr_mask: int) -> None:
    """Check what a REPLY changes of its caller's context.

    Raises:
        RemoteProtocolError: undefined bits, values that are not to be set, or MSR bits that are
            not the daemon's to change.
    """
    if context & ~_CONTEXT_BITS:
        _breach(Breach.LAYOUT, f"REPLY has undefined context bits 0x{context:x}")
    if nip and not context & s.CONTEXT_NIP:
        _breach(Breach.LAYOUT, f"REPLY has NIP 0x{nip:x}, and does not say that it is to be set")
    if msr_mask and not context & s.CONTEXT_MSR:
        _breach(Breach.LAYOUT, f"REPLY has MSR bits 0x{msr_mask:x} that are not to be set")
    if msr & ~msr_mask:
        _breach(Breach.LAYOUT, f"REPLY has MSR bits 0x{msr:x} outside of its mask 0x{msr_mask:x}")
    if msr_mask & ~s.REPLY_MSR_BITS:
        _breach(Breach.BOUNDS, f"REPLY changes MSR bits 0x{msr_mask:x}")
    if msr_mask & ~msr & s.MSR_S:
        _breach(Breach.BOUNDS, "REPLY clears MSR[S]")


_STATES = {
    int(state): state
    for state in (
        s.PageState(0),
        s.PageState.UNSHARED,
        s.PageState.UNSHARED | s.PageState.PAGED_OUT,
    )
}


def _page_ranges(r: _Reader) -> tuple[f.PageRange, ...]:
    (count,) = r.fixed(layout.PAGES)
    r.count(count, s.MAX_SEGMENTS, "page ranges")
    ranges = []
    for _ in range(count):
        gpa, size, number = r.fixed(layout.PAGE_RANGE)
        if (gpa | size) % s.STATE_PAGE_SIZE:
            _breach(Breach.BOUNDS, f"page range 0x{gpa:x}, 0x{size:x} bytes, is not of whole pages")
        state = _STATES.get(number)
        if state is None:
            _breach(Breach.LAYOUT, f"{number} is no state of a page")
        ranges.append(f.PageRange(gpa, size, state))
    return tuple(ranges)


def _pages(h: Header, r: _Reader) -> f.Pages:
    return f.Pages(h.vcpu, h.reset, h.seq, h.request, _page_ranges(r))


def _pages_reply(h: Header, r: _Reader) -> f.PagesReply:
    status, index = r.fixed(layout.PAGES_REPLY)
    return f.PagesReply(h.vcpu, h.reset, h.seq, h.request, r.enum(s.AccessStatus, status), index)


def _cancel(h: Header, r: _Reader) -> f.Cancel:
    (reason,) = r.fixed(layout.CANCEL)
    return f.Cancel(h.vcpu, h.reset, h.seq, r.enum(s.CancelReason, reason))


def _cancelled(h: Header, r: _Reader) -> f.Cancelled:
    (effect,) = r.fixed(layout.CANCELLED)
    return f.Cancelled(h.vcpu, h.reset, h.seq, r.enum(s.Effect, effect))


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
        size, number = r.fixed(layout.READ_DATA)
        status = r.enum(s.AccessStatus, number)
        if size and status is not s.AccessStatus.OK:
            _breach(Breach.LAYOUT, f"READ_REPLY has a segment with data and status {status.name}")
        segments.append((status, r.take(size)))
    return f.ReadReply(h.vcpu, h.reset, h.seq, h.request, tuple(segments))


def _write(h: Header, r: _Reader) -> f.Write:
    (count,) = r.fixed(layout.WRITE)
    return f.Write(h.vcpu, h.reset, h.seq, h.request, _write_segments(r, count))


def _write_reply(h: Header, r: _Reader) -> f.WriteReply:
    status, index = r.fixed(layout.WRITE_REPLY)
    return f.WriteReply(h.vcpu, h.reset, h.seq, h.request, r.enum(s.AccessStatus, status), index)


def _event(h: Header, r: _Reader) -> f.Event:
    (number,) = r.fixed(layout.EVENT)
    kind = r.enum(s.EventKind, number)
    if (h.vcpu == s.NO_VCPU) is (kind in _VCPU_EVENTS):
        _breach(Breach.LAYOUT, f"EVENT {kind.name} has vcpu 0x{h.vcpu:x}")
    return f.Event(kind, h.vcpu, h.request, h.reset)


def _event_ack(h: Header, r: _Reader) -> f.EventAck:
    (kind,) = r.fixed(layout.EVENT_ACK)
    return f.EventAck(r.enum(s.EventKind, kind), h.request, h.reset)


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
    s.FrameType.REPLY: _reply,
    s.FrameType.CANCEL: _cancel,
    s.FrameType.CANCELLED: _cancelled,
    s.FrameType.READ: _read,
    s.FrameType.READ_REPLY: _read_reply,
    s.FrameType.WRITE: _write,
    s.FrameType.WRITE_REPLY: _write_reply,
    s.FrameType.PAGES: _pages,
    s.FrameType.PAGES_REPLY: _pages_reply,
    s.FrameType.EVENT: _event,
    s.FrameType.EVENT_ACK: _event_ack,
    s.FrameType.CONTROL: _control,
}


_VCPU_EVENTS = (s.EventKind.VCPU_ADDED, s.EventKind.VCPU_REMOVED)
_T = s.FrameType
_CALL = _T.CALL
_WITH_VCPU = frozenset(
    {
        *(_T.CALL, _T.REPLY, _T.CANCEL, _T.CANCELLED),
        *(_T.READ, _T.READ_REPLY, _T.WRITE, _T.WRITE_REPLY, _T.PAGES, _T.PAGES_REPLY, _T.EVENT),
    }
)
_WITH_SEQ = _WITH_VCPU - {_T.EVENT}
_WITH_REQUEST = frozenset(
    {
        _T.ACCEPT,
        _T.ANNOUNCE,
        _T.READ,
        _T.READ_REPLY,
        _T.WRITE,
        _T.WRITE_REPLY,
        _T.PAGES,
        _T.PAGES_REPLY,
        _T.EVENT,
        _T.EVENT_ACK,
    }
)


def _check_names(h: Header) -> None:
    """The header's fields that a frame type does not use say so."""
    if h.vcpu != s.NO_VCPU and h.type not in _WITH_VCPU:
        _breach(Breach.LAYOUT, f"{h.type.name} has vcpu {h.vcpu}, expected 0x{s.NO_VCPU:x}")
    if h.seq and h.type not in _WITH_SEQ:
        _breach(Breach.LAYOUT, f"{h.type.name} has seq {h.seq}, expected 0")
    if h.request and h.type not in _WITH_REQUEST:
        _breach(Breach.LAYOUT, f"{h.type.name} has request {h.request}, expected 0")


def decode(header: Header, data: bytes | bytearray, offset: int = 0) -> f.Frame:
    """The frame whose header has been parsed and whose bytes are all in ``data``.

    Args:
        header: what ``decode_header`` gave for ``offset``.
        data: holds at least ``header.size`` bytes from ``offset`` on.
        offset: where the frame's header begins.

    Raises:
        RemoteProtocolError: the payload breaks the layout or a bound.
    """
    if header.type is _CALL:
        if header.request:
            _check_names(header)
        return _call(header, data, offset)
    _check_names(header)
    reader = _Reader(data, offset + s.HEADER_SIZE, offset + header.size, header.type)
    frame = _DECODERS[header.type](header, reader)
    reader.finish()
    return frame


_REPLY = _T.REPLY
_PLAIN_CALL_SIZE = s.HEADER_SIZE + layout.CALL.size
_REPLY_VALUES = s.HEADER_SIZE + layout.REPLY.size


def is_plain(header: Header, data: bytes) -> bool:
    """Whether this is a CALL or REPLY as most are, of which ``decode`` can only make a frame.

    For those who want a frame's bytes, and know that it is one. Of all others it says nothing.

    Args:
        header: what ``decode_header`` gave for the bytes.
        data: of the frame, ``header.size`` of them.

    Raises:
        RemoteProtocolError: as ``decode``.
    """
    kind, _, size, _, _, request, _ = header
    if request:
        return False
    if kind is _CALL:
        if size != _PLAIN_CALL_SIZE:
            return False
        return not layout.CALL.unpack_from(data, s.HEADER_SIZE)[1]
    if kind is not _REPLY or size < _REPLY_VALUES:
        return False
    _, mask, context, count, nip, msr, msr_mask = layout.REPLY.unpack(data, s.HEADER_SIZE)
    if mask & ~REPLY_REGISTER_MASK or context or nip or msr or msr_mask or count > 1:
        return False
    end: int = _REPLY_VALUES + 8 * mask.bit_count()
    if count:
        if size < end + layout.WRITE_SEGMENT.size:
            return False
        _, held, flags = layout.WRITE_SEGMENT.unpack(data, end)
        if flags:
            return False
        end += layout.WRITE_SEGMENT.size + held
    return end == size
