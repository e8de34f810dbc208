# SPDX-License-Identifier: Apache-2.0
"""A guest on its way, as one file; ``tests/unit/hcalld/sevvm/test_streams.py`` reads whole ones."""

from __future__ import annotations

import pytest
from construct.core import ConstructError

from hcallproto.payloads.sev.stream import STREAM_HEAD, STREAM_PACKET, TransportPacket

HEAD = {"policy": 5, "pdh": b"pdh", "session": b"s" * 128}
PACKET = TransportPacket(b"h" * 52, b"payload")


def test_stream_when_built_then_its_numbers_are_big_endian():
    assert STREAM_HEAD.build(HEAD) == b"\0\0\0\5\0\0\0\3pdh\0\0\0\x80" + b"s" * 128
    assert STREAM_PACKET.build(PACKET._asdict()) == (b"\0\0\0\x34" + b"h" * 52 + b"\0\0\0\7payload")


@pytest.mark.parametrize("policy", [-1, 1 << 32])
def test_stream_when_the_policy_has_no_room_then_refused(policy: int):
    with pytest.raises(ConstructError):
        STREAM_HEAD.build(HEAD | {"policy": policy})


@pytest.mark.parametrize("size", [127, 129])
def test_stream_when_the_session_has_another_size_then_refused(size: int):
    with pytest.raises(ConstructError):
        STREAM_HEAD.build(HEAD | {"session": bytes(size)})


@pytest.mark.parametrize("size", [51, 53])
def test_stream_when_a_header_has_another_size_then_refused(size: int):
    with pytest.raises(ConstructError):
        STREAM_PACKET.build({"header": bytes(size), "payload": b""})
