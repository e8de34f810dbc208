# SPDX-License-Identifier: Apache-2.0
"""Daemons that are not there, are late, die or talk nonsense: an errno, and a line why."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Require
from tests.e2e.fakedaemon import FakeDaemon, Peer, announcement
from tests.e2e.sevprogram import (
    ERROR_BEFORE,
    KVM_MEMORY_ENCRYPT_OP,
    PAGE,
    TIMEOUT_VARIABLE,
    SevProgram,
)
from tests.e2e.wire import PeerClosed
from tests.integration.ioctl_shim.conftest import Built, SevShim
from tests.integration.ioctl_shim.liar import (
    LOST,
    TIMEOUT,
    announce_all,
    begin,
    meet,
    register,
    write,
)

from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

SHORT_MS = 300
"""A deadline that a test waits for."""


@pytest.fixture
def fake(shim: SevShim) -> FakeDaemon:
    return shim.lab.fake_daemon()


@pytest.fixture
def program(shim: SevShim, fake: FakeDaemon) -> SevProgram:
    return shim.program(fake.path)


def lines(program: SevProgram) -> list[str]:
    """What it has said, without the library's name, which must be on each line."""
    found = program.messages().splitlines()
    assert all(line.startswith("libhcalld-sev: ") for line in found), found
    return [line.removeprefix("libhcalld-sev: ") for line in found]


# -- not there --------------------------------------------------------------------------------


def test_command_when_nobody_listens_then_there_is_no_device_until_somebody_does(
    shim: SevShim, socket_dir: Path
):
    path = socket_dir / "late.sock"
    program = shim.program(path)
    vm, device = program.create_vm(), program.open("/dev/sev")
    assert program.issue(vm, sev.INIT).status == SevCode.ENODEV
    assert program.issue(device, sev.PLATFORM_STATUS).status == SevCode.ENODEV
    assert program.ioctl(vm, KVM_MEMORY_ENCRYPT_OP).errno == -SevCode.ENOTTY
    said = f"{path}: cannot connect: No such file or directory; start `hcalld serve`, or name"
    assert [line.startswith(said) for line in lines(program)] == [True] * 3
    with FakeDaemon(path) as fake:
        pending = begin(program, vm, sev.INIT)
        peer = meet(fake)
        peer.reply(peer.call())
        assert pending.result().status == 0


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (None, "HCALLD_SEV_SOCKET is not set; it names the socket that `hcalld serve` listens on"),
        (Path(""), ".: cannot connect: Connection refused"),
        (Path("/" + "x" * 200), "its path is longer than 107 bytes"),
    ],
)
def test_command_when_no_socket_is_named_then_that_is_said(
    shim: SevShim, path: Path | None, says: str
):
    program = shim.program(path)
    result = program.issue(program.create_vm(), sev.INIT)
    assert (result.status, result.error) == (SevCode.ENODEV, ERROR_BEFORE)
    (line,) = lines(program)
    assert says in line


def test_command_when_the_daemon_does_not_greet_then_there_is_no_device(
    shim: SevShim, fake: FakeDaemon
):
    program = shim.program(fake.path, environ={TIMEOUT_VARIABLE: str(SHORT_MS)})
    assert program.issue(program.create_vm(), sev.INIT).status == SevCode.ENODEV
    assert lines(program) == ["lost the connection to the daemon: it does not answer HELLO"]


@pytest.mark.parametrize("value", ["", "10 s", "0", "-1", "4000000000"])
def test_timeout_when_it_is_no_number_then_that_is_said_and_the_default_is_in_force(
    shim: SevShim, fake: FakeDaemon, value: str
):
    program = shim.program(fake.path, environ={TIMEOUT_VARIABLE: value})
    pending = begin(program, program.create_vm(), sev.INIT)
    peer = meet(fake)
    peer.reply(peer.call())
    assert pending.result().status == 0
    assert lines(program) == [
        "HCALLD_SEV_TIMEOUT_MS is no number of milliseconds from 1 to 2147483647; 10000 are waited"
    ]


