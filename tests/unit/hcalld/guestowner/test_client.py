# SPDX-License-Identifier: Apache-2.0
"""The client's side of the wire, with a daemon that does what a test says."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from tests.e2e.fakedaemon import FakeDaemon, Peer, announcement, forward
from tests.e2e.wire import PeerClosed

from hcalld.guestowner import client as module
from hcalld.guestowner.client import CommandRefused, ConnectionFailed, SevClient, field_names
from hcallproto.abi.families import sev
from hcallproto.abi.registers import FIRST_ARGUMENT
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Level
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

IN, OUT = s.Direction.IN, s.Direction.OUT
NUMBER = sev.PEK_CERT_IMPORT.number
"""Its number stands for any call's here."""

ADDRESS, SIZE = FIRST_ARGUMENT, FIRST_ARGUMENT + 1
MAX_SIZE = 64

Script = Callable[[Peer], None]
Play = Callable[[Script], AbstractContextManager[SevClient]]


def sized(direction: s.Direction) -> f.BufferSpec:
    return f.BufferSpec(ADDRESS, s.BufferKind.SIZED, direction, SIZE, MAX_SIZE)


def announced(
    *buffers: f.BufferSpec, number: int = NUMBER, deadline_ms: int = 60_000
) -> f.CallSpec:
    return forward(number, *buffers, level=Level.COMMAND, lost_status=-110, deadline_ms=deadline_ms)


@pytest.fixture
def play(socket_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Connects to a daemon that follows a script; its errors are the test's."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 20.0)

    @contextlib.contextmanager
    def connected(script: Script) -> Iterator[SevClient]:
        errors: list[BaseException] = []

        def follow() -> None:
            peer = daemon.accept()
            try:
                script(peer)
            except BaseException as error:
                errors.append(error)
            finally:
                peer.close()

        with FakeDaemon(socket_dir / "sock") as daemon:
            thread = threading.Thread(target=follow)
            thread.start()
            try:
                with SevClient(socket_dir / "sock", "a platform") as client:
                    yield client
            finally:
                thread.join()
        assert not errors, errors

    return connected


def ready(*calls: f.CallSpec, then: Script = lambda _: None) -> Script:
    """A daemon that takes these calls, and goes on from there."""

    def script(peer: Peer) -> None:
        peer.negotiate(announcement(calls), s.Feature.COMMANDS)
        then(peer)

    return script


def until_gone(peer: Peer) -> None:
    """Say nothing until the client has closed."""
    peer.sock.settimeout(20)
    while peer.sock.recv(4096):
        pass


# -- who is there ---------------------------------------------------------------------------------


def test_connect_when_it_is_greeted_then_it_says_what_it_is(play: Play):
    hellos = []

    def script(peer: Peer) -> None:
        ready(announced())(peer)
        hellos.append(peer.hello)

    with play(script):
        pass
    (hello,) = hellos
    assert hello is not None
    assert (hello.name, hello.features) == ("a platform", s.Feature.COMMANDS)
    assert (hello.vcpu_count, hello.vcpu_max, hello.connection, hello.reset) == (1, 1, 0, 0)
    assert any(hello.instance)


def refused(play: Play, script: Script) -> str:
    with pytest.raises(ConnectionFailed) as raised, play(script):
        pass
    return str(raised.value)


def test_connect_when_nobody_listens_then_it_says_what_is_expected(tmp_path: pathlib.Path):
    with pytest.raises(ConnectionFailed, match=r"No such file.*running 'hcalld serve'"):
        SevClient(tmp_path / "nowhere")


def test_connect_when_the_daemon_refuses_then_it_passes_the_reason_on(play: Play):
    def script(peer: Peer) -> None:
        peer.greet()
        peer.send(f.Goodbye(s.GoodbyeReason.REFUSED, "no such \x1b[31mplatform"))

    said = refused(play, script)
    assert "the daemon refuses: no such " in said
    assert "\x1b" not in said


def test_connect_when_the_daemon_has_no_commands_then_it_says_so(play: Play):
    def script(peer: Peer) -> None:
        peer.greet()
        peer.send(f.Welcome(s.VERSION, s.MIN_MAX_FRAME, s.Feature(0), announcement([]), 0))

    assert "has no SEV commands" in refused(play, script)


def test_connect_when_the_daemon_goes_then_it_says_so(play: Play):
    def script(peer: Peer) -> None:
        peer.greet()

    assert "ended the connection" in refused(play, script)


def test_connect_when_something_else_answers_then_it_says_so(play: Play):
    def script(peer: Peer) -> None:
        peer.greet()
        peer.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64))

    assert "breaks the protocol" in refused(play, script)


def test_connect_when_nothing_is_answered_then_it_does_not_wait_for_ever(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)

    def script(peer: Peer) -> None:
        peer.greet()
        until_gone(peer)

    assert "does not answer; see its log" in refused(play, script)


# -- calls ----------------------------------------------------------------------------------------


