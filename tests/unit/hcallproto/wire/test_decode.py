# SPDX-License-Identifier: Apache-2.0
"""Bytes to frames: every bound below, at and above, every enumeration, every rule.

That ``decode`` and the schema agree on all bytes is ``tests/property/test_codec.py``'s business.
"""

from __future__ import annotations

import enum
import re
from typing import Any

import pytest
from tests.unit.hcallproto.conn.talk import SAMPLES
from tests.unit.hcallproto.wire.raw import frame, header, part, read, text

from hcallproto.errors import Breach, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.decode import check_magic, decode, decode_header, is_plain
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import FrameType

_T = FrameType


def refuse(data: bytes, breach: Breach, match: str) -> None:
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        read(data)
    assert caught.value.breach is breach


def either(data: bytes, *, is_fine: bool, breach: Breach, match: str) -> None:
    if is_fine:
        # What is taken is what would be sent.
        assert encode(read(data)) == data
    else:
        refuse(data, breach, match)


def around(bound: int) -> list[tuple[int, bool]]:
    return [(0, True), (1, True), (bound - 1, True), (bound, True), (bound + 1, False)]


# -- header -----------------------------------------------------------------------------------


def test_header_when_whole_then_its_fields_are_given():
    data = header(_T.CALL, 176, flags=1, vcpu=2, reset=3, request=4, seq=5)
    assert decode_header(data) == (_T.CALL, 1, 176, 2, 3, 4, 5)
    assert decode_header(b"before" + data, 6) == (_T.CALL, 1, 176, 2, 3, 4, 5)
    assert decode_header(bytearray(data)).type is _T.CALL


@pytest.mark.parametrize(
    ("data", "breach"),
    [
        (b"", Breach.LAYOUT),
        (b"HC", Breach.LAYOUT),
        (b"HX", Breach.MAGIC),
        (header(_T.CALL, 32)[:31], Breach.LAYOUT),
        (b"hclp" + header(_T.CALL, 32)[4:], Breach.MAGIC),
        (header(0, 32), Breach.TYPE),
        (header(_T.CALL, 31), Breach.SIZE),
        (header(_T.CALL, 32, flags=4), Breach.LAYOUT),
        (header(13, 32), Breach.TYPE),
        (header(14, 32), Breach.TYPE),
        (header(_T.REPLY, 32, flags=1), Breach.LAYOUT),
    ],
)
def test_header_when_wrong_then_it_is_a_breach(data: bytes, breach: Breach):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_header(data)
    assert caught.value.breach is breach


@pytest.mark.parametrize("frame_type", FrameType, ids=lambda t: t.name)
def test_flag_resent_when_set_then_only_calls_have_it(frame_type: FrameType):
    data = bytearray(encode(SAMPLES[frame_type]))
    data[7] = s.FLAG_RESENT
    if frame_type is _T.CALL:
        assert read(bytes(data)).is_resent is True  # type: ignore[union-attr]
    else:
        refuse(bytes(data), Breach.LAYOUT, f"{frame_type.name} has undefined flags 0x1")


@pytest.mark.parametrize("data", [b"", b"H", b"HCLP", b"HCLPxyz"])
def test_check_magic_when_the_bytes_may_become_a_frame_then_it_is_silent(data: bytes):
    check_magic(data)
    check_magic(b"x" + data, 1)


_CALL_TYPES = {
    *(_T.CALL, _T.REPLY, _T.CANCEL, _T.CANCELLED),
    *(_T.READ, _T.READ_REPLY, _T.WRITE, _T.WRITE_REPLY, _T.PAGES, _T.PAGES_REPLY),
}
_REQUEST_TYPES = {
    *(_T.READ, _T.READ_REPLY, _T.WRITE, _T.WRITE_REPLY, _T.PAGES, _T.PAGES_REPLY),
    *(_T.ACCEPT, _T.ANNOUNCE, _T.EVENT, _T.EVENT_ACK),
}


