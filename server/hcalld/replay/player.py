# SPDX-License-Identifier: Apache-2.0
"""One connection of a capture, run again by the daemon's own code.

A ``Session`` is given the frames that came in, and a world that answers as the capture has
it (``answers``). What the session sends must be what is next in the capture. Everything
happens in the capture's order: the session gets a frame when all before it has happened
again, and a call that waited goes on when the capture says so.

When nothing can go on, something is different. ``step`` finds out what, tells it, and goes
over it.
"""

from __future__ import annotations

import collections
import itertools
from typing import Final

import trio

from hcalld.replay.answers import Answers, told
from hcalld.replay.beginning import (
    begin_at,
    frame_of,
    order_of,
    partition_of,
    welcome_of,
    with_request,
)
from hcalld.replay.judging import Judge, name_of
from hcalld.replay.stage import Owner, ReplayTransport
from hcalld.replay.track import Event, Gap, Inbound, Name, Outbound, Track, head_of
from hcalld.runtime import orders
from hcalld.runtime.partition import Partition
from hcalld.runtime.session import Session
from hcallproto.capture import entries as e
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode
from hcallproto.wire.layout import HEADER

NOT_ANSWERED: Final = "the capture has no answer to them"
ENDED_EARLY: Final = "the connection ended earlier than in the capture"
NO_STATE: Final = "the capture has no state that the connection began with"
NOT_WHOLE: Final = "the state that the capture begins with is not all"

_T = s.FrameType
_REPLY: Final = int(_T.REPLY)
_OVER: Final = frozenset({int(_T.REPLY), int(_T.CANCELLED)})
_ANSWERS: Final = frozenset({int(_T.READ_REPLY), int(_T.WRITE_REPLY), int(_T.PAGES_REPLY)})
_REQUESTS: Final = (f.Read, f.Write, f.Pages)
_PLAIN: Final = frozenset({Inbound, Outbound, e.Answer})
_unpack: Final = HEADER.unpack