def test_call_when_it_has_buffers_then_they_are_sent_as_they_are_announced(play: Play):
    seen = []

    def then(peer: Peer) -> None:
        for _ in range(2):
            call = peer.call()
            seen.append(call)
            peer.reply(call, 0)

    page = f.BufferSpec(ADDRESS, s.BufferKind.PAGE_BOUNDED, IN, 0, 4096)
    fixed = f.BufferSpec(ADDRESS, s.BufferKind.FIXED, IN, 0, 4)
    with play(ready(announced(sized(IN), sized(OUT), page, fixed), then=then)) as client:
        address = client.memory.place(bytes(4092) + b"0123" + b"4567")
        client.call(NUMBER, address + 4092, 6)
        client.call(NUMBER, address + 4092, 9)
    first, second = seen
    assert (first.level, first.vcpu, first.number) == (Level.COMMAND, 0, NUMBER)
    assert (first.seq, second.seq) == (1, 2)
    ok = s.SegmentStatus.OK
    assert [(one.status, one.data) for one in first.segments] == [
        (ok, b"012345"),
        (ok, b""),
        (ok, b"0123"),
        (ok, b"0123"),
    ]
    # The buffer ends before the nine bytes do.
    assert [one.status for one in second.segments[:2]] == [s.SegmentStatus.NOT_RAM] * 2


@pytest.mark.parametrize(
    ("size", "status"),
    [
        (MAX_SIZE, s.SegmentStatus.OK),
        (MAX_SIZE + 1, s.SegmentStatus.TOO_LARGE),
        (0, s.SegmentStatus.OK),
        (1 << 63, s.SegmentStatus.TOO_LARGE),
    ],
)
def test_call_when_a_buffer_has_a_size_then_it_is_held_to_what_was_announced(
    play: Play, size: int, status: s.SegmentStatus
):
    seen = []

    def then(peer: Peer) -> None:
        call = peer.call()
        seen.append(call.segments[0])
        peer.reply(call, 0)

    with play(ready(announced(sized(IN)), then=then)) as client:
        client.call(NUMBER, client.memory.place(bytes(100)), size)
    assert seen[0].status is status
    assert len(seen[0].data) == (size if status is s.SegmentStatus.OK else 0)


def test_call_when_the_daemon_reads_and_writes_then_it_is_the_clients_memory(play: Play):
    reads, answers = [], []

    def then(peer: Peer) -> None:
        call = peer.call()
        address = call.by_number()[ADDRESS]
        reads.append(peer.read_memory(call, (address, 2), (address + 8, 1), (address + 1, 3)))
        good = f.WriteSegment(address, 2, b"xy")
        answers.append(peer.write_memory(call, good, f.WriteSegment(address + 8, 1, b"z")))
        answers.append(peer.write_memory(call, good, f.WriteSegment(address + 3, 1, None)))
        peer.reply(call, 0, writes=(f.WriteSegment(address + 2, 1, b"!"),))

    with play(ready(announced(), then=then)) as client:
        address = client.memory.place(b"abcd")
        assert client.call(NUMBER, address).status == 0
        assert client.memory.read(address, 4) == b"xy!\0"
    bad, good = answers
    ok, nowhere = s.AccessStatus.OK, s.AccessStatus.NOT_RAM
    assert reads[0].segments == ((ok, b"ab"), (nowhere, b""), (ok, b"bcd"))
    assert (bad.status, bad.bad_segment) == (nowhere, 1)
    assert good.status is ok


def test_call_when_more_is_read_than_a_frame_holds_then_what_does_not_fit_is_not_sent(play: Play):
    answers = []

    def then(peer: Peer) -> None:
        call = peer.call()
        address = call.by_number()[ADDRESS]
        answers.append(peer.read_memory(call, (address, 100_000), (address, 100_000)))
        peer.reply(call, 0)

    with play(ready(announced(), then=then)) as client:
        client.call(NUMBER, client.memory.place(bytes(100_000)))
    statuses = [status for status, _ in answers[0].segments]
    assert statuses == [s.AccessStatus.OK, s.AccessStatus.TOO_LARGE]


@pytest.mark.parametrize(
    ("address", "status"), [(0x10, -14), ((1 << 47) - 1, -14), (1 << 47, -110)]
)
def test_call_when_the_reply_writes_nowhere_then_nothing_comes_back(
    play: Play, address: int, status: int
):
    """Where nothing is mapped it is -EFAULT; where there is no memory the call is lost."""

    def then(peer: Peer) -> None:
        peer.reply(peer.call(), 0, ((5, 7),), (f.WriteSegment(address, 1, b"a"),))

    with play(ready(announced(), then=then)) as client:
        assert client.call(NUMBER) == (status, {})


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (f.Goodbye(s.GoodbyeReason.SHUTDOWN, "going down"), "ends the connection: going down"),
        (f.Control(s.ControlAction.TERMINATE, "a fault", 0), "terminates the client: a fault"),
        (None, "ended the connection"),
    ],
)
def test_call_when_the_daemon_ends_it_then_it_says_how(
    play: Play, frame: f.Frame | None, what: str
):
    def then(peer: Peer) -> None:
        peer.call()
        if frame is not None:
            peer.send(frame)

    with play(ready(announced(), then=then)) as client, pytest.raises(ConnectionFailed, match=what):
        client.call(NUMBER)