@pytest.mark.parametrize("frame_type", FrameType, ids=lambda t: t.name)
@pytest.mark.parametrize("field", ["vcpu", "seq", "request"])
def test_header_field_when_the_type_does_not_use_it_then_it_must_say_so(
    field: str, frame_type: FrameType
):
    used = {"vcpu": _CALL_TYPES, "seq": _CALL_TYPES, "request": _REQUEST_TYPES}[field]
    at, size = {"vcpu": (12, 4), "seq": (24, 8), "request": (20, 4)}[field]
    data = bytearray(encode(SAMPLES[frame_type]))
    data[at : at + size] = (6).to_bytes(size, "big")
    match = f"{frame_type.name} .*{field}"
    either(bytes(data), is_fine=frame_type in used, breach=Breach.LAYOUT, match=match)


# -- every type -------------------------------------------------------------------------------


@pytest.mark.parametrize("frame_type", FrameType, ids=lambda t: t.name)
def test_frame_when_cut_anywhere_then_it_is_a_breach_of_layout(frame_type: FrameType):
    data = encode(SAMPLES[frame_type])
    for size in range(s.HEADER_SIZE, len(data)):
        refuse(header(frame_type, size) + data[s.HEADER_SIZE : size], Breach.LAYOUT, "ends inside")


@pytest.mark.parametrize("frame_type", FrameType, ids=lambda t: t.name)
@pytest.mark.parametrize("more", [1, 8, 1000])
def test_frame_when_bytes_are_left_over_then_it_is_a_breach_of_layout(
    more: int, frame_type: FrameType
):
    data = encode(SAMPLES[frame_type]) + bytes(more)
    data = data[:8] + len(data).to_bytes(4, "big") + data[12:]
    refuse(data, Breach.LAYOUT, f"{frame_type.name} has {more} bytes too many")


@pytest.mark.parametrize("frame_type", FrameType, ids=lambda t: t.name)
def test_frame_when_it_stands_among_others_then_only_its_bytes_are_read(frame_type: FrameType):
    data = encode(SAMPLES[frame_type])
    for kind in (bytes, bytearray):
        around_it = kind(b"before" + data + b"after")
        found = decode(decode_header(around_it, 6), around_it, 6)
        assert found == SAMPLES[frame_type]
        assert type(found) is type(SAMPLES[frame_type])


ENUMS: list[tuple[str, type[enum.IntEnum], Any]] = [
    (
        "refused reason",
        s.RefusedReason,
        lambda n: frame(_T.ACCEPT, part(s.ACCEPT, refused_count=1), part(s.REFUSED_CALL, reason=n)),
    ),
    ("reason", s.GoodbyeReason, lambda n: frame(_T.GOODBYE, part(s.GOODBYE, reason=n), text(b""))),
    (
        "shim's reason",
        s.GoodbyeReason,
        lambda n: frame(_T.SHIM_GOODBYE, part(s.GOODBYE, reason=n), text(b"")),
    ),
    ("cancel reason", s.CancelReason, lambda n: frame(_T.CANCEL, part(s.CANCEL, reason=n))),
    ("effect", s.Effect, lambda n: frame(_T.CANCELLED, part(s.CANCELLED, effect=n))),
    (
        "segment status",
        s.SegmentStatus,
        lambda n: frame(_T.CALL, part(s.CALL, segment_count=1), part(s.CALL_SEGMENT, status=n)),
    ),
    (
        "read status",
        s.AccessStatus,
        lambda n: frame(
            _T.READ_REPLY, part(s.READ_REPLY, segment_count=1), part(s.READ_DATA, status=n)
        ),
    ),
    (
        "write status",
        s.AccessStatus,
        lambda n: frame(_T.WRITE_REPLY, part(s.WRITE_REPLY, status=n)),
    ),
    (
        "event",
        s.EventKind,
        lambda n: frame(
            _T.EVENT,
            part(s.EVENT, kind=n),
            **({"vcpu": 0} if n in (2, 3) else {}),
        ),
    ),
    ("acknowledged", s.EventKind, lambda n: frame(_T.EVENT_ACK, part(s.EVENT_ACK, kind=n))),
    ("action", s.ControlAction, lambda n: frame(_T.CONTROL, part(s.CONTROL, action=n), text(b""))),
    (
        "disposition",
        s.Disposition,
        lambda n: announce(part(s.CALL_SPEC, disposition=n)),
    ),
    (
        "buffer kind",
        s.BufferKind,
        lambda n: announce(
            part(s.CALL_SPEC, buffer_count=1), part(s.BUFFER_SPEC, kind=n, direction=1)
        ),
    ),
]


