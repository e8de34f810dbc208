# SPDX-License-Identifier: Apache-2.0
"""The daemon as a whole, in the test's own process: start, stop, and what is left of it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pathlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TextIO

import pytest
import trio
from tests.unit.hcalld.runtime.shim import Shim, hello

from hcalld.app import (
    ControlOptions,
    ServeOptions,
    TcpOptions,
    build_directory,
    build_server,
    serve,
)
from hcalld.backends.tpms import Tpms
from hcalld.core.errors import ConfigError, HcalldError, StoreError
from hcalld.observe import capturing
from hcalld.observe.capture import CaptureOptions
from hcalld.runtime.transport import SocketTransport
from hcalld.testing.logs import capture_logs
from hcalld.testing.pks import build_auth, label
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

Logs = list[dict[str, Any]]
Running = Callable[[ServeOptions], AbstractAsyncContextManager[trio.Event]]


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def running(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, logs: Logs) -> Running:
    """Runs a daemon from READY=1 on; the event tells when it has ended."""

    @asynccontextmanager
    async def run(options: ServeOptions) -> AsyncIterator[trio.Event]:
        ended = trio.Event()

        async def to_its_end() -> None:
            await serve(options)
            ended.set()

        path = tmp_path / "notify"
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(os.fspath(path))
            manager.setblocking(False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(to_its_end)
                with trio.fail_after(5):
                    await trio.lowlevel.wait_readable(manager)
                assert manager.recv(100) == b"READY=1"
                path.unlink()
                yield ended
                nursery.cancel_scope.cancel()

    return run


def memory_options(path: pathlib.Path, **more: Any) -> ServeOptions:
    return ServeOptions(socket_path=path, **more)


async def guest(path: pathlib.Path, name: str = "lpar7", *, connection: int = 0) -> Shim:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.fspath(path))
    shim = Shim(SocketTransport(sock))
    await shim.negotiate(hello(name, connection=connection))
    return shim


async def gen_password(shim: Shim) -> int:
    return (await shim.call(pks.GEN_PASSWORD, 3, 0, 0x1000, 32)).status


# -- start and stop ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_when_a_signal_comes_then_it_ends_and_the_socket_is_gone(
    running: Running, tmp_path: pathlib.Path, logs: Logs, number: signal.Signals
):
    path = tmp_path / "hc.sock"
    async with running(memory_options(path)) as ended:
        shim = await guest(path)
        assert (await shim.call(pks.GET_CONFIG, 0, 32)).status == H.SUCCESS
        os.kill(os.getpid(), number)
        assert "stopping" in await shim.expect_goodbye(s.GoodbyeReason.SHUTDOWN)
        with trio.fail_after(5):
            await ended.wait()
        await shim.close()
    assert not path.exists()
    told = [entry["event"] for entry in logs]
    assert told[0] == "listening"
    assert told[-1] == "stopped"
    assert {"event": "stopping", "signal": number.name, "log_level": "info"} in logs


async def test_serve_when_the_socket_is_new_then_only_its_owner_may_use_it(
    running: Running, tmp_path: pathlib.Path
):
    path = tmp_path / "hc.sock"
    async with running(memory_options(path)):
        assert path.stat().st_mode & 0o777 == 0o600


async def test_serve_when_it_starts_again_then_it_takes_the_place_of_a_dead_one(
    running: Running, tmp_path: pathlib.Path
):
    path = tmp_path / "hc.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(os.fspath(path))
    async with running(memory_options(path)):
        await (await guest(path)).close()


async def test_serve_when_another_lives_there_then_it_is_not_disturbed(
    running: Running, tmp_path: pathlib.Path
):
    path = tmp_path / "hc.sock"
    async with running(memory_options(path)):
        with pytest.raises(ConfigError, match="living daemon"):
            await serve(memory_options(path))
        await (await guest(path)).close()


async def test_serve_when_tcp_cannot_be_had_then_no_socket_is_left(tmp_path: pathlib.Path):
    path = tmp_path / "hc.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tcp = TcpOptions(host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="Address already in use"):
            await serve(memory_options(path, tcp=tcp))
    assert not path.exists()


async def test_serve_when_certificates_are_missing_then_no_socket_is_left(tmp_path: pathlib.Path):
    path = tmp_path / "hc.sock"
    missing = tmp_path / "missing.pem"
    tcp = TcpOptions(host="127.0.0.1", port=0, certificate=missing, key=missing, client_ca=missing)
    with pytest.raises(ConfigError, match="--tls-cert"):
        await serve(memory_options(path, tcp=tcp))
    assert not path.exists()


async def test_serve_when_a_profile_is_wrong_then_nothing_is_opened(tmp_path: pathlib.Path):
    path = tmp_path / "hc.sock"
    (tmp_path / "lpar7.toml").write_text("secure_boot = 9")
    with pytest.raises(ConfigError, match="secure_boot"):
        await serve(memory_options(path, profile_dir=tmp_path))
    assert not path.exists()


async def test_serve_when_a_rule_of_faults_is_wrong_then_nothing_is_opened(
    tmp_path: pathlib.Path,
):
    rules = tmp_path / "faults.toml"
    rules.write_text("[[fault]]\ndelay_ms = 0\n")
    with pytest.raises(ConfigError, match=r"faults\.toml: rule 1: delay_ms: Expected `int` >= 1"):
        await serve(memory_options(tmp_path / "hc.sock", faults=rules))
    assert not (tmp_path / "hc.sock").exists()


async def test_faults_when_the_daemon_begins_and_ends_then_they_hold_and_are_told_of(
    running: Running, tmp_path: pathlib.Path, logs: Logs
):
    rules = tmp_path / "faults.toml"
    rules.write_text(
        '[[fault]]\ncall = "H_PKS_GET_CONFIG"\nreturn = "H_BUSY"\ntimes = 1\n'
        '[[fault]]\ncall = "tpm"\nclose = "after"\n'
    )
    path = tmp_path / "hc.sock"
    async with running(memory_options(path, faults=rules)):
        shim = await guest(path)
        seen = [(await shim.call(pks.GET_CONFIG, 0x1000, 44)).status for _ in range(2)]
        assert seen == [H.BUSY, H.SUCCESS]
        await shim.close()
    told = [entry for entry in logs if entry["event"] == "fault ended"]
    assert [(one["log_level"], one.get("met")) for one in told] == [("info", 1), ("warning", None)]


async def test_serve_when_plain_tcp_is_asked_for_then_it_serves_there(running: Running, logs: Logs):
    tcp = TcpOptions(host="127.0.0.1", port=0)
    async with running(ServeOptions(tcp=tcp)):
        (entry,) = [entry for entry in logs if entry["event"] == "listening"]
        assert entry["tls"] is False
        host, port = entry["address"].rsplit(":", 1)
        shim = Shim(SocketTransport(socket.create_connection((host, int(port)))))
        await shim.negotiate(hello())
        assert await gen_password(shim) == H.SUCCESS
        await shim.close()


# -- inherited sockets ---------------------------------------------------------------------------


async def test_serve_when_a_connection_is_inherited_then_the_daemon_ends_with_it(running: Running):
    ours, theirs = socket.socketpair()
    async with running(ServeOptions(fd=theirs.detach())) as ended:
        shim = Shim(SocketTransport(ours))
        await shim.negotiate(hello())
        assert await gen_password(shim) == H.SUCCESS
        await shim.close()
        with trio.fail_after(5):
            await ended.wait()


async def test_serve_when_a_listener_is_inherited_then_guests_may_come_and_go(
    running: Running, tmp_path: pathlib.Path
):
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        async with running(ServeOptions(fd=os.dup(listener.fileno()))):
            for _ in range(2):
                await (await guest(path)).close()
    # Who made it removes it: systemd, not the daemon.
    assert path.exists()


async def test_serve_when_the_descriptor_is_no_socket_then_one_line_says_so(
    tmp_path: pathlib.Path,
):
    path = tmp_path / "hc.sock"
    with (tmp_path / "file").open("w") as file, pytest.raises(ConfigError, match="--fd"):
        await serve(memory_options(path, fd=file.fileno()))
    assert not path.exists()


# -- state ---------------------------------------------------------------------------------------


async def test_state_when_it_is_in_memory_then_it_outlives_a_connection_but_not_the_daemon(
    running: Running, tmp_path: pathlib.Path
):
    path = tmp_path / "hc.sock"
    async with running(memory_options(path)) as ended:
        shim = await guest(path)
        assert await gen_password(shim) == H.SUCCESS
        await shim.close()
        shim = await guest(path, connection=1)
        shim.seq = 100
        assert await gen_password(shim) == H.IN_USE
        await shim.close()
        os.kill(os.getpid(), signal.SIGTERM)
        await ended.wait()
    async with running(memory_options(path)):
        shim = await guest(path)
        assert await gen_password(shim) == H.SUCCESS
        await shim.close()


async def test_state_when_it_is_on_disk_then_it_outlives_the_daemon(
    running: Running, tmp_path: pathlib.Path
):
    options = memory_options(tmp_path / "hc.sock", state_dir=tmp_path / "state")
    for expected in (H.SUCCESS, H.IN_USE):
        async with running(options) as ended:
            shim = await guest(tmp_path / "hc.sock", connection=expected is H.IN_USE)
            shim.seq = 100 * (expected is H.IN_USE)
            assert await gen_password(shim) == expected
            await shim.close()
            os.kill(os.getpid(), signal.SIGTERM)
            await ended.wait()


def test_build_server_when_the_state_directory_cannot_be_made_then_nothing_happens_yet(
    tmp_path: pathlib.Path,
):
    (tmp_path / "file").write_text("")
    options = ServeOptions(state_dir=tmp_path / "file" / "state")
    server = build_server(options, build_directory(options), Tpms(None))
    profile = server.profiles.find("lpar7", bytes(16))
    with pytest.raises(StoreError):
        server._open_store(profile)


# -- trace ---------------------------------------------------------------------------------------


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A file on a full disk."""
    with pathlib.Path("/dev/full").open("w") as file:
        yield file
        # What could not be written must not be tried again when the file is closed.
        with pathlib.Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), file.fileno())


