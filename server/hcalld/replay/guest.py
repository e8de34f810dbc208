# SPDX-License-Identifier: Apache-2.0
"""The guest's side of a capture, played to a live daemon.

Theory of operation. The capture's frames are walked in their order. What the shim sent is
sent again; at what the daemon sent, the live daemon's is waited for and compared. So as many
calls are under way at once as there were, and no call is made before the answers that came
before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hcalld.captures.events import Event
from hcalld.core.errors import HcalldError
from hcalld.core.guestmem import RamMap
from hcalld.replay import guest_frames
from hcalld.replay.anew import Anew
from hcalld.replay.differences import Comparer, Difference, Report, call_name
from hcalld.replay.errors import ReplayError, Stopped
from hcalld.replay.guest_frames import Identity, Machines
from hcalld.replay.link import Link, PeerFailed
from hcalld.replay.live import LiveDaemon, Played
from hcalld.replay.pace import Pace
from hcalld.replay.playable import check_keys, why_not_made
from hcalld.replay.script import Script
from hcalld.replay.sparse import SparseMemory
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Level
from hcallproto.capture import entries as sealed
from hcallproto.capture.records import Record, Stop
from hcallproto.conn.states import State
from hcallproto.errors import CaptureError, LocalProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

PATIENCE_SECONDS: Final = 10.0
"""For what has no deadline of its own: WELCOME, acknowledgements."""


@dataclasses.dataclass
class Figures:
    """How it went.

    Attributes:
        calls: that were made.
        by_nature: fields that differ because they are made anew.
        replaced: values that were passed on in the place of captured ones.
        unknown_bytes: of guest memory that the daemon read and the capture does not have.
    """

    calls: int = 0
    by_nature: int = 0
    replaced: int = 0
    unknown_bytes: int = 0


@dataclasses.dataclass
class _Told:
    """What lies ahead of a call.

    Attributes:
        shared: what the capture's daemon read of memory that was shared.
        was_refused: it had no authority, maybe for a password that is blanked.
    """

    shared: list[bytes] = dataclasses.field(default_factory=list)
    was_refused: bool = False


class GuestPlayer:
    """Plays one guest.

    Args:
        script: what is played.
        connect: connects to the daemon.
        comparer: compares what comes.
        report: told of differences.
        identity: what the guest says of itself.
        pace: how fast.
        deadline: seconds for an answer; None: as the daemon announces.
        is_blanked: the capture has no secrets.
    """

    def __init__(
        self,
        script: Script,
        connect: Callable[[], Awaitable[Link]],
        comparer: Comparer,
        report: Report,
        *,
        identity: Identity | None = None,
        pace: Pace | None = None,
        deadline: float | None = None,
        is_blanked: bool = True,
    ) -> None:
        self.figures = Figures()
        self._script = script
        self._connect = connect
        self._comparer = comparer
        self._report = report
        self._machines = Machines(identity or Identity())
        self._pace = pace or Pace()
        self._deadline = deadline
        self._is_blanked = is_blanked
        self._memory = SparseMemory()
        self._anew = Anew()
        self._played_connection = -1
        self._captured_specs: guest_frames.Specs = {}
        self._live_specs: guest_frames.Specs = {}
        self._live: LiveDaemon | None = None
        self._skipped: set[tuple[int, int]] = set()
        """Calls that are not made."""

    async def play(self) -> None:
        """Play it to its end.

        Raises:
            ReplayError: it cannot be played, or only so far.
            CaptureError: it is no capture.
            HcalldError: nobody listens.
            Stopped: the report wants to hear no more.
        """
        failed: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                while (entry := await self._script.next()) is not None:
                    if not await self._entry(entry, nursery):
                        break
            except (CaptureError, HcalldError, Stopped) as error:
                failed = error  # raised below, not as one of a group
            finally:
                await self._close()
                self.figures.replaced = self._anew.replaced
                self.figures.unknown_bytes = self._memory.unknown
                nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    # -- the capture's frames -----------------------------------------------------------------

    async def _entry(self, entry: Event, nursery: trio.Nursery) -> bool:
        """Play one; False: the rest cannot be played."""
        what = entry.what
        if isinstance(what, Record | sealed.Entry):
            if isinstance(what, Stop) and entry.connection == self._played_connection:
                await self._close()
            return True
        if self._played_connection < 0 and not isinstance(what, f.Hello):
            raise ReplayError(
                f"at byte {entry.offset}: {_name(what)} before the connection's HELLO; the capture "
                "has no begin"
            )
        try:
            # A file of a ring begins with the frames that tell what goes on in it.
            if isinstance(what, f.Hello) and entry.connection != self._played_connection:
                await self._hello(entry, what, nursery)
            elif self._live is not None and entry.connection == self._played_connection:
                await self._frame(entry, what, self._live)
        except LocalProtocolError as error:
            self._tell(entry, Difference(_name(what), "frame", "may be sent", str(error)))
        except PeerFailed as error:
            if self._live is not None:
                self._live.failure = self._live.failure or str(error)
        if self._live is not None and self._live.failure:
            self._tell(entry, Difference(_name(what), "connection", "open", self._live.failure))
            return False
        return True

    async def _hello(self, entry: Event, captured: f.Hello, nursery: trio.Nursery) -> None:
        await self._close()
        await self._pace.until(entry.time_ns)
        self._played_connection = entry.connection
        self._live = LiveDaemon(
            await self._connect(), entry.connection, self._script, self._memory, self._anew
        )
        nursery.start_soon(self._live.receive)
        await self._live.link.send(self._machines.hello(captured))

    async def _frame(self, entry: Event, what: f.Frame, live: LiveDaemon) -> None:
        if f.FRAME_TYPES[type(what)] & 1:
            await self._pace.until(entry.time_ns)
        state = live.link.connection.state
        match what:
            case f.Welcome():
                if state is State.GREETED:
                    await self._welcome(entry, what, live)
            case f.Accept():
                if state is State.WELCOMED:
                    await live.link.send(what)
            case f.Ram():
                live.ram = RamMap((one.gpa, one.size) for one in what.regions)
                await live.link.send(guest_frames.ram(what))
            case f.Call():
                await self._call(entry, what, live)
            case f.Reply() | f.Cancelled():
                await self._over(entry, what, live)
            case f.Cancel():
                if (what.vcpu, what.seq) not in self._skipped:
                    await live.link.send(what)
            case f.Read() | f.ReadReply() | f.Write() | f.WriteReply() | f.Pages() | f.PagesReply():
                self._seen(what, live)
            case f.Event():
                await live.link.send(what)
                if what.kind is s.EventKind.RESET:
                    live.reset()
                    self._skipped.clear()
                    self._memory.clear()
                    self._anew.reset()
            case f.EventAck():
                await self._same(entry, what, live)
            case f.Control():
                # ATTEND was an operator's wish; nobody has it now.
                if what.action is not s.ControlAction.ATTEND:
                    await self._same(entry, what, live)
            case f.Goodbye():
                if what.reason is not s.GoodbyeReason.SHUTDOWN:
                    await self._same(entry, what, live)
                await self._close()
            case f.ShimGoodbye():
                await live.link.send(what)
                await self._close()
            case _:
                pass  # no daemon of ours announces anew

    async def _same(self, entry: Event, captured: f.Frame, live: LiveDaemon) -> None:
        """Wait for a frame that belongs to no call."""
        frame = await live.awaited(type(captured), self._deadline or PATIENCE_SECONDS)
        if frame is not None:
            self._compare(entry, None, captured, frame)

    async def _welcome(self, entry: Event, captured: f.Welcome, live: LiveDaemon) -> None:
        self._captured_specs = guest_frames.specs(captured.announcement)
        frame = await live.awaited(f.Welcome, self._deadline or PATIENCE_SECONDS)
        if isinstance(frame, f.Welcome):
            self._live_specs = guest_frames.specs(frame.announcement)
            self._compare(entry, None, *guest_frames.comparable(captured, frame))

    # -- calls --------------------------------------------------------------------------------

    async def _call(self, entry: Event, call: f.Call, live: LiveDaemon) -> None:
        name = call.vcpu, call.seq
        key = call.number, call.level
        spec = self._live_specs.get(key)
        why_not = why_not_made(call, is_blanked=self._is_blanked)
        if why_not:
            self._comparer.left_out[f"{call_name(call)} ({why_not})"] += 1
            self._skipped.add(name)
            return
        is_forwarded = spec is not None and spec.disposition is s.Disposition.FORWARD
        if call.level != s.LEVEL_SHIM and not is_forwarded:
            self._skipped.add(name)
            self._tell(entry, Difference(call_name(call), "call", "announced", "not announced"))
            return
        for segment in call.segments:
            self._memory.write(segment.gpa, segment.data)
        told = await self._look_ahead(call)
        segments = guest_frames.segments(
            call,
            self._captured_specs.get(key),
            spec,
            self._memory,
            self._anew,
            shared=told.shared,
            was_refused=told.was_refused,
        )
        played = Played(
            call, self._anew.registers(call)._replace(segments=segments), shared=told.shared
        )
        live.calls[name] = played
        try:
            await live.link.send(played.sent)
        except LocalProtocolError:
            self._skipped.add(name)
            del live.calls[name]
            raise
        self.figures.calls += 1

    async def _look_ahead(self, call: f.Call) -> _Told:
        """What the capture has of a call that is only about to be made."""
        told = _Told()
        if not call.segments and call.level != Level.SC1:
            return told
        async for entry in self._script.ahead():
            what = entry.what
            if (
                entry.connection != self._played_connection
                or not isinstance(what, f.Reply | f.Cancelled | sealed.Answer)
                or (what.vcpu, what.seq) != (call.vcpu, call.seq)
            ):
                continue
            match what:
                case sealed.Answer(effect=sealed.EffectKind.READ_RAM, value=bytes(data)):
                    told.shared.append(data)
                case f.Reply():
                    # What tells of the object knew the password.
                    is_told = any(value for _, value in what.registers)
                    told.was_refused = (
                        self._is_blanked and what.status == H.AUTHORITY and not is_told
                    )
                    break
                case f.Cancelled():
                    break
        return told

    async def _over(self, entry: Event, captured: f.Reply | f.Cancelled, live: LiveDaemon) -> None:
        """The capture has a call's end: wait for the live one's."""
        name = captured.vcpu, captured.seq
        played = live.calls.get(name)
        if played is None:
            self._skipped.discard(name)
            return
        if isinstance(captured, f.Cancelled) and isinstance(played.end, f.Reply):
            # It answered before it was told, and has to acknowledge that it was told.
            played.is_over = trio.Event()
            played.end = None
        end = await live.end_of(played, self._seconds_for(played.captured))
        if end is None:
            if not live.failure:
                await self._give_up(entry, played, live)
            return
        live.calls.pop(name, None)
        if isinstance(captured, f.Reply) and isinstance(end, f.Reply):
            captured = _whole(captured, played.captured_writes, played.captured_pages)
            self._memory.carry_out(end.writes)
            end = _whole(end, played.live_writes, played.live_pages)
            check_keys(played.captured, captured, end)
            captured = self._anew.expected(captured, end)
            self._anew.learn(played.captured, captured, end)
        self._compare(entry, played.captured, captured, end)

    def _seconds_for(self, call: f.Call) -> float:
        if self._deadline is not None:
            return self._deadline
        spec = self._live_specs.get((call.number, call.level))
        return spec.deadline_ms / 1000 if spec is not None else PATIENCE_SECONDS

    async def _give_up(self, entry: Event, played: Played, live: LiveDaemon) -> None:
        """As a shim does when the deadline passes."""
        call = played.sent
        self._tell(entry, Difference(call_name(call), "reply", "in time", "none in time"))
        del live.calls[call.vcpu, call.seq]
        await live.link.send(f.Cancel(call.vcpu, call.reset, call.seq, s.CancelReason.DEADLINE))

    def _seen(
        self,
        what: f.Read | f.ReadReply | f.Write | f.WriteReply | f.Pages | f.PagesReply,
        live: LiveDaemon,
    ) -> None:
        """Keep what the capture's daemon did for a call that is under way."""
        name = what.vcpu, what.seq
        played = live.calls.get(name)
        if played is None:
            return
        match what:
            case f.Read():
                live.asked[name] = what.segments
            case f.ReadReply():
                for place, answer in zip(live.asked.pop(name, ()), what.segments, strict=False):
                    played.reads[place] = answer
                    self._memory.write(place[0], answer[1])
            case f.Write() | f.Pages():
                played.asked = what
            case f.WriteReply(status=s.AccessStatus.OK) | f.PagesReply(status=s.AccessStatus.OK):
                match played.asked:
                    case f.Write(segments=segments):
                        played.captured_writes += segments
                    case f.Pages(ranges=ranges):
                        played.captured_pages += ranges

    # -- telling ------------------------------------------------------------------------------

    def _compare(self, entry: Event, call: f.Call | None, captured: f.Frame, live: f.Frame) -> None:
        for found in self._comparer.compare(call, captured, live):
            self._tell(entry, found)

    def _tell(self, entry: Event, difference: Difference) -> None:
        if self._comparer.ignored.covers(difference.call, difference.field):
            return
        self.figures.by_nature += difference.by_nature
        self._report.difference(_where(entry), difference)

    async def _close(self) -> None:
        live, self._live = self._live, None
        self._skipped.clear()
        if live is not None:
            await live.link.aclose()


def _whole(reply: f.Reply, writes: list[f.WriteSegment], pages: list[f.PageRange]) -> f.Reply:
    """A reply with all that was done for the call before it."""
    return reply._replace(writes=(*writes, *reply.writes), pages=(*pages, *reply.pages))


def _name(frame: f.Frame) -> str:
    return call_name(frame) if isinstance(frame, f.Call) else f.FRAME_TYPES[type(frame)].name


def _where(entry: Event) -> str:
    what = entry.what
    seq = getattr(what, "seq", 0)
    call = f" cpu{what.vcpu} #{seq}" if seq else ""  # type: ignore[union-attr]
    return f"{entry.guest}{call}"
