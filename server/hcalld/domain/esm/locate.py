# SPDX-License-Identifier: Apache-2.0
"""Where a guest's blob is: where a boot wrapper says, or in a cpio archive before its initrd.

Source: open-power/ultravisor, ``svm/svm-esm.c`` (svm_esm_wrapper_esmb, svm_esm_cpio_esmb).
The archive and the blob are read once, and copied: the blob may be at any multiple of four,
and its memory is the guest's.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from hcalld.core.effects import GuestMemoryError
from hcalld.domain.esm.blob import MAX_SIZE
from hcalld.domain.esm.boot_tree import BootTree, Range, Read
from hcalld.domain.esm.errors import EsmError, NoBlobError
from hcallproto.payloads import cpio, fdt

PREFIX: Final = b"opt/ibm/pef"
"""How the name of the archive's first file with content begins."""
MAX_ENTRIES: Final = 64
MAX_ARCHIVE: Final = 4 * MAX_SIZE
CHUNK_SIZE: Final = 65536
"""Bytes asked for at once: a frame always has room for as many."""

_MAGIC: Final = fdt.cell(fdt.MAGIC)


@dataclasses.dataclass(frozen=True, slots=True)
class Located:
    """A blob, and what of the initrd is measured."""

    blob: bytes = dataclasses.field(repr=False)
    place: Range
    """Where it is, or the whole archive."""
    initrd: Range
    """What the initrd's digest is of."""


async def locate(read: Read, boot: BootTree) -> Located:
    """Find the blob of a guest.

    Raises:
        NoBlobError: there is none.
        EsmError: something on the way to it is malformed, or not guest memory.
    """
    try:
        if boot.blob is None:
            return await _in_archive(read, boot.initrd)
        try:
            return Located(await _blob_at(read, boot.blob), boot.blob, boot.initrd)
        except (EsmError, GuestMemoryError):
            if boot.swapped_blob is None:
                raise
            found = await _blob_if_there(read, boot.swapped_blob)
            if found is None:
                raise
            return Located(found, boot.swapped_blob, boot.initrd)
    except GuestMemoryError as error:
        raise EsmError(f"ESM blob: {error}") from None


async def _blob_at(read: Read, place: Range) -> bytes:
    """The blob at the begin of a range, as long as it says it is."""
    if place.size < fdt.HEADER_SIZE:
        raise NoBlobError(f"ESM blob: {place.size} bytes at 0x{place.start:x} are none")
    try:
        head = fdt.parse_head(await read(place.start, fdt.HEADER_SIZE), MAX_SIZE)
    except fdt.FdtError as error:
        raise EsmError(f"ESM blob at 0x{place.start:x}: {error}") from None
    if head.total_size > place.size:
        raise EsmError(
            f"ESM blob at 0x{place.start:x}: it claims {head.total_size} bytes, but has "
            f"{place.size}"
        )
    return await read_all(read, Range(place.start, head.total_size))


async def _blob_if_there(read: Read, place: Range) -> bytes | None:
    try:
        return await _blob_at(read, place)
    except (EsmError, GuestMemoryError):
        return None


async def _in_archive(read: Read, initrd: Range) -> Located:
    start = cpio.aligned(initrd.start, cpio.ALIGNMENT)
    position = start
    blob: bytes | None = None
    for _ in range(MAX_ENTRIES):
        where = f"archive in the initrd, entry at 0x{position:x}"
        if position + cpio.HEAD_SIZE > initrd.end:
            raise NoBlobError(f"{where}: the initrd ends before the archive does")
        try:
            head = cpio.parse_head(await read(position, cpio.HEAD_SIZE))
            end = position + head.end_offset
            if end > initrd.end:
                raise EsmError(f"{where}: it goes beyond the initrd's end")
            if end - start > MAX_ARCHIVE:
                raise EsmError(f"{where}: the archive is larger than {MAX_ARCHIVE}")
            name = cpio.parse_name(await read(position + cpio.HEAD_SIZE, head.name_size))
        except cpio.CpioError as error:
            raise NoBlobError(f"{where}: {error}") from None
        if name == cpio.TRAILER:
            break
        if head.file_size and blob is None:
            if not name.startswith(PREFIX):
                raise NoBlobError(
                    f"{where}: the first file is {name[:64]!r}, expected a name that begins "
                    f"with {PREFIX.decode()}"
                )
            blob = await _in_file(read, Range(position + head.data_offset, head.file_size))
        position = end
    else:
        raise EsmError(f"archive in the initrd: more than {MAX_ENTRIES} entries")
    if blob is None:
        raise NoBlobError("archive in the initrd: no file in it has an ESM blob")
    # As cpio(1) fills it up, counted from where it begins.
    end = start + cpio.aligned(end - start, cpio.ARCHIVE_ALIGNMENT)
    if end > initrd.end:
        raise EsmError("archive in the initrd: it is not filled up to a multiple of 512")
    return Located(blob, Range(start, end - start), Range(end, initrd.end - end))


async def _in_file(read: Read, file: Range) -> bytes | None:
    """The blob in a file of the archive: it begins at a tree's magic, wherever that is."""
    position = file.start
    while position < file.end:
        size = min(CHUNK_SIZE, file.end - position)
        offset = _find_aligned(await read(position, size))
        if offset is not None:
            start = position + offset
            return await _blob_at(read, Range(start, file.end - start))
        position += size
    return None


def _find_aligned(data: bytes) -> int | None:
    offset = data.find(_MAGIC)
    while offset >= 0 and offset % cpio.ALIGNMENT:
        offset = data.find(_MAGIC, offset + 1)
    return offset if offset >= 0 else None


async def read_all(read: Read, place: Range) -> bytes:
    """All bytes of a range, whose size was checked."""
    return b"".join(
        [
            await read(position, min(CHUNK_SIZE, place.end - position))
            for position in range(place.start, place.end, CHUNK_SIZE)
        ]
    )
