# SPDX-License-Identifier: Apache-2.0
"""Byte streams: what never waits, what waits, descriptors, ends."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from hcalld.runtime.transport import (
    SocketTransport,
    StreamTransport,
    TransportClosed,
    describe_peer,
    make_room,
    peer_uid,
)
from hcallproto.wire.schema import MAX_DESCRIPTORS

Pair = tuple[SocketTransport, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A transport, and the plain socket at its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        yield SocketTransport(ours), theirs


@pytest.fixture
def tcp_pair() -> Iterator[Pair]:
    """The same over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        theirs.settimeout(5)
        yield SocketTransport(ours), theirs


# -- sockets: bytes ----------------------------------------------------------------------------


def test_make_room_when_it_is_a_unix_socket_then_more_waits_on_its_way(pair: Pair):
    transport, sock = pair
    sock.setblocking(False)
    before = sock.send(bytes(1 << 22))
    make_room(transport._sock)
    assert transport.try_send(bytes(1 << 22)) > before


def test_make_room_when_it_is_tcp_then_that_is_left_to_the_system(tcp_pair: Pair):
    sock = tcp_pair[1]
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    make_room(sock)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before


def test_try_receive_when_nothing_is_there_then_none(pair: Pair):
    assert pair[0].try_receive() is None


def test_try_receive_when_bytes_are_there_then_they_come(pair: Pair):
    pair[1].sendall(b"hello")
    data = pair[0].try_receive()
    assert data is not None
    assert bytes(data) == b"hello"
    assert pair[0].try_receive() is None


@pytest.mark.parametrize("kind", ["pair", "tcp_pair"])
def test_try_receive_when_there_is_room_elsewhere_then_they_come_there(
    kind: str, request: pytest.FixtureRequest
):
    transport, sock = request.getfixturevalue(kind)
    sock.sendall(b"hello, world")
    room = bytearray(b"-" * 7)
    trio.run(wait_readable, transport)
    data = transport.try_receive(memoryview(room)[1:6])
    assert data == b"hello"
    assert room == b"-hello-"
    data = transport.try_receive()
    assert data is not None
    assert bytes(data) == b", world"


async def wait_readable(transport: SocketTransport) -> None:
    await trio.lowlevel.wait_readable(transport._sock)


async def test_receive_when_there_is_room_elsewhere_then_they_come_there(pair: Pair):
    room = bytearray(8)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert await pair[0].receive(memoryview(room)) == b"hello"

        await trio.testing.wait_all_tasks_blocked()
        pair[1].sendall(b"hello")
    assert room == b"hello\0\0\0"


async def test_stream_when_there_is_room_elsewhere_then_they_come_there():
    ours, theirs = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours, "a stream")
    await theirs.send_all(b"hello, world")
    room = bytearray(5)
    assert await transport.receive(memoryview(room)) == b"hello"
    assert room == b"hello"
    assert await transport.receive() == b", world"
    await theirs.send_eof()
    assert await transport.receive(memoryview(room)) == b""


def test_try_receive_when_the_peer_has_closed_then_no_bytes(pair: Pair):
    pair[1].close()
    data = pair[0].try_receive()
    assert data is not None
    assert len(data) == 0


def test_try_receive_when_the_peer_has_reset_then_it_is_closed(tcp_pair: Pair):
    transport, sock = tcp_pair
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    with pytest.raises(TransportClosed, match="reset by peer"):
        transport.try_receive()


def test_try_receive_when_it_is_tcp_then_bytes_come_all_the_same(tcp_pair: Pair):
    tcp_pair[1].sendall(b"over TCP")
    data = None
    while data is None:
        data = tcp_pair[0].try_receive()
    assert bytes(data) == b"over TCP"


async def test_receive_when_bytes_come_later_then_it_waits_for_them(pair: Pair):
    transport, sock = pair

    async def send() -> None:
        await trio.testing.wait_all_tasks_blocked()
        sock.sendall(b"later")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert bytes(await transport.receive()) == b"later"


async def test_receive_when_another_task_closes_then_it_ends(pair: Pair):
    transport, _ = pair

    async def close() -> None:
        await trio.testing.wait_all_tasks_blocked()
        await transport.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        with pytest.raises(TransportClosed):
            await transport.receive()


def test_try_send_when_there_is_room_then_all_goes(pair: Pair):
    assert pair[0].try_send(b"hello") == 5
    assert pair[1].recv(100) == b"hello"


def test_try_send_when_there_is_no_room_then_some_or_nothing_goes(pair: Pair):
    size = 1 << 24
    sent = pair[0].try_send(bytes(size))
    assert 0 < sent < size
    while pair[0].try_send(bytes(4096)):
        pass
    assert pair[0].try_send(b"more") == 0


def test_try_send_when_the_peer_is_gone_then_it_is_closed(pair: Pair):
    pair[1].close()
    with pytest.raises(TransportClosed, match="Broken pipe"):
        pair[0].try_send(b"hello")


