# SPDX-License-Identifier: Apache-2.0
"""Reads what an ELF file for 64 bits says of itself: its header, segments, sections.

Source of the format: ELF-64 Object File Format 1.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    Data = bytes | mmap.mmap

MAGIC: Final = b"\x7fELF"
EM_PPC: Final = 20
EM_PPC64: Final = 21
ET_EXEC: Final = 2
ET_DYN: Final = 3
PT_LOAD: Final = 1
SHT_NOBITS: Final = 8
SHF_ALLOC: Final = 2

HEADER_SIZE: Final = 64
ORDERS: Final = {1: "<", 2: ">"}
"""Of the identification's byte EI_DATA: least significant byte first, or last."""

_IDENT: Final = struct.Struct("4sBBB")
_ELF64: Final = 2
_HEADER: Final = "16xHHIQQQIHHHHHH"
_PROGRAM: Final = "IIQQQQQQ"
_SECTION: Final = "IIQQQQIIQQ"


_Row = TypeVar("_Row")


class ElfError(ValueError):
    """It is no such file, or malformed."""


class Segment(NamedTuple):
    """A row of the program header table."""

    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int
    align: int


class Section(NamedTuple):
    """A row of the section header table."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


class Header(NamedTuple):
    """The header of a file, as far as it says what the file is and where its tables are."""

    order: str
    """As ``struct`` has it."""
    kind: int
    machine: int
    segments: tuple[int, int, int]
    """Where the table begins, the size of a row, and how many there are."""
    sections: tuple[int, int, int]


def header_of(data: Data) -> Header:
    """Reads the header.

    Raises:
        ElfError: It is none, or one for 32 bits.
    """
    if len(data) < HEADER_SIZE or data[:4] != MAGIC:
        raise ElfError("not an ELF file")
    _, bits, order, _ = _IDENT.unpack_from(data)
    if bits != _ELF64 or order not in ORDERS:
        raise ElfError("not a 64-bit ELF file")
    fields = struct.unpack_from(ORDERS[order] + _HEADER, data)
    return Header(
        ORDERS[order],
        kind=fields[0],
        machine=fields[1],
        segments=(fields[4], fields[8], fields[9]),
        sections=(fields[5], fields[10], fields[11]),
    )


def segments_of(data: Data, header: Header) -> list[Segment]:
    """Reads the segments that are loaded.

    Raises:
        ElfError: The table is not whole.
    """
    rows = _table(data, header.order + _PROGRAM, header.segments, Segment._make)
    return [segment for segment in rows if segment.kind == PT_LOAD]


def sections_of(data: Data, header: Header) -> Iterator[Section]:
    """Reads the sections.

    Raises:
        ElfError: The table is not whole.
    """
    return _table(data, header.order + _SECTION, header.sections, Section._make)


def without_sections(data: Data, header: Header) -> bytes:
    """Gives a program without what is not loaded, such as what a debugger reads.

    Raises:
        ElfError: A segment goes beyond the file's end.
    """
    place, size, count = header.segments
    end = max(HEADER_SIZE, place + size * count)
    for segment in segments_of(data, header):
        end = max(end, segment.offset + segment.file_size)
    if end > len(data):
        raise ElfError("a segment goes beyond the file's end")
    left = bytearray(data[:end])
    struct.pack_into(header.order + "Q", left, 40, 0)
    # How large a row of their table is, how many there are, and which has the names.
    struct.pack_into(header.order + "HHH", left, 58, 0, 0, 0)
    return bytes(left)


def _table(
    data: Data, layout: str, place: tuple[int, int, int], make: Callable[..., _Row]
) -> Iterator[_Row]:
    offset, size, count = place
    if count and (size != struct.calcsize(layout) or offset + size * count > len(data)):
        raise ElfError("its ELF headers are malformed")
    for index in range(count):
        yield make(struct.unpack_from(layout, data, offset + index * size))
