# SPDX-License-Identifier: Apache-2.0
"""Memory of which little is known."""

from __future__ import annotations

from hcalld.replay.sparse import PAGE_SIZE, SparseMemory
from hcallproto.wire import frames as f


def test_what_was_written_is_there_over_pages() -> None:
    memory = SparseMemory()
    data = bytes(range(256)) * 40
    memory.write(PAGE_SIZE - 100, data)
    assert memory.read(PAGE_SIZE - 100, len(data)) == data
    assert memory.unknown == 0


def test_what_nobody_has_seen_is_zeros_and_counted() -> None:
    memory = SparseMemory()
    memory.write(10, b"abc")
    assert memory.read(8, 8) == b"\0\0abc\0\0\0"
    assert memory.unknown == 5
    assert memory.read(1 << 40, 4) == bytes(4)
    assert memory.unknown == 9


def test_zeros_of_any_size_are_written_at_once() -> None:
    memory = SparseMemory(max_pages=4)
    memory.write(0, b"a" * 3 * PAGE_SIZE)
    memory.carry_out((f.WriteSegment(PAGE_SIZE, PAGE_SIZE, None),))
    assert memory.read(0, 3 * PAGE_SIZE) == b"a" * PAGE_SIZE + bytes(PAGE_SIZE) + b"a" * PAGE_SIZE
    memory.carry_out((f.WriteSegment(100, 1 << 60, None),))
    assert memory.read(0, 101) == b"a" * 100 + b"\0"
    assert memory.read(PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_it_keeps_so_many_pages_and_no_more() -> None:
    memory = SparseMemory(max_pages=2)
    for number in range(3):
        memory.write(number * PAGE_SIZE, b"abc")
        memory.read(0, 1)
    assert memory.read(0, 3) == b"abc"
    assert memory.read(PAGE_SIZE, 3) == bytes(3)
    assert memory.read(2 * PAGE_SIZE, 3) == b"abc"


def test_a_reset_forgets_all() -> None:
    memory = SparseMemory()
    memory.write(0, b"abc")
    memory.clear()
    assert memory.read(0, 3) == bytes(3)
