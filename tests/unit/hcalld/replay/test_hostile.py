# SPDX-License-Identifier: Apache-2.0
"""Captures and peers that anybody may have altered: a replay ends in words, and never hangs."""

from __future__ import annotations

import random
import socket

import pytest
import trio
from tests.unit.hcalld.replay.peers import (
    GET,
    READ_OBJECT,
    Capture,
    FakeDaemon,
    Told,
    call,
    greeted,
    hello,
    play,
    ram,
    reply,
    script,
    written,
)

from hcalld.core.errors import HcalldError
from hcalld.replay.errors import ReplayError
from hcalld.replay.link import Link
from hcalld.replay.machine import MachinePlayer
from hcalld.replay.matching import Matcher
from hcallproto.conn.states import Role
from hcallproto.errors import CaptureError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

A = call(GET, 1, vcpu=0, buffer=0x1000, buffer_size=520)
B = call(READ_OBJECT, 2, vcpu=1, out=0x4000, out_size=64)
C = call(GET, 3, vcpu=0, buffer=0x1000, buffer_size=32)
RESET = f.Event(s.EventKind.RESET, s.NO_VCPU, 7, 1)


def sample() -> Capture:
    return greeted(
        A,
        B,
        f.Read(0, 0, 1, 1, ((0x2000, 8), (0x3000, 8))),
        f.ReadReply(0, 0, 1, 1, ((s.AccessStatus.OK, bytes(8)), (s.AccessStatus.NOT_RAM, b""))),
        f.Write(1, 0, 2, 1, (written(0x4000, b"abcd"),)),
        f.WriteReply(1, 0, 2, 1, s.AccessStatus.OK, 0),
        reply(B, 0, ((4, 4),)),
        reply(A, 0, (), written(0x1000, bytes(44))),
        f.Cancel(0, 0, 1, s.CancelReason.DEADLINE),
        f.Cancelled(0, 0, 1, s.Effect.DONE),
        C,
        reply(C, -55),
        RESET,
        f.EventAck(RESET.kind, 7, 1),
    )


def altered(data: bytes, seed: int) -> bytes:
    """A few bytes that are others, or a piece that is gone or there twice."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at : at + rng.choice((1, 4, 64))]
            case _:
                changed[at:at] = changed[at : at + rng.choice((4, 64))]
    return bytes(changed)


async def polite(daemon: FakeDaemon, frame: f.Frame) -> None:
    match frame:
        case f.Call():
            await daemon.send(reply(frame))
        case f.Cancel():
            name = frame.vcpu, frame.reset, frame.seq
            await daemon.send(f.Cancelled(*name, s.Effect.NONE))
        case f.Event(kind=s.EventKind.RESET):
            await daemon.send(f.EventAck(frame.kind, frame.request, frame.reset))


@pytest.mark.parametrize("part", range(4))
async def test_altered_captures_are_played_or_refused(part: int) -> None:
    data = sample().data
    for seed in range(100 * part, 100 * part + 100):
        capture = Capture()
        capture.data = altered(data, seed)
        try:
            with trio.fail_after(20):
                await play(capture, FakeDaemon(polite), deadline=0.02)
        except (CaptureError, HcalldError):
            pass


async def test_frames_that_no_shim_sends_are_told_and_left_out() -> None:
    two = C._replace(seq=2)
    capture = greeted(A, two, reply(A), C, reply(C))

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        # Late enough that both calls are under way, if the second one is made.
        if isinstance(frame, f.Call):
            await trio.sleep(0.01)
            await daemon.send(reply(frame))

    player, told = await play(capture, FakeDaemon(answer))
    (line,) = told.lines
    assert line.startswith("lpar7 cpu0 #2 H_PKS_GET_CONFIG: frame: vcpu 0 has a live call")
    assert player.figures.calls == 2


@pytest.mark.parametrize("part", range(2))
async def test_altered_answers_end_in_words(part: int) -> None:
    """The daemon's frames: whatever they are, they are an answer, another one, or a breach."""
    for seed in range(100 * part, 100 * part + 100):
        answers = [altered(encode(one), seed + 7 * n) for n, one in enumerate((reply(A), reply(B)))]

        async def answer(
            daemon: FakeDaemon, frame: f.Frame, answers: list[bytes] = answers
        ) -> None:
            if isinstance(frame, f.Call) and answers:
                await daemon.send_bytes(answers.pop(0))

        with trio.fail_after(20):
            _, told = await play(
                greeted(A, reply(A), B, reply(B)), FakeDaemon(answer), deadline=0.02
            )
        assert told.lines or not answers


@pytest.mark.parametrize("part", range(2))
async def test_altered_guests_end_in_words(part: int) -> None:
    """A QEMU's frames: whatever they are, the machine ends the connection or answers."""
    said = [encode(one) for one in (hello(), f.Accept((), True, 0, 0), ram(), A, B, RESET)]
    for seed in range(100 * part, 100 * part + 100):
        player = MachinePlayer(Matcher(script(sample())), Told())
        await player.begin()
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
        ends[0].send(altered(b"".join(said), seed))
        ends[0].shutdown(socket.SHUT_WR)
        with trio.fail_after(20), ends[0]:
            try:
                await player.serve(Link(ends[1], Role.DAEMON))
            except ReplayError as error:
                raise AssertionError("the capture is good") from error
