# SPDX-License-Identifier: Apache-2.0
"""Numbers of the wire that other programs rely on, and sums that the document promises."""

from __future__ import annotations

import pytest

from hcallproto.wire import schema as s
from hcallproto.wire.schema import FrameType

SIZES = {
    "HEADER": 32,
    "HELLO": 72,
    "WELCOME": 16,
    "ANNOUNCEMENT": 8,
    "CALL_SPEC": 32,
    "BUFFER_SPEC": 8,
    "ACCEPT": 8,
    "REFUSED_CALL": 16,
    "RAM": 8,
    "RAM_REGION": 32,
    "GOODBYE": 2,
    "CALL": 144,
    "CALL_SEGMENT": 16,
    "REPLY": 40,
    "WRITE_SEGMENT": 16,
    "CANCEL": 8,
    "CANCELLED": 8,
    "READ": 8,
    "READ_SEGMENT": 16,
    "READ_REPLY": 8,
    "READ_DATA": 8,
    "WRITE": 8,
    "WRITE_REPLY": 8,
    "EVENT": 8,
    "EVENT_ACK": 8,
    "CONTROL": 2,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_structure_when_measured_then_it_has_the_size_of_version_one(name: str, size: int):
    assert getattr(s, name).sizeof() == size


def test_frame_types_when_listed_then_they_are_those_of_version_one():
    assert {kind.name: kind.value for kind in FrameType} == {
        "HELLO": 1,
        "WELCOME": 2,
        "ACCEPT": 3,
        "ANNOUNCE": 4,
        "RAM": 5,
        "GOODBYE": 6,
        "SHIM_GOODBYE": 7,
        "CALL": 9,
        "REPLY": 10,
        "CANCEL": 11,
        "CANCELLED": 12,
        "READ_REPLY": 15,
        "READ": 16,
        "WRITE_REPLY": 17,
        "WRITE": 18,
        "EVENT": 19,
        "EVENT_ACK": 20,
        "CONTROL": 22,
        "PAGES_REPLY": 23,
        "PAGES": 24,
    }
    assert set(s.PAYLOADS) == set(FrameType)


def test_frame_type_when_used_as_a_key_then_its_number_finds_it():
    """It hashes as the int that it equals."""
    assert {FrameType.CALL: 1}[9] == 1  # type: ignore[index]
    assert frozenset({9}) == frozenset({FrameType.CALL})


def test_magic_when_spelled_then_it_is_hclp():
    assert s.MAGIC.to_bytes(4, "big") == b"HCLP"
    assert s.HEADER.sizeof() == s.HEADER_SIZE


def test_bounds_when_everything_is_greatest_then_a_welcome_fits_its_limit():
    """WELCOME travels before a greater size is agreed on."""
    call = s.CALL_SPEC.sizeof() + s.MAX_BUFFERS * s.BUFFER_SPEC.sizeof()
    greatest = (
        s.HEADER_SIZE
        + s.WELCOME.sizeof()
        + s.ANNOUNCEMENT.sizeof()
        + s.MAX_CALLS * call
        + s.MAX_DT_STRINGS * (2 + s.MAX_DT_STRING_SIZE)
        + s.MAX_DT_PROPERTIES * (2 + s.MAX_DT_NAME_SIZE + 2 + s.MAX_DT_VALUE_SIZE)
    )
    assert greatest <= s.MIN_MAX_FRAME
    ram = s.HEADER_SIZE + s.RAM.sizeof() + s.MAX_RAM_REGIONS * s.RAM_REGION.sizeof()
    assert ram <= s.MIN_MAX_FRAME


def test_bounds_when_a_buffer_of_64_kib_is_sent_then_it_fits_the_smallest_limit():
    assert s.HEADER_SIZE + s.CALL.sizeof() + s.CALL_SEGMENT.sizeof() + 65536 <= s.MIN_MAX_FRAME
