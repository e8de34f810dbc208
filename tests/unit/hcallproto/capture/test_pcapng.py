# SPDX-License-Identifier: Apache-2.0
"""The container of captures: what is written is read, also by Wireshark's tools."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcallproto.capture import blocks, pcapng
from hcallproto.capture.blocks import Reader
from hcallproto.capture.pcapng import Direction, Interface, LinkType, Packet
from hcallproto.errors import CaptureDamage

TIME = 1_795_285_506_201_950_488
"""Nanoseconds since the epoch, none of whose digits may be lost."""


def read(data: bytes, size: int = 1 << 16) -> list[Packet]:
    reader = Reader()
    packets: list[Packet] = []
    for at in range(0, len(data), size):
        packets += reader.feed(data[at : at + size])
    reader.end()
    return packets


def sample() -> bytes:
    return b"".join(
        (
            pcapng.section("hcalld 0", "what it is"),
            pcapng.interface(LinkType.FRAMES, "lpar7", "connection 1"),
            pcapng.interface(LinkType.RECORDS, "lpar7"),
            pcapng.packet(0, TIME, b"frame", Direction.INBOUND),
            pcapng.packet(0, TIME + 1, b"", Direction.OUTBOUND, "refused: it is wrong"),
            pcapng.packet(1, TIME + 2, b'{"kind": "start"}'),
            pcapng.statistics(0, TIME + 3, 5, 3),
        )
    )


@pytest.mark.parametrize("size", [1, 3, 64, 1 << 16])
def test_feed_when_pieces_have_any_size_then_packets_are_the_same(size: int):
    first, second, third = read(sample(), size)
    assert first.interface == Interface(LinkType.FRAMES, "lpar7", "connection 1")
    assert (first.time_ns, first.data, first.direction) == (TIME, b"frame", Direction.INBOUND)
    assert (second.data, second.comment) == (b"", "refused: it is wrong")
    assert second.direction is Direction.OUTBOUND
    assert (third.interface.link_type, third.time_ns) == (LinkType.RECORDS, TIME + 2)
    data = sample()
    assert [data[p.offset : p.offset + 4] for p in (first, second, third)] == [b"\6\0\0\0"] * 3


def test_feed_when_packets_were_dropped_then_they_are_counted():
    reader = Reader()
    list(reader.feed(sample()))
    assert reader.dropped == 3


@given(
    data=st.binary(max_size=70),
    time=st.integers(0, (1 << 63) - 1),
    direction=st.sampled_from(Direction),
    comment=st.text(max_size=40).filter(lambda text: "\0" not in text),
)
def test_packet_when_written_then_it_is_read(
    data: bytes, time: int, direction: Direction, comment: str
):
    begin = pcapng.section("hcalld 0") + pcapng.interface(LinkType.FRAMES, "")
    (found,) = read(begin + pcapng.packet(0, time, data, direction, comment))
    assert (found.data, found.time_ns) == (data, time)
    assert (found.direction, found.comment) == (direction, comment)


def test_packet_when_a_comment_is_too_long_then_it_is_cut_between_characters():
    begin = pcapng.section("hcalld 0") + pcapng.interface(LinkType.FRAMES, "")
    (found,) = read(begin + pcapng.packet(0, TIME, b"", comment="a" + "\u20ac" * 30_000))
    assert found.comment == "a" + "\u20ac" * 21_843


def test_feed_when_several_sections_then_interfaces_are_counted_anew():
    second = pcapng.section("other") + pcapng.interface(LinkType.FRAMES, "lpar8")
    packets = read(sample() + second + pcapng.packet(0, TIME, b"x"))
    assert packets[-1].interface.name == "lpar8"


def big_endian() -> bytes:
    """A section as another machine writes it: times in units of 2^-10 s, a block we know not."""
    return bytes.fromhex(
        "0a0d0d0a 0000001c 1a2b3c4d 0001 0000 ffffffffffffffff 0000001c"
        "00000001 0000001c 0093 0000 00000000 0009 0001 8a000000 0000001c"
        "00000bad 00000010 deadbeef 00000010"
        "00000006 00000024 00000000 00000000 00000c00 00000003 00000003 61626300 00000024"
    )


def test_feed_when_another_machine_wrote_it_then_it_is_read():
    (packet,) = read(big_endian())
    assert (packet.data, packet.time_ns) == (b"abc", 3_000_000_000)


# -- damage -----------------------------------------------------------------------------


def ends_of_blocks(data: bytes) -> list[int]:
    ends = [0]
    while ends[-1] < len(data):
        ends.append(ends[-1] + int.from_bytes(data[ends[-1] + 4 : ends[-1] + 8], "little"))
    return ends[1:]


def test_end_when_a_file_is_cut_off_anywhere_then_it_says_where():
    ends, packets = ends_of_blocks(sample()), read(sample())
    for size in range(len(sample())):
        reader = Reader()
        found = list(reader.feed(sample()[:size]))
        assert found == [packet for packet in packets if packet.offset < reader.offset]
        if size in ends:
            reader.end()
        else:
            with pytest.raises(CaptureDamage, match=f"at byte {reader.offset}: the file"):
                reader.end()


@given(data=st.data())
def test_feed_when_bytes_are_changed_then_nothing_but_capture_errors_comes(data: st.DataObject):
    changed = bytearray(sample())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    reader = Reader()
    try:
        list(reader.feed(bytes(changed)))
        reader.end()
    except CaptureDamage as error:
        said = str(error)
    else:
        said = f"at byte {reader.offset}: nothing"
    assert said.startswith(f"at byte {reader.offset}: ")


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"#!/bin/sh\nexit 0\n", "is not the beginning of a pcapng file"),
        (bytes.fromhex("0a0d0d0a 1c000000 4d3c2b1b") + bytes(16), "magic number 4d3c2b1b"),
        (
            bytes.fromhex("0a0d0d0a 1c000000 4d3c2b1a 0200 0000") + bytes(8) + b"\x1c\0\0\0",
            "pcapng version 2, expected 1",
        ),
    ],
)
def test_feed_when_it_is_no_capture_then_it_says_so(block: bytes, why: str):
    with pytest.raises(CaptureDamage, match=f"at byte 0: .*{why}"):
        read(block)


PACKET = pcapng.packet(0, TIME + 9, b"after it")


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("06000000 0c000000 10000000", "two lengths differ"),
        ("06000000 0d000000 0d000000", "a block of 13 bytes"),
        ("06000000 fcffffff fcffffff", "a block of 4294967292 bytes"),
        ("06000000 08000000 08000000", "a block of 8 bytes"),
    ],
)
def test_feed_when_blocks_do_not_follow_one_another_then_it_says_where(block: str, why: str):
    reader = Reader()
    assert len(list(reader.feed(sample()))) == 3
    with pytest.raises(CaptureDamage, match=f"at byte {len(sample())}: .*{why}"):
        list(reader.feed(bytes.fromhex(block) + PACKET))


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("06000000 20000000 07000000 00000000 00000000 00000000 00000000 20000000", "interface 7"),
        ("06000000 20000000 00000000 00000000 00000000 00010000 00000000 20000000", "256 bytes"),
        ("06000000 0c000000 0c000000", "a packet block of 12 bytes"),
        ("01000000 0c000000 0c000000", "type 1 and only 12 bytes"),
        ("03000000 14000000 04000000 61626364 14000000", "block of type 3, which no capture has"),
        ("02000000 0c000000 0c000000", "block of type 2, which no capture has"),
        ("05000000 20000000 00000000 00000000 00000000 0500ff00 00000000 20000000", "an option"),
        (
            "06000000 28000000 00000000 00000000 00000000 00000000 00000000 01000500 61626300"
            "28000000",
            "an option of 5 bytes goes beyond its block",
        ),
    ],
)
def test_feed_when_a_block_is_malformed_then_the_next_one_is_read(block: str, why: str):
    reader = Reader()
    assert len(list(reader.feed(sample()))) == 3
    assert [one.data for one in reader.feed(bytes.fromhex(block) + PACKET)] == [b"after it"]
    (problem,) = reader.problems
    assert problem.startswith(f"at byte {len(sample())}: ")
    assert why in problem


def test_feed_when_an_interface_is_malformed_then_the_others_keep_their_numbers():
    bad = bytes.fromhex("01000000 18000000 93000000 00000000 0200ff00 18000000")
    data = pcapng.section("hcalld 0") + bad + pcapng.interface(LinkType.FRAMES, "lpar7")
    reader = Reader()
    (found,) = reader.feed(data + pcapng.packet(1, TIME, b""))
    assert found.interface.name == "lpar7"
    assert len(reader.problems) == 1


def test_feed_when_a_section_ends_then_its_interfaces_are_no_longer_there():
    reader = Reader()
    packets = list(reader.feed(sample() + pcapng.section("other") + PACKET))
    assert len(packets) == 3
    assert "a packet of interface 0, and there are 0" in reader.problems[0]


@pytest.mark.parametrize(
    ("resolution", "seconds", "ticks", "time_ns"),
    [
        (None, None, 7_000_001, 7_000_001_000),
        (3, None, 7_001, 7_001_000_000),
        (12, None, 7_000_000_001_999, 7_000_000_001),
        (0x80, 5, 7, 12_000_000_000),
        (9, -2, 7_000_000_000, 5_000_000_000),
        (9, -8, 7_000_000_000, 0),
        (9, None, (1 << 64) - 1, (1 << 63) - 1),
        (0, None, (1 << 64) - 1, (1 << 63) - 1),
        (127, None, (1 << 64) - 1, 0),
        (0xFF, None, (1 << 64) - 1, (((1 << 64) - 1) * 1_000_000_000) >> 127),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_feed_when_an_interface_says_what_its_times_are_then_they_are_read_so(
    order: Literal["little", "big"],
    resolution: int | None,
    seconds: int | None,
    ticks: int,
    time_ns: int,
):
    def number(value: int, size: int = 4) -> bytes:
        return value.to_bytes(size, order, signed=value < 0)

    def block(kind: int, body: bytes) -> bytes:
        size = number(12 + len(body))
        return number(kind) + size + body + size

    options = b""
    if resolution is not None:
        options += number(9, 2) + number(1, 2) + bytes([resolution]) + bytes(3)
    if seconds is not None:
        options += number(14, 2) + number(8, 2) + number(seconds, 8)
    section = number(0x1A2B3C4D) + number(1, 2) + number(0, 2) + bytes([255] * 8)
    times = number(ticks >> 32) + number(ticks & 0xFFFF_FFFF)
    (found,) = read(
        block(0x0A0D0D0A, section)
        + block(1, number(147, 2) + bytes(6) + options)
        + block(6, number(0) + times + number(0) + number(0))
    )
    assert found.time_ns == time_ns


def test_feed_when_a_packet_was_cut_short_then_it_says_by_how_much():
    cut = bytes.fromhex(
        "06000000 24000000 00000000 00000000 00000000 02000000 09000000 61620000 24000000"
    )
    found = read(sample() + cut)[-1]
    assert (found.data, found.missing) == (b"ab", 7)


def test_feed_when_there_are_too_many_interfaces_then_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(blocks, "MAX_INTERFACES", 2)
    data = pcapng.section("hcalld 0") + 3 * pcapng.interface(LinkType.FRAMES, "a")
    with pytest.raises(CaptureDamage, match="more than 2 interfaces"):
        list(Reader().feed(data))


@pytest.mark.parametrize("names", [("a" * 1025, ""), ("a", "b" * 1025)])
def test_feed_when_a_name_is_too_long_then_it_is_not_kept(names: tuple[str, str]):
    # Of 65536 interfaces each would be.
    data = pcapng.section("hcalld 0") + pcapng.interface(LinkType.FRAMES, "a" * 1024, "b" * 1024)
    data += pcapng.interface(LinkType.FRAMES, *names) + pcapng.packet(0, TIME, b"c")
    reader = Reader()
    (found,) = reader.feed(data)
    assert found.interface[1:] == ("a" * 1024, "b" * 1024)
    (problem,) = reader.problems
    assert problem.endswith("an interface whose name has 1025 bytes, at most 1024")


def test_feed_when_a_block_comes_in_many_pieces_then_each_is_looked_at_once():
    """A block of the greatest size, in pieces of a byte each, must not be joined each time."""
    begin = pcapng.section("hcalld 0") + pcapng.interface(LinkType.FRAMES, "a")
    data = begin + pcapng.packet(0, TIME, bytes(200_000))
    reader = Reader()
    found: list[Packet] = []
    for byte in data:
        found += reader.feed(bytes([byte]))
    assert [len(one.data) for one in found] == [200_000]


# -- Wireshark's tools ------------------------------------------------------------------


def run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_capinfos_and_editcap_read_it(tmp_path: Path, require: Callable[[str], Path]):
    original, copy = tmp_path / "a.pcapng", tmp_path / "b.pcapng"
    original.write_bytes(sample())
    said = run(require("capinfos"), original)
    assert "Wireshark/... - pcapng" in said
    assert "nanoseconds (9)" in said
    assert "Capture application: hcalld 0" in said
    assert "Name = lpar7" in said
    run(require("editcap"), original, copy)
    fields = [(p.interface, p.time_ns, p.data, p.direction, p.comment) for p in read(sample())]
    again = [(p.interface, p.time_ns, p.data, p.direction, p.comment) for p in read_file(copy)]
    assert again == fields


def read_file(path: Path) -> list[Packet]:
    return read(path.read_bytes())


def test_tshark_shows_direction_comment_and_guest(tmp_path: Path, require: Callable[[str], Path]):
    path = tmp_path / "a.pcapng"
    path.write_bytes(sample())
    first, second, _ = json.loads(run(require("tshark"), "-r", path, "-T", "json"))
    frame = second["_source"]["layers"]["frame"]
    assert frame["frame.interface_id_tree"]["frame.interface_name"] == "lpar7"
    assert frame["frame.packet_flags_tree"]["frame.packet_flags_direction"] == "0x00000002"
    assert "refused: it is wrong" in json.dumps(second)
    assert first["_source"]["layers"]["frame"]["frame.time_epoch"] == "1795285506.201950488"
