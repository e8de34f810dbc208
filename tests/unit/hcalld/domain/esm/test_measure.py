# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
from tests.esm import INITRD, INITRD_BASE, KERNEL_BASE, RTAS_BASE
from tests.unit.hcalld.domain.esm.guest import Guest, digests

from hcalld.crypto.tpm_session import run
from hcalld.domain.esm.boot_tree import Range
from hcalld.domain.esm.errors import MismatchError
from hcalld.domain.esm.locate import CHUNK_SIZE, locate
from hcalld.domain.esm.measure import compare, digest_of, measure


def check(guest: Guest, base: int = KERNEL_BASE) -> None:
    """As UV_ESM does it."""
    found = run(locate(guest.memory.read, guest.tree))
    run(measure(guest.memory.read, guest.tree, base, found.initrd, digests()))


def failed(guest: Guest, base: int = KERNEL_BASE) -> dict[str, str]:
    with pytest.raises(MismatchError) as caught:
        check(guest, base)
    return caught.value.failed


def test_measure_when_the_guest_is_what_the_blob_is_for_then_nothing_fails():
    guest = Guest.make()
    check(guest)
    assert guest.memory.largest <= CHUNK_SIZE


INITRD_START = INITRD_BASE + 4096


@pytest.mark.parametrize(
    ("name", "start", "size"),
    [
        ("rtas", RTAS_BASE, 20),
        ("kernel", KERNEL_BASE, digests().kernel_size),
        ("initrd", None, len(INITRD)),
    ],
)
def test_measure_when_one_bit_is_flipped_then_just_that_is_named(
    name: str, start: int | None, size: int
):
    guest = Guest.make()
    if start is None:
        start = run(locate(guest.memory.read, guest.tree)).initrd.start
    positions = {*range(min(size, 64)), *range(0, size, 499), size - 1}
    for position in positions:
        for bit in range(8):
            guest.memory.data[start + position] ^= 1 << bit
            found = failed(guest)
            assert list(found) == [name], (position, bit)
            assert found[name].endswith("not what the blob was made for")
            guest.memory.data[start + position] ^= 1 << bit
    # What is beside it does not matter.
    guest.memory.data[start + size] ^= 1
    check(guest)


def test_measure_when_one_bit_of_the_command_line_is_flipped_then_just_that_is_named():
    guest = Guest.make()
    whole = guest.tree.bootargs
    for bit in range(8 * len(whole)):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        guest.tree = dataclasses.replace(guest.tree, bootargs=bytes(altered))
        assert list(failed(guest)) == ["bootargs"]
    for altered_line in (whole + b" ", whole[:-1], b""):
        guest.tree = dataclasses.replace(guest.tree, bootargs=altered_line)
        assert list(failed(guest)) == ["bootargs"]


def test_measure_when_all_differs_then_all_is_named_in_order():
    guest = Guest.make()
    found = run(locate(guest.memory.read, guest.tree))
    for address in (RTAS_BASE, KERNEL_BASE, found.initrd.start):
        guest.memory.data[address] ^= 1
    guest.tree = dataclasses.replace(guest.tree, bootargs=b"")
    with pytest.raises(MismatchError) as caught:
        check(guest)
    assert list(caught.value.failed) == ["rtas", "kernel", "initrd", "bootargs"]
    assert str(caught.value).startswith("rtas: 0x1f0000 to 0x1f0014 not what")


def test_measure_when_something_is_not_memory_then_it_is_named_and_the_rest_measured():
    guest = Guest.make()
    text = Range(guest.memory.size - 10, 20)
    guest.tree = dataclasses.replace(guest.tree, rtas_text=text)
    found = failed(guest, 1 << 40)
    assert list(found) == ["rtas", "kernel"]
    assert "not in guest RAM" in found["rtas"]


def test_digest_when_the_range_is_absurd_then_little_is_read():
    guest = Guest.make()
    before = guest.memory.reads
    with pytest.raises(Exception, match="not in guest RAM"):
        run(digest_of(guest.memory.read, Range(0, 1 << 62)))
    assert guest.memory.reads == before + 1
    empty = run(digest_of(guest.memory.read, Range(0, 0)))
    assert empty.hex().startswith("cf83e1357eefb8bd")


def test_compare_when_files_differ_then_all_that_does_is_named():
    compare(digests(), digests())
    other = dataclasses.replace(digests(), rtas=bytes(64), bootargs=bytes(64))
    with pytest.raises(MismatchError) as caught:
        compare(other, digests())
    assert list(caught.value.failed) == ["rtas", "bootargs"]
    longer = dataclasses.replace(digests(), kernel_size=digests().kernel_size + 1)
    with pytest.raises(MismatchError, match=r"kernel: has 8994 bytes, expected 8993"):
        compare(longer, digests())