def announce(*parts: bytes, call_count: int = 1, **counts: int) -> bytes:
    return frame(
        _T.ANNOUNCE, part(s.ANNOUNCEMENT, call_count=call_count, **counts), *parts, request=1
    )


@pytest.mark.parametrize(("kind", "make"), [case[1:] for case in ENUMS], ids=[c[0] for c in ENUMS])
def test_enumeration_when_the_number_is_not_one_of_it_then_it_is_a_breach(
    kind: type[enum.IntEnum], make: Any
):
    members = {int(member) for member in kind}
    for number in {0, 1, min(members), max(members), max(members) + 1, 255}:
        either(
            make(number),
            is_fine=number in members,
            breach=Breach.LAYOUT,
            match=f"{number} is no {kind.__name__}",
        )


# -- texts ------------------------------------------------------------------------------------

TEXTS = [
    ("name", lambda raw: frame(_T.HELLO, part(s.HELLO), raw, text(b""))),
    ("program", lambda raw: frame(_T.HELLO, part(s.HELLO), text(b""), raw)),
    ("goodbye", lambda raw: frame(_T.GOODBYE, part(s.GOODBYE, reason=1), raw)),
    ("control", lambda raw: frame(_T.CONTROL, part(s.CONTROL, action=1), raw)),
]


@pytest.mark.parametrize("make", [case[1] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_text_when_longer_than_its_bound_or_not_utf8_then_it_is_a_breach(make: Any):
    for size, is_fine in around(s.MAX_TEXT_SIZE):
        either(make(text(b"x" * size)), is_fine=is_fine, breach=Breach.BOUNDS, match="at most 512")
    either(make(text("ä€😀".encode())), is_fine=True, breach=Breach.LAYOUT, match=".")
    for raw in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"):
        refuse(make(text(raw)), Breach.LAYOUT, "is not UTF-8")
    refuse(make(text(b"abc", 9)), Breach.LAYOUT, "ends inside")


# -- announcements ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", around(s.MAX_CALLS))
def test_announced_calls_when_above_their_bound_then_they_are_a_breach(count: tuple[int, bool]):
    number, is_fine = count
    data = announce(part(s.CALL_SPEC) * number, call_count=number)
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match="513 calls, at most 512")


@pytest.mark.parametrize("count", around(s.MAX_BUFFERS))
def test_buffers_when_above_their_bound_then_they_are_a_breach(count: tuple[int, bool]):
    number, is_fine = count
    buffers = part(s.BUFFER_SPEC, direction=1) * number
    data = announce(part(s.CALL_SPEC, buffer_count=number), buffers)
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match="5 buffers of a call, at most 4")


@pytest.mark.parametrize("direction", [0, 1, 2, 3, 4, 255])
def test_direction_when_it_is_none_then_it_is_a_breach(direction: int):
    data = announce(part(s.CALL_SPEC, buffer_count=1), part(s.BUFFER_SPEC, direction=direction))
    either(
        data,
        is_fine=direction in (1, 2, 3),
        breach=Breach.LAYOUT,
        match=f"{direction} is no Direction",
    )


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4, 7, 8, 0x80])
def test_call_flags_when_undefined_then_they_are_a_breach(flags: int):
    data = announce(part(s.CALL_SPEC, flags=flags))
    either(data, is_fine=flags <= 7, breach=Breach.LAYOUT, match=f"undefined flags 0x{flags:x}")


