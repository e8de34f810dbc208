# SPDX-License-Identifier: Apache-2.0
"""The flat image of a kernel; objcopy's opinion is asked in tests/vectors/test_esm_tools.py."""

from __future__ import annotations

import struct

import pytest
from tests.esm import Section, elf, kernel_elf

from hcalld.domain.esm import flat_kernel as module
from hcalld.domain.esm.errors import EsmError
from hcalld.domain.esm.flat_kernel import flat_kernel


def test_image_when_there_are_gaps_and_bss_then_zeros_and_nothing():
    image = flat_kernel(elf([Section(0, b"abc"), Section(8, b"de"), Section(16, b"", bss=100)]))
    assert image == b"abc\0\0\0\0\0de"


def test_image_when_it_begins_higher_then_from_its_first_byte_on():
    assert flat_kernel(elf([Section(0x100, b"abc"), Section(0x104, b"de")])) == b"abc\0de"


def test_image_when_big_endian_then_the_same():
    assert flat_kernel(elf([Section(0, b"abc")], ">")) == b"abc"


def test_image_when_a_section_is_in_no_segment_then_at_its_own_address():
    data = bytearray(elf([Section(0, b"abc"), Section(4, b"de")], base=0))
    # The segment's size in the file.
    struct.pack_into("<Q", data, 64 + 32, 3)
    assert flat_kernel(bytes(data)) == b"abc\0de"
    # And a segment that is not loaded says nothing.
    struct.pack_into("<I", data, 64, 4)
    assert flat_kernel(bytes(data)) == b"abc\0de"


def altered(offset: int, layout: str, value: int) -> bytes:
    data = bytearray(kernel_elf())
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


SECTIONS = struct.unpack_from("<Q", kernel_elf(), 40)[0]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not an ELF file"),
        (kernel_elf()[:63], "not an ELF file"),
        (b"\x1f\x8b" + kernel_elf()[2:], "not an ELF file"),
        (altered(4, "B", 1), "not a 64-bit ELF"),
        (altered(5, "B", 3), "not a 64-bit ELF"),
        (altered(18, "<H", 62), "machine 62"),
        (altered(32, "<Q", 1 << 60), "ELF headers are malformed"),
        (altered(54, "<H", 55), "ELF headers are malformed"),
        (altered(40, "<Q", 1 << 60), "ELF headers are malformed"),
        (altered(58, "<H", 63), "ELF headers are malformed"),
        (kernel_elf()[:-1], "ELF headers are malformed"),
        (altered(60, "<H", 0), "nothing in it is loaded"),
        (altered(SECTIONS + 64 + 32, "<Q", 1 << 60), "beyond the file's end"),
        (altered(64 + 24, "<Q", 1 << 62), None),
    ],
)
def test_image_when_the_file_is_wrong_then_refused(data: bytes, why: str | None):
    if why is None:
        assert flat_kernel(data) == flat_kernel(kernel_elf())
        return
    with pytest.raises(EsmError, match=why):
        flat_kernel(data)


def test_image_when_it_would_be_huge_then_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_SIZE", 4)
    with pytest.raises(EsmError, match="would have 5 bytes, at most 4"):
        flat_kernel(elf([Section(0, b"abc"), Section(3, b"de")]))
