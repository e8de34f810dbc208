# SPDX-License-Identifier: Apache-2.0
"""The container of a capture: pcapng blocks, written and read without I/O.

Only what a capture needs is written: a section header, interfaces, enhanced packets and
interface statistics. What other tools write is read too: both byte orders, several
sections, coarser time stamps, and blocks that we do not know, which are passed over.

A file that is damaged or cut off is read up to the damage, and says where that is.

Source: "PCAP Now Generic (pcapng) Capture File Format", draft-ietf-opsawg-pcapng, by
section below.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Iterator
from typing import Final

from hcallproto.errors import CaptureDamage

MAX_BLOCK: Final = 32 << 20
"""Bytes of the largest block that is read: the largest frame and much to spare."""

_MAGIC: Final = 0x1A2B3C4D
_NO_LENGTH: Final = (1 << 64) - 1
_HEAD: Final = struct.Struct("<II")
_HEAD_SIZE: Final = _HEAD.size
_MIN_BLOCK: Final = 12
"""Type, length, and length again (section 3.1)."""


class BlockType(enum.IntEnum):
    """Kinds of blocks (section 11.1)."""

    SECTION = 0x0A0D0D0A
    INTERFACE = 1
    STATISTICS = 5
    PACKET = 6


class LinkType(enum.IntEnum):
    """What an interface's packets are: of the numbers that are free for private use."""

    FRAMES = 147
    """LINKTYPE_USER0: frames of docs/wire.rst."""
    RECORDS = 148
    """LINKTYPE_USER1: records of docs/capture.md, one JSON object each."""


class Direction(enum.IntEnum):
    """Which way a packet went, seen from the daemon (section 4.3.1, bits 0 and 1)."""

    UNKNOWN = 0
    INBOUND = 1
    """From the guest."""
    OUTBOUND = 2
    """To the guest."""


class _Option(enum.IntEnum):
    """Options; a code's meaning depends on the block that it is in (sections 3.5 and 4)."""

    END = 0
    COMMENT = 1
    SECTION_APPLICATION = 4
    INTERFACE_NAME = 2
    INTERFACE_DESCRIPTION = 3
    INTERFACE_RESOLUTION = 9
    PACKET_FLAGS = 2
    STATISTICS_RECEIVED = 4
    STATISTICS_DROPPED = 5


_OPTION: Final = struct.Struct("<HH")
_DIRECTION_MASK: Final = 3
_NANOSECONDS: Final = 9
"""if_tsresol: 10 to the power of -9 seconds (section 4.2)."""
_DEFAULT_RESOLUTION: Final = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Interface:
    """One connection's frames, or records about it."""

    link_type: int
    name: str
    """The guest's."""
    description: str = ""
    """Tells a guest's connections apart."""


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    """One packet, as it is read."""

    interface: Interface
    time_ns: int
    """Since the epoch."""
    data: bytes
    direction: Direction = Direction.UNKNOWN
    comment: str = ""
    offset: int = 0
    """Of its block's first byte in the file."""


# -- writing ----------------------------------------------------------------------------


def section(application: str, comment: str = "") -> bytes:
    """A section header block: what a file begins with (section 4.1).

    Args:
        application: name and version of the program that writes.
        comment: for whoever opens the file.
    """
    body = struct.pack("<IHHQ", _MAGIC, 1, 0, _NO_LENGTH)
    options = _text(_Option.COMMENT, comment)
    options += _text(_Option.SECTION_APPLICATION, application)
    return _block(BlockType.SECTION, body, options)


def interface(link_type: LinkType, name: str, description: str = "") -> bytes:
    """An interface description block (section 4.2); the first one of a section is number 0."""
    body = struct.pack("<HHI", link_type, 0, 0)
    options = _text(_Option.INTERFACE_NAME, name)
    options += _text(_Option.INTERFACE_DESCRIPTION, description)
    options += _option(_Option.INTERFACE_RESOLUTION, bytes([_NANOSECONDS]))
    return _block(BlockType.INTERFACE, body, options)


