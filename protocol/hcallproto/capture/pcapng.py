# SPDX-License-Identifier: Apache-2.0
"""The container of a capture: pcapng blocks, written without I/O; ``blocks`` reads them.

Only what a capture needs is written: a section header, interfaces, enhanced packets and
interface statistics.

Source: "PCAP Now Generic (pcapng) Capture File Format", draft-ietf-opsawg-pcapng, by
section below.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

MAGIC: Final = 0x1A2B3C4D
_NO_LENGTH: Final = (1 << 64) - 1
_HEAD: Final = struct.Struct("<II")
MIN_BLOCK: Final = 12
"""Type, length, and length again (section 3.1)."""


class BlockType(enum.IntEnum):
    """Kinds of blocks (section 11.1)."""

    SECTION = 0x0A0D0D0A
    INTERFACE = 1
    OLD_PACKET = 2
    SIMPLE_PACKET = 3
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


class Option(enum.IntEnum):
    """Options; a code's meaning depends on the block that it is in (sections 3.5 and 4)."""

    END = 0
    COMMENT = 1
    SECTION_APPLICATION = 4
    INTERFACE_NAME = 2
    INTERFACE_DESCRIPTION = 3
    INTERFACE_RESOLUTION = 9
    INTERFACE_OFFSET = 14
    PACKET_FLAGS = 2
    STATISTICS_RECEIVED = 4
    STATISTICS_DROPPED = 5


OPTION: Final = struct.Struct("<HH")
"""Code and size of an option."""
NANOSECONDS: Final = 9
"""if_tsresol: 10 to the power of -9 seconds (section 4.2)."""


class Interface(NamedTuple):
    """One connection's frames, or records about it."""

    link_type: int
    name: str
    """The guest's."""
    description: str = ""
    """Tells a guest's connections apart."""


class Packet(NamedTuple):
    """One packet, as it is read."""

    interface: Interface
    time_ns: int
    """Since the epoch; from 0 to 2^63-1, whatever the file says."""
    data: bytes
    direction: Direction = Direction.UNKNOWN
    comment: str = ""
    offset: int = 0
    """Of its block's first byte in the file."""
    missing: int = 0
    """Bytes at its end that whoever wrote the file left out."""


# -- writing ----------------------------------------------------------------------------


def section(application: str, comment: str = "") -> bytes:
    """A section header block: what a file begins with (section 4.1).

    Args:
        application: name and version of the program that writes.
        comment: for whoever opens the file.
    """
    body = struct.pack("<IHHQ", MAGIC, 1, 0, _NO_LENGTH)
    options = _text(Option.COMMENT, comment)
    options += _text(Option.SECTION_APPLICATION, application)
    return _block(BlockType.SECTION, body, options)


def interface(link_type: LinkType, name: str, description: str = "") -> bytes:
    """An interface description block (section 4.2); the first one of a section is number 0."""
    body = struct.pack("<HHI", link_type, 0, 0)
    options = _text(Option.INTERFACE_NAME, name)
    options += _text(Option.INTERFACE_DESCRIPTION, description)
    options += _option(Option.INTERFACE_RESOLUTION, bytes([NANOSECONDS]))
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
    options = _FLAGS[direction]
    if comment:
        options = _text(Option.COMMENT, comment) + (options or _END)
    pad = -size & 3
    total = _PACKET.size + size + pad + len(options) + 4
    # In one piece, for a capture has two of them for each call.
    return b"".join(
        (
            _PACKET.pack(
                _PACKET_TYPE, total, number, time_ns >> 32, time_ns & 0xFFFF_FFFF, size, size
            ),
            data,
            _PADS[pad],
            options,
            total.to_bytes(4, "little"),
        )
    )


def statistics(number: int, time_ns: int, received: int, dropped: int) -> bytes:
    """An interface statistics block (section 4.6): what ``capinfos`` sums up.

    Args:
        number: of the interface in this section.
        time_ns: nanoseconds since the epoch.
        received: packets that there were.
        dropped: packets of these that are not in the file.
    """
    body = struct.pack("<III", number, time_ns >> 32, time_ns & 0xFFFF_FFFF)
    options = _option(Option.STATISTICS_RECEIVED, received.to_bytes(8, "little"))
    options += _option(Option.STATISTICS_DROPPED, dropped.to_bytes(8, "little"))
    return _block(BlockType.STATISTICS, body, options)


def _block(kind: BlockType, body: bytes, options: bytes) -> bytes:
    if options:
        options += OPTION.pack(Option.END, 0)
    size = MIN_BLOCK + len(body) + len(options)
    return b"".join((_HEAD.pack(kind, size), body, options, size.to_bytes(4, "little")))


def _option(code: Option, value: bytes) -> bytes:
    return OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4)


def _text(code: Option, text: str) -> bytes:
    if not text:
        return b""
    # An option's length has 16 bits.
    return _option(code, text.encode()[:0xFFFC].decode(errors="ignore").encode())


_PACKET: Final = struct.Struct("<IIIIIII")
"""All of an enhanced packet block that is before its data."""
_PACKET_TYPE: Final = int(BlockType.PACKET)
_PADS: Final = tuple(bytes(size) for size in range(4))
_END: Final = OPTION.pack(Option.END, 0)
_FLAGS: Final = {
    direction: _option(Option.PACKET_FLAGS, direction.to_bytes(4, "little")) + _END
    if direction
    else b""
    for direction in Direction
}
"""The options of a packet without a comment."""
