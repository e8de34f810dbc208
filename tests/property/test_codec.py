# SPDX-License-Identifier: Apache-2.0
"""The fast codec is the schema and the document's rules, for all bytes and in both directions.

For any bytes ``b`` that a connection would hand to ``decode``:

1. ``decode(b)`` succeeds if and only if the schema parses ``b`` to its end and ``b`` keeps the
   rules that the document adds to the layout (``wire_model.broken_rules``): bounds,
   enumerations, flags, names, order.
2. If it succeeds, the frame has the schema's values, and ``encode`` gives ``b`` again. The one
   exception is HELLO's offer of features that nobody has defined, which is not seen.
3. If it does not, the error is a RemoteProtocolError, whatever the bytes.
4. Of what ``is_plain`` is true ``decode`` makes a frame.

For any frame with values in range, ``encode`` gives bytes that decode to it; for one that breaks
a rule it raises LocalProtocolError.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from tests.property.wire_frames import STRATEGIES, any_frame
from tests.property.wire_model import broken_rules, frame_of, parse

from hcallproto.errors import Breach, LocalProtocolError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.decode import decode, decode_header, is_plain
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import FrameType

# Each type has examples of its own, so it needs fewer.
per_type = settings(max_examples=settings().max_examples // 2)
_HELLO_FEATURES_AT = slice(40, 48)


def with_size(data: bytes | bytearray) -> bytes:
    """The bytes with a header that tells their number."""
    return bytes(data[:8]) + len(data).to_bytes(4, "big") + bytes(data[12:])


def read(data: bytes) -> f.Frame | RemoteProtocolError:
    """As a connection does: no payload is looked at before all of it is there."""
    try:
        header = decode_header(data)
        if header.size > len(data):
            return RemoteProtocolError(Breach.TRUNCATED, "")
        return decode(header, data)
    except RemoteProtocolError as error:
        return error


def is_known_good(data: bytes) -> bool:
    """What a reader that wants bytes alone finds of a frame."""
    try:
        header = decode_header(data)
        return header.size <= len(data) and is_plain(header, data[: header.size])
    except RemoteProtocolError:
        return False


def check(data: bytes) -> None:
    """The points above."""
    found = read(data)
    parsed = parse(data)
    rules = ["the schema"] if parsed is None else broken_rules(*parsed)
    if is_known_good(data):
        assert not rules, f"bytes against {rules} are said to be a frame"
        event("plain")
    if isinstance(found, RemoteProtocolError):
        assert rules, f"{found} is an error, and neither schema nor rules say so"
        event(f"refused by {found.breach.name}")
        return
    assert not rules, f"{found} was decoded, against {rules}"
    assert parsed is not None
    header, payload = parsed
    expected = frame_of(header, payload)
    assert found == expected
    assert type(found) is type(expected)
    again = encode(found)
    whole = bytearray(data[: header.size])
    if isinstance(found, f.Hello):
        whole[_HELLO_FEATURES_AT] = int(found.features).to_bytes(8, "big")
    assert again == whole
    event(f"decoded {type(found).__name__}")


# -- frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize("frame_type", FrameType, ids=lambda t: t.name)
@per_type
@given(data=st.data())
def test_frame_when_encoded_then_it_decodes_to_itself(frame_type: FrameType, data: st.DataObject):
    frame = data.draw(STRATEGIES[frame_type])
    wire = encode(frame)
    assert s.HEADER.parse(wire).type == frame_type
    found = read(wire)
    assert found == frame
    assert type(found) is type(frame)
    check(wire)
    # Where it stands does not matter, nor in which kind of buffer.
    shifted = bytearray(b"abc" + wire + b"xyz")
    assert decode(decode_header(shifted, 3), shifted, 3) == frame


@given(frame=any_frame, data=st.data())
def test_frame_when_a_field_has_any_number_then_it_is_sent_as_it_is_or_refused(
    frame: Any, data: st.DataObject
):
    """Fields are of their types, but out of range, undefined, or out of order."""
    fields = [name for name, value in frame._asdict().items() if type(value) is int]
    if fields:
        name = data.draw(st.sampled_from(fields))
        frame = frame._replace(**{name: data.draw(st.integers(-(1 << 65), 1 << 65))})
    try:
        wire = encode(frame)
    except LocalProtocolError:
        return
    assert read(wire) == frame


# -- bytes ------------------------------------------------------------------------------------

# Counts, sizes and enumerations stand at the beginning; the last byte ends everything.
_places = st.integers(0, s.HEADER_SIZE + 24) | st.integers(-20, -1) | st.integers(0, 1 << 12)
_bytes = st.sampled_from([b"\0", b"\1", b"\2", b"\4", b"\x80", b"\xff", b"\xff" * 4, b"\0" * 8])


@st.composite
def changes(draw: st.DrawFn, data: bytes) -> bytes:
    """One to three changes that a peer with a bug, or a grudge, could make."""
    changed = bytearray(data)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        at = draw(_places) % len(changed)
        match draw(st.sampled_from(["step", "step", "write", "cut", "insert", "append"])):
            case "step":
                changed[at] = (changed[at] + draw(st.sampled_from([1, -1, 2]))) % 256
            case "write":
                new = draw(_bytes)
                changed[at : at + len(new)] = new[: len(changed) - at]
            case "cut" if at >= s.HEADER_SIZE:
                del changed[at : at + draw(st.sampled_from([1, 1 << 12]))]
            case "insert" if at >= s.HEADER_SIZE:
                changed[at:at] = draw(_bytes)
            case _:
                changed += draw(_bytes)
    return bytes(changed)


@pytest.mark.parametrize("frame_type", FrameType, ids=lambda t: t.name)
@per_type
@given(data=st.data())
def test_bytes_when_a_frame_is_changed_then_codec_and_schema_agree(
    frame_type: FrameType, data: st.DataObject
):
    changed = data.draw(changes(encode(data.draw(STRATEGIES[frame_type]))))
    check(with_size(changed))
    check(changed)


@given(first=any_frame, second=any_frame, cut=st.integers(0, 1 << 12))
def test_bytes_when_two_frames_are_spliced_then_codec_and_schema_agree(
    first: f.Frame, second: f.Frame, cut: int
):
    data = encode(first)
    cut = s.HEADER_SIZE + cut % (len(data) - s.HEADER_SIZE + 1)
    check(with_size(data[:cut] + encode(second)[cut:]))
    # The payload of one under the header of the other.
    check(with_size(data[: s.HEADER_SIZE] + encode(second)[s.HEADER_SIZE :]))


@given(
    frame_type=st.sampled_from(FrameType),
    fields=st.tuples(st.sampled_from([0, 0, 0, 1, 2]), *[st.sampled_from([0, 1, 0xFFFF_FFFF])] * 4),
    payload=st.binary(max_size=300),
)
@example(FrameType.CALL, (0, 1, 0, 0, 1), bytes(144))
@example(FrameType.HELLO, (0, 0xFFFF_FFFF, 0, 0, 0), bytes(76))
@example(FrameType.HELLO, (0, 0xFFFF_FFFF, 0, 0, 0), bytes(8) + b"\xff" * 8 + bytes(60))
@example(FrameType.READ, (0, 1, 0, 1, 1), b"\xff\xff\xff\xff\0\0\0\0")
def test_bytes_when_they_are_any_payload_then_codec_and_schema_agree(
    frame_type: FrameType, fields: tuple[int, int, int, int, int], payload: bytes
):
    flags, vcpu, reset, request, seq = fields
    header = s.HEADER.build(
        {
            "type": frame_type,
            "flags": flags,
            "size": s.HEADER_SIZE + len(payload),
            "vcpu": vcpu,
            "reset": reset,
            "request": request,
            "seq": seq,
        }
    )
    check(header + payload)


@given(data=st.binary(max_size=100))
def test_bytes_when_they_are_any_at_all_then_codec_and_schema_agree(data: bytes):
    check(data)
    check(s.MAGIC.to_bytes(4, "big") + data)
