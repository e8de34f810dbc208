# SPDX-License-Identifier: Apache-2.0
"""The live daemon as a guest that is played sees it.

What it asks for its calls' sake (READ, WRITE, PAGES) is answered here, by a task, from what
the capture shows of guest memory. What it says is kept until somebody waits for it.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Final

import trio

from hcalld.core.guestmem import RamMap
from hcalld.replay import guest_frames
from hcalld.replay.anew import Anew
from hcalld.replay.guest_frames import take_of_size
from hcalld.replay.link import Link, PeerFailed
from hcalld.replay.script import Script
from hcalld.replay.sparse import SparseMemory
from hcallproto.errors import LocalProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

SILENCE: Final = "nothing comes from the daemon any more"


@dataclasses.dataclass
class Played:
    """One call that was made again."""

    captured: f.Call
    sent: f.Call
    reads: dict[tuple[int, int], tuple[s.AccessStatus, bytes]] = dataclasses.field(
        default_factory=dict
    )
    """What the capture's daemon read for it."""
    shared: list[bytes] = dataclasses.field(default_factory=list)
    """What it read of memory that was shared, in order."""
    asked: f.Write | f.Pages | None = None
    """What the capture's daemon had asked for last."""
    captured_writes: list[f.WriteSegment] = dataclasses.field(default_factory=list)
    captured_pages: list[f.PageRange] = dataclasses.field(default_factory=list)
    live_writes: list[f.WriteSegment] = dataclasses.field(default_factory=list)
    live_pages: list[f.PageRange] = dataclasses.field(default_factory=list)
    is_over: trio.Event = dataclasses.field(default_factory=trio.Event)
    end: f.Reply | f.Cancelled | None = None

    def known(self, gpa: int, size: int) -> tuple[s.AccessStatus, bytes] | None:
        """What the capture's daemon read there; None: it did not."""
        if (gpa, size) in self.reads:
            return self.reads[gpa, size]
        found = take_of_size(self.shared, size)
        return None if found is None else (s.AccessStatus.OK, found)