@pytest.mark.parametrize("reason", [s.GoodbyeReason.VERSION, s.GoodbyeReason.REFUSED])
def test_command_when_the_daemon_declines_then_its_words_are_shown(
    program: SevProgram, fake: FakeDaemon, reason: s.GoodbyeReason
):
    pending = begin(program, program.create_vm(), sev.INIT)
    peer = fake.accept()
    peer.greet()
    peer.send(f.Goodbye(reason, "no,\x1b[2J thanks"))
    assert pending.result().status == SevCode.ENODEV
    assert lines(program) == [
        "lost the connection to the daemon: it says goodbye "
        f"(reason {reason:d}): no,\\x1b[2J thanks"
    ]


def raw_welcome(
    version: int = 1,
    max_frame: int = s.DEFAULT_MAX_FRAME,
    features: int = s.Feature.COMMANDS,
    tail: bytes = bytes(8),
) -> bytes:
    """A WELCOME with anything in it."""
    payload = struct.pack(">HHIQ", version, 0, max_frame, features) + tail
    return raw_header(s.FrameType.WELCOME, s.HEADER_SIZE + len(payload)) + payload


def raw_header(
    kind: int,
    size: int,
    *,
    magic: int = s.MAGIC,
    flags: int = 0,
    vcpu: int = s.NO_VCPU,
    reset: int = 0,
    seq: int = 0,
) -> bytes:
    return struct.pack(">IHHIIIIQ", magic, kind, flags, size, vcpu, reset, 0, seq)


