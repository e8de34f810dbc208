# SPDX-License-Identifier: Apache-2.0
"""Peers that follow the protocol's letter to do harm: the daemon and its other guests live on."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e import tls
from tests.e2e.daemon import Daemon
from tests.e2e.fakeshim import RAM_SIZE, FakeShim, connect, hello
from tests.e2e.lab import Lab
from tests.e2e.patience import wait_until
from tests.e2e.wire import PeerClosed

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

BUFFER = 0x1000
AUTH, LABEL, DATA, OUT = 0x2000, 0x3000, 0x10000, 0x20000
LARGE = 20000
"""More bytes than come with a call when there is shared RAM."""


@pytest.fixture
def daemon(lab: Lab) -> Daemon:
    # Its descriptors are counted in /proc, where others than root see only what may be dumped.
    return lab.daemon("--memory", "--allow-core-dumps")


def get_config(shim: FakeShim) -> f.Reply:
    return shim.call(pks.GET_CONFIG.number, BUFFER, 512)


def must_serve(daemon: Daemon) -> None:
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello("bystander", instance=os.urandom(16)))
        assert get_config(shim).status == H.SUCCESS


def descriptors_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def resident_kib(daemon: Daemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text("ascii")
    return int(status.split("VmRSS:")[1].split()[0])


# -- descriptors ----------------------------------------------------------------------------


def short_file() -> int:
    descriptor = os.memfd_create("short")
    os.ftruncate(descriptor, 100)
    return descriptor


def pipe_end() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def directory() -> int:
    return os.open("/", os.O_RDONLY)


def not_readable() -> int:
    descriptor = os.memfd_create("full")
    os.ftruncate(descriptor, RAM_SIZE)
    writable = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY)
    os.close(descriptor)
    return writable


def a_socket() -> int:
    ours, theirs = socket.socketpair()
    ours.close()
    return theirs.detach()


@pytest.mark.parametrize(
    "make",
    [short_file, pipe_end, directory, not_readable, a_socket],
    ids=lambda make: make.__name__,
)
def test_descriptor_that_is_no_ram(make: Callable[[], int], daemon: Daemon) -> None:
    """What cannot be read there is asked for by frames, and the call is answered as ever."""
    with FakeShim(connect(daemon.socket)) as shim:
        shim.send(hello(features=s.Feature.SHARED_RAM))
        welcome = shim.expect(f.Welcome)
        assert welcome.features & s.Feature.SHARED_RAM
        shim.announced = {spec.number: spec for spec in welcome.announcement.calls}
        shim.send(f.Accept((), True, 0, 0))
        descriptor = make()
        try:
            ram = shim.connection.send(f.Ram((f.RamRegion(0, RAM_SIZE, 0, 0),), 1, 0))
            socket.send_fds(shim.sock, [ram], [descriptor])
        finally:
            os.close(descriptor)
        password = shim.call(pks.GEN_PASSWORD.number, 3, 0, BUFFER, 64)
        assert password.status == H.SUCCESS
        shim.ram[AUTH : AUTH + 16] = bytes([1, 3]) + bytes(12) + (64).to_bytes(2, "big")
        shim.ram[AUTH + 16 : AUTH + 80] = shim.ram[BUFFER : BUFFER + 64]
        label = b"TEST" + bytes(5) + b"\x02\x10" + bytes(5) + b"large"
        shim.ram[LABEL : LABEL + len(label)] = label
        data = os.urandom(LARGE)
        shim.ram[DATA : DATA + LARGE] = data
        wrote = shim.call(pks.WRITE_OBJECT.number, AUTH, LABEL, len(label), 0, DATA, LARGE)
        assert wrote.status == H.SUCCESS
        read = shim.call(pks.READ_OBJECT.number, AUTH, LABEL, len(label), OUT, LARGE)
        assert read.status == H.SUCCESS
        assert shim.ram[OUT : OUT + LARGE] == data
    must_serve(daemon)


def test_descriptors_are_not_kept(daemon: Daemon) -> None:
    """Announced or not, they are closed with the connection at the latest."""
    must_serve(daemon)
    before = descriptors_of(daemon)
    spare = [os.memfd_create("spare") for _ in range(s.MAX_DESCRIPTORS)]
    try:
        for _ in range(30):
            with FakeShim(connect(daemon.socket)) as shim:
                greeting = shim.connection.send(hello(features=s.Feature.SHARED_RAM))
                socket.send_fds(shim.sock, [greeting], spare)
                with contextlib.suppress(PeerClosed):
                    shim.receive()
    finally:
        for descriptor in spare:
            os.close(descriptor)
    wait_until(lambda: descriptors_of(daemon) <= before, "the end of what was passed")
    must_serve(daemon)


def test_more_descriptors_than_may_be(daemon: Daemon) -> None:
    count = s.MAX_DESCRIPTORS + 4
    spare = [os.memfd_create("spare") for _ in range(count)]
    before = descriptors_of(daemon)
    try:
        with FakeShim(connect(daemon.socket)) as shim:
            greeting = shim.connection.send(hello(features=s.Feature.SHARED_RAM))
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", spare))
            shim.sock.sendmsg([greeting], [rights])
            frames = shim.wait_closed()
            assert not [frame for frame in frames if isinstance(frame, f.Welcome)]
    finally:
        for descriptor in spare:
            os.close(descriptor)
    wait_until(lambda: descriptors_of(daemon) <= before, "the end of what was passed")
    must_serve(daemon)


# -- floods ---------------------------------------------------------------------------------


def flood(shim: FakeShim, data: bytes, seconds: float) -> int:
    """Sends without reading, until nothing has been taken for a while; gives the bytes."""
    sent = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not select.select([], [shim.sock], [], 0.3)[1]:
            break
        try:
            sent += shim.sock.send(data[sent % len(data) :])
        except OSError:
            break
    return sent


def test_calls_without_reading_the_replies(daemon: Daemon) -> None:
    """The daemon stops reading when nobody takes its answers; memory stays where it was."""
    with FakeShim(connect(daemon.socket)) as shim:
        shim.negotiate(hello("flood"))
        calls = b"".join(
            encode(shim.frame(pks.GET_CONFIG.number, BUFFER, 65536)) for _ in range(20000)
        )
        before = resident_kib(daemon)
        flood(shim, calls, 5)
        must_serve(daemon)
        assert resident_kib(daemon) < before + 64 * 1024
    must_serve(daemon)


def test_half_a_large_frame_from_many(daemon: Daemon) -> None:
    """Each peer may make the daemon hold one frame, no more."""
    shims = [FakeShim(connect(daemon.socket)) for _ in range(50)]
    before = resident_kib(daemon)
    try:
        head = encode(hello("half"))
        for shim in shims:
            shim.send_bytes(head[:8] + s.MIN_MAX_FRAME.to_bytes(4, "big") + head[12:])
            with contextlib.suppress(OSError):
                shim.sock.send(bytes(s.MIN_MAX_FRAME // 2))
        must_serve(daemon)
        assert resident_kib(daemon) < before + 64 * 1024
    finally:
        for shim in shims:
            shim.close()
    must_serve(daemon)


def test_connections_that_come_and_go(daemon: Daemon) -> None:
    must_serve(daemon)
    before = descriptors_of(daemon)
    for _ in range(300):
        connect(daemon.socket).close()
    must_serve(daemon)
    wait_until(lambda: descriptors_of(daemon) <= before, "the end of the connections")


# -- TLS ------------------------------------------------------------------------------------


def test_garbage_instead_of_a_handshake(lab: Lab) -> None:
    certificates = tls.make(lab.artifacts / "tls")
    port = tls.free_port()
    daemon = lab.daemon(
        *("--memory", "--listen", f"127.0.0.1:{port}"), *certificates.daemon_options
    )
    for data in (b"GET / HTTP/1.0\r\n\r\n", encode(hello()), bytes(4096), b""):
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass
    # One that says nothing is waited for, and holds up nobody.
    with socket.create_connection(("127.0.0.1", port), 10):
        must_serve(daemon)
    assert daemon.log_text().count("connection refused") >= 3