@pytest.mark.parametrize("count", around(s.MAX_DT_STRINGS))
def test_strings_when_above_their_bound_then_they_are_a_breach(count: tuple[int, bool]):
    number, is_fine = count
    data = announce(text(b"hcall-x") * number, call_count=0, string_count=number)
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match="33 strings, at most 32")


@pytest.mark.parametrize("count", around(s.MAX_DT_PROPERTIES))
def test_properties_when_above_their_bound_then_they_are_a_breach(count: tuple[int, bool]):
    number, is_fine = count
    one = text(b"ibm,x") + text(b"\0")
    data = announce(one * number, call_count=0, property_count=number)
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match="17 properties, at most 16")


def in_string(raw: bytes) -> bytes:
    return announce(text(raw), call_count=0, string_count=1)


def in_name(raw: bytes) -> bytes:
    return announce(text(raw), text(b"value"), call_count=0, property_count=1)


def in_value(raw: bytes) -> bytes:
    return announce(text(b"name"), text(raw), call_count=0, property_count=1)


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (in_string, s.MAX_DT_STRING_SIZE),
        (in_name, s.MAX_DT_NAME_SIZE),
        (in_value, s.MAX_DT_VALUE_SIZE),
    ],
)
def test_device_tree_text_when_above_its_bound_then_it_is_a_breach(make: Any, bound: int):
    for size, is_fine in around(bound)[1:]:
        match = f"has {bound + 1} bytes, at most {bound}"
        either(make(b"a" * size), is_fine=is_fine, breach=Breach.BOUNDS, match=match)


@pytest.mark.parametrize(
    ("make", "allowed"),
    [(in_string, rb"[a-z0-9-]"), (in_name, rb"[A-Za-z0-9,._+?#-]")],
)
def test_device_tree_word_when_a_character_is_not_allowed_then_it_is_a_breach(
    make: Any, allowed: bytes
):
    refuse(make(b""), Breach.LAYOUT, "b'' is not")
    for value in range(256):
        char = bytes([value])
        is_fine = re.match(allowed, char) is not None
        for raw in (char, b"a" + char, char + b"a"):
            either(make(raw), is_fine=is_fine, breach=Breach.LAYOUT, match="is not b'")


def test_property_value_when_it_is_empty_or_any_bytes_then_it_is_fine():
    for raw in (b"", bytes(range(256))):
        either(in_value(raw), is_fine=True, breach=Breach.BOUNDS, match=".")


# -- negotiation ------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [0, 7, 15, 16, 1 << 63])
def test_features_when_undefined_then_only_an_offer_may_have_them(features: int):
    hello = read(frame(_T.HELLO, part(s.HELLO, features=features), text(b""), text(b"")))
    assert isinstance(hello, f.Hello)
    assert hello.features == features & 15
    assert isinstance(hello.features, s.Feature)
    either(
        frame(_T.WELCOME, part(s.WELCOME, features=features), part(s.ANNOUNCEMENT)),
        is_fine=features <= 15,
        breach=Breach.FEATURE,
        match="undefined features",
    )


@pytest.mark.parametrize("active", [0, 1, 2, 0xFFFF])
def test_active_when_it_is_no_truth_value_then_it_is_a_breach(active: int):
    data = frame(_T.ACCEPT, part(s.ACCEPT, active=active))
    either(data, is_fine=active <= 1, breach=Breach.LAYOUT, match=f"active is {active}")


@pytest.mark.parametrize("count", around(s.MAX_CALLS))
def test_refused_calls_when_above_their_bound_then_they_are_a_breach(count: tuple[int, bool]):
    number, is_fine = count
    refused = part(s.REFUSED_CALL, reason=1) * number
    data = frame(_T.ACCEPT, part(s.ACCEPT, refused_count=number), refused)
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match="513 refused calls")


