# SPDX-License-Identifier: Apache-2.0
"""Reads a pcapng file, in pieces of any size, without I/O.

What other tools write is read too: both byte orders, several sections, other resolutions
and offsets of time, and blocks that we do not know, which are passed over.

A file whose blocks do not follow one another is read up to there (``CaptureDamage``). What
is wrong within one block is told in ``problems``, and the next block is read.

Source: see ``pcapng``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from hcallproto.capture.pcapng import (
    MAGIC,
    MIN_BLOCK,
    NANOSECONDS,
    OPTION,
    BlockType,
    Direction,
    Interface,
    Option,
    Packet,
)
from hcallproto.capture.problems import Problems
from hcallproto.errors import CaptureDamage

MAX_BLOCK: Final = 32 << 20
"""Bytes of the largest block that is read: the largest frame and much to spare."""
MAX_INTERFACES: Final = 1 << 16
"""Of a section."""
MAX_NAME: Final = 1024
"""Bytes of an interface's name, or of its description: a guest's name has 512 at most."""

_PACKET: Final = int(BlockType.PACKET)
_MAX_TIME: Final = (1 << 63) - 1
_HEAD_SIZE: Final = 8
"""Type and length."""
_PACKET_SIZE: Final = 20
"""Of a packet block's fixed part, behind type and length (section 4.3)."""
_DIRECTIONS: Final = (
    Direction.UNKNOWN,
    Direction.INBOUND,
    Direction.OUTBOUND,
    Direction.UNKNOWN,
)
"""By the two bits of epb_flags."""
_DEFAULT_RESOLUTION: Final = 6
_MAX_TAILS: Final = 1024

_UNKNOWN_LINK: Final = -1


class _Order(NamedTuple):
    """How the integers of a section are read."""

    name: str
    """As ``int.from_bytes`` has it."""
    head: struct.Struct
    length: struct.Struct
    packet: struct.Struct
    option: struct.Struct
    simple: struct.Struct
    """Two 16-bit integers."""


def _order(mark: str, name: str) -> _Order:
    option = OPTION.format.replace("<", mark)
    formats = ("II", "I", "IIIII", option[1:], "HH")
    return _Order(name, *(struct.Struct(mark + text) for text in formats))


_ORDERS: Final = (_order("<", "little"), _order(">", "big"))


class _Clock(NamedTuple):
    """What a packet's time means, by its interface (section 4.2)."""

    interface: Interface
    resolution: int
    """if_tsresol: its top bit says whether it is a power of 2."""
    offset_ns: int

    is_plain: bool
    """It counts nanoseconds since the epoch."""

    def nanoseconds(self, ticks: int) -> int:
        """The time of a packet."""
        exponent = self.resolution & 0x7F
        if self.resolution & 0x80:
            time = ticks * 1_000_000_000 >> exponent
        else:
            time = ticks * 1_000_000_000 // int(10**exponent)
        return min(max(0, time + self.offset_ns), _MAX_TIME)


class _Wrong(Exception):
    """A block that cannot be understood; the next one may."""