async def test_trace_when_it_cannot_be_written_then_the_daemon_ends_and_says_why(
    running: Running, tmp_path: pathlib.Path, full: TextIO
):
    path = tmp_path / "hc.sock"

    async def call_once() -> None:
        async with running(memory_options(path, trace=full)) as ended:
            shim = await guest(path)
            await shim.start(pks.GET_CONFIG, 0, 32)
            await shim.expect_goodbye(s.GoodbyeReason.SHUTDOWN)
            await shim.close()
            await ended.wait()

    with pytest.raises(ExceptionGroup) as raised:
        await call_once()
    assert raised.group_contains(HcalldError, match="No space left on device")
    assert not path.exists()


# -- capture -------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A named pipe whose reader sleeps."""
    path = tmp_path / "a.pcapng"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    yield path
    os.close(reader)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_capture_when_it_is_not_whole_at_the_end_then_the_daemon_has_failed(
    running: Running,
    tmp_path: pathlib.Path,
    pipe: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
):
    monkeypatch.setattr(capturing, "STALL_SECONDS", 0.1)
    path = tmp_path / "hc.sock"
    options = memory_options(path, capture=CaptureOptions(path=pipe))

    async def call_often() -> None:
        async with running(options) as ended:
            shim = await guest(path)
            for _ in range(100):
                assert (await shim.call(pks.GET_CONFIG, 0, 32)).status == H.SUCCESS
            os.kill(os.getpid(), number)
            await shim.close()
            with trio.fail_after(20):
                await ended.wait()

    with pytest.raises(ExceptionGroup) as raised:
        await call_often()
    assert raised.group_contains(HcalldError, match=r"a\.pcapng: the capture is not whole: \d+ fr")
    assert not path.exists()


