# SPDX-License-Identifier: Apache-2.0
"""Frames to bytes. Trusts the types of a frame's fields, but not their values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from hcallproto.errors import LocalProtocolError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import layout
from hcallproto.wire import schema as s
from hcallproto.wire.decode import check_context, decode, decode_header

__all__ = ["encode"]

_U16 = struct.Struct(">H")


def _sized_text(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")[: s.MAX_TEXT_SIZE]
    # A cut inside a character would not decode at the other end.
    raw = raw.decode("utf-8", "ignore").encode()
    return _U16.pack(len(raw)) + raw


def _announcement(a: f.Announcement) -> bytes:
    parts = [layout.ANNOUNCEMENT.pack(len(a.calls), len(a.strings), len(a.properties))]
    for call in a.calls:
        parts.append(
            layout.CALL_SPEC.pack(
                call.number,
                call.level,
                call.disposition,
                call.flags,
                len(call.buffers),
                call.deadline_ms,
                call.timeout_status,
                call.lost_status,
            )
        )
        parts.extend(layout.BUFFER_SPEC.pack(*buffer) for buffer in call.buffers)
    parts.extend(_U16.pack(len(string)) + string.encode("ascii") for string in a.strings)
    for name, value in a.properties:
        parts.append(_U16.pack(len(name)) + name.encode("ascii") + _U16.pack(len(value)) + value)
    return b"".join(parts)


_REPLY = s.FrameType.REPLY
_REPLY_BITS = {n: 1 << n for n in s.REGISTERS if n != 3}
_PACK_U64S = [struct.Struct(f">{count}Q").pack for count in range(len(s.REGISTERS))]


def _bound(count: int, max_count: int, of: str) -> int:
    if count > max_count:
        raise LocalProtocolError(f"{count} {of}, at most {max_count}")
    return count


def _write_segments(segments: tuple[f.WriteSegment, ...]) -> list[bytes]:
    _bound(len(segments), s.MAX_SEGMENTS, "segments")
    parts = []
    pack = layout.WRITE_SEGMENT.pack
    for gpa, size, data in segments:
        if data is None:
            parts.append(pack(gpa, size, s.WRITE_FLAG_ZERO))
        elif len(data) != size:
            raise LocalProtocolError(f"write segment of {size} bytes holds {len(data)}")
        else:
            parts.append(pack(gpa, size, 0))
            parts.append(data)
    return parts


# -- payloads, as parts to be joined ----------------------------------------------------


def _hello(frame: f.Hello) -> list[bytes]:
    # struct would cut or pad them.
    if (len(frame.instance), len(frame.uuid)) != (16, 16):
        raise LocalProtocolError(
            f"instance and uuid of {len(frame.instance)} and {len(frame.uuid)} bytes, expected 16"
        )
    return [layout.HELLO.pack(*frame[:11]), _sized_text(frame.name), _sized_text(frame.program)]


def _welcome(frame: f.Welcome) -> list[bytes]:
    fixed = layout.WELCOME.pack(frame.version, frame.max_frame_size, frame.features)
    return [fixed, _announcement(frame.announcement)]


def _accept(frame: f.Accept) -> list[bytes]:
    return [
        layout.ACCEPT.pack(len(frame.refused), int(frame.is_active)),
        *(layout.REFUSED_CALL.pack(*refused) for refused in frame.refused),
    ]


def _announce(frame: f.Announce) -> list[bytes]:
    return [_announcement(frame.announcement)]


def _ram(frame: f.Ram) -> list[bytes]:
    return [
        layout.RAM.pack(len(frame.regions), frame.descriptor_count),
        *(layout.RAM_REGION.pack(*region) for region in frame.regions),
    ]


def _goodbye(frame: f.Goodbye | f.ShimGoodbye) -> list[bytes]:
    return [layout.GOODBYE.pack(frame.reason), _sized_text(frame.text)]


def _call(frame: f.Call) -> list[bytes]:
    parts = [
        layout.CALL.pack(
            frame.level,
            len(frame.segments),
            *frame.gpr,
            frame.nip,
            frame.msr,
            frame.pidr,
            frame.lpidr,
        )
    ]
    for buffer, gpa, status, data in frame.segments:
        parts.append(layout.CALL_SEGMENT.pack(gpa, len(data), buffer, status))
        parts.append(data)
    return parts


def _reply(frame: f.Reply) -> bytes:
    """A whole REPLY frame: every call ends with one, so it has no part in the general way."""
    vcpu, reset, seq, status, registers, writes, context, nip, msr, msr_mask, pages = frame
    mask = 0
    values = []
    for number, value in registers:
        bit = _REPLY_BITS.get(number, 0)
        # Values travel in rising order, so any other order would exchange them.
        if bit <= mask:
            raise LocalProtocolError(
                f"REPLY sets registers {[n for n, _ in registers]}, expected a rising list of "
                "r0, r2, r4 to r12, r31"
            )
        mask |= bit
        values.append(value)
    if context or nip or msr or msr_mask or pages:
        if context & s.CONTEXT_PAGES:
            raise LocalProtocolError("REPLY has context bits 0x4, which follow from its pages")
        if pages:
            context |= s.CONTEXT_PAGES
        try:
            check_context(context, nip, msr, msr_mask)
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None
    parts = [
        layout.REPLY.pack(status, mask, context, len(writes), nip, msr, msr_mask),
        _PACK_U64S[len(values)](*values),
    ]
    if writes:
        parts += _write_segments(writes)
    if pages:
        if any(s.PageState.PAGED_OUT in state for _, _, state in pages):
            raise LocalProtocolError("REPLY pages out, which only PAGES can")
        parts += _page_ranges(pages)
    size = s.HEADER_SIZE + sum(map(len, parts))
    return b"".join((layout.HEADER.pack(_REPLY, 0, size, vcpu, reset, 0, seq), *parts))


def _cancel(frame: f.Cancel) -> list[bytes]:
    return [layout.CANCEL.pack(frame.reason)]


def _cancelled(frame: f.Cancelled) -> list[bytes]:
    return [layout.CANCELLED.pack(frame.effect)]


def _read(frame: f.Read) -> list[bytes]:
    return [
        layout.READ.pack(_bound(len(frame.segments), s.MAX_SEGMENTS, "segments")),
        *(layout.READ_SEGMENT.pack(gpa, size) for gpa, size in frame.segments),
    ]


def _read_reply(frame: f.ReadReply) -> list[bytes]:
    parts = [layout.READ_REPLY.pack(_bound(len(frame.segments), s.MAX_SEGMENTS, "segments"))]
    for status, data in frame.segments:
        if data and status is not s.AccessStatus.OK:
            raise LocalProtocolError(f"a segment has data and status {status.name}")
        parts += (layout.READ_DATA.pack(len(data), status), data)
    return parts


def _write(frame: f.Write) -> list[bytes]:
    return [layout.WRITE.pack(len(frame.segments)), *_write_segments(frame.segments)]


def _write_reply(frame: f.WriteReply) -> list[bytes]:
    return [layout.WRITE_REPLY.pack(frame.status, frame.bad_segment)]


def _page_ranges(ranges: tuple[f.PageRange, ...]) -> list[bytes]:
    for gpa, size, state in ranges:
        if (gpa | size) % s.STATE_PAGE_SIZE:
            raise LocalProtocolError(
                f"page range 0x{gpa:x}, 0x{size:x} bytes, is not of whole pages"
            )
        if state not in (0, s.PageState.UNSHARED, s.PageState.UNSHARED | s.PageState.PAGED_OUT):
            raise LocalProtocolError(f"{state!r} is no state of a page")
    return [
        layout.PAGES.pack(_bound(len(ranges), s.MAX_SEGMENTS, "page ranges")),
        *(layout.PAGE_RANGE.pack(*pages) for pages in ranges),
    ]


def _pages(frame: f.Pages) -> list[bytes]:
    return _page_ranges(frame.ranges)


def _pages_reply(frame: f.PagesReply) -> list[bytes]:
    return [layout.PAGES_REPLY.pack(frame.status, frame.bad_range)]


def _event(frame: f.Event) -> list[bytes]:
    return [layout.EVENT.pack(frame.kind)]


def _event_ack(frame: f.EventAck) -> list[bytes]:
    return [layout.EVENT_ACK.pack(frame.kind)]


def _control(frame: f.Control) -> list[bytes]:
    return [layout.CONTROL.pack(frame.action), _sized_text(frame.text)]


_PAYLOADS: dict[type[f.Frame], Callable[[Any], list[bytes]]] = {
    f.Hello: _hello,
    f.Welcome: _welcome,
    f.Accept: _accept,
    f.Announce: _announce,
    f.Ram: _ram,
    f.Goodbye: _goodbye,
    f.ShimGoodbye: _goodbye,
    f.Call: _call,
    f.Cancel: _cancel,
    f.Cancelled: _cancelled,
    f.Read: _read,
    f.ReadReply: _read_reply,
    f.Write: _write,
    f.WriteReply: _write_reply,
    f.Pages: _pages,
    f.PagesReply: _pages_reply,
    f.Event: _event,
    f.EventAck: _event_ack,
    f.Control: _control,
}
_CHECKED = (
    *(f.Read, f.ReadReply, f.Write, f.WriteReply, f.Pages, f.PagesReply),
    *(f.Cancelled, f.EventAck),
)
"""Their bounds are checked as they are encoded, because a call waits for it."""


def _flags(frame: f.Frame) -> int:
    flags = s.FLAG_RESENT if getattr(frame, "is_resent", False) else 0
    return flags | (s.FLAG_ALONE if getattr(frame, "is_alone", False) else 0)


def encode(frame: f.Frame) -> bytes:
    """The bytes of a frame.

    Raises:
        LocalProtocolError: a value does not fit its field or breaks a bound.
    """
    try:
        if isinstance(frame, f.Reply):
            return _reply(frame)
        parts = _PAYLOADS[type(frame)](frame)
        header = layout.HEADER.pack(
            f.FRAME_TYPES[type(frame)],
            _flags(frame),
            s.HEADER_SIZE + sum(map(len, parts)),
            getattr(frame, "vcpu", s.NO_VCPU),
            frame.reset,
            getattr(frame, "request", 0),
            getattr(frame, "seq", 0),
        )
        data = b"".join((header, *parts))
    except (struct.error, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"{type(frame).__name__}: {error}") from None
    if not isinstance(frame, _CHECKED):
        # What the peer would take for a breach is not sent; its decoder knows best.
        try:
            decode(decode_header(data), data)
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None
    return data
