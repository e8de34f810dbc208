# SPDX-License-Identifier: Apache-2.0
"""Captures and peers that say what a test says."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio
from tests.unit.hcallproto.capture.sample import Capture, call

from hcalld.captures.events import Events
from hcalld.replay.differences import Comparer, Difference
from hcalld.replay.errors import Stopped
from hcalld.replay.guest import GuestPlayer
from hcalld.replay.link import Link, PeerFailed
from hcalld.replay.script import Script
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.capture.records import Stop
from hcallproto.conn.states import Role
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

__all__ = ["GET", "READ_OBJECT", "WRAP", "Capture", "call"]

_F = TypeVar("_F")

GET = pks.GET_CONFIG
READ_OBJECT = pks.READ_OBJECT
WRAP = pks.WRAP_OBJECT
INSTANCE = bytes(range(16))
RAM_SIZE = 1 << 20


def spec(hcall: Hcall, *buffers: f.BufferSpec, deadline_ms: int = 20_000) -> f.CallSpec:
    return f.CallSpec(
        hcall.number,
        hcall.level,
        s.Disposition.FORWARD,
        0,
        deadline_ms,
        H.FUNCTION,
        H.FUNCTION,
        buffers,
    )


SPECS = tuple(spec(one) for one in pks.FAMILY.calls)


def hello(
    *,
    instance: bytes = INSTANCE,
    features: s.Feature = s.Feature(0),  # noqa: B008  # it cannot change
    connection: int = 0,
    name: str = "lpar7",
) -> f.Hello:
    return f.Hello(
        1, 1, s.DEFAULT_MAX_FRAME, features, instance, bytes(16), connection, 4, 4, 0, 16, name,
        "QEMU", 0,
    )  # fmt: skip


def welcome(
    *specs: f.CallSpec,
    features: s.Feature = s.Feature(0),  # noqa: B008
) -> f.Welcome:
    announcement = f.Announcement(specs or SPECS, ("hcall-pks",), ())
    return f.Welcome(1, s.DEFAULT_MAX_FRAME, features, announcement, 0)


def ram(*, is_shared: bool = False) -> f.Ram:
    region = f.RamRegion(0, RAM_SIZE)
    if is_shared:
        return f.Ram((region._replace(fd_index=0),), 1, 0)
    return f.Ram((region,), 0, 0)


def greeted(
    *frames: f.Frame,
    guest: str = "lpar7",
    begin: f.Hello | None = None,
    greeting: f.Welcome | None = None,
    capture: Capture | None = None,
    has_end: bool = True,
) -> Capture:
    """A capture of one connection."""
    capture = capture or Capture()
    capture.guest(guest)
    for frame in (
        begin or hello(),
        greeting or welcome(),
        f.Accept((), True, 0, 0),
        ram(),
        *frames,
    ):
        capture.frame(frame, guest)
    if has_end:
        capture.record(Stop(why="closed by the peer"), guest)
    return capture


def script(capture: Capture, guest: str | None = None) -> Script:
    return Script(Events([capture.data]), guest)


def reply(
    to: f.Call,
    status: int = 0,
    registers: tuple[tuple[int, int], ...] = (),
    *writes: f.WriteSegment,
) -> f.Reply:
    return f.Reply(to.vcpu, to.reset, to.seq, status, registers, writes)


def written(gpa: int, data: bytes) -> f.WriteSegment:
    return f.WriteSegment(gpa, len(data), data)


class Told:
    """Keeps what a replay tells."""

    def __init__(self, *, stop: bool = False) -> None:
        self.lines: list[str] = []
        self.by_nature: list[str] = []
        self._stop = stop

    def difference(self, where: str, difference: Difference) -> None:
        """See Report."""
        (self.by_nature if difference.by_nature else self.lines).append(f"{where} {difference}")
        if self._stop:
            raise Stopped


def link_pair() -> tuple[Link, Link]:
    """A shim's end and a daemon's."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return Link(ends[0], Role.SHIM), Link(ends[1], Role.DAEMON)


Answer = Callable[["FakeDaemon", f.Frame], Awaitable[None]]


class FakeDaemon:
    """A daemon that greets, and then does what a test says with each frame.

    Args:
        answer: what it does.
        greeting: its WELCOME.
    """

    def __init__(self, answer: Answer, greeting: f.Welcome | None = None) -> None:
        self.received: list[f.Frame] = []
        self.link: Link | None = None
        self.raw: socket.socket | None = None
        self.count = 0
        """For the test's use."""
        self._answer = answer
        self._greeting = greeting or welcome()

    async def send(self, frame: f.Frame) -> None:
        assert self.link is not None
        await self.link.send(frame)

    async def send_bytes(self, data: bytes) -> None:
        """What is no frame."""
        assert self.raw is not None
        self.raw.send(data)

    def frames(self, kind: type[_F]) -> list[_F]:
        """Those that came, of a kind."""
        return [frame for frame in self.received if isinstance(frame, kind)]

    async def connect(self, nursery: trio.Nursery) -> Link:
        """What a player connects with."""
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
        self.raw = ends[1]
        self.link = Link(ends[1], Role.DAEMON)
        nursery.start_soon(self._serve, self.link)
        return Link(ends[0], Role.SHIM)

    async def _serve(self, link: Link) -> None:
        try:
            while (frame := await link.receive()) is not None:
                self.received.append(frame)
                if isinstance(frame, f.Hello):
                    await link.send(self._greeting._replace(reset=frame.reset))
                elif not isinstance(frame, f.Accept | f.Ram):
                    await self._answer(self, frame)
        except PeerFailed:
            pass
        await link.aclose()


async def play(
    capture: Capture,
    daemon: FakeDaemon,
    told: Told | None = None,
    *,
    guest: str | None = None,
    comparer: Comparer | None = None,
    **options: object,
) -> tuple[GuestPlayer, Told]:
    """Play a capture's guest to a daemon."""
    told = told or Told()
    async with trio.open_nursery() as nursery:
        player = GuestPlayer(
            script(capture, guest),
            lambda: daemon.connect(nursery),
            comparer or Comparer(is_blanked=True, is_live=True),
            told,
            **options,  # type: ignore[arg-type]
        )
        failed: Exception | None = None
        try:
            await player.play()
        except Exception as error:  # raised below, not as one of a group
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return player, told


def answering(replies: Sequence[f.Reply]) -> Answer:
    """Gives each call the reply with its name."""
    by_name = {(one.vcpu, one.seq): one for one in replies}

    async def answer(daemon: FakeDaemon, frame: f.Frame) -> None:
        if isinstance(frame, f.Call):
            await daemon.send(by_name[frame.vcpu, frame.seq])

    return answer