# -- RAM --------------------------------------------------------------------------------------


def ram(*regions: tuple[int, int], fds: tuple[int, ...] = (), descriptors: int = 0) -> bytes:
    indexes = [*fds, *[s.NO_DESCRIPTOR] * (len(regions) - len(fds))]
    return frame(
        _T.RAM,
        part(s.RAM, region_count=len(regions), descriptor_count=descriptors),
        *(
            part(s.RAM_REGION, gpa=gpa, size=size, fd_index=index)
            for (gpa, size), index in zip(regions, indexes, strict=True)
        ),
    )


@pytest.mark.parametrize("count", around(s.MAX_RAM_REGIONS))
def test_regions_when_above_their_bound_then_they_are_a_breach(count: tuple[int, bool]):
    number, is_fine = count
    data = ram(*((n * 4096, 4096) for n in range(number)))
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match="257 regions")


@pytest.mark.parametrize("count", around(s.MAX_DESCRIPTORS))
def test_descriptors_when_above_their_bound_then_they_are_a_breach(count: tuple[int, bool]):
    number, is_fine = count
    either(ram(descriptors=number), is_fine=is_fine, breach=Breach.BOUNDS, match="17 descriptors")


@pytest.mark.parametrize(
    ("regions", "is_fine"),
    [
        ((), True),
        (((0, 1),), True),
        (((0, 0),), False),
        (((0, 4096), (4096, 1)), True),
        (((0, 4096), (4095, 1)), False),
        (((4096, 1), (0, 1)), False),
        (((0, 1), (0, 1)), False),
        ((((1 << 64) - 1, 1),), True),
        ((((1 << 64) - 1, 2),), False),
        (((1, (1 << 64) - 1),), True),
        (((2, (1 << 64) - 1),), False),
    ],
)
def test_regions_when_empty_wrapping_or_out_of_order_then_they_are_a_breach(
    regions: tuple[tuple[int, int], ...], is_fine: bool
):
    either(ram(*regions), is_fine=is_fine, breach=Breach.BOUNDS, match="empty or out of order")


@pytest.mark.parametrize(
    ("index", "descriptors", "is_fine"),
    [
        (0, 0, False),
        (0, 1, True),
        (1, 1, False),
        (15, 16, True),
        (16, 16, False),
        (0xFFFE, 16, False),
    ],
)
def test_region_when_it_names_a_descriptor_that_did_not_come_then_it_is_a_breach(
    index: int, descriptors: int, is_fine: bool
):
    data = ram((0, 1), fds=(index,), descriptors=descriptors)
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match=f"names descriptor {index}")


# -- calls ------------------------------------------------------------------------------------


def segments(*buffers: int) -> bytes:
    return frame(
        _T.CALL,
        part(s.CALL, segment_count=len(buffers)),
        *(part(s.CALL_SEGMENT, buffer=buffer, size=2) + b"ab" for buffer in buffers),
    )


def test_call_segments_when_more_than_a_call_has_buffers_then_they_are_a_breach():
    either(segments(0, 1, 2, 3), is_fine=True, breach=Breach.BOUNDS, match=".")
    refuse(segments(0, 1, 2, 3, 3), Breach.BOUNDS, "5 segments, at most 4")


@pytest.mark.parametrize(
    ("buffers", "is_fine"),
    [
        ((0,), True),
        ((3,), True),
        ((4,), False),
        ((255,), False),
        ((1, 3), True),
        ((3, 1), False),
        ((0, 0), False),
    ],
)
def test_call_segments_when_out_of_order_then_they_are_a_breach(
    buffers: tuple[int, ...], is_fine: bool
):
    either(segments(*buffers), is_fine=is_fine, breach=Breach.BOUNDS, match="out of order")