class Player:
    """Plays one connection.

    Args:
        track: the connection.
        judge: says how its calls came out.
    """

    def __init__(self, track: Track, judge: Judge) -> None:
        self.track = track
        self.score = judge.score
        self._judge = judge
        self.is_done = False
        """Nothing is left to say."""
        self.session: Session | None = None
        self.answers: Answers | None = None
        self.keeps_secrets = False
        """See Tap."""
        self._transport: ReplayTransport | None = None
        self.events = track.events
        self.has_ended = False
        """The session,"""
        self._why_ended = ""
        """because of this."""
        self._is_forced = False
        self._is_stopped = False
        self.why_out = ""
        """What follows is not replayed, because of this."""
        self._time_ns = 0
        self._queued: list[tuple[Outbound | None, f.Frame]] = []
        """What the session is about to send, and what the capture has for it."""
        self._replies = 0
        """Among these."""
        self._is_odd = False
        """Among these is something that is not next in the capture."""
        self._ahead: list[f.Frame] = []
        """Sent, and what the capture has there has not been read yet."""
        self._early: dict[Name, f.Frame] = {}
        """Ends of calls that the capture has later."""
        self._late: dict[Name, collections.deque[Outbound]] = {}
        """What the capture had and the session has not sent, yet."""
        self._strayed: set[Name] = set()
        """Calls that did not take the capture's way: the rest of it is not for them."""
        self._told: set[Name] = set()
        """Calls of which it was told that they ask for something else."""
        self._cancelled: set[Name] = set()
        """Calls that the guest's side has cancelled."""
        self._swallowed: set[Name] = set()
        """Calls that only the replay cancels, to go on."""
        self._requests: dict[int, int] = {}
        """Numbers of requests for memory, the capture's to ours, where they differ."""
        self._is_careful = False
        """They do, or may."""

    # -- beginning -----------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Enough has been read to begin."""
        track = self.track
        return track.state() is not None or track.is_over or track.has_call()

    def begin(self, nursery: trio.Nursery) -> bool:
        """Begin, if the capture has what is needed; else say that it has not."""
        state = self.track.state()
        if state is None or state.problem:
            why = NO_STATE if state is None else f"{NOT_WHOLE}: {state.problem}"
            self.why_out = why
            self.has_ended = True
            return False
        if not state.is_begin:
            self._is_careful = True
            begin_at(self.events, state)
        self.seat(partition_of(state, self.track.guest))
        nursery.start_soon(self.run_session)
        return True

    def seat(self, partition: Partition) -> None:
        """Have a session for a partition."""
        self.answers = self.make_answers(partition)
        welcome = welcome_of(self.track)
        passes_descriptors = welcome is None or s.Feature.SHARED_RAM in welcome.features
        self._transport = ReplayTransport(self, passes_descriptors=passes_descriptors)
        self.session = Session(self._transport, Owner(partition, self.answers, self), [])

    def make_answers(self, partition: Partition) -> Answers:
        """What answers the partition's calls."""
        return Answers(partition, self)

    async def run_session(self) -> None:
        """Serve the connection; a task."""
        assert self.session is not None
        await self.session.run()
        self.has_ended = True

    # -- the place in the capture (answers.Place) ----------------------------------------

    @property
    def time_ns(self) -> int:
        """See Place."""
        return self._time_ns

    def peek(self) -> Event | None:
        """See Place."""
        return self.events[0] if self.events else None

    def goes_on_for(self, name: Name) -> bool:
        """See Place."""
        if len(self.events) == 1:
            return not self.track.is_over
        for event in itertools.islice(self.events, 1, None):
            if isinstance(event, e.Answer | e.Turn):
                if (event.vcpu, event.seq) == name:
                    return isinstance(event, e.Turn)
            elif isinstance(event, Outbound) and head_of(event.data).call == name:
                return False
        return False

    def take(self) -> None:
        """See Place."""
        self.events.popleft()
        self.look()

    def mismatch(self, name: Name, what: str, captured: str) -> None:
        """See Place."""
        self._strayed.add(name)
        if name not in self._told:
            self._told.add(name)
            self._judge.tell(name, "effect", captured, what)

    def look(self) -> bool:
        """Something has happened: see who may go on with what is next; True: somebody does."""
        events = self.events
        while events and type(events[0]) is e.State:
            events.popleft()
        if not events or self.answers is None:
            return False
        event = events[0]
        if isinstance(event, Inbound):
            # What its call asks may not have been read yet.
            is_whole = len(events) > 1 or self.track.is_over
            return is_whole and self._transport is not None and self._transport.wake()
        if not self.answers.waiting:
            return False
        if isinstance(event, e.Answer | e.Turn):
            return self.answers.wake((event.vcpu, event.seq))
        if isinstance(event, Outbound):
            name = head_of(event.data).call
            return name is not None and self.answers.wake(name, is_turn=True)
        return False

    # -- the guest's side (stage.Shim) ---------------------------------------------------

    def next_frame(self) -> bytes:
        """See Shim: if all before it has happened again."""
        events = self.events
        while events and type(events[0]) is Inbound and not self.score.is_enough:
            event = events[0]
            if len(events) == 1 and not self.track.is_over:
                # What its call asks may not have been read yet.
                break
            if not self._strayed and not self._is_careful:
                return event.data
            head = head_of(event.data)
            if head.type in _ANSWERS:
                if head.call in self._strayed:
                    self.take()
                    continue
                ours = self._requests.get(head.request, head.request)
                return event.data if ours == head.request else with_request(event.data, ours)
            if head.type == _T.CALL:
                stuck = self._live_call(head.vcpu)
                if stuck is not None:
                    return self._cancel(stuck, head.reset)
            return event.data
        return b""

    def _live_call(self, vcpu: int) -> Name | None:
        """The call of a vCPU that should be over."""
        assert self.session is not None
        live = self.session.connection.calls.live()
        return next((name for name in live if name[0] == vcpu), None)

    def _cancel(self, name: Name, reset: int) -> bytes:
        """A CANCEL that is not in the capture, for the vCPU to be able to call again."""
        self._swallowed.add(name)
        frame = f.Cancel(name[0], reset, name[1], s.CancelReason.DEADLINE)
        self.events.appendleft(Inbound(encode(frame), self._time_ns))
        return self.events[0].data  # type: ignore[union-attr]  # just put there

    # -- frames as they pass (core.tap.Tap) ----------------------------------------------

    def received(self, frame: f.Frame, data: bytes) -> None:
        """See Tap."""
        events = self.events
        event = events.popleft()
        assert isinstance(event, Inbound), "frames are given one by one"
        self._time_ns = event.time_ns
        if event.is_blanked:
            self.blanked(event)
        if type(frame) is f.Call:
            self._judge.made(frame)
        elif isinstance(frame, f.Cancel):
            self._cancelled.add((frame.vcpu, frame.seq))
        elif isinstance(frame, f.Event) and frame.kind is s.EventKind.RESET:
            self._forget_calls()
        if events and type(events[0]) not in _PLAIN:
            self.look()

    def sent(self, frame: f.Frame, data: bytes, why: str) -> None:
        """See Tap."""
        if self._ahead or not (self.events or self.track.is_over):
            self._is_odd = True
            self._ahead.append(frame)
        else:
            self._match(frame)

    def _catch_up(self) -> bool:
        """More has been read: look for frames in it that were sent before."""
        if not self._ahead or not (self.events or self.track.is_over):
            return False
        ahead, self._ahead = self._ahead, []
        for frame in ahead:
            self.sent(frame, b"", "")
        self._compare_sent()
        return True

    def _match(self, frame: f.Frame) -> None:
        """See whether a frame is next in the capture."""
        events = self.events
        if events and type(events[0]) is Outbound:
            event = events[0]
            number, _, _, vcpu, _, request, seq = _unpack(event.data, 0)
            if type(frame) is f.Reply:
                if number == _REPLY and seq == frame.seq and vcpu == frame.vcpu:
                    events.popleft()
                    self._time_ns = event.time_ns
                    self._queued.append((event, frame))
                    self._replies += 1
                    assert self.answers is not None
                    if events and (
                        type(events[0]) not in _PLAIN
                        or self.answers.waiting
                        or self._transport.is_waiting  # type: ignore[union-attr]
                    ):
                        self.look()
                    return
            elif number == f.FRAME_TYPES[type(frame)] and head_of(event.data).call == name_of(
                frame
            ):
                if isinstance(frame, _REQUESTS):
                    self._request(event, frame, request)
                self._queued.append((event, frame))
                self._replies += type(frame) is f.Cancelled
                self.take()
                return
        self._unexpected(frame)

    def blanked(self, event: Inbound) -> None:
        """A frame was given to the session that is not all there."""

    def _request(self, event: Outbound, frame: f.Read | f.Write | f.Pages, request: int) -> None:
        """Guest memory is asked for, maybe by another number; see that its answer fits."""
        if frame.request != request:
            self._is_careful = True
            self._requests[request] = frame.request
        if encode(frame._replace(request=request)) != event.data:
            self._strayed.add((frame.vcpu, frame.seq))

    def happened(self, entry: e.AnyEntry) -> None:
        """See Tap."""

    def closed(self, why: str) -> None:
        """See Tap."""
        self._compare_sent()
        self._why_ended = why

    def _unexpected(self, frame: f.Frame) -> None:
        """A frame that is not next in the capture."""
        name = name_of(frame)
        event = self.peek()
        if isinstance(event, e.Turn) and (event.vcpu, event.seq) == name:
            # It did not have to wait this time.
            self.take()
            self._match(frame)
            return
        self._is_odd = True
        is_over = isinstance(frame, f.Reply | f.Cancelled)
        if name is not None and name in self._swallowed and is_over:
            self._swallowed.discard(name)
            self._queued.append((None, frame))
            self._lose(name)
            return
        late = None if name is None else self._late.get(name)
        if name is not None and late and head_of(late[0].data).type == f.FRAME_TYPES[type(frame)]:
            self._queued.append((late.popleft(), frame))
            if not late:
                del self._late[name]
            self._judge.tell(name, "order", "before what came meanwhile", "later")
            return
        self._queued.append((None, frame))
        if not self.events and self.track.is_over:
            # The capture ends here: what comes later is nobody's business.
            return
        if name is not None and is_over:
            self._strayed.add(name)
            self._early[name] = frame
            return
        if name is not None:
            self._strayed.add(name)
        self._judge.tell(name, "frame", "none here", f.FRAME_TYPES[type(frame)].name)

    # -- comparing -----------------------------------------------------------------------

    def went_out(self, data: bytes) -> None:
        """See Shim."""
        queued = self._queued
        if not self._is_odd and not self._strayed:
            expected = [event.data for event, _ in queued if event is not None]
            if (expected[0] if len(expected) == 1 else b"".join(expected)) == data:
                if self._replies:
                    self._replies = 0
                    self._judge.settle_equal(frame for _, frame in queued)
                queued.clear()
                return
        self._compare_sent()

    def _compare_sent(self) -> None:
        """Frame by frame."""
        queued, self._queued = self._queued, []
        self._replies = 0
        self._is_odd = False
        for event, frame in queued:
            if event is not None:
                self._compare(event, frame)

    def _compare(self, event: Outbound, frame: f.Frame) -> None:
        """A frame, and what the capture has for it."""
        self._judge.compare(event, frame)
        name = name_of(frame)
        if name is not None and isinstance(frame, f.Reply | f.Cancelled):
            self._settle(name)

    def _settle(self, name: Name) -> None:
        """A call is over, and was compared."""
        if not self._judge.settle(name):
            return
        self._strayed.discard(name)
        self._told.discard(name)
        self._cancelled.discard(name)

    def _forget_calls(self) -> None:
        """A reset: no call is left."""
        self._compare_sent()
        for name in list(self._late):
            self._lose(name)
        self._judge.forget()
        self._early.clear()
        self._strayed.clear()
        self._told.clear()
        self._cancelled.clear()
        self._swallowed.clear()

    def _lose(self, name: Name) -> None:
        """The session will not send what the capture has for a call."""
        late = self._late.pop(name, None)
        for event in late or ():
            head = head_of(event.data)
            self._judge.tell(name, "frame", s.FrameType(head.type).name, "none")
            if head.type in _OVER:
                self._settle(name)

    # -- when nothing can go on ----------------------------------------------------------

    def step(self) -> bool:
        """Do what has to be done when all tasks wait; False: nothing, more has to be read."""
        if self._catch_up():
            return True
        if self.has_ended and not self.why_out:
            self._ended()
        if self.why_out:
            return self._drop()
        if self.look():
            return True
        if not self.events:
            return self._end() if self.track.is_over else False
        event = self.events[0]
        match event:
            case Inbound():
                assert self._transport is not None
                if len(self.events) == 1 and not self.track.is_over:
                    return False
                self._break_off("the session takes no more frames")
            case Outbound():
                self._missing(event)
            case e.Answer() | e.Turn():
                self._unasked(event)
            case e.Fault():
                self.take()
                self._judge.tell(
                    None, "fault", f"rule {event.number} is met by vcpu {event.vcpu}", "none"
                )
            case e.PageOut() | e.Withdraw() | e.Attend() | e.Rest() | e.Stop():
                self.take()
                assert self.session is not None
                self.session.carry_out(order_of(event))
            case Gap(why):
                self._break_off(why)
            case e.Lost():
                self._break_off(f"{event.entries} of what happened are missing in the capture")
            case e.End():
                self.take()
                self.track.end = self.track.end or event.why
            case _:
                self.take()
        return True

    def _missing(self, event: Outbound) -> None:
        """A frame is next, and the session does not send it."""
        head = head_of(event.data)
        name = head.call
        if name is not None and self._make_do(name):
            return
        early = None if name is None else self._early.get(name)
        if head.type == _T.GOODBYE and self._is_ended_from_outside(event):
            return
        self.take()
        if name is None:
            if head.type != _T.GOODBYE or not self._is_of_the_peer(event):
                self._judge.tell(None, "frame", s.FrameType(head.type).name, "none")
        elif early is None:
            self._late.setdefault(name, collections.deque()).append(event)
            self._strayed.add(name)
        elif head.type in _OVER:
            del self._early[name]
            if name not in self._judge.different:
                self._judge.tell(name, "order", "after what came meanwhile", "earlier")
            self._compare(event, early)
        elif name not in self._judge.different:
            kind = f.FRAME_TYPES[type(early)].name
            self._judge.tell(name, "frame", s.FrameType(head.type).name, kind)

    def _is_ended_from_outside(self, event: Outbound) -> bool:
        """The daemon was told to stop: so is the session."""
        goodbye = frame_of(event.data)
        if goodbye.reason is not s.GoodbyeReason.SHUTDOWN or self._is_stopped:
            return False
        assert self.session is not None
        self._is_stopped = True
        self.session.carry_out(orders.Stop(goodbye.text))
        return True

    def _is_of_the_peer(self, event: Outbound) -> bool:
        """A farewell because of bytes that are no frame, or of none at all."""
        goodbye = frame_of(event.data)
        if goodbye.reason is s.GoodbyeReason.BREACH:
            what = "a breach of the protocol, by what no capture has"
        elif goodbye.reason is s.GoodbyeReason.REFUSED and not self._judge.made_count:
            what = "that its guest was too slow"
        else:
            return False
        self.score.notes.append(f"{self._judge.where(None)}: left out: {what}: {goodbye.text}")
        return True

    def _unasked(self, event: e.Answer | e.Turn) -> None:
        """An answer or a turn is next, and nobody wants it."""
        name = event.vcpu, event.seq
        is_stopped = name not in self._judge.open or name in self._cancelled
        if isinstance(event, e.Answer) and is_stopped:
            # What could not be stopped then ended after the call.
            self.take()
            return
        if self._make_do(name):
            return
        self.take()
        if isinstance(event, e.Answer) and name not in self._told:
            self._strayed.add(name)
            self._told.add(name)
            self._judge.tell(name, "effect", told(event), "nothing")

    def _make_do(self, name: Name) -> bool:
        """Have a call that waits for something else go on without."""
        assert self.answers is not None
        waiter = self.answers.waiting.get(name)
        if waiter is None:
            return False
        waiter.must_do = True
        waiter.woken.set()
        return True

    # -- the end -------------------------------------------------------------------------

    def _end(self) -> bool:
        """The capture is over; so is the connection."""
        assert self._transport is not None
        assert self.session is not None
        if not self._transport.is_ended:
            self._transport.end()
        elif self._is_forced:
            return False
        else:
            self._is_forced = True
            self.session.stop("the capture is over")
        return True

    def _break_off(self, why: str) -> None:
        """What follows cannot be replayed."""
        assert self._transport is not None
        self.why_out = why
        self.score.lacking.add(why)
        self._transport.end()

    def _drop(self) -> bool:
        """Leave out what has been read; False when that is done."""
        events = self.events
        has_some = bool(events)
        for event in events:
            if not isinstance(event, Inbound):
                continue
            if head_of(event.data).type == _T.CALL:
                self.score.calls += 1
                self.score.left_out[self.why_out] += 1
                self.score.lacking.add(self.why_out)
            if self.why_out == ENDED_EARLY and not self._is_forced:
                self._is_forced = True
                self._judge.tell(None, "end", "none yet", self._why_ended)
        events.clear()
        if not has_some and self.has_ended and self.track.is_over:
            self.is_done = True
        return has_some

    def _ended(self) -> None:
        """The session has ended."""
        for name in list(self._late):
            self._lose(name)
        lost = self._judge.unsettled
        if lost:
            self.score.left_out[NOT_ANSWERED] += lost
        is_known = self._why_ended in ("closed by the peer", self.track.end)
        if not self.events and not is_known and not self._is_forced and self.track.end:
            self._judge.tell(None, "end", self.track.end, self._why_ended)
            self._is_forced = True
        self.why_out = ENDED_EARLY
