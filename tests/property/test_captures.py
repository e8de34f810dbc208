# SPDX-License-Identifier: Apache-2.0
"""Captures that were cut off, or of which a byte has changed, at every place there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import pytest
from tests.property.capture_sizes import MAX_RSS_KIB, decode_of
from tests.unit.hcallproto.capture.sample import TIME, Capture, read_of_db
from tests.unit.hcallproto.codegen.test_dissector import every_frame

from hcalld.cli.decode import call_line, json_line
from hcallproto.capture import pcapng
from hcallproto.capture.compare import compare
from hcallproto.capture.reading import CaptureReader, Entry, exchanges
from hcallproto.capture.records import Dropped, Start, Stop
from hcallproto.errors import CaptureError


def sample() -> bytes:
    """Two guests, each type of frame and most records, and what a daemon writes at the end."""
    capture = read_of_db()
    for frame in every_frame():
        capture.frame(frame, "lpar8", comment="a comment" if len(frame) % 2 else "")
    capture.record(Dropped(frames=3))
    capture.record(Stop(why="ended"))
    return bytes(capture.data) + pcapng.statistics(0, TIME, 30, 3)


DATA: Final = sample()
WHOLE: Final = list(CaptureReader([DATA]))


def ends_of_blocks() -> list[int]:
    """Offsets behind each block."""
    ends = [0]
    while ends[-1] < len(DATA):
        ends.append(ends[-1] + int.from_bytes(DATA[ends[-1] + 4 : ends[-1] + 8], "little"))
    return ends[1:]


ENDS: Final = ends_of_blocks()


def read(reader: CaptureReader) -> Iterator[Entry]:
    """Everything that can be read."""
    try:
        yield from reader
    except CaptureError as error:
        reader.problems.append(str(error))


def before(end: int) -> list[Entry]:
    """Entries whose blocks are whole before a place."""
    last = max([at for at in ENDS if at <= end], default=0)
    return [one for one in WHOLE if one.offset < last]


def test_the_sample_is_sound():
    reader = CaptureReader([DATA])
    assert len(list(reader)) == len(WHOLE) > 30
    assert list(reader.problems) == []
    assert reader.dropped == 3


@pytest.mark.parametrize("size", [1 << 20, 13])
def test_reader_when_cut_off_anywhere_then_all_before_is_read_and_it_says_where(size: int):
    for end in range(len(DATA)):
        pieces = (DATA[at : min(at + size, end)] for at in range(0, end, size))
        reader = CaptureReader(pieces)
        assert list(read(reader)) == before(end)
        if end in ENDS:
            assert list(reader.problems) == []
        else:
            last = max([at for at in ENDS if at <= end], default=0)
            (problem,) = reader.problems
            assert problem.startswith(f"at byte {last}: ")


@pytest.mark.parametrize("changed_bits", [0x01, 0x80, 0xFF])
def test_reader_when_any_byte_is_changed_then_all_before_it_is_read(changed_bits: int):
    """And whatever comes of the rest can be shown and compared."""
    first_packet = WHOLE[0].offset
    for place in range(len(DATA)):
        changed = bytearray(DATA)
        changed[place] ^= changed_bits
        reader = CaptureReader([bytes(changed)])
        found = list(read(reader))
        kept = before(place) if place >= first_packet else []
        assert found[: len(kept)] == kept, f"byte {place}"
        for problem in reader.problems:
            assert problem.startswith(("at byte ", "and ", "no capture of hcalld"))
        calls = list(exchanges(found))
        for entry, exchange in calls:
            assert call_line(entry.guest, exchange)
            assert json_line(entry.guest, exchange)
        list(compare((one for _, one in calls), (one for _, one in calls)))


def test_reader_when_a_packet_is_missing_then_the_others_are_read():
    ends = dict(itertools.pairwise([0, *ENDS]))
    for gone in WHOLE:
        if isinstance(gone.what, Start):
            continue  # others count on it
        changed = DATA[: gone.offset] + DATA[ends[gone.offset] :]
        found = [one.what for one in read(CaptureReader([changed]))]
        assert found == [one.what for one in WHOLE if one is not gone]


def test_an_empty_capture_of_a_guest_has_no_calls():
    capture = Capture()
    capture.guest("lpar7")
    assert list(exchanges(CaptureReader([capture.data]))) == []


def test_decode_when_a_capture_is_large_then_its_memory_is_bounded():
    """The short form of ``tests/soak/test_captures.py``."""
    lines, calls, kib = decode_of(64 << 20)
    assert lines == calls > 5_000
    assert kib < MAX_RSS_KIB
