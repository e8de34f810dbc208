# SPDX-License-Identifier: Apache-2.0
"""The hypervisor's normal memory, by real address: its VMs' pages and its own.

A VM's pages are the guest's RAM, which the hypervisor does not look into from here; its
own hold what the ultravisor encrypted, one page for each that is out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hcalld.domain.ultravisor.abi import PAGE_SHIFT, PAGE_SIZE, VM_SHIFT

_VM_BASE: Final = 1 << VM_SHIFT
"""The VM's RAM; below it, from PAGE_SIZE on, are the hypervisor's own pages."""
MAX_PAGES: Final = 1 << 14
"""The hypervisor's own pages: 1 GiB of ciphertext, each a record of the store."""


class HypervisorMemory:
    """See ``abi.NormalMemory``.

    Args:
        lpid: the one VM there is.
    """

    def __init__(self, lpid: int) -> None:
        self._lpid = lpid
        self._pages: dict[int, bytes] = {}
        self._free: list[int] = []
        self._top = 1
        self.dirty: set[int] = set()
        """Numbers of pages that a store must be told of."""

    def __len__(self) -> int:
        """How many pages are taken."""
        return len(self._pages)

    def lra_of(self, gpa: int) -> int:
        """The real address of a VM's page."""
        return _VM_BASE + gpa

    def guest_page(self, lra: int) -> tuple[int, int] | None:
        """See NormalMemory."""
        return (self._lpid, lra - _VM_BASE) if _VM_BASE <= lra < 2 * _VM_BASE else None

    def load(self, lra: int) -> bytes | None:
        """See NormalMemory."""
        return None if lra % PAGE_SIZE else self._pages.get(lra >> PAGE_SHIFT)

    def store(self, lra: int, data: bytes) -> bool:
        """See NormalMemory."""
        number = lra >> PAGE_SHIFT
        if lra % PAGE_SIZE or number not in self._pages or len(data) != PAGE_SIZE:
            return False
        self._pages[number] = data
        self.dirty.add(number)
        return True

    def allocate(self) -> int | None:
        """Take a page; its real address, or None if there is none left."""
        if self._free:
            number = self._free.pop()
        elif self._top <= MAX_PAGES:
            number = self._top
            self._top += 1
        else:
            return None
        self._pages[number] = b""
        return number << PAGE_SHIFT

    def free(self, lra: int) -> None:
        """Give a page up."""
        number = lra >> PAGE_SHIFT
        del self._pages[number]
        self._free.append(number)
        self.dirty.add(number)

    def put(self, number: int, data: bytes) -> None:
        """Take a page of the store."""
        self._pages[number] = data

    def settle(self) -> None:
        """All pages of the store have been taken: find the free ones."""
        self._top = max(self._pages, default=0) + 1
        self._free = [n for n in range(1, self._top) if n not in self._pages]

    def get(self, number: int) -> bytes | None:
        """A page by number."""
        return self._pages.get(number)

    def numbers(self) -> Iterator[int]:
        """The numbers of all pages that are taken."""
        return iter(self._pages)

    def clear(self) -> None:
        """Give all pages up."""
        self._pages.clear()
        self._free.clear()
        self._top = 1
        self.dirty.clear()
