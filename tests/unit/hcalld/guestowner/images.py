# SPDX-License-Identifier: Apache-2.0
"""Made-up firmware images, with the footer table of OVMF's that can boot a measured kernel."""

from __future__ import annotations

import random
import struct
import uuid

HASHES_BASE = 0x80FC00
SECRET_BASE = 0x80F000
RESET_ADDRESS = 0x0080_B004

TABLE_GUID = "96b582de-1fb2-45f7-baea-a366c55a082d"
HASHES = ("7255371f-3a3b-4b04-927b-1da6efa8d454", struct.pack("<II", HASHES_BASE, 0x400))
SECRET = ("4c2eb361-7d9b-4cc3-8081-127c90d3d294", struct.pack("<II", SECRET_BASE, 0xC00))
RESET = ("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", RESET_ADDRESS))

Entry = tuple[str, bytes]


def tail(size: int, guid: str) -> bytes:
    return struct.pack("<H", size) + uuid.UUID(guid).bytes_le


def table(*entries: Entry) -> bytes:
    body = b"".join(data + tail(len(data) + 18, guid) for guid, data in entries)
    return body + tail(len(body) + 18, TABLE_GUID)


def firmware(
    *entries: Entry, size: int = 0x8000, seed: int = 1, footer: bytes | None = None
) -> bytes:
    """An image; with all the entries that are of interest unless some are named."""
    footer = table(*(entries or (HASHES, SECRET, RESET))) if footer is None else footer
    body = random.Random(seed).randbytes(size - len(footer) - 32)
    return body + footer + bytes(32)