async def test_send_when_the_peer_reads_slowly_then_all_arrives_in_order(pair: Pair):
    transport, sock = pair
    data = os.urandom(1 << 20)
    received = bytearray()

    async def read() -> None:
        sock.setblocking(False)
        while len(received) < len(data):
            await trio.lowlevel.wait_readable(sock)
            received.extend(sock.recv(10_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await transport.send(data)
    assert received == data


async def test_send_when_another_task_closes_then_it_ends(pair: Pair):
    transport, _ = pair

    async def close() -> None:
        await trio.testing.wait_all_tasks_blocked()
        await transport.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        with pytest.raises(TransportClosed):
            await transport.send(bytes(1 << 24))


# -- sockets: descriptors ------------------------------------------------------------------------


def test_descriptors_when_they_come_with_bytes_then_they_are_taken_in_order(pair: Pair):
    transport, sock = pair
    files = [os.memfd_create(str(number)) for number in range(3)]
    inodes = [os.fstat(fd).st_ino for fd in files]
    socket.send_fds(sock, [b"two"], files[:2])
    socket.send_fds(sock, [b"one"], files[2:])
    while transport.try_receive() is not None:
        pass
    first = transport.take_descriptors(1)
    rest = transport.take_descriptors(2)
    assert [os.fstat(fd).st_ino for fd in first + rest] == inodes
    assert not any(os.get_inheritable(fd) for fd in first + rest)
    for fd in files + first + rest:
        os.close(fd)


@pytest.mark.parametrize("count", [1, MAX_DESCRIPTORS])
async def test_descriptors_when_nobody_takes_them_then_closing_closes_them(pair: Pair, count: int):
    transport, sock = pair
    before = open_count()
    socket.send_fds(sock, [b"x"], [sock.fileno()] * count)
    transport.try_receive()
    assert open_count() == before + count
    await transport.aclose()
    assert open_count() == before - 1


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_descriptors_when_too_many_come_then_the_connection_ends_and_all_are_closed(
    pair: Pair,
):
    transport, sock = pair
    before = open_count()
    socket.send_fds(sock, [b"x"], [sock.fileno()] * (MAX_DESCRIPTORS + 1))
    with pytest.raises(TransportClosed, match=f"more than {MAX_DESCRIPTORS} file descriptors"):
        transport.try_receive()
    await transport.aclose()
    assert open_count() == before - 1


async def test_descriptors_when_too_many_come_bit_by_bit_then_the_connection_ends(pair: Pair):
    transport, sock = pair
    for _ in range(MAX_DESCRIPTORS):
        socket.send_fds(sock, [b"x"], [sock.fileno()])
        transport.try_receive()
    socket.send_fds(sock, [b"x"], [sock.fileno()])
    with pytest.raises(TransportClosed):
        transport.try_receive()
    await transport.aclose()


def test_descriptors_when_fewer_came_than_announced_then_the_connection_ends(pair: Pair):
    with pytest.raises(TransportClosed, match="2 file descriptors announced, 0 received"):
        pair[0].take_descriptors(2)
    assert pair[0].take_descriptors(0) == []


def test_descriptors_when_it_is_tcp_then_none_can_come(tcp_pair: Pair):
    assert not tcp_pair[0].passes_descriptors


# -- who is it ---------------------------------------------------------------------------------


def test_peer_when_it_is_a_unix_socket_then_process_and_user_are_known(pair: Pair):
    assert pair[0].passes_descriptors
    assert pair[0].peer == f"unix pid {os.getpid()} uid {os.getuid()}"
    assert peer_uid(pair[1]) == os.getuid()


def test_peer_when_it_is_tcp_then_its_address_is_known(tcp_pair: Pair):
    host, port = tcp_pair[1].getsockname()
    assert tcp_pair[0].peer == f"{host}:{port}"
    assert peer_uid(tcp_pair[1]) is None
    assert tcp_pair[1].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) in (0, 1)


def test_peer_when_it_is_gone_then_that_is_said():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert describe_peer(sock) == "unconnected"


# -- streams -----------------------------------------------------------------------------------


async def test_stream_when_used_then_nothing_is_done_without_waiting():
    ours, theirs = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours, "memory")
    await theirs.send_all(b"there")
    assert transport.try_receive() is None
    assert transport.try_send(b"hello") == 0
    assert await transport.receive() == b"there"
    await transport.send(b"hello")
    assert await theirs.receive_some() == b"hello"
    await theirs.aclose()
    assert await transport.receive() == b""


async def test_stream_when_the_peer_is_gone_then_sending_says_so():
    ours, theirs = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours, "memory")
    await theirs.aclose()
    with pytest.raises(TransportClosed):
        await transport.send(b"hello")


async def test_stream_when_it_is_closed_then_receiving_says_so():
    ours, _ = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours, "memory")
    await transport.aclose()
    await transport.aclose()
    with pytest.raises(TransportClosed):
        await transport.receive()


def test_stream_when_descriptors_are_announced_then_the_connection_ends():
    ours, _ = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours, "memory")
    assert transport.take_descriptors(0) == []
    with pytest.raises(TransportClosed, match="1 file descriptors announced"):
        transport.take_descriptors(1)