def test_call_when_it_is_not_announced_then_it_is_named(play: Play):
    with play(ready(announced())) as client:
        with pytest.raises(ConnectionFailed, match="does not take the command SEV_PEK_GEN"):
            client.command(sev.PEK_GEN)
        with pytest.raises(ConnectionFailed, match="does not take the command 0x1234"):
            client.call(0x1234)


def test_call_when_there_is_no_reply_in_time_then_it_does_not_wait_for_ever(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    def then(peer: Peer) -> None:
        peer.call()
        until_gone(peer)

    with play(ready(announced(deadline_ms=50), then=then)) as client:
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
        with pytest.raises(ConnectionFailed, match="does not answer"):
            client.call(NUMBER)
        client.close()


def test_call_when_the_daemon_asks_for_ever_then_it_is_not_served_for_ever(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    def then(peer: Peer) -> None:
        call = peer.call()
        peer.send(f.Read(call.vcpu, call.reset, call.seq, 1, ((0, 1),)))
        # The client may have parted before it is asked once more.
        with contextlib.suppress(PeerClosed):
            while isinstance(peer.receive(), f.ReadReply):
                peer.send(f.Read(call.vcpu, call.reset, call.seq, 1, ((0, 1),)))

    with play(ready(announced(deadline_ms=50), then=then)) as client:
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
        with pytest.raises(ConnectionFailed, match="does not answer"):
            client.call(NUMBER)
        client.close()


# -- the end --------------------------------------------------------------------------------------


def test_close_when_it_returns_then_the_daemon_is_done(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CLOSING_SECONDS", 20.0)
    done = []

    def then(peer: Peer) -> None:
        assert peer.expect(f.ShimGoodbye).reason is s.GoodbyeReason.SHUTDOWN
        until_gone(peer)
        # What it still has to say is nobody's any more.
        peer.sock.sendall(bytes(100))
        done.append(True)

    with play(ready(announced(), then=then)) as client:
        client.close()
        assert done == [True]
        client.close()


def test_close_when_the_daemon_does_not_close_then_it_is_not_waited_for(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.05)
    is_closed = threading.Event()

    def then(_: Peer) -> None:
        assert is_closed.wait(20)

    with play(ready(announced(), then=then)) as client:
        client.close()
        is_closed.set()


def test_close_when_the_daemon_talks_on_then_it_is_not_listened_to_for_ever(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.05)

    def then(peer: Peer) -> None:
        peer.sock.settimeout(20)
        with contextlib.suppress(ConnectionError):
            while True:
                peer.sock.sendall(bytes(4096))

    with play(ready(announced(), then=then)) as client:
        client.close()


def test_close_when_in_a_child_then_the_parent_goes_on(play: Play):
    def then(peer: Peer) -> None:
        peer.reply(peer.call(), 7)

    with play(ready(announced(), then=then)) as client:
        child = os.fork()
        if child == 0:
            try:
                client.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert client.call(NUMBER).status == 7


# -- commands -------------------------------------------------------------------------------------


def test_command_when_it_has_a_structure_then_registers_stand_for_its_fields(play: Play):
    seen = []

    def then(peer: Peer) -> None:
        call = peer.call()
        seen.append(call.by_number()[FIRST_ARGUMENT : FIRST_ARGUMENT + 6])
        peer.reply(call, 0, ((FIRST_ARGUMENT, 9),))

    number = sev.LAUNCH_START.number
    with play(ready(announced(number=number), then=then)) as client:
        found = client.command(sev.LAUNCH_START, policy=5, dh_len=1, session_uaddr=2)
    assert seen == [(0, 5, 0, 1, 2, 0)]
    assert found == {
        "handle": 9,
        "policy": 5,
        "dh_uaddr": 0,
        "dh_len": 1,
        "session_uaddr": 2,
        "session_len": 0,
    }


def test_command_when_it_is_refused_then_status_and_fields_are_told(play: Play):
    def then(peer: Peer) -> None:
        peer.reply(peer.call(), SevCode.INVALID_LEN, ((FIRST_ARGUMENT + 1, 48),))

    number = sev.LAUNCH_MEASURE.number
    connected = play(ready(announced(number=number), then=then))
    with connected as client, pytest.raises(CommandRefused) as raised:
        client.command(sev.LAUNCH_MEASURE, uaddr=4096)
    assert raised.value.status == SevCode.INVALID_LEN
    assert raised.value.fields == {"uaddr": 4096, "len": 48}
    assert str(raised.value).startswith(
        "KVM_SEV_LAUNCH_MEASURE: the platform refuses: SEV_RET_INVALID_LEN, a length is wrong"
    )


def test_command_when_a_field_is_not_of_its_structure_then_it_is_a_bug(play: Play):
    with play(ready(announced())) as client, pytest.raises(TypeError, match="no field 'adress'"):
        client.command(sev.PEK_CSR, adress=1)


def test_field_names_when_there_is_no_structure_then_the_arguments_are_the_fields():
    assert field_names(sev.GET_ID) == ("data",)
    assert field_names(sev.PEK_GEN) == ()
    assert field_names(sev.GUEST_STATUS) == ("handle", "policy", "state")
