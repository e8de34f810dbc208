# SPDX-License-Identifier: Apache-2.0
"""The memory of a client that has none to share: buffers at made-up addresses."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import Final

SPACE_SIZE: Final = 1 << 47
"""A 64-bit process's; any address below may hold a buffer."""

_FIRST: Final = 1 << 20
_PAGE_SIZE: Final = 4096


class NotMapped(Exception):
    """No buffer holds the whole range."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(f"{size} bytes at 0x{address:x}: no buffer holds them")


class AddressSpace:
    """Buffers, each at the begin of a page, with a page between them that is not mapped."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._buffers: list[bytearray] = []
        self._next = _FIRST

    def place(self, content: bytes) -> int:
        """Put a buffer somewhere; returns its address."""
        address = self._next
        self._starts.append(address)
        self._buffers.append(bytearray(content))
        pages = (len(content) + _PAGE_SIZE - 1) // _PAGE_SIZE
        self._next += (pages + 1) * _PAGE_SIZE
        return address

    def remove(self, address: int) -> None:
        """Forget the buffer that was placed at an address."""
        index = self._starts.index(address)
        del self._starts[index], self._buffers[index]

    @contextlib.contextmanager
    def placed(self, *contents: bytes) -> Iterator[list[int]]:
        """Buffers for a command; their addresses, 0 for an empty one."""
        addresses = [self.place(content) if content else 0 for content in contents]
        try:
            yield addresses
        finally:
            for address in filter(None, addresses):
                self.remove(address)

    def contains(self, address: int, size: int) -> bool:
        """Whether one buffer holds the whole range; an empty range asks for ``address``."""
        return self._find(address, size) is not None

    def read(self, address: int, size: int) -> bytes:
        """Bytes of a buffer.

        Raises:
            NotMapped: no buffer holds them.
        """
        buffer, offset = self._at(address, size)
        return bytes(memoryview(buffer)[offset : offset + size])

    def write(self, address: int, content: bytes) -> None:
        """Change bytes of a buffer.

        Raises:
            NotMapped: no buffer holds them; nothing is written.
        """
        buffer, offset = self._at(address, len(content))
        buffer[offset : offset + len(content)] = content

    def _at(self, address: int, size: int) -> tuple[bytearray, int]:
        found = self._find(address, size)
        if found is None:
            raise NotMapped(address, size)
        return found

    def _find(self, address: int, size: int) -> tuple[bytearray, int] | None:
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        buffer, offset = self._buffers[index], address - self._starts[index]
        return (buffer, offset) if offset + (size or 1) <= len(buffer) else None
