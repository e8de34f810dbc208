# SPDX-License-Identifier: Apache-2.0
"""A daemon that talks nonsense loses its connection; QEMU and the guest go on."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from tests.e2e.fakedaemon import FakeDaemon, Peer, announcement, answer, forward
from tests.e2e.lab import Lab
from tests.e2e.machine import Machine
from tests.e2e.patience import wait_until
from tests.e2e.wire import PeerClosed

from hcallproto.abi.families import tpm
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

pytestmark = pytest.mark.qemu

NUMBER = 0xFFF8
STATUS = 77
CALLS = announcement([forward(NUMBER)])
HOLD = f"hold number={NUMBER} gap-ms=60000 run-ms=0"

H_PUT_TERM_CHAR = 0x58
H_GET_CPU_CHARACTERISTICS = 0x1C8
"""Hypercalls that QEMU serves itself."""


def header(
    frame_type: int,
    payload: bytes = b"",
    *,
    size: int | None = None,
    magic: int = s.MAGIC,
    flags: int = 0,
    vcpu: int = s.NO_VCPU,
    reset: int = 0,
    request: int = 0,
    seq: int = 0,
) -> bytes:
    """A frame with any header."""
    size = s.HEADER_SIZE + len(payload) if size is None else size
    fields = (magic, frame_type, flags, size, vcpu, reset, request, seq)
    return struct.pack(">IHHIIIIQ", *fields) + payload


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    """Bytes with others in their place."""
    return data[:offset] + value + data[offset + len(value) :]


# -- while a call is pending ----------------------------------------------------------------


def reply(call: f.Call, **fields: Any) -> bytes:
    frame = f.Reply(call.vcpu, call.reset, call.seq, H.SUCCESS)
    return encode(frame._replace(**fields))


def raw_reply(call: f.Call, payload: bytes) -> bytes:
    return header(s.FrameType.REPLY, payload, vcpu=call.vcpu, seq=call.seq)


def fixed_reply(register_mask: int = 0, context: int = 0, write_count: int = 0) -> bytes:
    return struct.pack(">qIHHQQQ", 0, register_mask, context, write_count, 0, 0, 0)


BREACHES: dict[str, Callable[[f.Call], bytes]] = {
    "garbage": lambda call: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "zeros": lambda call: bytes(64),
    "wrong magic": lambda call: header(s.FrameType.REPLY, magic=0x48434C51),
    "unknown type": lambda call: header(26),
    "type beyond all": lambda call: header(0xFFFF),
    "shim's own type": lambda call: header(s.FrameType.EVENT, bytes(8)),
    "type zero": lambda call: header(0),
    "type of a frame that is no more": lambda call: header(14, bytes(8), vcpu=0, seq=call.seq),
    "size below the header's": lambda call: header(s.FrameType.REPLY, size=31),
    "larger than agreed": lambda call: header(
        s.FrameType.REPLY, size=s.MIN_MAX_FRAME + 1, vcpu=0, seq=call.seq
    ),
    "largest size": lambda call: header(s.FrameType.REPLY, size=0xFFFFFFFF, vcpu=0, seq=call.seq),
    "undefined flags": lambda call: changed(reply(call), 6, b"\x00\x02"),
    "second WELCOME": lambda call: encode(
        f.Welcome(s.VERSION, s.MIN_MAX_FRAME, s.Feature(0), CALLS, 0)
    ),
    "reset to come": lambda call: reply(call, reset=1),
    "reply to no call": lambda call: reply(call, seq=call.seq + 1),
    "reply to a call of the past": lambda call: reply(call, seq=2**63),
    "reply to another vCPU": lambda call: reply(call, vcpu=3),
    "reply to a vCPU that is not there": lambda call: reply(call, vcpu=0x1000),
    "reply to no vCPU": lambda call: reply(call, vcpu=s.NO_VCPU),
    "reply without a sequence number": lambda call: reply(call, seq=0),
    "reply cut short": lambda call: raw_reply(call, fixed_reply()[:-1]),
    "reply with bytes behind": lambda call: raw_reply(call, fixed_reply() + b"\0"),
    "reply that sets r1": lambda call: raw_reply(call, fixed_reply(1 << 1) + bytes(8)),
    "reply that sets r3 twice": lambda call: raw_reply(call, fixed_reply(1 << 3) + bytes(8)),
    "reply that sets r13": lambda call: raw_reply(call, fixed_reply(1 << 13) + bytes(8)),
    "reply with fewer registers than said": lambda call: raw_reply(call, fixed_reply(1 << 4)),
    "reply with undefined context": lambda call: raw_reply(call, fixed_reply(0, 8)),
    "reply that sets NIP at level 1": lambda call: raw_reply(call, fixed_reply(0, 1)),
    "reply with 65 segments": lambda call: raw_reply(
        call, fixed_reply(write_count=65) + 65 * struct.pack(">QII", 0x1000, 8, 1)
    ),
    "reply with fewer segments than said": lambda call: raw_reply(call, fixed_reply(write_count=1)),
    "reply with a segment's data cut short": lambda call: raw_reply(
        call, fixed_reply(write_count=1) + struct.pack(">QII", 0x1000, 8, 0) + bytes(7)
    ),
    "reply with a segment's undefined flag": lambda call: raw_reply(
        call, fixed_reply(write_count=1) + struct.pack(">QII", 0x1000, 8, 3)
    ),
    "CANCELLED of a call that was not cancelled": lambda call: encode(
        f.Cancelled(call.vcpu, call.reset, call.seq, s.Effect.NONE)
    ),
    "READ without a request number": lambda call: header(
        s.FrameType.READ, bytes(8), vcpu=call.vcpu, seq=call.seq
    ),
    "READ of 65 segments": lambda call: header(
        s.FrameType.READ,
        struct.pack(">II", 65, 0) + 65 * struct.pack(">QII", 0x1000, 8, 0),
        vcpu=call.vcpu,
        seq=call.seq,
        request=1,
    ),
    "READ with bytes behind": lambda call: header(
        s.FrameType.READ, bytes(9), vcpu=call.vcpu, seq=call.seq, request=1
    ),
    "EVENT_ACK of nothing": lambda call: encode(f.EventAck(s.EventKind.RESET, 1, 0)),
    "EVENT_ACK of another kind": lambda call: encode(f.EventAck(s.EventKind.STOP, 1, 0)),
    "CONTROL of unknown action": lambda call: header(
        s.FrameType.CONTROL, struct.pack(">HH", 9, 1) + b"x"
    ),
    "CONTROL with a text cut short": lambda call: header(
        s.FrameType.CONTROL, struct.pack(">HH", 1, 9) + b"x"
    ),
    "CONTROL with a text too long": lambda call: header(
        s.FrameType.CONTROL, struct.pack(">HH", 1, 513) + b"x" * 513
    ),
    "ANNOUNCE without a request number": lambda call: header(s.FrameType.ANNOUNCE, bytes(8)),
    "ANNOUNCE with fewer calls than said": lambda call: header(
        s.FrameType.ANNOUNCE, struct.pack(">HHHH", 1, 0, 0, 0), request=1
    ),
}


@pytest.mark.parametrize("case", BREACHES)
def test_breach_when_ready(case: str, lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    peer.send_bytes(BREACHES[case](call))
    goodbye = peer.wait_closed()[-1]
    assert isinstance(goodbye, f.ShimGoodbye)
    assert goodbye.reason is s.GoodbyeReason.BREACH
    assert goodbye.text
    assert "the daemon broke the protocol" in machine.messages()
    must_go_on(daemon, machine)


def must_go_on(daemon: FakeDaemon, machine: Machine) -> None:
    """QEMU connects again, and the guest gets the answer that it waits for."""
    assert machine.is_alive
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    peer.reply(call, STATUS)
    machine.report().must_pass("hold")
    assert f"code={STATUS}" in machine.console.text


@pytest.mark.parametrize("size", [1, 31, 32, 71])
def test_frame_cut_off_by_the_end(size: int, lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    peer.send_bytes(reply(call)[:size])
    peer.close()
    must_go_on(daemon, machine)


def test_frames_byte_by_byte(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.greet()
    for byte in encode(f.Welcome(s.VERSION, s.MIN_MAX_FRAME, s.Feature(0), CALLS, 0)):
        peer.send_bytes(bytes([byte]))
    # The state machine was gone around; it follows again from here.
    peer.connection.send(f.Welcome(s.VERSION, s.MIN_MAX_FRAME, s.Feature(0), CALLS, 0))
    peer.expect(f.Accept)
    peer.rams.append(peer.expect(f.Ram))
    call = peer.call()
    for byte in reply(call, status=STATUS):
        peer.send_bytes(bytes([byte]))
    machine.report().must_pass("hold")
    assert f"code={STATUS}" in machine.console.text


def test_reply_twice(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD.replace("run-ms=0", "run-ms=1000"), daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    peer.send_bytes(2 * reply(call, status=STATUS))
    goodbye = peer.wait_closed()[-1]
    assert isinstance(goodbye, f.ShimGoodbye)
    assert goodbye.reason is s.GoodbyeReason.BREACH
    machine.report().must_pass("hold")
    assert f"code={STATUS}" in machine.console.text


def test_daemon_that_does_not_read(lab: Lab) -> None:
    """The shim queues its answers and does not wait; what is too much ends the connection."""
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    read = encode(f.Read(call.vcpu, call.reset, call.seq, 1, ((0, 120_000),)))
    # 24 MiB of answers.
    with contextlib.suppress(PeerClosed):
        peer.send_bytes(200 * read)
    wait_until(lambda: "does not read" in machine.messages(), "the end of the connection")
    assert machine.qmp.status() == "running"
    peer.close()
    must_go_on(daemon, machine)


# -- in negotiation -------------------------------------------------------------------------


def welcome(
    announced: f.Announcement = CALLS,
    *,
    version: int = s.VERSION,
    max_frame_size: int = s.MIN_MAX_FRAME,
    features: s.Feature = s.Feature(0),  # noqa: B008  # an int, never changed
) -> bytes:
    return encode(f.Welcome(version, max_frame_size, features, announced, 0))


def strings(*values: bytes) -> bytes:
    """WELCOME with strings that our encoder would refuse."""
    body = b"".join(struct.pack(">H", len(value)) + value for value in values)
    counts = struct.pack(">HHHH", 0, len(values), 0, 0)
    fixed = struct.pack(">HHIQ", s.VERSION, 0, s.MIN_MAX_FRAME, 0)
    return header(s.FrameType.WELCOME, fixed + counts + body)


def properties(*values: tuple[bytes, bytes]) -> bytes:
    body = b"".join(struct.pack(">H", len(part)) + part for value in values for part in value)
    counts = struct.pack(">HHHH", 0, 0, len(values), 0)
    fixed = struct.pack(">HHIQ", s.VERSION, 0, s.MIN_MAX_FRAME, 0)
    return header(s.FrameType.WELCOME, fixed + counts + body)


def call_count(count: int) -> bytes:
    fixed = struct.pack(">HHIQ", s.VERSION, 0, s.MIN_MAX_FRAME, 0)
    spec = struct.pack(">QBBBBIqq", NUMBER, 1, 0, 0, 0, 100, 0, 0)
    counts = struct.pack(">HHHH", count, 0, 0, 0)
    return header(s.FrameType.WELCOME, fixed + counts + count * spec)


def one_call(spec: bytes) -> bytes:
    fixed = struct.pack(">HHIQ", s.VERSION, 0, s.MIN_MAX_FRAME, 0)
    return header(s.FrameType.WELCOME, fixed + struct.pack(">HHHH", 1, 0, 0, 0) + spec)


GREETINGS: dict[str, bytes] = {
    "garbage": b"220 mail.example ESMTP\r\n" * 4,
    "version 0": welcome(version=0),
    "version 2": welcome(version=2),
    "a feature that was not offered": welcome(features=s.Feature.COMMANDS),
    "frames too small": welcome(max_frame_size=s.MIN_MAX_FRAME - 1),
    "frames too large": welcome(max_frame_size=s.MAX_MAX_FRAME),
    "larger than any frame before it": header(s.FrameType.WELCOME, size=s.MIN_MAX_FRAME + 1),
    "a reply instead": header(s.FrameType.REPLY, fixed_reply(), vcpu=0, seq=1),
    "an announcement instead": header(s.FrameType.ANNOUNCE, bytes(8), request=1),
    "cut short": header(s.FrameType.WELCOME, bytes(16)),
    "bytes behind": header(s.FrameType.WELCOME, welcome()[s.HEADER_SIZE :] + b"\0"),
    "513 calls": call_count(s.MAX_CALLS + 1),
    "a call with 5 buffers": one_call(
        struct.pack(">QBBBBIqq", NUMBER, 1, 0, 0, 5, 100, 0, 0) + 5 * bytes(8)
    ),
    "a call of unknown disposition": one_call(
        struct.pack(">QBBBBIqq", NUMBER, 1, 2, 0, 0, 100, 0, 0)
    ),
    "a call with undefined flags": one_call(
        struct.pack(">QBBBBIqq", NUMBER, 1, 0, 8, 0, 100, 0, 0)
    ),
    "33 strings": strings(*(f"hcall-{n}".encode() for n in range(s.MAX_DT_STRINGS + 1))),
    "an empty string": strings(b""),
    "a string of 64": strings(b"a" * (s.MAX_DT_STRING_SIZE + 1)),
    "a string with a NUL": strings(b"hcall-pks\0hcall-x"),
    "a string in upper case": strings(b"hcall-PKS"),
    "17 properties": properties(*((f"p{n}".encode(), b"") for n in range(17))),
    "a property without a name": properties((b"", b"1")),
    "a property's name of 32": properties((b"p" * 32, b"1")),
    "a property's name with a slash": properties((b"cpus/x", b"1")),
    "a property of 257": properties((b"ibm,x", b"1" * (s.MAX_DT_VALUE_SIZE + 1))),
    "a property that QEMU sets": properties((b"compatible", b"pc\0")),
    "another that QEMU sets": properties((b"#address-cells", bytes(4))),
}


@pytest.mark.parametrize("case", GREETINGS)
def test_breach_in_negotiation(case: str, lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.greet()
    peer.send_bytes(GREETINGS[case])
    # The shim may have answered before it saw what follows; its goodbye is the last frame.
    frames = wait_closed_loosely(peer)
    assert frames[-1] == s.FrameType.SHIM_GOODBYE
    peer = daemon.accept()
    peer.negotiate(CALLS)
    peer.reply(peer.call(), STATUS)
    machine.report().must_pass("hold")
    assert f"code={STATUS}" in machine.console.text


def wait_closed_loosely(peer: Peer) -> list[int]:
    """Types of the frames until the end; our state machine does not know what we sent."""
    data = b""
    peer.sock.settimeout(20)
    while chunk := peer.sock.recv(1 << 16):
        data += chunk
    types = []
    while data:
        types.append(int.from_bytes(data[4:6], "big"))
        data = data[int.from_bytes(data[8:12], "big") :]
    return types


# -- announcements --------------------------------------------------------------------------


def buffer(
    address: int = 4, size_register: int = 0, kind: int = s.BufferKind.FIXED, size: int = 512
) -> f.BufferSpec:
    return f.BufferSpec(address, s.BufferKind(kind), s.Direction.IN, size_register, size)


def test_refused_calls(lab: Lab) -> None:
    """What the shim does not take it names, with the reason; the rest is served."""
    daemon = lab.fake_daemon()
    machine = lab.stub("hcall hold gap-ms=60000 run-ms=0 number=65520", daemon, smp=2)
    peer = daemon.accept()
    why = s.RefusedReason
    calls = {
        forward(H_PUT_TERM_CHAR): why.SERVED_BY_QEMU,
        answer(H_GET_CPU_CHARACTERISTICS, -1): why.SERVED_BY_QEMU,
        forward(0xFFF9): why.OUT_OF_RANGE,
        forward(0xFFFA): why.OUT_OF_RANGE,
        forward(0x1_0000_0000): why.OUT_OF_RANGE,
        forward(0xFFFF_FFFF_FFFF_FFFC): why.OUT_OF_RANGE,
        forward(0xFFF0): None,
        forward(0xFFF0, deadline_ms=5): why.DUPLICATE,
        forward(0xFFF4, level=2): why.LEVEL_NOT_NEGOTIATED,
        forward(0xFFEC, buffer(address=1)): why.BAD_BUFFER,
        forward(0xFFE8, buffer(address=13)): why.BAD_BUFFER,
        forward(0xFFE4, buffer(kind=s.BufferKind.SIZED, size_register=13)): why.BAD_BUFFER,
        forward(0xFFE0, buffer(size_register=5)): why.BAD_BUFFER,
        # Without a spapr-tpm-proxy this one is the daemon's.
        forward(tpm.TPM_COMM.number): None,
    }
    accept = peer.negotiate(announcement(calls))
    refused = {(call.number, call.level): call.reason for call in accept.refused}
    expected = {(c.number, c.level): reason for c, reason in calls.items() if reason is not None}
    assert refused == expected
    call = peer.call()
    assert call.number == 0xFFF0
    peer.reply(call, STATUS)
    # The test "hcall" has made QEMU's own calls, and one of a number that nobody takes.
    machine.report().must_pass("hcall", "hold")


def test_tpm_comm_of_a_machine_with_a_tpm_proxy(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    lab.stub("self", daemon, smp=1, extra=["-device", "spapr-tpm-proxy,host-path=/dev/null", "-S"])
    peer = daemon.accept()
    accept = peer.negotiate(announcement([forward(tpm.TPM_COMM.number)]))
    assert [call.reason for call in accept.refused] == [s.RefusedReason.SERVED_BY_QEMU]


def test_call_that_the_shim_answers_itself(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(announcement([answer(NUMBER, 4321)]))
    machine.report().must_pass("hold")
    assert "code=4321" in machine.console.text
    assert isinstance(peer.wait_closed()[-1], f.ShimGoodbye)


def test_device_tree(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("dt pks=1 secure-boot=2 trusted-boot=1", daemon)
    peer = daemon.accept()
    two, one = struct.pack(">I", 2), struct.pack(">I", 1)
    peer.negotiate(
        announcement(
            [],
            # What QEMU has itself is not added a second time.
            ["hcall-pks", "hcall-term", "hcall-pks"],
            [("ibm,secure-boot", two), ("ibm,trusted-boot", one)],
        )
    )
    machine.report().must_pass("dt")
    names = [line.split()[-1] for line in machine.console.text.splitlines() if "# hypertas" in line]
    assert names.count("hcall-pks") == 1
    assert names.count("hcall-term") == 1


def test_device_tree_after_cas(lab: Lab) -> None:
    """ibm,client-architecture-support makes a second tree, which says the same."""
    daemon = lab.fake_daemon()
    machine = lab.stub("dt cas=1 pks=1 secure-boot=2", daemon)
    peer = daemon.accept()
    peer.negotiate(announcement([], ["hcall-pks"], [("ibm,secure-boot", struct.pack(">I", 2))]))
    machine.report().must_pass("dt")


def test_announcement_changes_at_the_next_reset(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("dt " + HOLD + " pks=1", daemon, can_reboot=True, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    call = peer.call()
    peer.send(f.Announce(announcement([forward(NUMBER)], ["hcall-pks"]), 5, 0))
    accept = peer.expect(f.Accept)
    assert (accept.request, accept.is_active, accept.refused) == (5, False, ())
    machine.qmp.execute("system_reset")
    again = peer.call()
    assert again.reset == call.reset + 1
    peer.send(f.Announce(announcement([forward(NUMBER)], ["hcall-pks"]), 6, 1))
    assert peer.expect(f.Accept).is_active
    peer.reply(again, STATUS)
    # The first boot did not see hcall-pks, the second does.
    machine.report().must_pass("dt", "hold")
    boots = machine.console.text.split("\nKTAP version 1\n")
    assert len(boots) == 3
    assert "not ok" in boots[1]


def test_call_that_a_new_announcement_drops(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, can_reboot=True, smp=2)
    peer = daemon.accept()
    peer.negotiate(CALLS)
    peer.call()
    peer.send(f.Announce(announcement([forward(0xFFF0)]), 1, 0))
    assert not peer.expect(f.Accept).is_active
    machine.qmp.execute("system_reset")
    machine.report().must_pass("hold")
    assert f"code={H.FUNCTION.value}" in machine.console.text
