# SPDX-License-Identifier: Apache-2.0
"""A daemon among peers that break the protocol: each loses its connection, nobody else does."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.lab import Lab
from tests.e2e.patience import wait_until
from tests.e2e.wire import PeerClosed

from hcallproto.abi.families import pks, sev
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

CONFIG_SIZE = 512
BUFFER = 0x1000

UNKNOWN = 0x428
"""Between two calls of the keystore; no header names it."""


@pytest.fixture
def daemon(lab: Lab) -> Daemon:
    return lab.daemon("--memory")


@pytest.fixture
def bystander(daemon: Daemon) -> Iterator[FakeShim]:
    """Another guest, which has to be served as before at the end of each test."""
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello("bystander", instance=bytes(16)))
        assert get_config(shim).status == H.SUCCESS
        yield shim
        assert get_config(shim).status == H.SUCCESS


def get_config(shim: FakeShim) -> f.Reply:
    return shim.call(pks.GET_CONFIG.number, BUFFER, CONFIG_SIZE)


def header(
    frame_type: int = s.FrameType.HELLO,
    size: int = s.HEADER_SIZE,
    *,
    magic: int = s.MAGIC,
    flags: int = 0,
    vcpu: int = s.NO_VCPU,
    reset: int = 0,
    request: int = 0,
    seq: int = 0,
) -> bytes:
    return struct.pack(">IHHIIIIQ", magic, frame_type, flags, size, vcpu, reset, request, seq)


GREETING = encode(hello("guest"))

BEFORE_HELLO: dict[str, bytes] = {
    "garbage": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(4096),
    "wrong magic": header(magic=0x48434C51) + bytes(64),
    "unknown type": header(8),
    "type beyond all": header(0xFFFF),
    "daemon's own type": header(s.FrameType.WELCOME),
    "size below the header's": header(size=31),
    "size zero": header(size=0),
    "larger than any frame": header(size=s.MIN_MAX_FRAME + 1),
    "largest size": header(size=0xFFFFFFFF),
    "call before HELLO": header(s.FrameType.CALL, s.HEADER_SIZE + 144, vcpu=0, seq=1) + bytes(144),
    "HELLO cut short inside": header(size=40) + bytes(8),
    "HELLO with bytes behind": header(size=len(GREETING) + 1) + GREETING[32:] + b"\0",
    "undefined flags": header(flags=0x8000, size=len(GREETING)) + GREETING[32:],
    "a vCPU in HELLO": header(vcpu=0, size=len(GREETING)) + GREETING[32:],
    "a sequence number in HELLO": header(seq=1, size=len(GREETING)) + GREETING[32:],
}


@pytest.mark.parametrize("case", BEFORE_HELLO)
def test_breach_before_hello(case: str, daemon: Daemon, bystander: FakeShim) -> None:
    with FakeShim(connect(daemon.socket)) as shim:
        shim.send_bytes(BEFORE_HELLO[case])
        (goodbye,) = shim.wait_closed()
    assert isinstance(goodbye, f.Goodbye)
    assert goodbye.reason is s.GoodbyeReason.BREACH
    assert goodbye.text
    assert "protocol breach" in daemon.log_text()


@pytest.mark.parametrize("case", ["garbage", "unknown type", "larger than any frame"])
def test_breach_byte_by_byte(case: str, daemon: Daemon, bystander: FakeShim) -> None:
    with FakeShim(connect(daemon.socket)) as shim:
        shim.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        try:
            for byte in BEFORE_HELLO[case]:
                shim.send_bytes(bytes([byte]))
        except PeerClosed:
            # The daemon need not read to the end to know.
            pass
        shim.wait_closed()
    wait_until(lambda: "protocol breach" in daemon.log_text(), "the reason in the log")


def test_negotiation_byte_by_byte(daemon: Daemon, bystander: FakeShim) -> None:
    """Frames may come in any pieces, and several in one."""
    with FakeShim(connect(daemon.socket)) as shim:
        for byte in shim.connection.send(hello("slow")):
            shim.send_bytes(bytes([byte]))
        welcome = shim.expect(f.Welcome)
        shim.announced = {spec.number: spec for spec in welcome.announcement.calls}
        accept = shim.connection.send(f.Accept((), True, 0, 0))
        ram = shim.connection.send(f.Ram((f.RamRegion(0, 1 << 20),), 0, 0))
        call = shim.connection.send(shim.frame(pks.GET_CONFIG.number, BUFFER, CONFIG_SIZE))
        shim.send_bytes(accept + ram + call)
        assert shim.finish().status == H.SUCCESS


def second_hello(_shim: FakeShim) -> bytes:
    return GREETING


def call_of_no_vcpu(shim: FakeShim) -> bytes:
    frame = encode(shim.frame(pks.GET_CONFIG.number, BUFFER, CONFIG_SIZE))
    return frame[:12] + b"\xff\xff\xff\xff" + frame[16:]


def call_of_reset_to_come(shim: FakeShim) -> bytes:
    frame = encode(shim.frame(pks.GET_CONFIG.number, BUFFER, CONFIG_SIZE))
    return frame[:16] + struct.pack(">I", 7) + frame[20:]


def two_calls_of_one_vcpu(shim: FakeShim) -> bytes:
    # The second must not be answered before the first: both in one piece.
    first = shim.frame(pks.CONFIRM_OBJECT_FLUSHED.number, BUFFER, BUFFER, 16)
    second = shim.frame(pks.GET_CONFIG.number, BUFFER, CONFIG_SIZE)
    same = second._replace(seq=first.seq)
    return encode(first) + encode(same)


def segments_beyond_count(shim: FakeShim) -> bytes:
    frame = bytearray(encode(shim.frame(pks.GET_CONFIG.number, BUFFER, CONFIG_SIZE)))
    frame[s.HEADER_SIZE + 1] = 200
    return bytes(frame)


def reserved_not_zero(shim: FakeShim) -> bytes:
    frame = bytearray(encode(shim.frame(pks.GET_CONFIG.number, BUFFER, CONFIG_SIZE)))
    frame[s.HEADER_SIZE + 7] = 1
    return bytes(frame)


def answer_to_no_request(_shim: FakeShim) -> bytes:
    return encode(f.ReadReply(0, 0, 1, 1, ((s.AccessStatus.OK, b"x"),)))


def write_answer_to_no_request(_shim: FakeShim) -> bytes:
    return encode(f.WriteReply(0, 0, 1, 1, s.AccessStatus.OK, 0))


def reset_that_goes_back(shim: FakeShim) -> bytes:
    return encode(f.Event(s.EventKind.RESET, s.NO_VCPU, 1, 0))


def descriptors_that_did_not_come(_shim: FakeShim) -> bytes:
    return encode(f.Ram((f.RamRegion(0, 1 << 20, 0, 0),), 1, 0))


def command_without_feature(shim: FakeShim) -> bytes:
    return encode(shim.frame(sev.PLATFORM_STATUS.number)._replace(level=Level.COMMAND))


READY_BREACHES = [
    second_hello,
    call_of_no_vcpu,
    call_of_reset_to_come,
    two_calls_of_one_vcpu,
    segments_beyond_count,
    reserved_not_zero,
    answer_to_no_request,
    write_answer_to_no_request,
    reset_that_goes_back,
    descriptors_that_did_not_come,
    command_without_feature,
]


@pytest.mark.parametrize("make", READY_BREACHES, ids=lambda make: make.__name__)
def test_breach_when_ready(
    make: Callable[[FakeShim], bytes], daemon: Daemon, bystander: FakeShim
) -> None:
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello("guest"))
        assert get_config(shim).status == H.SUCCESS
        shim.send_bytes(make(shim))
        frames = shim.wait_closed()
    assert not [frame for frame in frames if isinstance(frame, f.Welcome)]
    wait_until(lambda: "guest gone" in daemon.log_text(), "the end of the session")
    reasons = [line for line in daemon.log_text().splitlines() if "guest gone" in line]
    assert len(reasons) == 1
    assert "reason=" in reasons[0]


def test_truncated_frame_then_end_of_file(daemon: Daemon, bystander: FakeShim) -> None:
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello("guest"))
        frame = encode(shim.frame(pks.GET_CONFIG.number, BUFFER, CONFIG_SIZE))
        shim.send_bytes(frame[:-1])
        shim.sock.shutdown(socket.SHUT_WR)
        shim.wait_closed()
    wait_until(lambda: "end of file after" in daemon.log_text(), "the reason in the log")


def test_version_not_spoken(daemon: Daemon, bystander: FakeShim) -> None:
    with FakeShim(connect(daemon.socket)) as shim:
        shim.send(hello("guest", version=(2, 3)))
        (goodbye,) = shim.wait_closed()
    assert isinstance(goodbye, f.Goodbye)
    assert goodbye.reason is s.GoodbyeReason.VERSION
    assert "2 to 3" in goodbye.text


def test_silent_peer_is_no_burden(daemon: Daemon, bystander: FakeShim) -> None:
    with FakeShim(connect(daemon.socket)), FakeShim(connect(daemon.socket)) as half:
        half.send_bytes(GREETING[:40])
        assert get_config(bystander).status == H.SUCCESS


def test_second_guest_of_one_partition(daemon: Daemon, bystander: FakeShim) -> None:
    with FakeShim(connect(daemon.socket)) as first:
        first.negotiate(hello("twin", instance=b"a" * 16))
        with FakeShim(connect(daemon.socket)) as second:
            second.send(hello("twin", instance=b"b" * 16))
            (goodbye,) = second.wait_closed()
        assert isinstance(goodbye, f.Goodbye)
        assert goodbye.reason is s.GoodbyeReason.REFUSED
        assert "in use" in goodbye.text
        assert "-name" in goodbye.text
        assert get_config(first).status == H.SUCCESS
    with FakeShim(connect(daemon.socket)) as third:
        # The first has gone, so its partition is free.
        third.negotiate(hello("twin", instance=b"b" * 16))
        assert get_config(third).status == H.SUCCESS


def test_same_instance_takes_over(daemon: Daemon, bystander: FakeShim) -> None:
    """QEMU has reconnected before the daemon noticed the loss of the first connection."""
    with (
        FakeShim(connect(daemon.socket)) as first,
        FakeShim(connect(daemon.socket)) as second,
    ):
        first.negotiate(hello("one", instance=b"a" * 16))
        second.negotiate(hello("one", instance=b"a" * 16, connection=1))
        assert get_config(second).status == H.SUCCESS
        first.wait_closed()


def test_no_handler_answers_function(daemon: Daemon, bystander: FakeShim) -> None:
    """A shim that forwards what was not announced gets the code that QEMU gives by itself."""
    with FakeShim(connect(daemon.socket)) as shim:
        announced = {spec.number for spec in shim.negotiate(hello("guest")).announcement.calls}
        assert UNKNOWN not in announced
        assert shim.call(UNKNOWN).status == H.FUNCTION


def test_many_peers_at_once(daemon: Daemon, bystander: FakeShim) -> None:
    shims = [FakeShim(connect(daemon.socket)) for _ in range(40)]
    try:
        for number, shim in enumerate(shims):
            shim.negotiate(hello(f"guest{number}", instance=number.to_bytes(16, "big")))
        for shim in shims:
            assert get_config(shim).status == H.SUCCESS
        for shim in shims[::2]:
            shim.send_bytes(bytes(64))
        for shim in shims[1::2]:
            assert get_config(shim).status == H.SUCCESS
    finally:
        for shim in shims:
            shim.close()
