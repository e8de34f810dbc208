# SPDX-License-Identifier: Apache-2.0
"""Where in guest memory a call's answer is, and what its fields are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hcallproto.abi.registers import REAL_ADDRESS_MASK
from hcallproto.abi.spec import Buffer, Direction, Hcall
from hcallproto.wire import frames as f


class Place(NamedTuple):
    """Where one of a call's buffers is."""

    gpa: int
    end: int
    buffer: Buffer

    def marks(self) -> Iterator[int]:
        """Where fields begin."""
        yield self.gpa
        yield self.gpa + self.buffer.open_size
        yield self.end
        for low, high, _ in _layout(self.buffer):
            yield self.gpa + low
            yield self.gpa + high


def places_of(hcall: Hcall, call: f.Call) -> list[Place]:
    """The buffers that the call's answer may be in."""
    registers = call.by_number()
    found = []
    for buffer in hcall.buffers:
        if buffer.direction is not Direction.OUT:
            continue
        gpa = registers[hcall.arg(buffer.address).register] & REAL_ADDRESS_MASK
        if buffer.size is not None:
            size = registers[hcall.arg(buffer.size).register]
        else:
            size = buffer.header_size + (
                buffer.max_size if isinstance(buffer.max_size, int) else 1 << 16
            )
        found.append(Place(gpa, gpa + size, buffer))
    return found


def _layout(buffer: Buffer) -> Iterator[tuple[int, int, str]]:
    at = 0
    for part in buffer.layout.subcons if buffer.layout is not None else ():
        size = part.sizeof()
        if part.name:
            yield at, at + size, part.name
        at += size


def field_at(place: Place | None, gpa: int) -> str:
    """What the table calls what is there; None: no buffer is."""
    if place is None:
        return "memory"
    for low, high, name in _layout(place.buffer):
        if place.gpa + low <= gpa < place.gpa + high:
            return name
    return place.buffer.address


def spot(field: str, place: Place | None, gpa: int) -> str:
    """The same, with how far behind the buffer's begin that is."""
    if place is None:
        return f"memory at 0x{gpa:x}"
    return f"{field}+0x{gpa - place.gpa:x}" if field == place.buffer.address else field