class LiveDaemon:
    """One connection to a live daemon.

    Args:
        link: the connection.
        number: of the connection in the capture.
        script: what is played, to look ahead in.
        memory: guest memory as far as it is known.
        anew: passes on what the daemon has made anew.

    Attributes:
        calls: those under way, by vCPU and sequence number.
        asked: what the capture's daemon reads now, by call.
        ram: where RAM is.
        failure: why no more will come; "" as long as more may.
    """

    def __init__(
        self, link: Link, number: int, script: Script, memory: SparseMemory, anew: Anew
    ) -> None:
        self.link = link
        self.number = number
        self.calls: dict[tuple[int, int], Played] = {}
        self.asked: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        self.ram = RamMap(())
        self.failure = ""
        self._script = script
        self._memory = memory
        self._anew = anew
        self._inbox: collections.deque[f.Frame] = collections.deque()
        self._arrived = trio.Event()

    def reset(self) -> None:
        """A reset: no call is under way."""
        for played in self.calls.values():
            played.is_over.set()
        self.calls.clear()
        self.asked.clear()

    # -- waiting ------------------------------------------------------------------------------

    async def awaited(self, kind: type[f.Frame], seconds: float) -> f.Frame | None:
        """The next frame that is no call's; None: none came in time, or none will.

        Args:
            kind: what is expected; GOODBYE and CONTROL may come instead.
            seconds: how long to wait.
        """
        with trio.move_on_after(seconds):
            while True:
                while self._inbox:
                    frame = self._inbox.popleft()
                    if isinstance(frame, (kind, f.Goodbye, f.Control)):
                        return frame
                if self.failure:
                    return None
                self._arrived = trio.Event()
                await self._arrived.wait()
        self.failure = self.failure or SILENCE
        return None

    async def end_of(self, played: Played, seconds: float) -> f.Reply | f.Cancelled | None:
        """How a call ends; None: not in time."""
        before = self.link.received
        with trio.move_on_after(seconds):
            await played.is_over.wait()
        if played.end is None and self.link.received == before:
            self.failure = self.failure or SILENCE
        return played.end

    # -- receiving ----------------------------------------------------------------------------

    async def receive(self) -> None:
        """Take what comes, until the connection ends."""
        try:
            while (frame := await self.link.receive()) is not None:
                await self._received(frame)
                if isinstance(frame, f.Goodbye):
                    self._fail(f"GOODBYE {frame.reason.name}: {frame.text}")
            self._fail("closed by the daemon")
        except (PeerFailed, LocalProtocolError) as error:
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self._arrived.set()
        for played in self.calls.values():
            played.is_over.set()

    async def _received(self, frame: f.Frame) -> None:
        match frame:
            case f.Reply() | f.Cancelled():
                played = self.calls.get((frame.vcpu, frame.seq))
                if played is not None:
                    played.end = frame
                    played.is_over.set()
            case f.Read():
                await self._read(frame)
            case f.Write():
                status, bad = self._checked([(one.gpa, one.size) for one in frame.segments])
                if status is s.AccessStatus.OK:
                    self._memory.carry_out(frame.segments)
                    played = self.calls.get((frame.vcpu, frame.seq))
                    if played is not None:
                        played.live_writes += frame.segments
                name = frame.vcpu, frame.reset, frame.seq, frame.request
                await self.link.send(f.WriteReply(*name, status, bad))
            case f.Pages():
                status, bad = self._checked([(one.gpa, one.size) for one in frame.ranges])
                played = self.calls.get((frame.vcpu, frame.seq))
                if status is s.AccessStatus.OK and played is not None:
                    played.live_pages += frame.ranges
                name = frame.vcpu, frame.reset, frame.seq, frame.request
                await self.link.send(f.PagesReply(*name, status, bad))
            case f.Announce():
                await self.link.send(f.Accept((), False, frame.request, frame.reset))
            case f.Control(action=s.ControlAction.ATTEND):
                pass  # the capture says whether the shim attends
            case _:
                self._inbox.append(frame)
                self._arrived.set()

    def _checked(self, ranges: list[tuple[int, int]]) -> tuple[s.AccessStatus, int]:
        """Whether all of it is RAM, or the first that is not."""
        for index, (gpa, size) in enumerate(ranges):
            if not self.ram.contains(gpa, size):
                return s.AccessStatus.NOT_RAM, index
        return s.AccessStatus.OK, 0

    async def _read(self, read: f.Read) -> None:
        played = self.calls.get((read.vcpu, read.seq))
        answers = []
        for gpa, size in read.segments:
            if not self.ram.contains(gpa, size):
                answers.append((s.AccessStatus.NOT_RAM, b""))
                continue
            if played is not None and (gpa, size) not in played.reads:
                await self._look_ahead(played)
            known = None if played is None else played.known(gpa, size)
            status, data = known or (s.AccessStatus.OK, self._memory.read(gpa, size))
            if status is s.AccessStatus.OK and played is not None:
                declared = guest_frames.declared_at(played.captured, gpa)
                data = self._anew.content(declared, data)
            answers.append((status, data))
        name = read.vcpu, read.reset, read.seq, read.request
        await self.link.send(f.ReadReply(*name, tuple(answers)))

    async def _look_ahead(self, played: Played) -> None:
        """Find what the capture's daemon read for a call, up to the call's end."""
        name = played.captured.vcpu, played.captured.seq
        asked = self.asked.get(name, ())
        async for entry in self._script.ahead():
            what = entry.what
            if (
                entry.connection != self.number
                or not isinstance(what, f.Read | f.ReadReply | f.Reply | f.Cancelled)
                or (what.vcpu, what.seq) != name
            ):
                continue
            match what:
                case f.Read():
                    asked = what.segments
                case f.ReadReply():
                    played.reads.update(zip(asked, what.segments, strict=False))
                case _:
                    return
