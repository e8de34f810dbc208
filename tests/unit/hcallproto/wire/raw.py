# SPDX-License-Identifier: Apache-2.0
"""Frames made from the schema alone, so that they can be wrong in ways ``encode`` refuses."""

from __future__ import annotations

from typing import Any

from hcallproto.conn.states import CALL_FRAMES
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.decode import decode, decode_header
from hcallproto.wire.schema import FrameType


def header(frame_type: int, size: int, **fields: int) -> bytes:
    """A header; the fields that are not given are those of an ordinary frame of the type."""
    values = {"flags": 0, "vcpu": s.NO_VCPU, "reset": 0, "request": 0, "seq": 0}
    if frame_type in CALL_FRAMES:
        values.update(vcpu=1, seq=1)
    return s.HEADER.build({"type": frame_type, "size": size, **values, **fields})


def frame(frame_type: int, *parts: bytes, **fields: int) -> bytes:
    """A frame of payload parts, with the right size."""
    payload = b"".join(parts)
    return header(frame_type, s.HEADER_SIZE + len(payload), **fields) + payload


def part(layout: Any, **values: Any) -> bytes:
    """A structure of the schema; constants are filled in, other fields are 0 if not given."""
    defaults: dict[str, Any] = {}
    for field in layout.subcons:
        defaults[field.name] = bytes(field.sizeof()) if field.name in ("instance", "uuid") else 0
    defaults.pop("reserved", None)
    if "gpr" in defaults:
        defaults["gpr"] = [0] * len(s.REGISTERS)
    unknown = values.keys() - defaults.keys()
    assert not unknown, unknown
    return layout.build({**defaults, **values})  # type: ignore[no-any-return]


def text(value: bytes, size: int | None = None) -> bytes:
    """A u16 size and bytes."""
    return (len(value) if size is None else size).to_bytes(2, "big") + value


def read(data: bytes) -> f.Frame:
    """Header and payload, decoded."""
    return decode(decode_header(data), data)


def payload_of(data: bytes) -> Any:
    """What the schema makes of a frame's payload."""
    return s.PAYLOADS[FrameType(int.from_bytes(data[4:6], "big"))].parse(data[s.HEADER_SIZE :])