BAD_WELCOMES = {
    "version 2": raw_welcome(version=2),
    "version 0": raw_welcome(version=0),
    "no COMMANDS": raw_welcome(features=0),
    "SC2 too": raw_welcome(features=6),
    "small frames": raw_welcome(max_frame=s.MIN_MAX_FRAME - 1),
    "large frames": raw_welcome(max_frame=s.MAX_MAX_FRAME + 1),
    "cut": raw_welcome(tail=bytes(7)),
    "more": raw_welcome(tail=bytes(9)),
    "too many calls": raw_welcome(tail=struct.pack(">HHHH", 513, 0, 0, 0)),
    "too many strings": raw_welcome(tail=struct.pack(">HHHH", 0, 33, 0, 0)),
    "fewer calls": raw_welcome(tail=struct.pack(">HHHH", 1, 0, 0, 0)),
    "five buffers": raw_welcome(
        tail=struct.pack(">HHHHQBBBBIqq", 1, 0, 0, 0, sev.INIT.number, 4, 0, 0, 5, 1, 0, 0)
        + bytes(5 * 8)
    ),
    "no disposition": raw_welcome(
        tail=struct.pack(">HHHHQBBBBIqq", 1, 0, 0, 0, sev.INIT.number, 4, 2, 0, 0, 1, 0, 0)
    ),
    "long string": raw_welcome(tail=struct.pack(">HHHHH", 0, 1, 0, 0, 64) + b"x" * 64),
    "another frame": raw_header(s.FrameType.ANNOUNCE, s.HEADER_SIZE),
    "unknown frame": raw_header(999, s.HEADER_SIZE),
    "no magic": raw_header(s.FrameType.WELCOME, s.HEADER_SIZE, magic=0x48545450),
    "flags": raw_header(s.FrameType.WELCOME, s.HEADER_SIZE, flags=1),
    "reset": raw_header(s.FrameType.WELCOME, s.HEADER_SIZE, reset=1),
    "tiny": raw_header(s.FrameType.WELCOME, s.HEADER_SIZE - 1),
    "huge": raw_header(s.FrameType.WELCOME, 0xFFFF_FFFF),
    "a web server": b"HTTP/1.1 400 Bad Request\r\nServer: none\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_WELCOMES)
def test_command_when_welcome_is_bad_then_there_is_no_device(
    program: SevProgram, fake: FakeDaemon, name: str
):
    vm = program.create_vm()
    pending = begin(program, vm, sev.INIT)
    peer = fake.accept()
    peer.greet()
    peer.send_bytes(BAD_WELCOMES[name])
    result = pending.result()
    assert (result.status, result.error) == (SevCode.ENODEV, ERROR_BEFORE)
    (line,) = lines(program)
    assert line.startswith("lost the connection to the daemon: it breaks the protocol: ")
    goodbye = peer.expect(f.ShimGoodbye)
    assert goodbye.reason is s.GoodbyeReason.BREACH
    # Nothing was made in the daemon yet, so the VM may try again.
    pending = begin(program, vm, sev.INIT)
    peer = meet(fake)
    peer.reply(peer.call())
    assert pending.result().status == 0


# -- it goes ----------------------------------------------------------------------------------


def test_vm_when_the_daemon_dies_in_a_command_then_the_vm_has_no_device_any_more(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    room = program.map(PAGE)
    pending = begin(program, vm, sev.LAUNCH_MEASURE, uaddr=room, len=48)
    peer = meet(fake)
    peer.call()
    peer.close()
    result = pending.result()
    assert (result.status, result.error) == (LOST, ERROR_BEFORE)
    assert program.get(room, PAGE) == bytes(PAGE)
    for _ in range(2):
        assert program.issue(vm, sev.LAUNCH_MEASURE, uaddr=room, len=48).status == SevCode.ENODEV
    assert program.ioctl(vm, KVM_MEMORY_ENCRYPT_OP).errno == -SevCode.ENOTTY
    assert not fake.has_connection()
    assert lines(program) == ["lost the connection to the daemon: the daemon has closed it"]
    # Another VM is another guest.
    pending = begin(program, program.create_vm(), sev.INIT)
    peer = meet(fake)
    peer.reply(peer.call())
    assert pending.result().status == 0


def test_vm_when_the_daemon_ends_between_commands_then_its_words_are_shown(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    pending = begin(program, vm, sev.INIT)
    peer = meet(fake)
    peer.reply(peer.call())
    assert pending.result().status == 0
    peer.send(f.Goodbye(s.GoodbyeReason.SHUTDOWN, "the daemon ends"))
    peer.close()
    assert program.issue(vm, sev.LAUNCH_FINISH).status == SevCode.ENODEV
    assert lines(program) == [
        "lost the connection to the daemon: it says goodbye (reason 4): the daemon ends"
    ]


def test_platform_when_the_daemon_has_come_back_then_it_is_used(
    program: SevProgram, fake: FakeDaemon
):
    device = program.open("/dev/sev")
    for connection in range(3):
        pending = begin(program, device, sev.PDH_GEN)
        peer = meet(fake)
        assert peer.hello is not None
        assert peer.hello.connection == connection
        peer.reply(peer.call())
        assert pending.result().status == 0
        peer.close()


def test_control_when_it_ends_the_guest_then_the_vm_has_no_device(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    pending = begin(program, vm, sev.INIT)
    peer = meet(fake)
    call = peer.call()
    peer.send(f.Control(s.ControlAction.STOP, "a break", 0))
    peer.reply(call)
    assert pending.result().status == 0
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    peer.call()
    peer.send(f.Control(s.ControlAction.TERMINATE, "enough", 0))
    assert pending.result().status == LOST
    assert program.issue(vm, sev.LAUNCH_FINISH).status == SevCode.ENODEV
    assert lines(program) == [
        "the daemon asks for what a program cannot do (CONTROL 1): a break",
        "lost the connection to the daemon: it ends the guest: enough",
    ]


# -- it is late -------------------------------------------------------------------------------


def test_command_when_its_deadline_passes_then_it_is_cancelled_and_has_no_effect(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    room = program.map(PAGE)
    calls = announce_all(SHORT_MS)
    pending = begin(program, vm, sev.LAUNCH_UPDATE_DATA, uaddr=room, len=PAGE)
    peer = meet(fake, calls)
    first = peer.call()
    result = pending.result()
    assert (result.status, result.error) == (TIMEOUT, ERROR_BEFORE)
    cancel = peer.expect(f.Cancel)
    assert (cancel.seq, cancel.reason) == (first.seq, s.CancelReason.DEADLINE)
    # All of this comes too late.
    peer.send(f.Read(0, 0, first.seq, 7, ((room, 16), (room, 1))))
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    answer = peer.expect(f.ReadReply)
    assert answer.segments == ((s.AccessStatus.NO_CALL, b""),) * 2
    second = peer.call()
    assert second.seq > first.seq
    peer.send(f.Write(0, 0, first.seq, 8, (write(room, b"late"),)))
    assert peer.expect(f.WriteReply).status is s.AccessStatus.NO_CALL
    peer.send(f.Reply(0, 0, first.seq, SevCode.SUCCESS, (), (write(room, b"late"),)))
    peer.send(f.Cancelled(0, 0, first.seq, s.Effect.MAY_REMAIN))
    peer.reply(second)
    assert pending.result().status == 0
    assert program.get(room, PAGE) == bytes(PAGE)
    (line,) = lines(program)
    name = sev.LAUNCH_UPDATE_DATA.name
    assert line == f"{name}: the daemon has not answered within {SHORT_MS} ms"


def test_daemon_when_it_acknowledges_nothing_then_it_is_left(program: SevProgram, fake: FakeDaemon):
    vm = program.create_vm()
    peer = None
    for number in range(s.MAX_CANCELLING + 1):
        pending = begin(program, vm, sev.LAUNCH_FINISH)
        peer = peer or meet(fake, announce_all(50))
        assert pending.result().status == TIMEOUT, number
    assert program.issue(vm, sev.LAUNCH_FINISH).status == SevCode.ENODEV
    assert lines(program)[-1].endswith("it has not acknowledged 8 cancelled commands")


def test_daemon_when_it_does_not_read_then_it_is_left_at_the_deadline(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    size = 8 << 20
    room = program.map(size)
    pending = begin(program, vm, sev.LAUNCH_UPDATE_DATA, uaddr=room, len=size)
    peer = meet(fake, announce_all(1000), s.MAX_MAX_FRAME)
    call = peer.call()
    peer.send(f.Read(0, 0, call.seq, 1, ((room, size),)))
    assert pending.result().status == LOST
    assert lines(program) == ["lost the connection to the daemon: the daemon does not read"]


def test_deadline_when_it_has_passed_then_frames_that_are_there_do_not_hold_the_command_up(
    program: SevProgram, fake: FakeDaemon
):
    """Or a daemon that sends one after the other could hold it for ever."""
    vm = program.create_vm()
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    peer = meet(fake, announce_all(SHORT_MS))
    call = peer.call()
    os.kill(program.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, program.pid, os.WSTOPPED)
    for _ in range(3):
        peer.send(f.Control(s.ControlAction.STOP, "a break", 0))
    peer.reply(call)
    # The program has counted from before the CALL.
    time.sleep(SHORT_MS / 1000)
    os.kill(program.pid, signal.SIGCONT)
    assert pending.result().status == TIMEOUT
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    assert peer.expect(f.Cancel).seq == call.seq
    peer.reply(peer.call())
    assert pending.result().status == 0


def test_lines_when_the_daemon_goes_on_asking_then_they_are_not_without_end(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    peer = meet(fake, announce_all(SHORT_MS))
    frames = encode(f.Control(s.ControlAction.STOP, "a break", 0)) * 100

    def talk() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                peer.sock.sendall(frames)

    peer.sock.settimeout(None)
    talker = threading.Thread(target=talk)
    talker.start()
    try:
        assert pending.result().status == TIMEOUT
        # What has come meanwhile does not keep the next one from its turn.
        assert program.issue(vm, sev.LAUNCH_FINISH).status == TIMEOUT
    finally:
        program.kill()
        talker.join()
    # A hundred lines within five seconds, and one that there are more.
    assert len(lines(program)) <= 2 * 101


def test_deadline_when_half_a_frame_has_come_then_the_rest_is_awaited_by_the_next_command(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    peer = meet(fake, announce_all(SHORT_MS))
    call = peer.call()
    late = encode(f.Reply(0, 0, call.seq, SevCode.SUCCESS)) + encode(
        f.Cancelled(0, 0, call.seq, s.Effect.DONE)
    )
    peer.send_bytes(late[:40])
    assert pending.result().status == TIMEOUT
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    peer.expect(f.Cancel)
    second = peer.call()
    peer.send_bytes(late[40:] + encode(f.Reply(0, 0, second.seq, SevCode.INVALID_GUEST)))
    assert pending.result().status == SevCode.INVALID_GUEST


def test_command_when_signals_come_then_it_goes_on(program: SevProgram, fake: FakeDaemon):
    vm = program.create_vm()
    argument = program.argument(sev.LAUNCH_FINISH, 0)
    program.send("interrupted", vm, KVM_MEMORY_ENCRYPT_OP, argument, 1000)
    peer = fake.accept()
    peer.greet()
    assert peer.nothing_comes(0.05)
    peer.welcome(announcement(announce_all()), s.Feature.COMMANDS)
    call = peer.call()
    assert peer.nothing_comes(0.05)
    peer.reply(call)
    assert program.answer() == (0, 0)


# -- it talks nonsense ------------------------------------------------------------------------


def raw_reply(
    seq: int,
    *,
    status: int = 0,
    mask: int = 0,
    context: int = 0,
    writes: int = 0,
    nip: int = 0,
    tail: bytes = b"",
    vcpu: int = 0,
) -> bytes:
    payload = struct.pack(">qIHHQQQ", status, mask, context, writes, nip, 0, 0) + tail
    size = s.HEADER_SIZE + len(payload)
    return raw_header(s.FrameType.REPLY, size, vcpu=vcpu, seq=seq) + payload


def raw_of_call(kind: s.FrameType, seq: int, payload: bytes) -> bytes:
    return raw_header(kind, s.HEADER_SIZE + len(payload), vcpu=0, seq=seq) + payload


LENGTH_REGISTER = register(sev.LAUNCH_MEASURE, "len")

BREACHES: dict[str, Callable[[int], bytes]] = {
    "reply to another call": lambda q: raw_reply(q + 1),
    "reply to none": lambda q: raw_reply(0),
    "reply on another channel": lambda q: raw_reply(q, vcpu=1),
    "reply on no channel": lambda q: raw_reply(q, vcpu=s.NO_VCPU),
    "field that does not come back": lambda q: raw_reply(q, mask=1 << 4, tail=bytes(8)),
    "register r3": lambda q: raw_reply(q, mask=1 << 3, tail=bytes(8)),
    "register r31": lambda q: raw_reply(q, mask=1 << 31, tail=bytes(8)),
    "register that is missing": lambda q: raw_reply(q, mask=1 << LENGTH_REGISTER),
    "context": lambda q: raw_reply(q, context=1),
    "NIP": lambda q: raw_reply(q, nip=4),
    "status of 33 bits": lambda q: raw_reply(q, status=1 << 32),
    "errno of 4096": lambda q: raw_reply(q, status=-4096),
    "65 writes": lambda q: raw_reply(q, writes=65, tail=bytes(65 * 16)),
    "write that is cut": lambda q: raw_reply(
        q, writes=1, tail=struct.pack(">QII", 1, 8, 0) + bytes(7)
    ),
    "write with flags": lambda q: raw_reply(q, writes=1, tail=struct.pack(">QII", 1, 8, 2)),
    "reply with more": lambda q: raw_reply(q, tail=b"x"),
    "reply that is cut": lambda q: raw_of_call(s.FrameType.REPLY, q, bytes(39)),
    "65 reads": lambda q: raw_of_call(
        s.FrameType.READ, q, struct.pack(">II", 65, 0) + bytes(65 * 16)
    ),
    "read with reserved": lambda q: raw_of_call(s.FrameType.READ, q, struct.pack(">II", 0, 1)),
    "read that is cut": lambda q: raw_of_call(
        s.FrameType.READ, q, struct.pack(">II", 2, 0) + bytes(16)
    ),
    "write without data": lambda q: raw_of_call(
        s.FrameType.WRITE, q, struct.pack(">IIQII", 1, 0, 1, 0xFFFF_FFFF, 0)
    ),
    "cancelled": lambda q: raw_of_call(s.FrameType.CANCELLED, q, bytes(8)),
    "cancelled with an effect": lambda q: raw_of_call(
        s.FrameType.CANCELLED, q, struct.pack(">II", 3, 0)
    ),
    "pages": lambda q: raw_of_call(s.FrameType.PAGES, q, bytes(8)),
    "welcome again": lambda _: raw_welcome(),
    "event acknowledged": lambda _: raw_header(20, s.HEADER_SIZE + 8) + bytes(8),
    "our own frame": lambda _: raw_header(s.FrameType.CALL, s.HEADER_SIZE),
    "goodbye that is cut": lambda _: raw_header(6, s.HEADER_SIZE + 1) + b"x",
    "control that is cut": lambda _: raw_header(22, s.HEADER_SIZE + 2) + b"\0\1",
    "announcement without a number": lambda _: raw_header(4, s.HEADER_SIZE + 8) + bytes(8),
    # Its payload is not waited for.
    "frame above the bound": lambda q: raw_header(
        s.FrameType.REPLY, s.MIN_MAX_FRAME + 1, vcpu=0, seq=q
    ),
}


@pytest.mark.parametrize("name", BREACHES)
def test_command_when_the_daemon_breaks_the_protocol_then_it_is_left(
    program: SevProgram, fake: FakeDaemon, name: str
):
    vm = program.create_vm()
    room = program.map(PAGE)
    pending = begin(program, vm, sev.LAUNCH_MEASURE, uaddr=room, len=48)
    peer = meet(fake)
    peer.send_bytes(BREACHES[name](peer.call().seq))
    result = pending.result()
    assert (result.status, result.error, result.fields["len"]) == (LOST, ERROR_BEFORE, 48)
    (line,) = lines(program)
    assert line.startswith("lost the connection to the daemon: it breaks the protocol: ")
    assert peer.expect(f.ShimGoodbye).reason is s.GoodbyeReason.BREACH
    assert program.get(room, PAGE) == bytes(PAGE)
    assert program.issue(vm, sev.LAUNCH_FINISH).status == SevCode.ENODEV


def test_announcement_when_it_changes_then_it_is_never_in_force(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    pending = begin(program, vm, sev.INIT)
    peer = meet(fake)
    call = peer.call()
    peer.send(f.Announce(announcement(()), 5, 0))
    accept = peer.expect(f.Accept)
    assert (accept.request, accept.is_active) == (5, False)
    peer.reply(call)
    assert pending.result().status == 0
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    peer.reply(peer.call())
    assert pending.result().status == 0


def test_call_when_announced_to_be_answered_then_nobody_is_asked(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    calls = [call for call in announce_all() if call.number != sev.SEND_UPDATE_VMSA.number]
    status = SevCode.EINVAL
    calls.append(
        f.CallSpec(sev.SEND_UPDATE_VMSA.number, 4, s.Disposition.ANSWER, 0, 0, status, status)
    )
    pending = begin(program, vm, sev.INIT)
    peer = meet(fake, calls)
    peer.reply(peer.call())
    assert pending.result().status == 0
    assert program.issue(vm, sev.SEND_UPDATE_VMSA).status == status
    assert peer.nothing_comes(0.1)


def mutations(peer: Peer, seq: int, room: int, choice: random.Random) -> bytes:
    """Frames as a daemon sends them, some bytes of which are others."""
    frames = [
        encode(f.Read(0, 0, seq, 1, ((room, 64), (room + 8, 8)))),
        encode(f.Write(0, 0, seq, 2, (write(room, b"w" * 48),))),
        encode(f.Announce(announcement(announce_all()), 5, 0)),
        encode(f.Control(s.ControlAction.STOP, "text", 0)),
        encode(f.Reply(0, 0, seq, SevCode.SUCCESS, ((LENGTH_REGISTER, 48),), (write(room, b"x"),))),
        encode(f.Goodbye(s.GoodbyeReason.INTERNAL, "text")),
    ]
    choice.shuffle(frames)
    data = bytearray(b"".join(frames))
    for _ in range(choice.randrange(1, 6)):
        at = choice.randrange(len(data))
        data[at] = choice.choice((0, 1, 0xFF, choice.randrange(256)))
    return bytes(data[: choice.randrange(1, len(data) + 1)])


def test_program_when_frames_are_mutated_then_it_lives_and_its_memory_is_untouched(
    shim: SevShim, fake: FakeDaemon, sanitized: Built, require: Require
):
    program = shim.sanitized(fake.path, sanitized)
    room = program.map(3 * PAGE)
    choice = random.Random(20261122)
    for _ in range(150):
        vm = program.create_vm()
        pending = begin(program, vm, sev.LAUNCH_MEASURE, uaddr=room + PAGE, len=48)
        peer = meet(fake)
        seq = peer.call().seq
        try:
            peer.send_bytes(mutations(peer, seq, room + PAGE, choice))
            peer.sock.shutdown(socket.SHUT_WR)
        except (PeerClosed, OSError):
            pass
        assert pending.result().status in {0, LOST, SevCode.EFAULT} | set(range(1, 256))
        assert program.get(room, PAGE) == bytes(PAGE)
        assert program.get(room + PAGE + 48, 2 * PAGE - 48) == bytes(2 * PAGE - 48)
        peer.close()
        program.do("close", vm)
    assert program.end() == 0, program.messages()
