# SPDX-License-Identifier: Apache-2.0
"""A guest on its way, as one file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcallproto.payloads.sev import MigrationStream, Policy, SevFormatError, TransportPacket

HEADER = st.binary(min_size=52, max_size=52)
PACKETS = st.lists(st.builds(TransportPacket, HEADER, st.binary(max_size=64)), max_size=4)
STREAMS = st.builds(
    MigrationStream,
    policy=st.integers(0, 2**32 - 1).map(Policy),
    pdh=st.binary(max_size=100),
    session=st.binary(min_size=128, max_size=128),
    packets=PACKETS.map(tuple),
)
STREAM = MigrationStream(
    policy=Policy(5),
    pdh=b"pdh",
    session=b"s" * 128,
    packets=(TransportPacket(b"h" * 52, b"payload"),),
)


@given(STREAMS)
def test_stream_when_built_then_parsed_to_the_same(stream: MigrationStream):
    assert MigrationStream.parse(stream.build()) == stream


def test_stream_when_built_then_its_numbers_are_big_endian():
    assert STREAM.build() == (
        b"\0\0\0\5\0\0\0\3pdh\0\0\0\x80" + b"s" * 128
        + b"\0\0\0\x34" + b"h" * 52 + b"\0\0\0\7payload"
    )  # fmt: skip


def test_stream_when_cut_off_then_refused_but_between_packets():
    data = STREAM.build()
    good = {len(data), len(data) - 4 - 52 - 4 - 7}
    for size in range(len(data) + 1):
        if size in good:
            MigrationStream.parse(data[:size])
        else:
            with pytest.raises(SevFormatError, match="migration stream"):
                MigrationStream.parse(data[:size])


def test_stream_when_malformed_then_the_error_says_where():
    data = STREAM.build()
    with pytest.raises(SevFormatError, match="head is malformed"):
        MigrationStream.parse(data.replace(b"\0\0\0\x80", b"\0\0\0\x81"))
    with pytest.raises(SevFormatError, match="packet 1 is malformed"):
        MigrationStream.parse(data + b"\0\0\0\x35")