def packet(
    number: int,
    time_ns: int,
    data: bytes,
    direction: Direction = Direction.UNKNOWN,
    comment: str = "",
) -> bytes:
    """An enhanced packet block (section 4.3).

    Args:
        number: of its interface in this section.
        time_ns: nanoseconds since the epoch.
        data: the packet.
        direction: which way it went.
        comment: what it cannot say itself, such as why a call was refused.
    """
    size = len(data)
    body = struct.pack("<IIIII", number, time_ns >> 32, time_ns & 0xFFFF_FFFF, size, size)
    options = _text(_Option.COMMENT, comment)
    if direction:
        options += _option(_Option.PACKET_FLAGS, direction.to_bytes(4, "little"))
    return _block(BlockType.PACKET, body + data + bytes(-size % 4), options)


def statistics(number: int, time_ns: int, received: int, dropped: int) -> bytes:
    """An interface statistics block (section 4.6): what ``capinfos`` sums up.

    Args:
        number: of the interface in this section.
        time_ns: nanoseconds since the epoch.
        received: packets that there were.
        dropped: packets of these that are not in the file.
    """
    body = struct.pack("<III", number, time_ns >> 32, time_ns & 0xFFFF_FFFF)
    options = _option(_Option.STATISTICS_RECEIVED, received.to_bytes(8, "little"))
    options += _option(_Option.STATISTICS_DROPPED, dropped.to_bytes(8, "little"))
    return _block(BlockType.STATISTICS, body, options)


def _block(kind: BlockType, body: bytes, options: bytes) -> bytes:
    if options:
        options += _OPTION.pack(_Option.END, 0)
    size = _MIN_BLOCK + len(body) + len(options)
    return b"".join((_HEAD.pack(kind, size), body, options, size.to_bytes(4, "little")))


def _option(code: _Option, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4)


def _text(code: _Option, text: str) -> bytes:
    if not text:
        return b""
    # An option's length has 16 bits.
    return _option(code, text.encode()[:0xFFFC].decode(errors="ignore").encode())


# -- reading ----------------------------------------------------------------------------