@pytest.mark.parametrize("status", s.SegmentStatus)
@pytest.mark.parametrize("size", [0, 1])
def test_call_segment_when_it_failed_then_it_has_no_data(status: s.SegmentStatus, size: int):
    data = frame(
        _T.CALL,
        part(s.CALL, segment_count=1),
        part(s.CALL_SEGMENT, status=status, size=size),
        bytes(size),
    )
    is_fine = not size or status is s.SegmentStatus.OK
    either(data, is_fine=is_fine, breach=Breach.LAYOUT, match=f"data and status {status.name}")


@pytest.mark.parametrize("status", s.AccessStatus)
@pytest.mark.parametrize("size", [0, 1])
def test_read_data_when_it_failed_then_it_has_no_data(status: s.AccessStatus, size: int):
    data = frame(
        _T.READ_REPLY,
        part(s.READ_REPLY, segment_count=1),
        part(s.READ_DATA, status=status, size=size),
        bytes(size),
    )
    is_fine = not size or status is s.AccessStatus.OK
    either(data, is_fine=is_fine, breach=Breach.LAYOUT, match=f"data and status {status.name}")


@pytest.mark.parametrize("register", range(32))
def test_reply_when_it_sets_a_register_then_it_must_be_one_that_it_may(register: int):
    data = frame(_T.REPLY, part(s.REPLY, register_mask=1 << register), bytes(8))
    is_fine = register in (0, 2, *range(4, 13), 31)
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match="REPLY sets registers")


def test_reply_when_it_sets_registers_then_values_come_lowest_first():
    values = [0x1111 * n for n in range(1, 5)]
    data = frame(
        _T.REPLY,
        part(s.REPLY, register_mask=1 << 0 | 1 << 2 | 1 << 12 | 1 << 31),
        *(value.to_bytes(8, "big") for value in values),
    )
    reply = read(data)
    assert isinstance(reply, f.Reply)
    assert reply.registers == tuple(zip((0, 2, 12, 31), values, strict=True))


@pytest.mark.parametrize("context", [0, 1, 2, 3, 8, 0x8000])
def test_context_when_bits_are_undefined_then_it_is_a_breach(context: int):
    data = frame(_T.REPLY, part(s.REPLY, context=context))
    either(data, is_fine=context <= 3, breach=Breach.LAYOUT, match="undefined context")


@pytest.mark.parametrize(
    ("fields", "breach", "match"),
    [
        ({"nip": 4}, Breach.LAYOUT, "does not say that it is to be set"),
        ({"context": 2, "nip": 4}, Breach.LAYOUT, "does not say that it is to be set"),
        ({"context": 1, "msr_mask": s.MSR_S}, Breach.LAYOUT, "not to be set"),
        ({"context": 2, "msr": s.MSR_S}, Breach.LAYOUT, "outside of its mask"),
        ({"context": 2, "msr_mask": s.MSR_S}, Breach.BOUNDS, r"clears MSR\[S\]"),
        *(
            ({"context": 2, "msr_mask": 1 << bit, "msr": 1 << bit}, Breach.BOUNDS, "changes MSR")
            for bit in range(64)
            if 1 << bit not in (s.MSR_EE, s.MSR_S)
        ),
    ],
)
def test_context_when_it_is_not_the_daemons_to_change_then_it_is_a_breach(
    fields: dict[str, int], breach: Breach, match: str
):
    data = frame(_T.REPLY, part(s.REPLY, **fields))
    either(data, is_fine=False, breach=breach, match=match)


@pytest.mark.parametrize("state", range(5))
def test_page_state_when_it_is_none_then_it_is_a_breach(state: int):
    ranges = part(s.PAGES, range_count=1) + part(s.PAGE_RANGE, gpa=0, size=4096, state=state)
    is_fine = state in (0, 1, 3)
    data = frame(_T.PAGES, ranges, request=1)
    either(data, is_fine=is_fine, breach=Breach.LAYOUT, match="no state of a page")
    data = frame(_T.REPLY, part(s.REPLY, context=s.CONTEXT_PAGES), ranges)
    breach = Breach.BOUNDS if state == 3 else Breach.LAYOUT
    either(data, is_fine=state < 2, breach=breach, match="no state of a page|only PAGES can")


