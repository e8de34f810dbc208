# SPDX-License-Identifier: Apache-2.0
"""The table at the end of OVMF images, which says where QEMU puts what SEV needs.

Source: edk2 ``OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm``, QEMU 10.0
``hw/i386/pc_sysfw_ovmf.c``. It is read backwards: each entry ends with its length and GUID.
"""

from __future__ import annotations

import dataclasses
import struct
import uuid
from typing import Final, NamedTuple

from hcallproto.payloads.sev.errors import SevFormatError

FOOTER_GUID: Final = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
HASHES_AREA_GUID: Final = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SECRET_AREA_GUID: Final = uuid.UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
RESET_BLOCK_GUID: Final = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")

_AFTER_FOOTER: Final = 32
"""Bytes of the reset vector, which stands behind the table."""
_TAIL_SIZE: Final = 18
_LENGTH = struct.Struct("<H")
_AREA = struct.Struct("<II")
_ADDRESS = struct.Struct("<I")


class Area(NamedTuple):
    """A range of guest memory."""

    base: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Footer:
    """A firmware image's entries, data by GUID."""

    entries: dict[uuid.UUID, bytes]

    @property
    def hashes_area(self) -> Area | None:
        """Where the hashes table goes; None if the firmware takes none."""
        return self._area(HASHES_AREA_GUID)

    @property
    def secret_area(self) -> Area | None:
        """Where secrets go unless told otherwise; None if the firmware names no place."""
        return self._area(SECRET_AREA_GUID)

    @property
    def reset_address(self) -> int | None:
        """Where SEV-ES starts the other processors."""
        data = self.entries.get(RESET_BLOCK_GUID, b"")
        return _ADDRESS.unpack_from(data)[0] if len(data) >= _ADDRESS.size else None

    def _area(self, guid: uuid.UUID) -> Area | None:
        data = self.entries.get(guid, b"")
        if len(data) < _AREA.size:
            return None
        area = Area(*_AREA.unpack_from(data))
        return area if area.base and area.size else None


def parse_footer(image: bytes) -> Footer | None:
    """The table of a firmware image, or None if it has none.

    Raises:
        SevFormatError: there is a table that is malformed.
    """
    end = len(image) - _AFTER_FOOTER
    if end < _TAIL_SIZE or image[end - 16 : end] != FOOTER_GUID.bytes_le:
        return None
    what = "firmware footer"
    total = _LENGTH.unpack_from(image, end - _TAIL_SIZE)[0]
    if not _TAIL_SIZE <= total <= end:
        raise SevFormatError(what, "length", total, f"{_TAIL_SIZE} to {end}")
    start = end - total
    end -= _TAIL_SIZE
    entries: dict[uuid.UUID, bytes] = {}
    while end > start:
        if end - start < _TAIL_SIZE:
            raise SevFormatError(what, "rest", end - start, f"at least {_TAIL_SIZE} bytes")
        size = _LENGTH.unpack_from(image, end - _TAIL_SIZE)[0]
        if not _TAIL_SIZE <= size <= end - start:
            raise SevFormatError(what, "entry length", size, f"{_TAIL_SIZE} to {end - start}")
        guid = uuid.UUID(bytes_le=image[end - 16 : end])
        entries.setdefault(guid, image[end - size : end - _TAIL_SIZE])
        end -= size
    return Footer(entries)
