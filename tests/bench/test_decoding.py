# SPDX-License-Identifier: Apache-2.0
"""How fast captures are read: calls as text, against the file's bytes and registers alone."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from tests.bench.results import Results
from tests.unit.hcallproto.capture.sample import Capture, call

from hcalld.cli.capturefiles import CHUNK_SIZE
from hcalld.cli.decode import command
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.capture.pcapng import BlockType
from hcallproto.capture.reading import CaptureReader, exchanges
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

CALLS: Final = 60_000
ROUNDS: Final = 3
GOAL_US: Final = 1e6 / 30_000
_BLOCK: Final = struct.Struct("<7I")
_HEADER: Final = struct.Struct(">IHHIIIIQ")
_REGISTERS: Final = struct.Struct(">13Q")


def capture_of(count: int) -> bytes:
    """Half of the calls GET_CONFIG, half reads of an object by a label, refused with a reason."""
    capture = Capture()
    capture.guest("lpar7")
    inline = (
        f.BufferSpec(4, s.BufferKind.FIXED, s.Direction.IN, 0, 32),
        f.BufferSpec(5, s.BufferKind.SIZED, s.Direction.IN, 6, 255),
    )
    spec = f.CallSpec(pks.READ_OBJECT.number, 1, s.Disposition.FORWARD, 0, 1, -54, -54, inline)
    capture.frame(f.Announce(f.Announcement((spec,)), 1, 0))
    auth = f.Segment(0, 0x1000, s.SegmentStatus.OK, bytes([1, 3]) + bytes(30))
    label = f.Segment(1, 0x2000, s.SegmentStatus.OK, b"db\0")
    data = [capture.data]
    for seq in range(1, count + 1, 2):
        capture.data = b""
        capture.frame(call(pks.GET_CONFIG, seq, buffer=0x5000, buffer_size=64))
        capture.frame(f.Reply(3, 0, seq, 0, (), (f.WriteSegment(0x5000, 64, bytes(64)),)))
        args = {"auth": 0x1000, "label": 0x2000, "label_size": 3, "out": 0x3000, "out_size": 64}
        capture.frame(call(pks.READ_OBJECT, seq + 1, auth, label, **args))
        capture.frame(f.Reply(3, 0, seq + 1, H.NOT_FOUND), comment="no object has this label")
        data.append(capture.data)
    return b"".join(data)


def floor(path: Path) -> int:
    """Reads the file's blocks, frames' headers and calls' registers, and nothing else."""
    count = at = 0
    data = path.read_bytes()
    while at < len(data):
        kind, size, _, _, _, held, _ = _BLOCK.unpack_from(data, at)
        if kind == BlockType.PACKET and held > s.HEADER_SIZE:
            header = _HEADER.unpack_from(data, at + _BLOCK.size)
            if header[1] == s.FrameType.CALL:
                _REGISTERS.unpack_from(data, at + _BLOCK.size + s.HEADER_SIZE)
                count += 1
        at += size
    return count


def best_us(function: Callable[[], object]) -> float:
    """Processor time of the quickest of some rounds, in microseconds for each call."""
    took = []
    for _ in range(ROUNDS):
        start = time.process_time()
        function()
        took.append(time.process_time() - start)
    return min(took) * 1e6 / CALLS


def test_captures_are_decoded(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "calls.pcapng"
    path.write_bytes(capture_of(CALLS))

    def read() -> int:
        with path.open("rb") as file:
            chunks = iter(lambda: file.read(CHUNK_SIZE), b"")
            return sum(1 for _ in exchanges(CaptureReader(chunks)))

    def decode(*options: str) -> None:
        done = CliRunner().invoke(command, [*options, str(path)])
        assert done.exit_code == 0
        assert done.stdout.count("\n") == CALLS

    assert floor(path) == read() == CALLS
    floor_us = best_us(lambda: floor(path))
    for name, what in (
        ("read as calls", read),
        ("decoded as text", decode),
        ("decoded as JSON", lambda: decode("--json")),
    ):
        took = best_us(what)
        results.ratio(f"capture {name} / blocks and registers unpacked", took, floor_us, 20)
        results.value(f"capture {name}, each call", took, round(GOAL_US, 1), "us")
