# SPDX-License-Identifier: Apache-2.0
"""Guest memory without a guest."""

from __future__ import annotations

from collections.abc import Iterable

from hcalld.core.effects import GuestMemoryError
from hcalld.core.guestmem import RamMap


class FakeGuest:
    """RAM as byte arrays; what is not RAM raises GuestMemoryError.

    Args:
        regions: (gpa, size) pairs, sorted, not overlapping.
    """

    def __init__(self, regions: Iterable[tuple[int, int]] = ((0, 1 << 20),)) -> None:
        self._regions = [(gpa, bytearray(size)) for gpa, size in regions]
        self.ram = RamMap((gpa, len(data)) for gpa, data in self._regions)
        self.write_count = 0

    def _check(self, gpa: int, size: int) -> None:
        if not self.ram.contains(gpa, size):
            raise GuestMemoryError(gpa, size, "not RAM")

    def read(self, gpa: int, size: int) -> bytes:
        """Copy guest memory out; a range may run over neighbouring regions."""
        self._check(gpa, size)
        parts = []
        for start, data in self._regions:
            low, high = max(gpa, start), min(gpa + size, start + len(data))
            if low < high:
                parts.append(bytes(data[low - start : high - start]))
        return b"".join(parts)

    def write(self, gpa: int, content: bytes) -> None:
        """Copy into guest memory, all or nothing."""
        self._check(gpa, len(content))
        for start, data in self._regions:
            low, high = max(gpa, start), min(gpa + len(content), start + len(data))
            if low < high:
                data[low - start : high - start] = content[low - gpa : high - gpa]
        self.write_count += 1

    def snapshot(self) -> tuple[bytes, ...]:
        """All of memory, to show that a call changed none."""
        return tuple(bytes(data) for _, data in self._regions)
