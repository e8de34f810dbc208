# SPDX-License-Identifier: Apache-2.0
"""Captures as frames, records and calls."""

from __future__ import annotations

import pytest
from tests.unit.hcallproto.capture.sample import TIME, Capture, read_of_db

from hcallproto.capture import pcapng
from hcallproto.capture.exchanges import Fate
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.reading import CaptureReader, Entry, exchanges
from hcallproto.capture.records import Start
from hcallproto.errors import CaptureError
from hcallproto.wire import frames as f


def test_entries_come_with_their_guest_time_and_direction():
    reader = CaptureReader([read_of_db().data])
    entries = list(reader)
    assert [(one.guest, one.connection) for one in entries[:4]] == [
        ("lpar7", 0),
        ("lpar7", 0),
        ("lpar8", 1),
        ("lpar8", 1),
    ]
    assert [type(one.what) for one in entries[:2]] == [Start, f.Announce]
    last = entries[-1]
    assert (last.direction, last.time_ns) == (Direction.OUTBOUND, TIME + 9000)
    assert entries[-2].comment == "no object has this label"
    assert (reader.problems, reader.dropped) == ([], 0)


def test_calls_of_two_guests_are_told_apart():
    found = [
        (entry.guest, exchange.fate, exchange.reply.status if exchange.reply else None)
        for entry, exchange in exchanges(CaptureReader([read_of_db().data]))
    ]
    assert found == [("lpar8", Fate.ANSWERED, -7), ("lpar7", Fate.ANSWERED, 0)]


def test_a_file_that_is_cut_off_is_read_up_to_there():
    data = read_of_db().data
    whole = list(CaptureReader([data]))
    reader = CaptureReader([data[:-5]])
    assert list(reader) == whole[:-1]
    (problem,) = reader.problems
    assert problem.startswith(f"at byte {whole[-1].offset}: the file ends")
    assert problem.endswith("all before it was read")


def test_a_packet_that_is_no_frame_is_told_and_passed_over():
    capture = Capture()
    capture.guest("lpar7")
    capture.frame(b"HCLP" + bytes(40))
    capture.frame(f.Goodbye(1, "ended"))  # type: ignore[arg-type]
    reader = CaptureReader([capture.data])
    assert [type(one.what) for one in reader] == [Start, f.Goodbye]
    assert "not a frame" in reader.problems[0]


def test_other_tools_packets_are_passed_over():
    data = pcapng.section("dumpcap") + read_of_db().data
    ethernet = pcapng.interface(1, "eth0") + pcapng.packet(4, TIME, bytes(60))  # type: ignore[arg-type]
    assert len(list(CaptureReader([data, ethernet]))) == len(list(CaptureReader([data])))


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"", "the file is empty"), (b"not a capture", "is not the beginning of a pcapng file")],
)
def test_what_is_no_capture_is_refused(data: bytes, why: str):
    with pytest.raises(CaptureError, match=why):
        list(CaptureReader([data]))


def test_a_newer_capture_is_refused():
    capture = Capture()
    capture.guest("lpar7", has_start=False)
    capture.record(b'{"kind": "start", "version": 99}')
    with pytest.raises(CaptureError, match="version 99, this hcalld reads up to 1"):
        list(CaptureReader([capture.data]))


def test_calls_without_a_reply_are_lost_at_the_end():
    capture = read_of_db()
    entries = [one for one in CaptureReader([capture.data]) if not isinstance(one.what, f.Reply)]
    found: list[tuple[Entry, object]] = [(e, x.fate) for e, x in exchanges(entries)]
    assert [fate for _, fate in found] == [Fate.LOST, Fate.LOST]
    assert list(exchanges([])) == []
