# SPDX-License-Identifier: Apache-2.0
"""An answer to one call as the answer to another: what it writes goes to the other's buffers."""

from __future__ import annotations

from typing import NamedTuple

from hcallproto.abi.registers import REAL_ADDRESS_MASK
from hcallproto.abi.spec import Buffer, Direction, Hcall
from hcallproto.capture.exchanges import Exchange
from hcallproto.wire import frames as f
from hcallproto.wire.schema import BUFFER_PAGE_SIZE, MAX_SEGMENTS


class Relocated(NamedTuple):
    """An answer for another call."""

    reply: f.Reply
    lost: int
    """Bytes that have no place there."""


def relocate(captured: Exchange, live: f.Call) -> Relocated:
    """What a captured call was answered, as the answer to the live one.

    Args:
        captured: it was answered.
        live: the same call, maybe with other addresses.
    """
    hcall, reply = captured.hcall, captured.reply
    assert reply is not None
    writes: list[f.WriteSegment] = []
    lost = 0
    for segment in (*captured.writes, *reply.writes):
        moved = None if hcall is None else _place(hcall, segment, captured.call, live)
        if moved is not None and len(writes) < MAX_SEGMENTS:
            writes.append(moved)
            lost += segment.size - moved.size
        else:
            lost += segment.size
    frame = f.Reply(live.vcpu, live.reset, live.seq, reply.status, reply.registers, tuple(writes))
    return Relocated(frame, lost)


def _place(
    hcall: Hcall, segment: f.WriteSegment, captured: f.Call, live: f.Call
) -> f.WriteSegment | None:
    """A segment at its place in the live call's buffers; None: it has none."""
    for buffer in hcall.buffers:
        if buffer.direction is Direction.OUT or buffer.rewritten:
            moved = _moved(hcall, buffer, segment, captured, live)
            if moved is not None:
                return moved
    return None


def _moved(
    hcall: Hcall, buffer: Buffer, segment: f.WriteSegment, captured: f.Call, live: f.Call
) -> f.WriteSegment | None:
    """A segment at its place in the other call's buffer; None: it is not in this buffer."""
    old, old_size = _range(hcall, buffer, captured)
    new, new_size = _range(hcall, buffer, live)
    offset = segment.gpa - old
    if offset < 0 or offset + segment.size > old_size:
        return None
    size = max(0, min(segment.size, new_size - offset))
    data = None if segment.data is None else segment.data[:size]
    return f.WriteSegment(new + offset, size, data)


def _range(hcall: Hcall, buffer: Buffer, call: f.Call) -> tuple[int, int]:
    """Where a buffer is, and how large."""
    registers = call.by_number()
    gpa = registers[hcall.arg(buffer.address).register] & REAL_ADDRESS_MASK
    if buffer.size is not None:
        return gpa, registers[hcall.arg(buffer.size).register]
    if isinstance(buffer.max_size, int):
        return gpa, buffer.header_size + buffer.max_size
    return gpa, BUFFER_PAGE_SIZE - gpa % BUFFER_PAGE_SIZE
