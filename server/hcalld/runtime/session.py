# SPDX-License-Identifier: Apache-2.0
"""One connection: negotiation, calls, events, until it ends.

One task reads frames and answers what can be answered at once; a call that has to wait
gets a task of its own. All of them write through ``_send``, which keeps frames whole and
in order.

This is the one place where an exception of a handler is caught: the guest gets
H_HARDWARE, the log the traceback, and everything else lives on. ``strict`` re-raises it
instead; tests set it.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Protocol

import structlog
import trio

from hcalld.core.answered import Answered, Observer
from hcalld.core.call import Call
from hcalld.core.effects import GuestMemoryError
from hcalld.core.errors import ConfigError, HcallError, StoreError
from hcalld.core.outcome import Outcome
from hcalld.core.records import RecordedReply, Run
from hcalld.runtime.driver import Execution
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.partition import Entry, Partition, entry_key
from hcalld.runtime.transport import Transport, TransportClosed
from hcallproto.abi.returns import H, U
from hcallproto.abi.spec import Level
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.errors import LocalProtocolError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.decode import decode, decode_header
from hcallproto.wire.encode import encode

HANDSHAKE_SECONDS = 10
"""A peer that has not finished negotiation by then is turned away."""

FAST_TURNS = 64
"""Calls answered without a turn of the event loop before other guests get theirs."""

SERVED_FEATURES = s.Feature.SHARED_RAM

_LEVELS = {
    False: frozenset({Level.SC1}),
    True: frozenset({Level.SC1, Level.SC2}),
}


class VersionMismatch(ConfigError):
    """The shim and this daemon have no version of the protocol in common."""


class PartitionOwner(Protocol):
    """Who hands out partitions; the server."""

    async def claim(self, hello: f.Hello, session: Session) -> Partition:
        """The partition of the machine. Raises ConfigError or StoreError to refuse it."""

    def release(self, partition: Partition, session: Session) -> None:
        """The session has ended."""


@dataclasses.dataclass(slots=True)
class _Request:
    """A READ or WRITE that waits for its reply."""

    number: int
    done: trio.Event
    reply: f.ReadReply | f.WriteReply | None = None


class Session:
    """One connection of one guest."""

    def __init__(
        self,
        transport: Transport,
        owner: PartitionOwner,
        observers: list[Observer],
        *,
        spin_us: int = 0,
        strict: bool = False,
    ) -> None:
        self.transport = transport
        self.connection = Connection(Role.DAEMON)
        self.partition: Partition | None = None
        self.hello: f.Hello | None = None
        self.log = structlog.get_logger().bind(peer=transport.peer)
        self.ended = trio.Event()
        self._owner = owner
        self._observers = observers
        self._spin_ns = spin_us * 1000
        self._strict = strict
        self._turns = 0
        self.answered_count = 0
        self._answered_before = -1
        self._entries: dict[int, Entry] = {}
        self._ram = SharedRam()
        self._out = bytearray()
        self._send_lock = trio.Lock()
        self._requests: dict[tuple[int, int], _Request] = {}
        self._next_request = 1
        self._scopes: dict[tuple[int, int, int], trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()

    def stop(self) -> None:
        """End the session soon; ``ended`` tells when."""
        self._scope.cancel()

    async def rest_if_idle(self) -> None:
        """Give up the partition's memory if no call has come since this was last asked."""
        partition = self.partition
        is_idle = self.answered_count == self._answered_before
        self._answered_before = self.answered_count
        if partition is None or self._scopes or not is_idle:
            return
        try:
            await partition.flush()
        except StoreError as error:
            self.log.error("store not flushed", reason=str(error))
            return
        if not self._scopes:
            partition.rest()

    # -- life ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends."""
        why = "closed by the peer"
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    with trio.fail_after(HANDSHAKE_SECONDS):
                        while self.connection.state is not State.READY:
                            if not await self._serve_once():
                                return
                    self.log.info("guest ready", calls=len(self._entries))
                    while await self._serve_once():
                        pass
                    nursery.cancel_scope.cancel()
            if self._scope.cancelled_caught:
                why = "ended by the daemon"
                await self._farewell(s.GoodbyeReason.SHUTDOWN, "the daemon is stopping")
        except* RemoteProtocolError as group:
            error = _first(group)
            why = f"protocol breach: {error}"
            self.log.warning("protocol breach", breach=error.breach.value, detail=str(error))
            await self._farewell(s.GoodbyeReason.BREACH, str(error))
        except* (ConfigError, StoreError) as group:
            error = _first(group)
            why = str(error)
            self.log.error("guest refused", reason=why)
            is_version = isinstance(error, VersionMismatch)
            reason = s.GoodbyeReason.VERSION if is_version else s.GoodbyeReason.REFUSED
            await self._farewell(reason, why)
        except* TransportClosed as group:
            why = f"connection lost: {_first(group)}"
        except* trio.TooSlowError:
            why = f"no negotiation within {HANDSHAKE_SECONDS} s"
            self.log.warning("guest refused", reason=why)
            await self._farewell(s.GoodbyeReason.REFUSED, why)
        except* Exception:
            # Our bug. It costs this guest its connection; the others live on.
            if self._strict:
                raise
            why = "internal error"
            self.log.exception("bug in a session")
            await self._farewell(s.GoodbyeReason.INTERNAL, "internal error, see hcalld's log")
        finally:
            with trio.CancelScope(shield=True):
                await self._end(why)

    async def _end(self, why: str) -> None:
        self._ram.close()
        await self.transport.aclose()
        if self.partition is not None:
            with trio.move_on_after(5):
                try:
                    await self.partition.flush()
                except StoreError as error:
                    self.log.error("store not flushed", reason=str(error))
            self._owner.release(self.partition, self)
        self.log.info("guest gone", reason=why)
        self.ended.set()

    async def _farewell(self, reason: s.GoodbyeReason, text: str) -> None:
        """Tell the shim why, if it still listens."""
        goodbye = f.Goodbye(reason, text, self.connection.reset)
        with trio.move_on_after(1, shield=True):
            try:
                # After an error the connection sends nothing more; this frame is the end.
                await self.transport.send(encode(goodbye))
            except (TransportClosed, LocalProtocolError):
                return

    async def _serve_once(self) -> bool:
        """Receive, answer what came. False at end of file."""
        data = self._receive_fast() if self._spin_ns else None
        if data is None:
            data = await self.transport.receive()
        connection = self.connection
        connection.receive_data(data)
        while (frame := connection.next_frame()) is not None:
            if type(frame) is f.Call:
                self._call(frame)
            else:
                await self._dispatch(frame)
            if connection.state is State.CLOSED:
                return False
        if self._out:
            await self._flush_out()
        return connection.state is not State.CLOSED

    def _receive_fast(self) -> memoryview | bytes | None:
        """Look for the next frame for a few microseconds before waiting in the loop.

        A vCPU that calls back to back is answered without the loop's turn, which costs
        more than the call itself; after FAST_TURNS the other guests are served.
        """
        if self._turns >= FAST_TURNS:
            self._turns = 0
            return None
        receive = self.transport.try_receive
        if self._turns == 0:
            # The last wait was in the loop: the guest is not calling back to back (yet).
            self._turns = 1
            return receive()
        until = time.perf_counter_ns() + self._spin_ns
        while True:
            data = receive()
            if data is not None:
                self._turns += 1
                return data
            if time.perf_counter_ns() > until:
                self._turns = 0
                return None

    # -- sending ------------------------------------------------------------------------

    def _queue(self, frame: f.Frame) -> None:
        self._out += self.connection.send(frame)

    async def _flush_out(self) -> None:
        """Send all that is queued, frames whole and in order."""
        if not self._send_lock.locked():
            data = bytes(self._out)
            sent = self.transport.try_send(data)
            if sent == len(data):
                self._out.clear()
                return
            del self._out[:sent]
        async with self._send_lock:
            while self._out:
                data = bytes(self._out)
                self._out.clear()
                await self.transport.send(data)

    # -- frames -------------------------------------------------------------------------

    async def _dispatch(self, frame: f.Frame) -> None:
        match frame:
            case f.Hello():
                await self._hello(frame)
            case f.Accept():
                self._accept(frame)
            case f.Ram():
                self._new_ram(frame)
            case f.ReadReply() | f.WriteReply():
                self._request_done(frame)
            case f.Cancel():
                self._cancel(frame)
            case f.Event():
                self._event(frame)
            case f.ShimGoodbye():
                self.log.warning("shim says goodbye", reason=frame.reason.name, text=frame.text)
            case _:
                raise TypeError(f"{type(frame).__name__} is not for a daemon")
        if self._out:
            await self._flush_out()

    async def _hello(self, hello: f.Hello) -> None:
        if not hello.version_min <= s.VERSION <= hello.version_max:
            text = (
                f"this hcalld speaks protocol version {s.VERSION}, the shim "
                f"{hello.version_min} to {hello.version_max}; use a matching pair"
            )
            raise VersionMismatch(text)
        self.hello = hello
        self.partition = await self._owner.claim(hello, self)
        self.log = self.log.bind(partition=self.partition.id)
        self.partition.begin(Run(hello.instance, hello.reset))
        features = hello.features & SERVED_FEATURES
        if not self.transport.passes_descriptors:
            features &= ~s.Feature.SHARED_RAM
        self._entries = self.partition.entries(
            shared_ram=bool(features & s.Feature.SHARED_RAM),
            levels=_LEVELS[bool(features & s.Feature.SC2)],
        )
        announcement = self.partition.announcement(self._entries)
        max_frame_size = min(hello.max_frame_size, s.DEFAULT_MAX_FRAME)
        self._queue(f.Welcome(s.VERSION, max_frame_size, features, announcement, hello.reset))
        self.log.info(
            "guest connected",
            program=hello.program,
            name=hello.name,
            vcpus=hello.vcpu_count,
            connection=hello.connection,
            reset=hello.reset,
            profile=self.partition.profile.source,
            shared_ram=bool(features & s.Feature.SHARED_RAM),
        )

    def _accept(self, accept: f.Accept) -> None:
        for refused in accept.refused:
            entry = self._entries.get(entry_key(refused.number, refused.level))
            self.log.warning(
                "call not forwarded",
                call=entry.hcall.name if entry else hex(refused.number),
                reason=refused.reason.name,
            )

    def _new_ram(self, ram: f.Ram) -> None:
        descriptors = self.transport.take_descriptors(ram.descriptor_count)
        self._ram.close()
        self._ram = SharedRam(ram.regions, descriptors)

    def _event(self, event: f.Event) -> None:
        self.log.info("event", kind=event.kind.name)
        if event.kind is not s.EventKind.RESET:
            return
        assert self.partition is not None
        assert self.hello is not None
        for scope in self._scopes.values():
            scope.cancel()
        self.partition.begin(Run(self.hello.instance, event.reset))
        self._queue(f.EventAck(event.kind, event.request, event.reset))

    def _cancel(self, cancel: f.Cancel) -> None:
        scope = self._scopes.get((cancel.vcpu, cancel.reset, cancel.seq))
        self.log.warning(
            "call cancelled by the shim",
            vcpu=cancel.vcpu,
            seq=cancel.seq,
            reason=cancel.reason.name,
        )
        if scope is not None:
            # Its task sends CANCELLED when it has stopped.
            scope.cancel()
            return
        # Already answered, or never seen. Only what changed something has left a record.
        assert self.partition is not None
        recorded = self.partition.replies.get(cancel.vcpu)
        is_done = recorded is not None and recorded.seq == cancel.seq
        effect = s.Effect.DONE if is_done else s.Effect.NONE
        self._queue(f.Cancelled(cancel.vcpu, cancel.reset, cancel.seq, effect))

    # -- calls --------------------------------------------------------------------------

    def _call(self, frame: f.Call) -> None:
        """Answer a call now, or start a task that will."""
        partition = self.partition
        assert partition is not None
        started = time.perf_counter_ns()
        if frame.is_resent and self._replay(frame, partition, started):
            return
        entry = self._entries.get(entry_key(frame.gpr[2], frame.level))
        if entry is None:
            code = H.FUNCTION if frame.level == Level.SC1 else U.FUNCTION
            self._answer(frame, None, Outcome(code, why="no handler for this call"), (), started)
            return
        execution: Execution | None = None
        try:
            model = partition.model(entry.family)
            if entry.gate is not None:
                entry.gate(model)
            ram = self._ram
            registers = dict(zip(s.REGISTERS, frame.gpr, strict=True))
            call = Call(
                entry.hcall,
                entry.plan.arguments(registers, ram.map),
                frame.vcpu,
                ram.map,
                frame.nip,
                frame.msr,
                frame.pidr,
                frame.lpidr,
            )
            execution = Execution(frame, entry, call, partition, ram, self)
            outcome = execution.start()
        except HcallError as error:
            outcome = Outcome(error.code, error.registers, (), error.why)
        except StoreError as error:
            outcome = self._store_failed(entry, error)
        except Exception as error:
            outcome = self._bug(entry, frame, error)
        if outcome is not None:
            self._answer(frame, entry, outcome, _notes(execution), started)
            return
        assert self._nursery is not None
        assert execution is not None
        self._nursery.start_soon(self._finish, execution, started)

    async def _finish(self, execution: Execution, started: int) -> None:
        """Go on with a call that has to wait."""
        frame, entry = execution.frame, execution.entry
        key = (frame.vcpu, frame.reset, frame.seq)
        outcome: Outcome | None = None
        with trio.CancelScope() as scope:
            self._scopes[key] = scope
            try:
                outcome = await execution.finish()
            except HcallError as error:
                outcome = Outcome(error.code, error.registers, (), error.why)
            except StoreError as error:
                outcome = self._store_failed(entry, error)
            except Exception as error:
                outcome = self._bug(entry, frame, error)
            finally:
                del self._scopes[key]
        if frame.reset == self.connection.reset and self.connection.state is State.READY:
            if outcome is None or scope.cancel_called:
                # A handler changes its model only after its last effect, so one that was
                # stopped while it waited has changed nothing.
                self._queue(f.Cancelled(frame.vcpu, frame.reset, frame.seq, s.Effect.NONE))
            else:
                self._answer(frame, entry, outcome, _notes(execution), started)
            await self._flush_out()

    def _answer(
        self,
        frame: f.Call,
        entry: Entry | None,
        outcome: Outcome,
        notes: tuple[str, ...],
        started: int,
    ) -> None:
        partition = self.partition
        assert partition is not None
        reply = _reply(frame, outcome)
        changes = partition.take_changes()
        if changes:
            assert entry is not None
            try:
                partition.commit(changes, RecordedReply(frame.vcpu, frame.seq, encode(reply)))
            except StoreError as error:
                outcome = self._store_failed(entry, error)
                reply = _reply(frame, outcome)
        self._queue(reply)
        self.answered_count += 1
        if self._observers:
            self._observe(frame, entry, outcome, notes, started)

    def _observe(
        self,
        frame: f.Call,
        entry: Entry | None,
        outcome: Outcome,
        notes: tuple[str, ...],
        started: int,
        *,
        is_replayed: bool = False,
    ) -> None:
        assert self.partition is not None
        if frame.is_resent and not is_replayed:
            notes = (*notes, "sent again, carried out now")
        answered = Answered(
            self.partition.id,
            frame,
            entry.hcall if entry is not None else None,
            _buffers(frame, entry) if entry is not None else {},
            outcome,
            notes,
            time.perf_counter_ns() - started,
            is_replayed,
        )
        for observer in self._observers:
            observer(answered)

    def _replay(self, frame: f.Call, partition: Partition, started: int) -> bool:
        """Answer a resent call with its recorded reply, if there is one.

        A call without one changed nothing the first time and is carried out again.
        """
        recorded = partition.replies.get(frame.vcpu)
        if recorded is None or recorded.seq != frame.seq:
            return False
        reply = decode(decode_header(recorded.frame), recorded.frame)
        assert isinstance(reply, f.Reply)
        self._queue(reply)
        entry = self._entries.get(entry_key(frame.number, frame.level))
        outcome = Outcome(_code_of(entry, reply.status), reply.registers)
        if self._observers:
            self._observe(frame, entry, outcome, ("recorded reply",), started, is_replayed=True)
        return True

    def _store_failed(self, entry: Entry, error: StoreError) -> Outcome:
        self.log.error("store failed", call=entry.hcall.name, reason=str(error))
        return Outcome(entry.hcall.timeout_code, why=str(error))

    def _bug(self, entry: Entry, frame: f.Call, error: Exception) -> Outcome:
        """A handler raised what no handler raises: our bug, this guest's H_HARDWARE."""
        assert self.partition is not None
        if self._strict:
            raise error
        self.log.exception("bug in a handler", call=entry.hcall.name, seq=frame.seq)
        self.partition.discard()
        return Outcome(H.HARDWARE, why=f"internal error: {type(error).__name__}")

    # -- guest memory over the wire (driver.GuestAccess) ----------------------------------

    async def read(self, call: f.Call, segments: tuple[tuple[int, int], ...]) -> list[bytes]:
        """See GuestAccess."""
        request = self._new_request(call)
        self._queue(f.Read(call.vcpu, call.reset, call.seq, request.number, segments))
        await self._flush_out()
        await request.done.wait()
        assert isinstance(request.reply, f.ReadReply)
        for (gpa, size), (status, _) in zip(segments, request.reply.segments, strict=True):
            if status is not s.AccessStatus.OK:
                raise GuestMemoryError(gpa, size, f"the shim says {status.name}")
        return [data for _, data in request.reply.segments]

    async def write(self, call: f.Call, segments: tuple[f.WriteSegment, ...]) -> None:
        """See GuestAccess."""
        request = self._new_request(call)
        self._queue(f.Write(call.vcpu, call.reset, call.seq, request.number, segments))
        await self._flush_out()
        await request.done.wait()
        assert isinstance(request.reply, f.WriteReply)
        if request.reply.status is not s.AccessStatus.OK:
            bad = segments[min(request.reply.bad_segment, len(segments) - 1)]
            raise GuestMemoryError(bad.gpa, bad.size, f"the shim says {request.reply.status.name}")

    def _new_request(self, call: f.Call) -> _Request:
        request = _Request(self._next_request, trio.Event())
        self._next_request = self._next_request % 0xFFFF_FFFF + 1
        self._requests[call.vcpu, call.seq] = request
        return request

    def _request_done(self, reply: f.ReadReply | f.WriteReply) -> None:
        request = self._requests.pop((reply.vcpu, reply.seq), None)
        if request is not None and request.number == reply.request:
            request.reply = reply
            request.done.set()


def _reply(frame: f.Call, outcome: Outcome) -> f.Reply:
    writes: tuple[f.WriteSegment, ...] = ()
    if outcome.writes:
        writes = tuple(f.WriteSegment(gpa, len(data), data) for gpa, data in outcome.writes)
    return f.Reply(frame.vcpu, frame.reset, frame.seq, outcome.code, outcome.registers, writes)


def _buffers(frame: f.Call, entry: Entry) -> dict[str, bytes | None]:
    """What came with a call, by the names of its address arguments."""
    names = {index: name for name, index in entry.inline.items()}
    return {
        names[segment.buffer]: segment.data if segment.status is s.SegmentStatus.OK else None
        for segment in frame.segments
        if segment.buffer in names
    }


def _notes(execution: Execution | None) -> tuple[str, ...]:
    return tuple(execution.notes) if execution is not None else ()


def _code_of(entry: Entry | None, status: int) -> H | U:
    return entry.hcall.return_codes(status) if entry is not None else H(status)


def _first(group: BaseExceptionGroup[Any]) -> Any:
    """The first leaf of an exception group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