@pytest.mark.parametrize(("gpa", "size"), [(1, 4096), (4096, 1), (2048, 2048), (1 << 63, 8)])
def test_page_range_when_it_is_not_of_whole_pages_then_it_is_a_breach(gpa: int, size: int):
    ranges = part(s.PAGES, range_count=1) + part(s.PAGE_RANGE, gpa=gpa, size=size, state=0)
    data = frame(_T.PAGES, ranges, request=1)
    either(data, is_fine=False, breach=Breach.BOUNDS, match="not of whole pages")


@pytest.mark.parametrize("count", [0, 1, 64, 65])
def test_page_ranges_when_there_are_too_many_or_none_then_it_is_a_breach(count: int):
    ranges = part(s.PAGES, range_count=count)
    ranges += count * part(s.PAGE_RANGE, gpa=4096, size=4096, state=1)
    data = frame(_T.PAGES, ranges, request=1)
    either(data, is_fine=count <= 64, breach=Breach.BOUNDS, match="page ranges, at most 64")
    data = frame(_T.REPLY, part(s.REPLY, context=s.CONTEXT_PAGES), ranges)
    breach = Breach.BOUNDS if count else Breach.LAYOUT
    either(data, is_fine=0 < count <= 64, breach=breach, match="page ranges, at most|has none")


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 1 << 31])
def test_write_flags_when_undefined_then_they_are_a_breach(flags: int):
    data = frame(
        _T.WRITE,
        part(s.WRITE, segment_count=1),
        part(s.WRITE_SEGMENT, flags=flags, size=0),
        request=1,
    )
    either(data, is_fine=flags <= 1, breach=Breach.LAYOUT, match="undefined flags")


def test_write_segment_when_it_zeroes_then_no_data_follow_whatever_its_size():
    data = frame(
        _T.WRITE,
        part(s.WRITE, segment_count=2),
        part(s.WRITE_SEGMENT, flags=s.WRITE_FLAG_ZERO, size=0xFFFF_FFFF),
        part(s.WRITE_SEGMENT, gpa=8, size=1),
        b"x",
        request=1,
    )
    write = read(data)
    assert isinstance(write, f.Write)
    assert write.segments == (
        f.WriteSegment(0, 0xFFFF_FFFF, None),
        f.WriteSegment(8, 1, b"x"),
    )


SEGMENTED = [
    (_T.READ, s.READ, "segment_count", part(s.READ_SEGMENT)),
    (_T.READ_REPLY, s.READ_REPLY, "segment_count", part(s.READ_DATA)),
    (_T.WRITE, s.WRITE, "segment_count", part(s.WRITE_SEGMENT)),
    (_T.REPLY, s.REPLY, "write_count", part(s.WRITE_SEGMENT)),
]


@pytest.mark.parametrize("count", around(s.MAX_SEGMENTS))
@pytest.mark.parametrize(
    ("frame_type", "fixed", "field", "one"), SEGMENTED, ids=[case[0].name for case in SEGMENTED]
)
def test_segments_when_above_their_bound_then_they_are_a_breach(
    frame_type: FrameType, fixed: Any, field: str, one: bytes, count: tuple[int, bool]
):
    number, is_fine = count
    data = frame(frame_type, part(fixed, **{field: number}), one * number)
    either(data, is_fine=is_fine, breach=Breach.BOUNDS, match="65 segments, at most 64")