async def test_capture_when_an_operator_has_asked_for_it_then_the_daemon_has_not_failed(
    running: Running,
    tmp_path: pathlib.Path,
    pipe: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    logs: Logs,
):
    monkeypatch.setattr(capturing, "STALL_SECONDS", 0.1)
    path, control = tmp_path / "hc.sock", tmp_path / "control"
    options = memory_options(path, control=ControlOptions(path=control))
    async with running(options) as ended:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as operator:
            operator.connect(os.fspath(control))
            line = json.dumps({"command": "capture-begin", "path": os.fspath(pipe)})
            operator.sendall(line.encode() + b"\n")
            with operator.makefile("rb") as replies:
                for expected in ("greeting", "capture"):
                    reply = await trio.to_thread.run_sync(replies.readline)
                    assert json.loads(reply)["reply"] == expected
        shim = await guest(path)
        for _ in range(100):
            assert (await shim.call(pks.GET_CONFIG, 0, 32)).status == H.SUCCESS
        os.kill(os.getpid(), signal.SIGTERM)
        await shim.close()
        with trio.fail_after(20):
            await ended.wait()
    assert "the capture is not whole" in [entry["event"] for entry in logs]


# -- secrets -------------------------------------------------------------------------------------


async def test_secrets_when_a_guest_uses_its_keystore_then_neither_trace_nor_log_has_them(
    running: Running, tmp_path: pathlib.Path, logs: Logs
):
    path = tmp_path / "hc.sock"
    trace = io.StringIO()
    data = b"xyzzy plugh waldo garply thud"
    async with running(memory_options(path, trace=trace)):
        shim = await guest(path)
        reply = await shim.call(pks.GEN_PASSWORD, 3, 0, 0x1000, 32)
        (written,) = reply.writes
        password = written.data
        assert password is not None
        auth, name = build_auth(3, password), label("an-object")
        buffers = (auth, name, data)
        segments = tuple(
            f.Segment(index, 0x1000 * (index + 1), s.SegmentStatus.OK, content)
            for index, content in enumerate(buffers)
        )
        arguments = (0x1000, 0x2000, len(name), 0, 0x3000, len(data))
        # What does not come with the call is asked for: the structure, to its page's end.
        await shim.send(shim.call_frame(pks.WRITE_OBJECT, *arguments, segments=segments[1:]))
        read = await shim.expect(f.Read)
        await shim.answer_read(read, auth.ljust(read.segments[0][1], b"\0"))
        assert (await shim.expect(f.Reply)).status == H.SUCCESS
        await shim.start(pks.READ_OBJECT, 0x1000, 0x2000, len(name), 0x5000, 100)
        for content in (auth, name):
            read = await shim.expect(f.Read)
            await shim.answer_read(read, content.ljust(read.segments[0][1], b"\0"))
        reply = await shim.expect(f.Reply)
        assert [write.data for write in reply.writes] == [data]
        await shim.close()
    told = trace.getvalue() + repr(logs)
    assert told.count("H_PKS_") >= 3
    for secret in (password, data):
        assert secret.hex() not in told
        assert repr(secret)[2:-1] not in told
        assert secret.decode("latin-1") not in told
