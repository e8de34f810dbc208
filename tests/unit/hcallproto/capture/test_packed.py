# SPDX-License-Identifier: Apache-2.0
"""Compressed captures."""

from __future__ import annotations

import gzip
import itertools

import pytest
from tests.unit.hcallproto.capture.sample import read_of_db

from hcallproto.capture.packed import PIECE, unpacked
from hcallproto.capture.reading import CaptureReader
from hcallproto.errors import CaptureDamage, CaptureError

DATA = read_of_db().data


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "packed",
    [
        DATA,
        gzip.compress(DATA),
        gzip.compress(DATA[:300]) + gzip.compress(DATA[300:]),
        gzip.compress(DATA) + bytes(512),
        gzip.compress(DATA[:300]) + bytes(5) + gzip.compress(DATA[300:]),
    ],
)
def test_unpacked_when_compressed_in_any_way_then_the_bytes_are_the_same(packed: bytes, size: int):
    assert b"".join(unpacked(pieces(packed, size))) == DATA


def test_unpacked_when_there_is_nothing_then_there_is_nothing():
    assert b"".join(unpacked([])) == b""


def test_unpacked_when_little_holds_much_then_it_comes_in_pieces():
    size = 5 * PIECE + 1
    sizes = [len(piece) for piece in unpacked([gzip.compress(bytes(size))])]
    assert sum(sizes) == size
    assert max(sizes) <= PIECE


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_unpacked_when_cut_off_then_what_is_before_comes_and_it_says_where(size: int):
    packed = gzip.compress(DATA)
    for end in range(2, len(packed)):
        found = bytearray()
        with pytest.raises(CaptureDamage, match=f"ends at byte {end}, too early"):
            found.extend(itertools.chain.from_iterable(unpacked(pieces(packed[:end], size))))
        assert DATA.startswith(found)


def test_unpacked_when_damaged_then_it_says_so():
    packed = bytearray(gzip.compress(DATA))
    packed[-6] ^= 1  # of the checksum
    with pytest.raises(CaptureDamage, match="the compressed file is damaged"):
        list(unpacked([bytes(packed)]))


def test_reader_when_a_compressed_capture_is_cut_off_then_what_is_before_is_read():
    reader = CaptureReader(pieces(gzip.compress(DATA)[:-9], 50))
    assert 0 < len(list(reader)) < 11
    assert reader.problems[-1].startswith("the compressed file ends")


@pytest.mark.parametrize(
    ("begin", "name"),
    [("28b52ffd", "zstd"), ("04224d18", "lz4"), ("fd377a585a00", "xz"), ("425a6839", "bzip2")],
)
def test_unpacked_when_another_program_compressed_it_then_it_says_what_to_do(begin: str, name: str):
    with pytest.raises(CaptureError, match=f"compressed by {name}, expected .* | hcalld decode -"):
        list(unpacked(pieces(bytes.fromhex(begin) + bytes(40), 3)))
