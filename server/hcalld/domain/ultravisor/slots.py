# SPDX-License-Identifier: Apache-2.0
"""The memory slots of a VM: what of its addresses is memory.

Source: Linux 7.2 ``ultravisor.rst`` UV_REGISTER_MEM_SLOT (codes by argument; the firmware
says U_PARAMETER to all), open-power/ultravisor ``core/pagein_track.c`` (bounds).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hcalld.core.errors import HcallError
from hcalld.domain.runs import Spans
from hcalld.domain.ultravisor.abi import PAGE_SIZE, VM_SHIFT
from hcallproto.abi.families import uv
from hcallproto.abi.registers import REAL_ADDRESS_MASK
from hcallproto.abi.returns import U


class Slot(NamedTuple):
    """A range of guest real addresses."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.start + self.size


class Slots:
    """Slots by id."""

    def __init__(self) -> None:
        self._by_id: dict[int, Slot] = {}
        self._spans = Spans()

    def __iter__(self) -> Iterator[tuple[int, Slot]]:
        return iter(sorted(self._by_id.items()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, slot_id: int) -> Slot | None:
        """A slot by id."""
        return self._by_id.get(slot_id)

    def check(self, slot_id: int, start: int, size: int) -> Slot:
        """The slot that a registration asks for.

        Raises:
            HcallError: U_P2, U_P3 or U_P5; U_PARAMETER, there is no secure memory for it.
        """
        if start % PAGE_SIZE:
            raise HcallError(U.P2, f"slot begins at 0x{start:x}, not a multiple of 64 KiB")
        rounded = -(-size // PAGE_SIZE) * PAGE_SIZE
        if not 0 < size <= rounded or start + rounded > REAL_ADDRESS_MASK + 1:
            raise HcallError(U.P3, f"slot 0x{start:x} + 0x{size:x} is empty or wraps")
        if not 0 <= slot_id < uv.MAX_SLOTS:
            raise HcallError(U.P5, f"slot {slot_id}, expected one below {uv.MAX_SLOTS}")
        if start + rounded > 1 << VM_SHIFT:
            raise HcallError(
                U.PARAMETER, f"slot 0x{start:x} + 0x{size:x}: no secure memory above 2^{VM_SHIFT}"
            )
        for other_id, other in self._by_id.items():
            if other_id != slot_id and start < other.end and other.start < start + rounded:
                raise HcallError(U.P3, f"slot 0x{start:x} + 0x{size:x} overlaps slot {other_id}")
        return Slot(start, rounded)

    def put(self, slot_id: int, slot: Slot) -> None:
        """Register a slot; an id in use is replaced."""
        self.remove(slot_id)
        self._by_id[slot_id] = slot
        self._spans.add(slot.start, slot.end)

    def remove(self, slot_id: int) -> Slot | None:
        """Give a slot up."""
        slot = self._by_id.pop(slot_id, None)
        if slot is not None:
            self._spans.remove(slot.start, slot.end)
        return slot

    def hold(self, low: int, high: int) -> bool:
        """True if all of a range is memory; it may span neighbouring slots."""
        return low < high and self._spans.holds(low, high)

    def ranges(self) -> list[tuple[int, int]]:
        """All memory, merged, as (first byte, byte after the last) pairs."""
        return self._spans.ranges()
