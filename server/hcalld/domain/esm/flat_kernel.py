# SPDX-License-Identifier: Apache-2.0
"""The bytes of a kernel as they lie in memory: what ``objcopy -O binary -S vmlinux`` gives.

That is what a blob's kernel digest is of (open-power/svm-tools,
``svm_tool/esm_digest/esm_digest.py``). Sections that have content and are loaded, each at
its physical address, from the lowest one on, zeros between them, no .bss behind them.
Source of the format: ELF-64 Object File Format 1.5; BFD for a section's physical address.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from hcalld.domain.esm.errors import EsmError

MAX_SIZE: Final = 0x4000_0000
"""Greatest image, to have a limit; a blob has 32 bits for its size."""

_IDENT: Final = struct.Struct("4sBBB")
_ELF64: Final = 2
_ORDERS: Final = {1: "<", 2: ">"}
_EM_PPC64: Final = 21
_HEADER: Final = "16xHHIQQQIHHHHHH"
_PROGRAM: Final = "IIQQQQQQ"
_SECTION: Final = "IIQQQQIIQQ"
_PT_LOAD: Final = 1
_SHT_NOBITS: Final = 8
_SHF_ALLOC: Final = 2


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int
    align: int


class _Section(NamedTuple):
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


def flat_kernel(elf: bytes) -> bytes:
    """The flat image of a vmlinux.

    Raises:
        EsmError: it is no ELF file for 64-bit PowerPC, or malformed.
    """
    parts = list(_parts(elf))
    if not parts:
        raise EsmError("kernel: nothing in it is loaded")
    low = min(address for address, _ in parts)
    size = max(address + len(data) for address, data in parts) - low
    if size > MAX_SIZE:
        raise EsmError(f"kernel: its image would have {size} bytes, at most {MAX_SIZE}")
    image = bytearray(size)
    for address, data in parts:
        image[address - low : address - low + len(data)] = data
    return bytes(image)


def _parts(elf: bytes) -> Iterator[tuple[int, memoryview]]:
    """What is loaded: physical address and content."""
    if len(elf) < 64 or elf[:4] != b"\x7fELF":
        raise EsmError("kernel: not an ELF file; expected an uncompressed vmlinux")
    _, bits, order, _ = _IDENT.unpack_from(elf)
    if bits != _ELF64 or order not in _ORDERS:
        raise EsmError("kernel: not a 64-bit ELF file")
    endian = _ORDERS[order]
    header = struct.unpack_from(endian + _HEADER, elf)
    machine, program_offset, section_offset = header[1], header[4], header[5]
    program_size, program_count, section_size, section_count = header[8:12]
    if machine != _EM_PPC64:
        raise EsmError(f"kernel: made for machine {machine}, expected {_EM_PPC64}, 64-bit PowerPC")
    segments = [
        segment
        for segment in map(
            _Segment._make,
            _table(elf, endian + _PROGRAM, program_offset, program_size, program_count),
        )
        if segment.kind == _PT_LOAD
    ]
    view = memoryview(elf)
    rows = _table(elf, endian + _SECTION, section_offset, section_size, section_count)
    for section in map(_Section._make, rows):
        if not section.flags & _SHF_ALLOC or section.kind == _SHT_NOBITS or not section.size:
            continue
        if section.offset + section.size > len(elf):
            raise EsmError(f"kernel: a section at 0x{section.offset:x} goes beyond the file's end")
        yield _load_address(section, segments), view[section.offset :][: section.size]


def _table(
    elf: bytes, layout: str, offset: int, size: int, count: int
) -> Iterator[tuple[int, ...]]:
    expected = struct.calcsize(layout)
    if count and (size != expected or offset + size * count > len(elf)):
        raise EsmError("kernel: its ELF headers are malformed")
    for index in range(count):
        yield struct.unpack_from(layout, elf, offset + index * size)


def _load_address(section: _Section, segments: list[_Segment]) -> int:
    """Where a section is loaded: as far into its segment in memory as in the file."""
    for segment in segments:
        start = segment.offset
        if start <= section.offset and section.offset + section.size <= start + segment.file_size:
            return segment.paddr + section.offset - start
    return section.address