class Reader:
    """Turns bytes of a file, in pieces of any size, into packets.

    Memory is bounded by the largest block and by ``max_interfaces``.
    """

    def __init__(self, max_interfaces: int = 1 << 16) -> None:
        self.offset = 0
        """Bytes of whole blocks that were read."""
        self.dropped = 0
        """Packets that whoever wrote the file says are not in it."""
        self._max_interfaces = max_interfaces
        self._data = bytearray()
        self._order = ""
        self._interfaces: list[tuple[Interface, int]] = []
        """With the resolution of its times, as if_tsresol has it."""

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Take more of the file; gives the packets that are whole.

        Raises:
            CaptureDamage: the file is damaged; ``offset`` says where. Packets before it have
                been given.
        """
        self._data += data
        start = 0
        try:
            while (size := self._block_size(start)) and start + size <= len(self._data):
                block = bytes(memoryview(self._data)[start : start + size])
                found = self._take(block)
                start += size
                self.offset += size
                if found is not None:
                    yield found
        finally:
            del self._data[:start]

    def end(self) -> None:
        """The file has ended.

        Raises:
            CaptureDamage: in the middle of a block, or before the first one.
        """
        if self._data:
            raise self._damaged(f"the file ends {len(self._data)} bytes into a block")
        if not self._order:
            raise self._damaged("the file is empty")

    def _damaged(self, why: str) -> CaptureDamage:
        return CaptureDamage(f"at byte {self.offset}: {why}")

    def _block_size(self, start: int) -> int:
        """Bytes of the block at ``start``; 0 if that is not known yet."""
        if len(self._data) - start < _MIN_BLOCK:
            return 0
        head = bytes(memoryview(self._data)[start : start + _MIN_BLOCK])
        if head[:4] == _HEAD.pack(BlockType.SECTION, 0)[:4]:
            magic = head[8:]
            for order in "<>":
                if magic == struct.pack(f"{order}I", _MAGIC):
                    self._order = order
                    break
            else:
                raise self._damaged(f"magic number {magic.hex()}, expected that of pcapng")
        elif not self._order:
            raise self._damaged(f"{head[:4].hex()} is not the beginning of a pcapng file")
        (size,) = struct.unpack_from(f"{self._order}I", head, 4)
        if not _MIN_BLOCK <= size <= MAX_BLOCK or size % 4:
            raise self._damaged(
                f"a block of {size} bytes, expected {_MIN_BLOCK} to {MAX_BLOCK} in fours"
            )
        return int(size)

    def _take(self, block: bytes) -> Packet | None:
        order = self._order
        (kind,) = struct.unpack_from(f"{order}I", block)
        if block[-4:] != block[4:8]:
            raise self._damaged("a block whose two lengths differ")
        try:
            if kind == BlockType.PACKET:
                return self._packet(block)
            if kind == BlockType.SECTION:
                self._section(block)
            elif kind == BlockType.INTERFACE:
                self._interface(block)
            elif kind == BlockType.STATISTICS:
                options = self._options(block, _HEAD_SIZE + 12)
                count = options.get(_Option.STATISTICS_DROPPED, b"")
                self.dropped += int.from_bytes(count, "little" if order == "<" else "big")
        except struct.error:
            raise self._damaged(f"a block of type {kind} and only {len(block)} bytes") from None
        return None

    def _section(self, block: bytes) -> None:
        major, _ = struct.unpack_from(f"{self._order}HH", block, _HEAD_SIZE + 4)
        if major != 1:
            raise self._damaged(f"pcapng version {major}, expected 1")
        self._interfaces = []

    def _interface(self, block: bytes) -> None:
        if len(self._interfaces) >= self._max_interfaces:
            raise self._damaged(f"more than {self._max_interfaces} interfaces")
        (link_type,) = struct.unpack_from(f"{self._order}H", block, _HEAD_SIZE)
        options = self._options(block, _HEAD_SIZE + 8)
        name = options.get(_Option.INTERFACE_NAME, b"").decode(errors="replace")
        description = options.get(_Option.INTERFACE_DESCRIPTION, b"").decode(errors="replace")
        resolution = options.get(_Option.INTERFACE_RESOLUTION, b"") or bytes([_DEFAULT_RESOLUTION])
        self._interfaces.append((Interface(link_type, name, description), resolution[0]))

    def _packet(self, block: bytes) -> Packet:
        number, high, low, size, _ = struct.unpack_from(f"{self._order}IIIII", block, _HEAD_SIZE)
        if number >= len(self._interfaces):
            raise self._damaged(
                f"a packet of interface {number}, and there are {len(self._interfaces)}"
            )
        found, resolution = self._interfaces[number]
        start = _HEAD_SIZE + 20
        if start + size > len(block) - 4:
            raise self._damaged(f"a packet of {size} bytes in a block of {len(block)}")
        end = start + size
        options = self._options(block, end + -size % 4)
        flags = options.get(_Option.PACKET_FLAGS, bytes(4))
        direction = int.from_bytes(flags, "little" if self._order == "<" else "big")
        direction &= _DIRECTION_MASK
        return Packet(
            found,
            _nanoseconds(high << 32 | low, resolution),
            block[start:end],
            Direction(direction) if direction < _DIRECTION_MASK else Direction.UNKNOWN,
            options.get(_Option.COMMENT, b"").decode(errors="replace"),
            self.offset,
        )

    def _options(self, block: bytes, at: int) -> dict[int, bytes]:
        """A block's options by code; of several with one code the first."""
        end = len(block) - 4
        found: dict[int, bytes] = {}
        while at + _OPTION.size <= end:
            code, size = struct.unpack_from(f"{self._order}HH", block, at)
            at += _OPTION.size
            if code == _Option.END:
                break
            if at + size > end:
                raise self._damaged(f"an option of {size} bytes goes beyond its block")
            found.setdefault(code, block[at : at + size])
            at += size + -size % 4
        return found


def _nanoseconds(ticks: int, resolution: int) -> int:
    """Time in nanoseconds, by if_tsresol: its top bit says whether it is a power of 2."""
    exponent = resolution & 0x7F
    if resolution & 0x80:
        return ticks * 1_000_000_000 >> exponent
    return ticks * 1_000_000_000 // int(10**exponent)
