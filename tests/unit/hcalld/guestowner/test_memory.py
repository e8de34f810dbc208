# SPDX-License-Identifier: Apache-2.0
"""The address space of a client without memory of its own."""

from __future__ import annotations

import pytest

from hcalld.guestowner.memory import AddressSpace, NotMapped


def test_place_when_buffers_are_placed_then_each_begins_a_page_and_they_do_not_touch():
    space = AddressSpace()
    sizes = (0, 1, 4096, 4097, 1 << 20)
    addresses = [space.place(bytes(size)) for size in sizes]
    assert all(address % 4096 == 0 for address in addresses)
    assert len(set(addresses)) == len(sizes)
    for address, size in zip(addresses, sizes, strict=True):
        assert not space.contains(address, size + 1)
        assert not space.contains(address - 1, 1)
        assert size == 0 or space.contains(address, size)


def test_write_when_it_fits_then_it_is_read_again_and_its_neighbours_are_as_they_were():
    space = AddressSpace()
    first, second = space.place(b"aaaa"), space.place(b"bbbb")
    space.write(first + 1, b"xy")
    assert space.read(first, 4) == b"axya"
    assert space.read(second, 4) == b"bbbb"


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 1), (0, 5), (4, 1), (4, 0), (1, 4), (1 << 40, 1)]
)
def test_access_when_it_leaves_its_buffer_then_nothing_is_accessed(offset: int, size: int):
    space = AddressSpace()
    address = space.place(b"aaaa")
    with pytest.raises(NotMapped):
        space.read(address + offset, size)
    with pytest.raises(NotMapped):
        space.write(address + offset, bytes(size))
    assert space.read(address, 4) == b"aaaa"


def test_remove_when_a_buffer_is_gone_then_its_addresses_are_nowhere():
    space = AddressSpace()
    first, second = space.place(b"aaaa"), space.place(b"bbbb")
    space.remove(first)
    assert not space.contains(first, 1)
    assert space.read(second, 4) == b"bbbb"
    assert space.place(b"cccc") > second
