# SPDX-License-Identifier: Apache-2.0
"""Frames to bytes. Trusts the types of a frame, but not its sizes."""

from __future__ import annotations

import struct

from hcallproto.errors import LocalProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import layout
from hcallproto.wire import schema as s

__all__ = ["encode"]

_U16 = struct.Struct(">H")
_U64 = struct.Struct(">Q")


def _sized_text(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")[: s.MAX_TEXT_SIZE]
    # A cut inside a character would not decode at the other end.
    raw = raw.decode("utf-8", "ignore").encode()
    return _U16.pack(len(raw)) + raw


def _encode_announcement(a: f.Announcement) -> bytes:
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


def _encode_write_segments(segments: tuple[f.WriteSegment, ...]) -> list[bytes]:
    parts = []
    for gpa, size, data in segments:
        if data is None:
            parts.append(layout.WRITE_SEGMENT.pack(gpa, size, s.WRITE_FLAG_ZERO))
        elif len(data) != size:
            raise LocalProtocolError(f"write segment of {size} bytes holds {len(data)}")
        else:
            parts.append(layout.WRITE_SEGMENT.pack(gpa, size, 0))
            parts.append(data)
    return parts


def _payload(frame: f.Frame) -> list[bytes]:
    match frame:
        case f.Reply():
            mask = 0
            values = []
            for number, value in frame.registers:
                mask |= 1 << number
                values.append(_U64.pack(value))
            return [
                layout.REPLY.pack(
                    frame.status,
                    mask,
                    frame.context,
                    len(frame.writes),
                    frame.nip,
                    frame.msr,
                    frame.msr_mask,
                ),
                *values,
                *_encode_write_segments(frame.writes),
            ]
        case f.Call():
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
            for segment in frame.segments:
                parts.append(
                    layout.CALL_SEGMENT.pack(
                        segment.gpa, len(segment.data), segment.buffer, segment.status
                    )
                )
                parts.append(segment.data)
            return parts
        case f.Read():
            return [
                layout.READ.pack(len(frame.segments)),
                *(layout.READ_SEGMENT.pack(gpa, size) for gpa, size in frame.segments),
            ]
        case f.ReadReply():
            return [
                layout.READ_REPLY.pack(len(frame.segments)),
                *(
                    layout.READ_DATA.pack(len(data), status) + data
                    for status, data in frame.segments
                ),
            ]
        case f.Write():
            return [layout.WRITE.pack(len(frame.segments)), *_encode_write_segments(frame.segments)]
        case f.WriteReply():
            return [layout.WRITE_REPLY.pack(frame.status, frame.bad_segment)]
        case f.Cancel():
            return [layout.CANCEL.pack(frame.reason)]
        case f.Cancelled():
            return [layout.CANCELLED.pack(frame.effect)]
        case f.Event():
            return [layout.EVENT.pack(frame.kind)]
        case f.EventAck():
            return [layout.EVENT_ACK.pack(frame.kind)]
        case f.Control():
            return [layout.CONTROL.pack(frame.action), _sized_text(frame.text)]
        case f.Goodbye() | f.ShimGoodbye():
            return [layout.GOODBYE.pack(frame.reason), _sized_text(frame.text)]
        case f.Hello():
            return [
                layout.HELLO.pack(*frame[:11]),
                _sized_text(frame.name),
                _sized_text(frame.program),
            ]
        case f.Welcome():
            fixed = layout.WELCOME.pack(frame.version, frame.max_frame_size, frame.features)
            return [fixed, _encode_announcement(frame.announcement)]
        case f.Accept():
            return [
                layout.ACCEPT.pack(len(frame.refused), int(frame.is_active)),
                *(layout.REFUSED_CALL.pack(*refused) for refused in frame.refused),
            ]
        case f.Announce():
            return [_encode_announcement(frame.announcement)]
        case f.Ram():
            return [
                layout.RAM.pack(len(frame.regions), frame.descriptor_count),
                *(layout.RAM_REGION.pack(*region) for region in frame.regions),
            ]
        case f.Command():
            return [layout.COMMAND.pack(frame.command, len(frame.data)), frame.data]
        case f.CommandReply():
            return [layout.COMMAND_REPLY.pack(frame.status, len(frame.data)), frame.data]


def encode(frame: f.Frame) -> bytes:
    """The bytes of a frame.

    Raises:
        LocalProtocolError: a value does not fit its field.
    """
    try:
        payload = b"".join(_payload(frame))
        return (
            layout.HEADER.pack(
                f.FRAME_TYPES[type(frame)],
                int(getattr(frame, "is_resent", False)),
                s.HEADER_SIZE + len(payload),
                getattr(frame, "vcpu", s.NO_VCPU),
                frame.reset,
                getattr(frame, "request", 0),
                getattr(frame, "seq", 0),
            )
            + payload
        )
    except (struct.error, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"{type(frame).__name__}: {error}") from None
