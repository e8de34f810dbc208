# SPDX-License-Identifier: Apache-2.0
"""Whole responses get through; everything else is an error, and is not left to the next."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator

import pytest
import trio
from tests.unit.hcalld.backends.peer import RANDOM, Contexts, handles, pair, response, serve
from trio.testing import MockClock

from hcalld.backends.channel import MAX_EMPTY_READS, Channel, flush_contexts, list_contexts
from hcalld.core.errors import BackendUnavailable
from hcallproto.payloads import tpm_contexts as tpm

TIMEOUT_S = 7.0
WAIT_US = 100

Ends = tuple[Channel, trio.SocketStream]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    fd, peer = pair()
    channel = Channel(fd, "the TPM", TIMEOUT_S)
    yield channel, peer
    channel.close()
    await peer.aclose()


async def test_a_response_comes_back_whole(ends: Ends, nursery: trio.Nursery):
    channel, peer = ends
    nursery.start_soon(serve, peer, Contexts())
    assert await channel.transmit(RANDOM) == response(b"answer")
    assert channel.is_usable


async def test_the_greatest_command_and_response(ends: Ends, nursery: trio.Nursery):
    channel, peer = ends
    greatest = response(bytes(tpm.MAX_SIZE - tpm.HEADER_SIZE))
    nursery.start_soon(channel.transmit, bytes(tpm.MAX_SIZE))
    assert len(await peer.receive_some(8192)) == tpm.MAX_SIZE
    await peer.send_all(greatest)
    await trio.testing.wait_all_tasks_blocked()
    assert channel.is_usable


@pytest.mark.parametrize("size", [1, 9, 10, 11, 15])
async def test_a_response_in_parts_is_put_together(ends: Ends, size: int, nursery: trio.Nursery):
    channel, peer = ends
    whole = response(b"answer")

    async def in_parts() -> None:
        await peer.receive_some(8192)
        await peer.send_all(whole[:size])
        await trio.testing.wait_all_tasks_blocked()
        await peer.send_all(whole[size:])

    nursery.start_soon(in_parts)
    assert await channel.transmit(RANDOM) == whole


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "no whole response within 7 s, 0 bytes"),
        (b"\x80\x01\0", "no whole response within 7 s, 3 bytes"),
        (response()[:9], "no whole response within 7 s, 9 bytes"),
        (response(size=11), "no whole response within 7 s, 10 bytes"),
        (response(size=4096), "no whole response within 7 s, 10 bytes"),
    ],
)
async def test_too_short_or_never_is_an_error_in_time(
    ends: Ends, sent: bytes, said: str, autojump_clock: MockClock
):
    channel, peer = ends
    channel._begin(RANDOM)
    if sent:
        await peer.send_all(sent)
    with pytest.raises(BackendUnavailable, match=said):
        await channel.finish()
    assert not channel.is_usable
    assert channel.owes
    assert trio.current_time() >= TIMEOUT_S


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (response(size=9), "claims 9 bytes, expected 10 to 4096"),
        (response(size=0), "claims 0 bytes"),
        (response(size=4097), "claims 4097 bytes"),
        (response(size=0xFFFF_FFFF), "claims 4294967295 bytes"),
        (response(b"answer", size=15), "more than the 15 bytes"),
        (response() + response(), "more than the 10 bytes"),
        (bytes(5000), "claims 0 bytes"),
        (response(bytes(5000), size=4096), "more than the 4096 bytes"),
    ],
)
async def test_a_lie_breaks_the_channel(ends: Ends, sent: bytes, said: str):
    channel, peer = ends
    channel._begin(RANDOM)
    await peer.send_all(sent)
    with pytest.raises(BackendUnavailable, match=said):
        await channel.finish()
    assert channel.is_broken
    assert not channel.is_usable


async def test_what_nobody_asked_for_breaks_the_channel(ends: Ends):
    channel, peer = ends
    await peer.send_all(response())
    with pytest.raises(BackendUnavailable, match="that nobody asked for"):
        await channel.transmit(RANDOM)
    assert channel.is_broken


@pytest.mark.parametrize("sent", [b"", b"\x80\x01", response(size=12)])
async def test_a_peer_that_dies_in_the_middle_is_told(ends: Ends, sent: bytes):
    channel, peer = ends
    channel._begin(RANDOM)
    if sent:
        await peer.send_all(sent)
    await peer.aclose()
    with pytest.raises(BackendUnavailable, match=r"the TPM: (has closed the connection|cannot be)"):
        await channel.finish()


async def test_a_peer_that_was_dead_is_told(ends: Ends):
    channel, peer = ends
    await peer.aclose()
    with pytest.raises(BackendUnavailable, match="has closed the connection"):
        await channel.transmit(RANDOM)


async def test_a_late_response_is_not_the_next_commands(ends: Ends, autojump_clock: MockClock):
    channel, peer = ends
    with pytest.raises(BackendUnavailable):
        await channel.transmit(RANDOM)
    await peer.send_all(response(b"late"))
    await channel.settle()
    assert channel.is_usable
    channel._begin(RANDOM)
    await peer.send_all(response(b"own"))
    assert await channel.finish() == response(b"own")


async def test_a_command_that_was_given_up_is_owed(ends: Ends):
    channel, peer = ends
    with trio.move_on_after(0.01):
        await channel.transmit(RANDOM)
    assert channel.owes
    assert not channel.is_usable
    await peer.send_all(response(b"late"))
    await channel.settle()
    assert channel.is_usable


async def test_settle_without_a_debt_does_nothing(ends: Ends):
    channel, _ = ends
    await channel.settle()
    assert channel.is_usable


async def test_a_command_goes_out_once_however_slowly(ends: Ends, nursery: trio.Nursery):
    channel, peer = ends
    full = socket.socket(fileno=os.dup(channel._fd))
    filled = 0
    try:
        while True:
            filled += full.send(bytes(1 << 16))
    except BlockingIOError:
        full.close()
    command = os.urandom(tpm.MAX_SIZE)
    nursery.start_soon(channel.transmit, command)
    await trio.testing.wait_all_tasks_blocked()
    seen = b""
    while len(seen) < filled + len(command):
        seen += await peer.receive_some(1 << 16)
    assert seen[filled:] == command
    await peer.send_all(response())
    await trio.testing.wait_all_tasks_blocked()
    assert channel.is_usable


# -- at once ---------------------------------------------------------------------------------


async def test_at_once_when_the_response_is_there(ends: Ends, monkeypatch: pytest.MonkeyPatch):
    channel, peer = ends
    fd = os.dup(peer.socket.fileno())
    write = os.write

    def write_and_answer(to: int, data: bytes) -> int:
        count = write(to, data)
        write(fd, response(b"quick"))
        return count

    monkeypatch.setattr("hcalld.backends.channel.os.write", write_and_answer)
    assert channel.transmit_now(RANDOM, 1000) == response(b"quick")
    assert channel.is_usable
    os.close(fd)


@pytest.mark.parametrize("wait_us", [0, WAIT_US])
async def test_at_once_when_it_is_not_there_then_finish_waits(ends: Ends, wait_us: int):
    channel, peer = ends
    assert channel.transmit_now(RANDOM, wait_us) is None
    await peer.send_all(response(b"slow"))
    assert await channel.finish() == response(b"slow")


async def test_at_once_when_it_is_a_lie(ends: Ends, monkeypatch: pytest.MonkeyPatch):
    channel, peer = ends
    monkeypatch.setattr("hcalld.backends.channel.select.select", lambda *_: ([channel._fd], [], []))
    channel._begin(RANDOM)
    channel.owes, channel._unsent = False, b""
    await peer.send_all(response(size=3))
    with pytest.raises(BackendUnavailable, match="that nobody asked for"):
        channel.transmit_now(RANDOM, WAIT_US)


# -- devices ---------------------------------------------------------------------------------


async def test_nothing_to_read_is_no_end_of_a_device(ends: Ends, monkeypatch: pytest.MonkeyPatch):
    fd, peer = pair()
    device = Channel(fd, "the TPM", TIMEOUT_S, is_device=True)
    read = os.read
    empty = 3

    def read_after(from_: int, size: int) -> bytes:
        nonlocal empty
        empty -= 1
        return b"" if empty >= 0 else read(from_, size)

    monkeypatch.setattr("hcalld.backends.channel.os.read", read_after)
    device._begin(RANDOM)
    await peer.send_all(response(b"answer"))
    assert await device.finish() == response(b"answer")
    device.close()
    await peer.aclose()


async def test_a_device_that_is_readable_and_has_nothing_is_given_up():
    fd, peer = pair()
    device = Channel(fd, "the TPM", TIMEOUT_S, is_device=True)
    await peer.aclose()
    device._unsent, device.owes = b"", True
    with pytest.raises(BackendUnavailable, match="readable and has nothing"):
        await device.finish()
    assert device._empty_reads == MAX_EMPTY_READS + 1
    device.close()


async def test_a_device_that_cannot_be_waited_for_is_refused():
    device = Channel(os.open("/dev/null", os.O_RDWR), "the TPM", TIMEOUT_S, is_device=True)
    with pytest.raises(BackendUnavailable, match="cannot be waited for"):
        await device.transmit(RANDOM)
    device.close()


async def test_a_channel_that_is_closed_meanwhile_is_told(ends: Ends, nursery: trio.Nursery):
    channel, _ = ends

    async def close_soon() -> None:
        await trio.testing.wait_all_tasks_blocked()
        channel.close()

    nursery.start_soon(close_soon)
    with pytest.raises(BackendUnavailable, match="closed meanwhile"):
        await channel.transmit(RANDOM)
    channel.close()


# -- contexts ----------------------------------------------------------------------------------


async def test_all_contexts_are_freed_but_those_to_keep(ends: Ends, nursery: trio.Nursery):
    channel, peer = ends
    contexts = Contexts(0x0200_0000, 0x0200_0001, 0x0300_0002, 0x8000_0000, 0x8000_0001)
    nursery.start_soon(serve, peer, contexts)
    assert await list_contexts(channel) == set(contexts.loaded)
    await flush_contexts(channel, frozenset({0x0200_0001, 0x8000_0000}))
    assert contexts.loaded == [0x0200_0001, 0x8000_0000]
    await flush_contexts(channel)
    assert contexts.loaded == []


@pytest.mark.parametrize(
    "answer",
    [response(code=0x101), handles(1)[:-1], response(b"\0\0\0\0\2\0\0\0\0"), response(b"\0")],
)
async def test_nonsense_in_place_of_contexts_is_an_error(
    ends: Ends, answer: bytes, nursery: trio.Nursery
):
    channel, peer = ends
    fixed = answer[:2] + len(answer).to_bytes(4, "big") + answer[6:]
    nursery.start_soon(serve, peer, lambda _: fixed)
    with pytest.raises(BackendUnavailable):
        await list_contexts(channel)