@pytest.mark.parametrize("count", [0xFFFF_FFFF, 0x7FFF_FFFF])
def test_segments_when_ever_so_many_are_announced_then_no_memory_is_taken_for_them(count: int):
    for frame_type, layout in (
        (_T.READ, s.READ),
        (_T.READ_REPLY, s.READ_REPLY),
        (_T.WRITE, s.WRITE),
    ):
        data = frame(frame_type, part(layout, segment_count=count))
        refuse(data, Breach.BOUNDS, f"{count} segments")


@pytest.mark.parametrize("size", [1, 0xFFFF_FFFF])
def test_data_when_more_are_announced_than_there_are_then_it_is_a_breach(size: int):
    for data in (
        frame(_T.CALL, part(s.CALL, segment_count=1), part(s.CALL_SEGMENT, size=size)),
        frame(_T.READ_REPLY, part(s.READ_REPLY, segment_count=1), part(s.READ_DATA, size=size)),
        frame(_T.WRITE, part(s.WRITE, segment_count=1), part(s.WRITE_SEGMENT, size=size)),
        frame(_T.REPLY, part(s.REPLY, write_count=1), part(s.WRITE_SEGMENT, size=size)),
    ):
        refuse(data, Breach.LAYOUT, f"ends inside {size} bytes of data")


# -- events -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", s.EventKind)
@pytest.mark.parametrize("vcpu", [0, 7, s.NO_VCPU])
def test_event_when_it_names_a_cpu_then_it_is_one_of_a_cpu(kind: s.EventKind, vcpu: int):
    data = frame(_T.EVENT, part(s.EVENT, kind=kind), vcpu=vcpu, request=1)
    is_of_cpu = kind in (s.EventKind.VCPU_ADDED, s.EventKind.VCPU_REMOVED)
    is_fine = is_of_cpu is (vcpu != s.NO_VCPU)
    either(data, is_fine=is_fine, breach=Breach.LAYOUT, match=f"EVENT {kind.name} has vcpu")


# -- frames that need not be taken apart ------------------------------------------------------

_CALL = f.Call(3, 0, 9, False, 1, tuple(range(13)), 0, 0, 0, 0)
_REPLY = f.Reply(3, 0, 9, 0, ((4, 1), (31, 2)), (f.WriteSegment(0x1000, 3, b"abc"),))


def is_known(data: bytes) -> bool:
    return is_plain(decode_header(data), data)


@pytest.mark.parametrize(
    "frame", [_CALL, _CALL._replace(is_resent=True), _REPLY, _REPLY._replace(writes=())]
)
def test_plain_when_a_frame_is_as_most_are_then_it_is_known_good(frame: f.Frame):
    assert is_known(encode(frame))


@pytest.mark.parametrize(
    "frame",
    [
        _CALL._replace(segments=(f.Segment(0, 0x1000, s.SegmentStatus.OK, b""),)),
        _REPLY._replace(writes=(f.WriteSegment(0x1000, 3, None),)),
        _REPLY._replace(writes=_REPLY.writes * 2),
        _REPLY._replace(context=s.CONTEXT_NIP, nip=8),
        f.Cancelled(3, 0, 9, s.Effect(0)),
    ],
)
def test_plain_when_more_than_that_must_be_checked_then_it_is_not_said(frame: f.Frame):
    assert not is_known(encode(frame))


@pytest.mark.parametrize("frame", [_CALL, _REPLY])
def test_plain_when_any_byte_is_changed_then_what_is_known_good_can_be_decoded(
    frame: f.Call | f.Reply,
):
    data = encode(frame)
    known = others = 0
    for at in range(4, len(data)):
        for byte in (0, 1, 2, 3, 4, 0x80, 0xFF):
            changed = data[:at] + bytes([byte]) + data[at + 1 :]
            try:
                head = decode_header(changed)
                is_good = head.size == len(data) and is_plain(head, changed)
            except RemoteProtocolError:
                is_good = False
            if is_good:
                known += 1
                read(changed)
            else:
                others += 1
    assert known > 100
    assert others > 30