class Reader:
    """Turns bytes of a file into packets.

    Memory is bounded by the largest block, ``MAX_INTERFACES`` and ``MAX_NAME``.

    Args:
        problems: takes what is wrong within a block.
    """

    def __init__(self, problems: Problems | None = None) -> None:
        self.offset = 0
        """Bytes of whole blocks that were read."""
        self.dropped = 0
        """Packets that whoever wrote the file says are not in it."""
        self.problems = Problems() if problems is None else problems
        self._parts: list[bytes] = []
        """Of a block that is not whole yet,"""
        self._have = 0
        """so many bytes there are,"""
        self._need = MIN_BLOCK
        """and so many there must be before it makes sense to look again."""
        self._order: _Order | None = None
        self._clocks: list[_Clock] = []
        self._tails: dict[bytes, tuple[Direction, str]] = {}
        """What the options of packets say: most have the same."""

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Take more of the file; gives the packets that are whole.

        Raises:
            CaptureDamage: the file is damaged; ``offset`` says where. Packets before it have
                been given.
        """
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        start, end = 0, len(data)
        self._need = MIN_BLOCK
        try:
            while end - start >= MIN_BLOCK:
                kind, size = self._head(data, start)
                after = start + size
                if after > end:
                    self._need = size
                    break
                order = self._order
                assert order is not None
                if order.length.unpack_from(data, after - 4)[0] != size:
                    raise self._damaged("a block whose two lengths differ")
                packet = None
                try:
                    if kind == _PACKET:
                        packet = self._packet(order, data, start, size)
                    else:
                        self._other(order, kind, data[start : after - 4])
                except _Wrong as error:
                    self.problems.add(self.offset, str(error))
                start = after
                self.offset += size
                if packet is not None:
                    yield packet
        finally:
            self._parts = [data[start:]]
            self._have = end - start

    def end(self) -> None:
        """The file has ended.

        Raises:
            CaptureDamage: in the middle of a block, or before the first one.
        """
        if self._have:
            raise self._damaged(f"the file ends {self._have} bytes into a block")
        if self._order is None:
            raise self._damaged("the file is empty")

    def _damaged(self, why: str) -> CaptureDamage:
        return CaptureDamage(f"at byte {self.offset}: {why}")

    def _head(self, data: bytes, start: int) -> tuple[int, int]:
        """A block's type and length; a section header's say in which order they are."""
        if data.startswith(_SECTION, start):
            magic = data[start + 8 : start + 12]
            for order in _ORDERS:
                if magic == MAGIC.to_bytes(4, order.name):  # type: ignore[arg-type]
                    self._order = order
                    break
            else:
                raise self._damaged(f"magic number {magic.hex()}, expected that of pcapng")
        elif self._order is None:
            raise self._damaged(
                f"{data[start : start + 4].hex()} is not the beginning of a pcapng file"
            )
        kind, size = self._order.head.unpack_from(data, start)
        if not MIN_BLOCK <= size <= MAX_BLOCK or size % 4:
            raise self._damaged(
                f"a block of {size} bytes, expected {MIN_BLOCK} to {MAX_BLOCK} in fours"
            )
        return kind, size

    def _other(self, order: _Order, kind: int, block: bytes) -> None:
        """Any block that is no packet, without its last length."""
        try:
            if kind == BlockType.SECTION:
                self._section(order, block)
            elif kind == BlockType.INTERFACE:
                self._interface(order, block)
            elif kind == BlockType.STATISTICS:
                options = _options(order, block, _HEAD_SIZE + 12)
                count = options.get(Option.STATISTICS_DROPPED, b"")
                self.dropped += _number(order, count)
            elif kind in (BlockType.SIMPLE_PACKET, BlockType.OLD_PACKET):
                raise _Wrong(
                    f"a packet in a block of type {kind}, which no capture has: it says neither "
                    "when nor whose; expected type 6"
                )
        except struct.error:
            raise _Wrong(f"a block of type {kind} and only {len(block) + 4} bytes") from None

    def _section(self, order: _Order, block: bytes) -> None:
        # Whatever its version: interfaces of the section before are not this one's.
        self._clocks = []
        major, _ = order.simple.unpack_from(block, _HEAD_SIZE + 4)
        if major != 1:
            raise self._damaged(f"pcapng version {major}, expected 1")

    def _interface(self, order: _Order, block: bytes) -> None:
        if len(self._clocks) >= MAX_INTERFACES:
            raise self._damaged(f"more than {MAX_INTERFACES} interfaces")
        # Those after it must have their numbers, whatever is wrong with this one.
        self._clocks.append(_Clock(Interface(_UNKNOWN_LINK, ""), _DEFAULT_RESOLUTION, 0, False))
        link_type, _ = order.simple.unpack_from(block, _HEAD_SIZE)
        options = _options(order, block, _HEAD_SIZE + 8)
        names = [
            options.get(code, b"") for code in (Option.INTERFACE_NAME, Option.INTERFACE_DESCRIPTION)
        ]
        size = max(map(len, names))
        if size > MAX_NAME:
            raise _Wrong(f"an interface whose name has {size} bytes, at most {MAX_NAME}")
        name, description = (one.decode(errors="replace") for one in names)
        (resolution, *_) = options.get(Option.INTERFACE_RESOLUTION) or (_DEFAULT_RESOLUTION,)
        seconds = _number(order, options.get(Option.INTERFACE_OFFSET, b""), signed=True)
        self._clocks[-1] = _Clock(
            Interface(link_type, name, description),
            resolution,
            seconds * 1_000_000_000,
            resolution == NANOSECONDS and not seconds,
        )

    def _packet(self, order: _Order, data: bytes, start: int, size: int) -> Packet:
        if size < MIN_BLOCK + _PACKET_SIZE:
            raise _Wrong(f"a packet block of {size} bytes")
        number, high, low, held, whole = order.packet.unpack_from(data, start + _HEAD_SIZE)
        if number >= len(self._clocks):
            raise _Wrong(f"a packet of interface {number}, and there are {len(self._clocks)}")
        begin = start + _HEAD_SIZE + _PACKET_SIZE
        after = begin + held
        end = start + size - 4
        if after > end:
            raise _Wrong(f"a packet of {held} bytes in a block of {size}")
        tail = data[after + -held % 4 : end]
        found = self._tails.get(tail)
        if found is None:
            found = self._tail(order, tail)
        clock = self._clocks[number]
        time = high << 32 | low
        if not clock.is_plain or time > _MAX_TIME:
            time = clock.nanoseconds(time)
        return tuple.__new__(
            Packet,
            (
                clock.interface,
                time,
                data[begin:after],
                found[0],
                found[1],
                self.offset,
                whole - held if whole > held else 0,
            ),
        )

    def _tail(self, order: _Order, tail: bytes) -> tuple[Direction, str]:
        """What a packet's options say."""
        options = _options(order, tail, 0)
        flags = _number(order, options.get(Option.PACKET_FLAGS, b""))
        comment = options.get(Option.COMMENT, b"").decode(errors="replace")
        found = _DIRECTIONS[flags % len(_DIRECTIONS)], comment
        if len(self._tails) >= _MAX_TAILS:
            self._tails.clear()
        if len(tail) <= 256:
            self._tails[tail] = found
        return found


_SECTION: Final = BlockType.SECTION.to_bytes(4, "little")
"""The same in both byte orders."""


def _number(order: _Order, value: bytes, *, signed: bool = False) -> int:
    return int.from_bytes(value, order.name, signed=signed)  # type: ignore[arg-type]


def _options(order: _Order, block: bytes, at: int) -> dict[int, bytes]:
    """A block's options by code; of several with one code the first."""
    end = len(block)
    found: dict[int, bytes] = {}
    while at + OPTION.size <= end:
        code, size = order.option.unpack_from(block, at)
        at += OPTION.size
        if code == Option.END:
            break
        if at + size > end:
            raise _Wrong(f"an option of {size} bytes goes beyond its block")
        found.setdefault(code, block[at : at + size])
        at += size + -size % 4
    return found
