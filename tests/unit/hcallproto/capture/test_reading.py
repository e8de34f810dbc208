# SPDX-License-Identifier: Apache-2.0
"""Captures as frames, records and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from tests.unit.hcallproto.capture.sample import TIME, Capture, call, read_of_db

from hcallproto.abi.families import pks
from hcallproto.capture import pcapng, reading
from hcallproto.capture.exchanges import Fate
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.problems import MAX_PROBLEMS
from hcallproto.capture.reading import CaptureReader, Entry, Plain, exchanges
from hcallproto.capture.records import VERSION, Start, Stop
from hcallproto.errors import CaptureError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.decode import decode_header
from hcallproto.wire.encode import encode


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


def test_packets_that_are_not_whole_frames_are_told_and_passed_over():
    """Neither bytes beyond a frame nor a frame that says it is longer is read."""
    goodbye = encode(f.Goodbye(s.GoodbyeReason.SHUTDOWN, "ended"))
    longer = goodbye[:11] + bytes([goodbye[11] + 4]) + goodbye[12:]
    assert decode_header(longer).size == len(goodbye) + 4
    a_call = encode(call(pks.GET_CONFIG, 1))
    capture = Capture()
    capture.guest("lpar7")
    for frame in (goodbye + b"more", longer, goodbye[:-3], a_call[:100], b""):
        capture.frame(frame) if frame else capture._packet(0, b"", Direction.UNKNOWN, "")
    reader = CaptureReader([capture.data])
    assert [type(one.what) for one in reader] == [Start]
    assert len(reader.problems) == 5
    assert all(": not a frame: " in problem for problem in reader.problems)


def test_packets_that_a_tool_cut_short_are_told():
    capture = Capture()
    capture.guest("lpar7")
    block = bytearray(pcapng.packet(0, TIME, encode(call(pks.GET_CONFIG, 1))))
    block[24:28] = (5000).to_bytes(4, "little")
    reader = CaptureReader([capture.data + bytes(block)])
    assert len(list(reader)) == 1
    assert "bytes of a packet were cut off" in reader.problems[0]


def told(read: Callable[[CaptureReader], Iterable[Entry | Plain]], data: bytes) -> object:
    """All that a reader says of a file."""
    reader = CaptureReader([data])
    found: list[object] = []
    try:
        found.extend(one.decoded() if isinstance(one, Plain) else one for one in read(reader))
    except CaptureError as error:
        found.append(str(error))
    return found, list(reader.problems)


def test_who_wants_bytes_is_told_the_same_of_a_file_whatever_is_wrong_with_it():
    capture = Capture()
    capture.guest("lpar7")
    capture.frame(call(pks.GET_CONFIG, 1))
    capture.frame(f.Reply(3, 0, 1, 0, ((4, 1),), (f.WriteSegment(0x5000, 4, b"data"),)))
    data = capture.data
    assert [type(one) for one in CaptureReader([data]).undecoded()] == [Entry, Plain, Plain]
    for at in range(len(data)):
        for bit in (1, 0x80):
            changed = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            assert told(CaptureReader.undecoded, changed) == told(CaptureReader.__iter__, changed)


def test_problems_of_a_bad_file_are_bounded():
    capture = Capture()
    capture.guest("lpar7")
    for _ in range(MAX_PROBLEMS + 30):
        capture.frame(b"HCLP" + bytes(40))
    reader = CaptureReader([capture.data[:-1]])
    list(reader)
    assert len(reader.problems) == MAX_PROBLEMS + 2
    assert reader.problems[-2] == "and 29 more"
    assert "all before it was read" in reader.problems[-1]


def test_a_malformed_record_does_not_hide_the_frames_after_it():
    capture = read_of_db()
    calls = list(exchanges(CaptureReader([capture.data])))
    for record in (b"", b"{", b"[]", b'"start"', b'{"kind": "start"}', b"\xff", b"[" * 5000):
        changed = Capture()
        changed.guest("lpar7", has_start=False)
        changed.record(record)
        reader = CaptureReader([changed.data + capture.data])
        assert list(exchanges(reader)) != []
        assert len(list(exchanges(CaptureReader([changed.data + capture.data])))) == len(calls)
        assert len(reader.problems) == 1


def test_connections_of_a_merged_file_have_versions_of_their_own():
    """The records of one daemon are not read with the version of another's."""
    capture = Capture()
    for name in ("lpar7", "lpar8"):
        capture.guest(name, has_start=name == "lpar7")
    capture.record(Stop(why="ended"), "lpar8")
    reader = CaptureReader([capture.data])
    assert [type(one.what) for one in reader] == [Start]
    assert "before the first 'start'" in reader.problems[0]


def test_calls_are_lost_when_their_connection_ends_and_not_at_the_end_of_the_file():
    capture = Capture()
    for name in ("lpar7", "lpar8"):
        capture.guest(name)
        capture.frame(call(pks.GET_CONFIG, 1), name)
    capture.record(Stop(why="ended"), "lpar7")
    for _ in range(3):
        capture.frame(f.Goodbye(s.GoodbyeReason.SHUTDOWN, "ended"), "lpar8")
    first, second = exchanges(CaptureReader([capture.data]))
    assert (first[0].guest, second[0].guest) == ("lpar7", "lpar8")
    assert second[1].end_ns - first[1].end_ns == 3000


def test_files_of_a_ring_are_read_one_behind_the_other():
    data = read_of_db().data
    found = list(exchanges(CaptureReader([data, data])))
    assert len(found) == 4


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "MAX_CONNECTIONS", 1)
    with pytest.raises(CaptureError, match="more than 1 connections"):
        list(CaptureReader([read_of_db().data]))


def test_a_capture_of_other_packets_is_refused():
    ethernet = pcapng.interface(1, "eth0") + pcapng.packet(0, TIME, bytes(60))  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"no capture of hcalld: .* link type 1, expected 147"):
        list(CaptureReader([pcapng.section("dumpcap") + ethernet]))


def test_a_capture_without_a_guest_has_no_calls():
    assert list(CaptureReader([pcapng.section("hcalld 0")])) == []


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
    with pytest.raises(CaptureError, match=f"version 99, this hcalld reads up to {VERSION}"):
        list(CaptureReader([capture.data]))


def test_calls_without_a_reply_are_lost_at_the_end():
    capture = read_of_db()
    entries = [one for one in CaptureReader([capture.data]) if not isinstance(one.what, f.Reply)]
    found: list[tuple[Entry, object]] = [(e, x.fate) for e, x in exchanges(entries)]
    assert [fate for _, fate in found] == [Fate.LOST, Fate.LOST]
    assert list(exchanges([])) == []
