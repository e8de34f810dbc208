# SPDX-License-Identifier: Apache-2.0
"""Guest memory as far as a capture shows it: what was read and written, and zeros elsewhere."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Final

from hcallproto.wire import frames as f

PAGE_SIZE: Final = 4096
MAX_PAGES: Final = 8192
"""Kept; the ones that were not used for the longest time go first."""


class _Page:
    __slots__ = ("data", "known")

    def __init__(self) -> None:
        self.data = bytearray(PAGE_SIZE)
        self.known = bytearray(PAGE_SIZE)
        """1 for each byte that the capture has shown."""


class SparseMemory:
    """Memory of which little is known.

    Args:
        max_pages: as many are kept.

    Attributes:
        unknown: bytes that were read and that nothing has shown.
    """

    def __init__(self, max_pages: int = MAX_PAGES) -> None:
        self.unknown = 0
        self._max_pages = max_pages
        self._pages: collections.OrderedDict[int, _Page] = collections.OrderedDict()

    def clear(self) -> None:
        """A reset."""
        self._pages.clear()

    def write(self, gpa: int, data: bytes) -> None:
        """Bytes are there from now on."""
        at = 0
        for number, low, high in _parts(gpa, len(data)):
            page = self._page(number)
            page.data[low:high] = data[at : at + high - low]
            page.known[low:high] = b"\x01" * (high - low)
            at += high - low

    def carry_out(self, segments: tuple[f.WriteSegment, ...]) -> None:
        """What the daemon writes."""
        for segment in segments:
            if segment.data is not None:
                self.write(segment.gpa, segment.data)
            else:
                self._zero(segment.gpa, segment.size)

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes; zeros where nothing is known."""
        found = bytearray()
        for number, low, high in _parts(gpa, size):
            page = self._pages.get(number)
            if page is None:
                found += bytes(high - low)
                self.unknown += high - low
                continue
            self._pages.move_to_end(number)
            found += page.data[low:high]
            self.unknown += page.known.count(0, low, high)
        return bytes(found)

    def _zero(self, gpa: int, size: int) -> None:
        if size <= self._max_pages * PAGE_SIZE:
            self.write(gpa, bytes(size))
            return
        # What is not kept reads as zeros already.
        end = gpa + size
        for number, page in self._pages.items():
            low = max(gpa - number * PAGE_SIZE, 0)
            high = min(end - number * PAGE_SIZE, PAGE_SIZE)
            if low < high:
                page.data[low:high] = bytes(high - low)
                page.known[low:high] = b"\x01" * (high - low)

    def _page(self, number: int) -> _Page:
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= self._max_pages:
                self._pages.popitem(last=False)
            page = self._pages[number] = _Page()
        else:
            self._pages.move_to_end(number)
        return page


def _parts(gpa: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Of each page that a range touches its number, and the range within it."""
    end = gpa + size
    while gpa < end:
        number, low = divmod(gpa, PAGE_SIZE)
        high = min(PAGE_SIZE, low + end - gpa)
        yield number, low, high
        gpa += high - low
