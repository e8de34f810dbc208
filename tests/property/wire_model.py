# SPDX-License-Identifier: Apache-2.0
"""The naive way from bytes to frames: construct's schema, then the document's rules in words.

Slow and plain, and independent of ``decode.py``: it shares the schema and the frame classes
with it, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import construct

from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.schema import FrameType

_T = FrameType
_CALL_TYPES = {9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 23, 24}
_REQUEST_TYPES = {_T.ACCEPT, _T.ANNOUNCE, _T.EVENT, _T.EVENT_ACK, 15, 16, 17, 18, 23, 24}
_FEATURES = 15


def parse(data: bytes) -> tuple[Any, Any] | None:
    """Header and payload, or None if the schema does not parse all of the bytes."""
    try:
        header = s.HEADER.parse(data)
        payload = s.PAYLOADS[FrameType(header.type)].parse(data[s.HEADER_SIZE : header.size])
    except (construct.ConstructError, ValueError):
        return None
    return (header, payload) if s.HEADER_SIZE <= header.size <= len(data) else None


def broken_rules(header: Any, payload: Any) -> list[str]:
    """What the document says beyond the layout, and this frame does not keep."""
    return [*_header_rules(header), *_payload_rules(header, payload)]


def _header_rules(header: Any) -> Iterator[str]:
    kind = header.type
    known = {_T.CALL: s.FLAG_RESENT | s.FLAG_ALONE}
    if header.flags & ~known.get(kind, 0):
        yield "flags"
    if kind not in _CALL_TYPES and header.seq:
        yield "seq of a frame without a call"
    if kind not in {*_CALL_TYPES, _T.EVENT} and header.vcpu != s.NO_VCPU:
        yield "vcpu of a frame without one"
    if kind not in _REQUEST_TYPES and header.request:
        yield "request of a frame without one"


def _member(kind: Any, value: int) -> Iterator[str]:
    if value not in list(map(int, kind)):
        yield f"{kind.__name__} {value}"


def _at_most(count: int, bound: int, what: str) -> Iterator[str]:
    if count > bound:
        yield f"{count} {what}"


def _payload_rules(header: Any, p: Any) -> Iterator[str]:
    fixed = p.get("fixed")
    match FrameType(header.type):
        case _T.HELLO:
            yield from _at_most(len(p.name.encode()), s.MAX_TEXT_SIZE, "text")
            yield from _at_most(len(p.program.encode()), s.MAX_TEXT_SIZE, "text")
        case _T.WELCOME:
            if fixed.features > _FEATURES:
                yield "undefined features in force"
            yield from _announcement_rules(p)
        case _T.ANNOUNCE:
            yield from _announcement_rules(p)
        case _T.ACCEPT:
            yield from _at_most(len(p.refused), s.MAX_CALLS, "refused calls")
            if fixed.active not in (0, 1):
                yield "active"
            for refused in p.refused:
                yield from _member(s.RefusedReason, refused.reason)
        case _T.RAM:
            yield from _ram_rules(p)
        case _T.GOODBYE | _T.SHIM_GOODBYE:
            yield from _member(s.GoodbyeReason, fixed.reason)
            yield from _at_most(len(p.text.encode()), s.MAX_TEXT_SIZE, "text")
        case _T.CALL:
            yield from _at_most(len(p.segments), s.MAX_BUFFERS, "segments")
            order = [segment.head.buffer for segment in p.segments]
            if order != sorted(set(order)) or any(n >= s.MAX_BUFFERS for n in order):
                yield "segments out of order"
            for segment in p.segments:
                yield from _member(s.SegmentStatus, segment.head.status)
                if segment.head.status and segment.data:
                    yield "data of a failed segment"
        case _T.REPLY:
            for n in range(32):
                if fixed.register_mask >> n & 1 and (n == 3 or n not in s.REGISTERS):
                    yield f"register {n}"
            yield from _context_rules(fixed)
            yield from _write_rules(p.writes)
            if p.pages is not None:
                yield from _page_rules(p.pages)
                if not p.pages.ranges:
                    yield "no page states"
                if any(e.state & 2 for e in p.pages.ranges):
                    yield "page out"
        case _T.PAGES:
            yield from _page_rules(p.pages)
        case _T.PAGES_REPLY:
            yield from _member(s.AccessStatus, fixed.status)
        case _T.WRITE:
            yield from _write_rules(p.segments)
        case _T.CANCEL:
            yield from _member(s.CancelReason, fixed.reason)
        case _T.CANCELLED:
            yield from _member(s.Effect, fixed.effect)
        case _T.READ:
            yield from _at_most(len(p.segments), s.MAX_SEGMENTS, "segments")
        case _T.READ_REPLY:
            yield from _at_most(len(p.segments), s.MAX_SEGMENTS, "segments")
            for segment in p.segments:
                yield from _member(s.AccessStatus, segment.head.status)
                if segment.head.status and segment.data:
                    yield "data of a failed segment"
        case _T.WRITE_REPLY:
            yield from _member(s.AccessStatus, fixed.status)
        case _T.EVENT:
            yield from _member(s.EventKind, fixed.kind)
            is_of_cpu = fixed.kind in (s.EventKind.VCPU_ADDED, s.EventKind.VCPU_REMOVED)
            if is_of_cpu == (header.vcpu == s.NO_VCPU):
                yield "vcpu of the event"
        case _T.EVENT_ACK:
            yield from _member(s.EventKind, fixed.kind)
        case _T.CONTROL:
            yield from _member(s.ControlAction, fixed.action)
            yield from _at_most(len(p.text.encode()), s.MAX_TEXT_SIZE, "text")


def _context_rules(fixed: Any) -> Iterator[str]:
    if fixed.context > 7:
        yield "context"
    if fixed.nip and not fixed.context & 1:
        yield "NIP that is not to be set"
    if fixed.msr_mask and not fixed.context & 2:
        yield "MSR that is not to be set"
    changeable = {0, 0x8000, 0x400000, 0x408000}
    if fixed.msr_mask not in changeable or fixed.msr | fixed.msr_mask != fixed.msr_mask:
        yield "MSR bits"
    if fixed.msr_mask & 0x400000 and not fixed.msr & 0x400000:
        yield "MSR[S] cleared"


def _page_rules(pages: Any) -> Iterator[str]:
    yield from _at_most(len(pages.ranges), s.MAX_SEGMENTS, "ranges")
    for pages_range in pages.ranges:
        if pages_range.gpa % 4096 or pages_range.size % 4096:
            yield "half a page"
        if pages_range.state not in (0, 1, 3):
            yield "state of a page"


def _write_rules(segments: Any) -> Iterator[str]:
    yield from _at_most(len(segments), s.MAX_SEGMENTS, "segments")
    for segment in segments:
        if segment.head.flags > s.WRITE_FLAG_ZERO:
            yield "flags of a write"


def _ram_rules(p: Any) -> Iterator[str]:
    yield from _at_most(len(p.regions), s.MAX_RAM_REGIONS, "regions")
    yield from _at_most(p.fixed.descriptor_count, s.MAX_DESCRIPTORS, "descriptors")
    for before, region in zip([None, *p.regions], p.regions, strict=False):
        if not region.size or region.gpa + region.size > 1 << 64:
            yield "a region that is empty or wraps"
        if before is not None and before.gpa + before.size > region.gpa:
            yield "regions that overlap"
        if p.fixed.descriptor_count <= region.fd_index != s.NO_DESCRIPTOR:
            yield "a descriptor that did not come"


def _announcement_rules(p: Any) -> Iterator[str]:
    yield from _at_most(len(p.calls), s.MAX_CALLS, "calls")
    yield from _at_most(len(p.strings), s.MAX_DT_STRINGS, "strings")
    yield from _at_most(len(p.properties), s.MAX_DT_PROPERTIES, "properties")
    for call in p.calls:
        yield from _at_most(len(call.buffers), s.MAX_BUFFERS, "buffers")
        yield from _member(s.Disposition, call.spec.disposition)
        if call.spec.flags > s.CALL_FLAG_WAIT | s.CALL_FLAG_PROBLEM_STATE | s.CALL_FLAG_SECURE:
            yield "flags of a call"
        for buffer in call.buffers:
            yield from _member(s.BufferKind, buffer.kind)
            if buffer.direction not in (1, 2, 3):
                yield "direction"
    for string in p.strings:
        if not re.fullmatch(r"[a-z0-9-]{1,63}", string):
            yield f"string {string!r}"
    for item in p.properties:
        if not re.fullmatch(r"[A-Za-z0-9,._+?#-]{1,31}", item.name):
            yield f"property {item.name!r}"
        yield from _at_most(len(item.value), s.MAX_DT_VALUE_SIZE, "bytes of a property")


# -- values -----------------------------------------------------------------------------------


def frame_of(header: Any, p: Any) -> f.Frame:
    """The frame for what the schema parsed and no rule objects to."""
    h = header
    fixed = p.get("fixed")
    name = {"vcpu": h.vcpu, "reset": h.reset, "seq": h.seq}
    resent: dict[str, Any] = {"is_resent": bool(h.flags & s.FLAG_RESENT)}
    match FrameType(h.type):
        case _T.HELLO:
            values = _values(fixed) | {"features": s.Feature(fixed.features & _FEATURES)}
            return f.Hello(**values, name=p.name, program=p.program, reset=h.reset)
        case _T.WELCOME:
            values = _values(fixed) | {"features": s.Feature(fixed.features)}
            return f.Welcome(**values, announcement=_announcement(p), reset=h.reset)
        case _T.ACCEPT:
            refused = tuple(
                f.RefusedCall(r.number, r.level, s.RefusedReason(r.reason)) for r in p.refused
            )
            return f.Accept(refused, fixed.active == 1, h.request, h.reset)
        case _T.ANNOUNCE:
            return f.Announce(_announcement(p), h.request, h.reset)
        case _T.RAM:
            regions = tuple(f.RamRegion(**_values(region)) for region in p.regions)
            return f.Ram(regions, fixed.descriptor_count, h.reset)
        case _T.GOODBYE:
            return f.Goodbye(s.GoodbyeReason(fixed.reason), p.text, h.reset)
        case _T.SHIM_GOODBYE:
            return f.ShimGoodbye(s.GoodbyeReason(fixed.reason), p.text, h.reset)
        case _T.CALL:
            values = _values(fixed)
            values.pop("segment_count")
            values["gpr"] = tuple(values["gpr"])
            segments = tuple(
                f.Segment(
                    e.head.buffer,
                    e.head.gpa,
                    s.SegmentStatus(e.head.status),
                    e.data,
                )
                for e in p.segments
            )
            is_alone = bool(h.flags & s.FLAG_ALONE)
            return f.Call(**name, **resent, **values, segments=segments, is_alone=is_alone)
        case _T.REPLY:
            numbers = [n for n in range(32) if fixed.register_mask >> n & 1]
            return f.Reply(
                **name,
                status=fixed.status,
                registers=tuple(zip(numbers, p.registers, strict=True)),
                writes=_writes(p.writes),
                pages=_pages(p.pages) if p.pages is not None else (),
                context=fixed.context & 3,
                nip=fixed.nip,
                msr=fixed.msr,
                msr_mask=fixed.msr_mask,
            )
        case _T.CANCEL:
            return f.Cancel(**name, reason=s.CancelReason(fixed.reason))
        case _T.CANCELLED:
            return f.Cancelled(**name, effect=s.Effect(fixed.effect))
        case _T.READ:
            asked = tuple((e.gpa, e.size) for e in p.segments)
            return f.Read(**name, request=h.request, segments=asked)
        case _T.READ_REPLY:
            found = tuple((s.AccessStatus(e.head.status), e.data) for e in p.segments)
            return f.ReadReply(**name, request=h.request, segments=found)
        case _T.WRITE:
            return f.Write(**name, request=h.request, segments=_writes(p.segments))
        case _T.WRITE_REPLY:
            status = s.AccessStatus(fixed.status)
            return f.WriteReply(
                **name, request=h.request, status=status, bad_segment=fixed.bad_segment
            )
        case _T.PAGES:
            return f.Pages(**name, request=h.request, ranges=_pages(p.pages))
        case _T.PAGES_REPLY:
            status = s.AccessStatus(fixed.status)
            return f.PagesReply(**name, request=h.request, status=status, bad_range=fixed.bad_range)
        case _T.EVENT:
            return f.Event(s.EventKind(fixed.kind), h.vcpu, h.request, h.reset)
        case _T.EVENT_ACK:
            return f.EventAck(s.EventKind(fixed.kind), h.request, h.reset)
        case _T.CONTROL:
            return f.Control(s.ControlAction(fixed.action), p.text, h.reset)


def _pages(pages: Any) -> tuple[f.PageRange, ...]:
    return tuple(f.PageRange(e.gpa, e.size, s.PageState(e.state)) for e in pages.ranges)


def _values(container: Any) -> dict[str, Any]:
    return {k: v for k, v in container.items() if not k.startswith("_") and k != "reserved"}


def _writes(entries: Any) -> tuple[f.WriteSegment, ...]:
    return tuple(
        f.WriteSegment(e.head.gpa, e.head.size, None if e.head.flags else e.data) for e in entries
    )


def _announcement(p: Any) -> f.Announcement:
    calls = []
    for call in p.calls:
        values = _values(call.spec)
        values.pop("buffer_count")
        values["disposition"] = s.Disposition(values["disposition"])
        buffers = tuple(
            f.BufferSpec(
                b.address_register,
                s.BufferKind(b.kind),
                s.Direction(b.direction),
                b.size_register,
                b.max_size,
            )
            for b in call.buffers
        )
        calls.append(f.CallSpec(**values, buffers=buffers))
    properties = tuple((item.name, item.value) for item in p.properties)
    return f.Announcement(tuple(calls), tuple(p.strings), properties)
