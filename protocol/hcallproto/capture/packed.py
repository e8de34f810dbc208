# SPDX-License-Identifier: Apache-2.0
"""Captures that were compressed, as Wireshark reads them too: gzip, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from hcallproto.errors import CaptureDamage, CaptureError

PIECE: Final = 1 << 18
"""Bytes that come out at once: a small file may hold a very large one."""

_GZIP: Final = b"\x1f\x8b"
_OTHERS: Final = {
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4cat"),
    b"\xfd7zX": ("xz", "xzcat"),
    b"BZh": ("bzip2", "bzcat"),
}
"""What files of other programs begin with: the program, and what unpacks them."""
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
"""Says that there is a gzip header (zlib.h, inflateInit2)."""


def unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a file, whether it is compressed or not.

    Raises:
        CaptureDamage: the compressed data are damaged or cut off.
        CaptureError: they are compressed by another program.
    """
    source = iter(chunks)
    first = b""
    for chunk in source:
        first += chunk
        if len(first) >= max(map(len, _OTHERS)):
            break
    for begin, (name, program) in _OTHERS.items():
        if first.startswith(begin):
            raise CaptureError(
                f"compressed by {name}, expected pcapng or gzip; unpack it first: "
                f"'{program} FILE | hcalld decode -'"
            )
    if first.startswith(_GZIP):
        yield from _gunzip(first, source)
        return
    yield first
    yield from source


def _gunzip(data: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    """Members follow one another (RFC 1952, section 2.2)."""
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    is_begun = True
    place = 0
    try:
        while True:
            is_full = False
            while data or is_full:
                is_begun = True
                piece = unpacker.decompress(data, PIECE)
                is_full = len(piece) == PIECE
                if piece:
                    yield piece
                rest = unpacker.unused_data or unpacker.unconsumed_tail
                place += len(data) - len(rest)
                data = rest
                if unpacker.eof:
                    # Zeros may follow, as at the end of a tape's block.
                    data = data.lstrip(b"\0")
                    unpacker = zlib.decompressobj(_GZIP_WINDOW)
                    is_begun = is_full = False
            chunk = next(source, None)
            if chunk is None:
                break
            data = chunk if is_begun else chunk.lstrip(b"\0")
    except zlib.error as error:
        raise CaptureDamage(f"the compressed file is damaged at byte {place}: {error}") from None
    if is_begun:
        raise CaptureDamage(f"the compressed file ends at byte {place}, too early")
