# SPDX-License-Identifier: Apache-2.0
"""The frames of a captured shim as another shim sends them, to another daemon."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Mapping

from hcalld.replay.anew import Anew
from hcalld.replay.sparse import SparseMemory
from hcallproto.abi.registers import REAL_ADDRESS_MASK
from hcallproto.abi.registry import find
from hcallproto.abi.spec import Buffer
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

Specs = Mapping[tuple[int, int], f.CallSpec]
"""Announced calls by (number, level)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a guest says of itself, where it is not what the capture has."""

    name: str | None = None
    uuid: bytes | None = None
    instance: bytes | None = None
    """Of the first QEMU in the capture; None, and of all others: a new one."""


class Machines:
    """The QEMUs of a capture: each is an instance of its own again, and counts its connections."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._instances: dict[bytes, bytes] = {}
        self._connections: collections.Counter[bytes] = collections.Counter()

    def hello(self, captured: f.Hello) -> f.Hello:
        """HELLO of a shim that shares no RAM."""
        identity = self._identity
        if captured.instance not in self._instances:
            is_first = not self._instances
            live = identity.instance if is_first else None
            self._instances[captured.instance] = live or os.urandom(len(captured.instance))
        instance = self._instances[captured.instance]
        count = self._connections[instance]
        self._connections[instance] += 1
        return captured._replace(
            features=captured.features & ~s.Feature.SHARED_RAM,
            instance=instance,
            connection=count,
            name=captured.name if identity.name is None else identity.name,
            uuid=captured.uuid if identity.uuid is None else identity.uuid,
        )


def ram(captured: f.Ram) -> f.Ram:
    """RAM without descriptors."""
    regions = tuple(one._replace(fd_offset=0, fd_index=s.NO_DESCRIPTOR) for one in captured.regions)
    return captured._replace(regions=regions, descriptor_count=0)


def comparable(captured: f.Welcome, live: f.Welcome) -> tuple[f.Welcome, f.Welcome]:
    """Both without what is another because no RAM is shared."""
    if s.Feature.SHARED_RAM not in captured.features:
        return captured, live
    return _unshared(captured), _unshared(live)


def _unshared(welcome: f.Welcome) -> f.Welcome:
    announcement = welcome.announcement
    calls = tuple(spec._replace(buffers=()) for spec in announcement.calls)
    return welcome._replace(
        features=welcome.features & ~s.Feature.SHARED_RAM,
        announcement=announcement._replace(calls=calls),
    )


def specs(announcement: f.Announcement) -> Specs:
    """The calls of an announcement."""
    return {(spec.number, spec.level): spec for spec in announcement.calls}


def segments(
    call: f.Call,
    captured: f.CallSpec | None,
    live: f.CallSpec | None,
    memory: SparseMemory,
    anew: Anew,
    *,
    shared: list[bytes],
    was_refused: bool,
) -> tuple[f.Segment, ...]:
    """The buffers that come with a call.

    Args:
        call: as the capture has it.
        captured: how the daemon of that time announced it.
        live: how this one does.
        memory: has what the capture has not sent along.
        anew: passes on what is live.
        shared: what was read of memory that was shared; what is taken of it goes.
        was_refused: the call had no authority.
    """
    had = {
        captured.buffers[one.buffer].address_register: one
        for one in call.segments
        if captured is not None and one.buffer < len(captured.buffers)
    }
    registers = call.by_number()
    found = []
    for index, buffer in enumerate(live.buffers if live is not None else ()):
        one = had.get(buffer.address_register)
        gpa = registers[buffer.address_register] & REAL_ADDRESS_MASK
        if one is None:
            one = _from_memory(buffer, registers, gpa, memory, shared)
        if buffer.direction & s.Direction.IN:
            declared = _buffer(call, buffer.address_register)
            data = anew.content(declared, one.data, was_refused=was_refused)
            one = one._replace(data=data)
        found.append(one._replace(buffer=index))
    return tuple(found)


def _from_memory(
    buffer: f.BufferSpec,
    registers: tuple[int, ...],
    gpa: int,
    memory: SparseMemory,
    shared: list[bytes],
) -> f.Segment:
    """docs/wire.rst, Calls: how large a buffer is."""
    size = buffer.max_size
    if buffer.kind is s.BufferKind.SIZED:
        size = registers[buffer.size_register]
        if size > buffer.max_size:
            return f.Segment(0, gpa, s.SegmentStatus.TOO_LARGE, b"")
    elif buffer.kind is s.BufferKind.PAGE_BOUNDED:
        size = min(size, s.BUFFER_PAGE_SIZE - gpa % s.BUFFER_PAGE_SIZE)
    data = b""
    if buffer.direction & s.Direction.IN:
        data = take_of_size(shared, size) or memory.read(gpa, size)
    return f.Segment(0, gpa, s.SegmentStatus.OK, data)


def _buffer(call: f.Call, register: int) -> Buffer | None:
    """The declared buffer whose address is in a register."""
    hcall = find(call.number, call.level)
    if hcall is None:
        return None
    for buffer in hcall.buffers:
        if hcall.arg(buffer.address).register == register:
            return buffer
    return None


def declared_at(call: f.Call, gpa: int) -> Buffer | None:
    """The call's buffer that begins at an address."""
    hcall = find(call.number, call.level)
    registers = call.by_number()
    for buffer in hcall.buffers if hcall is not None else ():
        if registers[hcall.arg(buffer.address).register] & REAL_ADDRESS_MASK == gpa:  # type: ignore[union-attr]
            return buffer
    return None


def take_of_size(shared: list[bytes], size: int) -> bytes | None:
    """What was read first of so many bytes; it is read once. Where it was, nobody has noted."""
    for index, data in enumerate(shared):
        if len(data) == size:
            return shared.pop(index)
    return None
