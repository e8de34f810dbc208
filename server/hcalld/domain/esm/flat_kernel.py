# SPDX-License-Identifier: Apache-2.0
"""The bytes of a kernel as they lie in memory: what ``objcopy -O binary -S vmlinux`` gives.

That is what a blob's kernel digest is of (open-power/svm-tools,
``svm_tool/esm_digest/esm_digest.py``). Sections that have content and are loaded, each at
its physical address, from the lowest one on, zeros between them, no .bss behind them.
Source of a section's physical address: BFD.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hcalld.core import elf
from hcalld.domain.esm.errors import EsmError

MAX_SIZE: Final = 0x4000_0000
"""Greatest image, to have a limit; a blob has 32 bits for its size."""


def flat_kernel(vmlinux: bytes) -> bytes:
    """The flat image of a vmlinux.

    Raises:
        EsmError: it is no ELF file for 64-bit PowerPC, or malformed.
    """
    parts = list(_parts(vmlinux))
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


def _parts(image: bytes) -> Iterator[tuple[int, memoryview]]:
    """What is loaded: physical address and content."""
    try:
        header = elf.header_of(image)
        if header.machine != elf.EM_PPC64:
            raise EsmError(
                f"kernel: made for machine {header.machine}, expected {elf.EM_PPC64}, 64-bit "
                "PowerPC"
            )
        segments = elf.segments_of(image, header)
        sections = list(elf.sections_of(image, header))
    except elf.ElfError as error:
        raise EsmError(f"kernel: {error}; expected an uncompressed vmlinux") from None
    view = memoryview(image)
    for section in sections:
        if not section.flags & elf.SHF_ALLOC or section.kind == elf.SHT_NOBITS or not section.size:
            continue
        if section.offset + section.size > len(image):
            raise EsmError(f"kernel: a section at 0x{section.offset:x} goes beyond the file's end")
        yield _load_address(section, segments), view[section.offset :][: section.size]


def _load_address(section: elf.Section, segments: list[elf.Segment]) -> int:
    """Where a section is loaded: as far into its segment in memory as in the file."""
    for segment in segments:
        start = segment.offset
        if start <= section.offset and section.offset + section.size <= start + segment.file_size:
            return segment.paddr + section.offset - start
    return section.address
