# SPDX-License-Identifier: Apache-2.0
"""Conversations of real guests must be understood for ever, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.vectors.record import SHIM

from hcallproto.abi.registry import find
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.decode import decode, decode_header
from hcallproto.wire.encode import encode

FOLDER = Path(__file__).parent / "wire"
VECTORS = sorted(FOLDER.glob("*.frames"))


def conversation(path: Path) -> list[tuple[str, bytes]]:
    lines = path.read_text("ascii").splitlines()
    return [(line[0], bytes.fromhex(line[2:])) for line in lines]


def test_there_are_vectors() -> None:
    assert [path.stem for path in VECTORS] == ["debian-6.12-boot", "linux-7.2-boot-reset"]


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_both_ends_accept_the_conversation(path: Path) -> None:
    shim, daemon = Connection(Role.SHIM), Connection(Role.DAEMON)
    for mark, data in conversation(path):
        sender, receiver = (shim, daemon) if mark == SHIM else (daemon, shim)
        frame = decode(decode_header(data), data)
        assert sender.send(frame) == data
        receiver.receive_data(data)
        assert receiver.next_frame() == frame
    assert shim.state is daemon.state
    assert shim.state in (State.READY, State.CLOSED)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_every_frame_is_what_the_schema_says(path: Path) -> None:
    for _, data in conversation(path):
        header = s.HEADER.parse(data[: s.HEADER_SIZE])
        s.PAYLOADS[s.FrameType(header.type)].parse(data[s.HEADER_SIZE :])
        assert encode(decode(decode_header(data), data)) == data


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_every_call_is_in_the_table_and_answered(path: Path) -> None:
    frames = [decode(decode_header(data), data) for _, data in conversation(path)]
    calls = {frame.seq: frame for frame in frames if isinstance(frame, f.Call)}
    replies = {frame.seq for frame in frames if isinstance(frame, f.Reply)}
    assert calls
    assert replies == set(calls)
    for call in calls.values():
        assert find(call.number, call.level) is not None
