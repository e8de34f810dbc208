# SPDX-License-Identifier: Apache-2.0
"""Two connections talk over queues that deliver when and in what pieces they like.

The invariants:

1. Each side refuses to send exactly what the naive view of that side refuses.
2. What one side may send by its own view, the other never takes for a breach, however much the
   two have crossed on the wire: CANCEL and REPLY, CANCEL and READ, RESET and everything.
3. The receiver's user sees exactly the frames that the naive view says, in order.
4. Both know the same calls once nothing is under way.
5. After a lost connection the calls without a reply are sent again, and it begins anew.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.property.wire_view import Verdict, View

from hcallproto.conn.connection import Connection
from hcallproto.conn.states import CallState, Role, State
from hcallproto.errors import LocalProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

VCPU_MAX = 2
VCPUS = (*range(VCPU_MAX + 1), s.MACHINE_VCPU)
INSTANCE = bytes(range(16))
GPR = (0,) * len(s.REGISTERS)

segments = st.lists(st.tuples(st.just(0x1000), st.integers(0, 3)), max_size=2).map(tuple)
requests = st.integers(0, 2)
kinds = st.sampled_from([s.EventKind.RESET] * 3 + [s.EventKind.STOP, s.EventKind.CONTINUE])


PAGES = (f.PageRange(0, s.STATE_PAGE_SIZE, s.PageState.UNSHARED),)


class Conversation(RuleBasedStateMachine):
    """A shim, a daemon, and what is under way between them."""

    def __init__(self) -> None:
        super().__init__()
        self.reset = 0
        self.events = 0
        self.seq = 0
        self.connections_made = 0
        self.unanswered: list[tuple[int, int]] = []
        self.old_keys: list[tuple[int, int]] = []

    # -- connecting ---------------------------------------------------------------------

    @initialize()
    def connect(self) -> None:
        """Negotiate; nothing can cross before READY."""
        self.ends = {role: Connection(role) for role in Role}
        # The machine itself calls, too.
        self.views = {role: View(role, self.reset, VCPU_MAX + 1) for role in Role}
        self.under_way: dict[Role, deque[tuple[f.Frame, int]]] = {r: deque() for r in Role}
        self.bytes: dict[Role, bytearray] = {role: bytearray() for role in Role}
        self.received = dict.fromkeys(Role, 0)
        features = s.Feature.SC2 | s.Feature.PAGE_STATES
        for role, frame in (
            (
                Role.SHIM,
                f.Hello(
                    version_min=1,
                    version_max=1,
                    max_frame_size=s.MIN_MAX_FRAME,
                    features=features,
                    instance=INSTANCE,
                    uuid=bytes(16),
                    connection=self.connections_made,
                    vcpu_count=VCPU_MAX,
                    vcpu_max=VCPU_MAX,
                    pending=len(self.unanswered),
                    page_shift=16,
                    name="",
                    program="test",
                    reset=self.reset,
                ),
            ),
            (Role.DAEMON, f.Welcome(1, s.MIN_MAX_FRAME, features, f.Announcement(), self.reset)),
            (Role.SHIM, f.Accept((), True, 0, self.reset)),
            (Role.SHIM, f.Ram((), 0, self.reset)),
        ):
            other = Role(1 - role.value)
            self.ends[other].receive_data(self.ends[role].send(frame))
            assert self.ends[other].next_frame() == frame
        self.connections_made += 1

    @rule()
    def lose_connection(self) -> None:
        """What was under way is gone; unanswered calls are sent again, oldest first."""
        view = self.views[Role.SHIM]
        self.unanswered = sorted((seq, vcpu) for vcpu, seq in view.live.items())
        self.connect()
        for seq, vcpu in self.unanswered:
            self.say(Role.SHIM, f.Call(vcpu, self.reset, seq, True, 1, GPR, 0, 0, 0, 0), must=True)

    # -- saying -------------------------------------------------------------------------

    def say(self, role: Role, frame: f.Frame, *, must: bool = False) -> None:
        """One side tries to send; the naive view says whether it may."""
        verdict = self.views[role].hear(frame, is_sender=True)
        assert not must or verdict is Verdict.TAKE
        end = self.ends[role]
        if verdict is Verdict.REFUSE:
            try:
                end.send(frame)
            except LocalProtocolError:
                return
            raise AssertionError(f"{role} could send {frame}, against {self.views[role]}")
        data = end.send(frame)
        other = Role(1 - role.value)
        self.under_way[other].append((frame, len(data)))
        self.bytes[other] += data
        key = (getattr(frame, "vcpu", 0), getattr(frame, "seq", 0))
        if key[1] and key not in self.old_keys:
            self.old_keys = [*self.old_keys[-10:], key]

    def key(self, role: Role, data: st.DataObject) -> tuple[int, int]:
        """A call that this side knows, most of the time."""
        known = sorted(self.views[role].keys())
        choices = [*known, *known, *known, *self.old_keys, (0, 0)]
        return data.draw(st.sampled_from(choices))

    def run(self, role: Role, data: st.DataObject) -> int:
        """The reset count, nearly always the one that this side knows."""
        now = self.views[role].reset
        return data.draw(st.sampled_from([now] * 8 + [max(0, now - 1), now + 1]))

    @rule(
        vcpu=st.sampled_from(VCPUS),
        step=st.sampled_from([1, 1, 1, 1, 5, 0]),
        level=st.sampled_from([1, 1, 2, 2, 3, 4]),
        data=st.data(),
    )
    def call(self, vcpu: int, step: int, level: int, data: st.DataObject) -> None:
        self.seq += step
        reset = self.run(Role.SHIM, data)
        self.say(Role.SHIM, f.Call(vcpu, reset, self.seq, False, level, GPR, 0, 0, 0, 0))

    @rule(data=st.data(), reason=st.sampled_from(s.CancelReason))
    def cancel(self, data: st.DataObject, reason: s.CancelReason) -> None:
        vcpu, seq = self.key(Role.SHIM, data)
        self.say(Role.SHIM, f.Cancel(vcpu, self.run(Role.SHIM, data), seq, reason))

    @rule(
        data=st.data(),
        context=st.sampled_from([0, 0, 0, s.CONTEXT_NIP]),
        pages=st.sampled_from([(), (), PAGES]),
        registers=st.sampled_from([(), (), ((4, 1),)]),
    )
    def reply(self, data: st.DataObject, context: int, pages: Any, registers: Any) -> None:
        vcpu, seq = self.key(Role.DAEMON, data)
        reset = self.run(Role.DAEMON, data)
        self.say(Role.DAEMON, f.Reply(vcpu, reset, seq, 0, registers, context=context, pages=pages))

    @rule(data=st.data(), effect=st.sampled_from(s.Effect))
    def cancelled(self, data: st.DataObject, effect: s.Effect) -> None:
        vcpu, seq = self.key(Role.DAEMON, data)
        self.say(Role.DAEMON, f.Cancelled(vcpu, self.run(Role.DAEMON, data), seq, effect))

    @rule(data=st.data(), request=requests, segments=segments)
    def read(self, data: st.DataObject, request: int, segments: Any) -> None:
        vcpu, seq = self.key(Role.DAEMON, data)
        self.say(Role.DAEMON, f.Read(vcpu, self.run(Role.DAEMON, data), seq, request, segments))

    @rule(data=st.data(), request=requests)
    def write(self, data: st.DataObject, request: int) -> None:
        vcpu, seq = self.key(Role.DAEMON, data)
        zero = (f.WriteSegment(0, 64, None),)
        self.say(Role.DAEMON, f.Write(vcpu, self.run(Role.DAEMON, data), seq, request, zero))

    @rule(data=st.data(), request=requests)
    def change_pages(self, data: st.DataObject, request: int) -> None:
        vcpu, seq = self.key(Role.DAEMON, data)
        self.say(Role.DAEMON, f.Pages(vcpu, self.run(Role.DAEMON, data), seq, request, PAGES))

    @rule(data=st.data(), is_right=st.sampled_from([True, True, True, False]))
    def answer(self, data: st.DataObject, is_right: bool) -> None:
        """The shim answers what it was asked, or something else."""
        vcpu, seq = key = self.key(Role.SHIM, data)
        reset = self.run(Role.SHIM, data)
        view = self.views[Role.SHIM]
        asked = view.asked.get(key)
        if asked is None or not is_right:
            request = data.draw(requests)
            asked = data.draw(
                st.builds(f.Read, *map(st.just, (vcpu, reset, seq, request)), segments)
                | st.just(f.Write(vcpu, reset, seq, request, ()))
                | st.just(f.Pages(vcpu, reset, seq, request, PAGES))
            )
        # Of a call that is not live any more, nothing is read or written.
        status = s.AccessStatus.OK if view.is_live(key) else s.AccessStatus.NO_CALL
        if isinstance(asked, f.Write):
            self.say(Role.SHIM, f.WriteReply(vcpu, reset, seq, asked.request, status, 0))
            return
        if isinstance(asked, f.Pages):
            self.say(Role.SHIM, f.PagesReply(vcpu, reset, seq, asked.request, status, 0))
            return
        found = tuple(
            (status, bytes(size) if status is s.AccessStatus.OK else b"")
            for _, size in asked.segments
        )
        self.say(Role.SHIM, f.ReadReply(vcpu, reset, seq, asked.request, found))

    @rule(kind=kinds, step=st.sampled_from([1, 1, 2, 0]))
    def event(self, kind: s.EventKind, step: int) -> None:
        self.events += 1
        reset = self.reset
        if kind is s.EventKind.RESET:
            reset += step
        self.reset = reset
        self.say(Role.SHIM, f.Event(kind, s.NO_VCPU, self.events, reset))

    @rule(data=st.data(), is_right=st.sampled_from([True, True, True, False]))
    def acknowledge(self, data: st.DataObject, is_right: bool) -> None:
        told = self.views[Role.DAEMON].told
        reset, number = self.reset, self.events
        if told and is_right:
            reset, number = data.draw(st.sampled_from(told))
        self.say(Role.DAEMON, f.EventAck(s.EventKind.RESET, number, reset))

    # -- delivering ---------------------------------------------------------------------

    def deliver(self, role: Role, size: int) -> None:
        """So many bytes arrive; the user sees what the naive view says."""
        data = bytes(self.bytes[role][:size])
        del self.bytes[role][:size]
        end = self.ends[role]
        end.receive_data(data)
        self.received[role] += len(data)
        expected = []
        queue = self.under_way[role]
        while queue and queue[0][1] <= self.received[role]:
            frame, length = queue.popleft()
            self.received[role] -= length
            verdict = self.views[role].hear(frame, is_sender=False)
            assert verdict is not Verdict.REFUSE, f"{role} is told {frame}: {self.views[role]}"
            if verdict is Verdict.TAKE:
                expected.append(frame)
        assert list(iter(end.next_frame, None)) == expected

    @precondition(lambda self: any(self.bytes.values()))
    @rule(data=st.data())
    def deliver_some(self, data: st.DataObject) -> None:
        role = data.draw(st.sampled_from([role for role in Role if self.bytes[role]]))
        size = data.draw(st.integers(1, len(self.bytes[role])))
        self.deliver(role, size)

    @precondition(lambda self: any(self.bytes.values()))
    @rule()
    def deliver_all(self) -> None:
        for role in Role:
            if self.bytes[role]:
                self.deliver(role, len(self.bytes[role]))
        shim, daemon = self.views[Role.SHIM], self.views[Role.DAEMON]
        assert shim.reset == daemon.reset
        assert shim.keys() == daemon.keys()
        assert shim.live == daemon.live
        assert shim.asked.keys() == daemon.asked.keys()

    # -- always -------------------------------------------------------------------------

    @invariant()
    def knowledge_is_the_views(self) -> None:
        """Each connection knows the calls that the naive view knows, and no more."""
        for role, end in self.ends.items():
            view = self.views[role]
            assert end.state is State.READY
            assert end.reset == view.reset
            assert dict(end.calls.live()) == view.live
            assert len(end.calls) == len(view.keys())
            for key in {*view.keys(), *self.old_keys}:
                assert end.calls.state(*key) is self._state(view, key), key

    @staticmethod
    def _state(view: View, key: tuple[int, int]) -> CallState:
        is_asked = key in view.asked
        if key in view.cancelling:
            return CallState.CANCELLING_ACCESSING if is_asked else CallState.CANCELLING
        if view.is_live(key):
            return CallState.ACCESSING if is_asked else CallState.LIVE
        return CallState.NONE


TestConversation = Conversation.TestCase
