# SPDX-License-Identifier: Apache-2.0
"""One connection: negotiation, frames, events, until it ends.

One task reads frames and hands them on; ``negotiation.py`` has what a HELLO is answered, and
``calls.py`` answers the calls. What goes wrong here, a breach by the peer or a bug of ours, costs
this connection and no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from hcalld.core.answered import Observer
from hcalld.core.errors import ConfigError, HcalldError, StoreError
from hcalld.core.log import Log
from hcalld.core.records import Run
from hcalld.core.tally import Tallies
from hcalld.core.tap import Tap, Taps
from hcalld.domain.attribute_records import flatten
from hcalld.domain.pef.figures import PefFigures, figures_of
from hcalld.domain.ultravisor.abi import PAGE_SHIFT
from hcalld.families.uv.shim_calls import FAMILY as PEF_FAMILY
from hcalld.runtime.calls import Calls
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.mishaps import ConnectionCut
from hcalld.runtime.negotiation import VersionMismatch, check_version, negotiate
from hcalld.runtime.orders import Attend, Order, PageOut, Rest, Stop, Withdraw
from hcalld.runtime.outbox import Outbox
from hcalld.runtime.partition import Entry, Partition, entry_key
from hcalld.runtime.recording import recording_to, state_of, unrecorded
from hcalld.runtime.transport import Transport, TransportClosed
from hcalld.runtime.world import World
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.errors import RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

HANDSHAKE_SECONDS = 10
"""A peer that has not finished negotiation by then is turned away."""

FAREWELL_SECONDS = 1
"""How long a peer that is being turned away may take to read why."""

FAST_TURNS = 64
"""Calls answered without a turn of the event loop before other guests get theirs."""

_VCPU_CHANGES = {s.EventKind.VCPU_ADDED: 1, s.EventKind.VCPU_REMOVED: -1}


class PartitionOwner(Protocol):
    """Who hands out partitions; the server."""

    taps: Taps | None
    """Keeps frames, if anything does."""
    tallies: Tallies | None
    """Counts calls, if anything does."""

    async def claim(self, hello: f.Hello, session: Session) -> Partition:
        """The partition of the machine. Raises ConfigError or StoreError to refuse it."""

    def release(self, partition: Partition, session: Session) -> None:
        """The session has ended and closed the partition."""

    def world(self, partition: Partition) -> World:
        """What the partition's calls ask that frames do not determine."""


class Session:
    """One connection of one guest."""

    def __init__(
        self,
        transport: Transport,
        owner: PartitionOwner,
        observers: Sequence[Observer],
        *,
        spin_us: int = 0,
        strict: bool = False,
    ) -> None:
        self.transport = transport
        self.connection = Connection(Role.DAEMON)
        self.partition: Partition | None = None
        self.hello: f.Hello | None = None
        self.log = Log(peer=transport.peer)
        self.ended = trio.Event()
        self.vcpu_count = 0
        """Virtual CPUs that the machine has now."""
        self._owner = owner
        self._observers = observers
        self._spin_ns = spin_us * 1000
        self._strict = strict
        self._turns = 0
        self._answered_before = -1
        self._entries: dict[int, Entry] = {}
        self._outbox = Outbox(self.connection, transport)
        self._tap: Tap | None = None
        self._context: dict[type[f.Frame], f.Frame] = {}
        """The newest of the frames without which others are not understood."""
        self._calls: Calls | None = None
        self._world: World | None = None
        """From HELLO on."""
        self._nursery: trio.Nursery | None = None
        self._figures_at_rest: tuple[int, PefFigures] | None = None
        """Calls answered, and what the secure VM was, when the store began to rest."""
        self._scope = trio.CancelScope()
        self._is_ending = False
        self._why_stopped = "the daemon is stopping"

    def stop(self, why: str) -> None:
        """End the session soon, and tell the shim why; ``ended`` says when."""
        self.carry_out(Stop(why))

    @property
    def pending_count(self) -> int:
        """How many calls wait."""
        return self._calls.pending_count if self._calls is not None else 0

    @property
    def answered_count(self) -> int:
        """How many calls of this connection were answered."""
        return self._calls.answered_count if self._calls is not None else 0

    def attend(self) -> trio.Event | None:
        """Ask QEMU for an ATTEND, so that the secure VM's model can do what it wants to do.

        Returns:
            Set when one was answered, or the run or the connection has ended; None: it has.
        """
        if self._calls is None or self._nursery is None or self.connection.state is not State.READY:
            return None
        self.carry_out(Attend())
        return self._calls.attended

    def carry_out(self, order: Order) -> None:
        """Do what somebody orders who is not the guest: see ``orders``."""
        if self._world is not None:
            self._world.ordered(order)
        machine = None if self.partition is None else self.partition.pef
        if machine is None and isinstance(order, PageOut) and self.partition is not None:
            # Who orders this has seen the machine; the models may be given up since.
            self.partition.model(PEF_FAMILY.name)
            machine = self.partition.pef
        match order:
            case PageOut(gpas) if machine is not None and gpas:
                machine.hypervisor.hand = (gpas[-1] >> PAGE_SHIFT) + 1
                machine.wanted_out.update(dict.fromkeys(gpas))
            case Withdraw(gpas) if machine is not None:
                for gpa in gpas:
                    machine.wanted_out.pop(gpa, None)
            case Attend():
                if self._calls is not None:
                    self._calls.attend()
            case Rest():
                if self.partition is not None:
                    self.partition.rest()
            case Stop(why):
                self._why_stopped = why
                self._scope.cancel()

    def enter(self, world: Callable[[World], World]) -> None:
        """Have another world around the one that there is, from the next call on."""
        if self._world is not None:
            self._world = world(self._world)
            if self._calls is not None:
                self._calls.world = self._world

    def pef_figures(self) -> PefFigures | None:
        """What its secure VM is now; None if the partition has none.

        A store that rests is not loaded for this: nothing has changed meanwhile.

        Raises:
            StoreError: the store cannot be used.
        """
        partition = self.partition
        if partition is None or not partition.may_be_secure:
            return None
        machine = partition.pef
        if machine is None:
            at_rest = self._figures_at_rest
            if at_rest is not None and at_rest[0] == self.answered_count:
                return at_rest[1]
            partition.model(PEF_FAMILY.name)
            machine = partition.pef
        return None if machine is None else figures_of(machine)

    async def rest_if_idle(self) -> None:
        """Give up the partition's memory if no call has come since this was last asked."""
        partition, calls = self.partition, self._calls
        if partition is None or calls is None:
            return
        is_idle = calls.answered_count == self._answered_before
        self._answered_before = calls.answered_count
        if calls.pending_count or not is_idle:
            return
        try:
            await partition.flush()
            if not calls.pending_count:
                machine = partition.pef
                if machine is not None:
                    self._figures_at_rest = calls.answered_count, figures_of(machine)
                self.carry_out(Rest())
        except StoreError as error:
            self.log.error("store not flushed", reason=str(error))

    # -- life ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends."""
        why = "ended by the daemon"
        goodbye: tuple[s.GoodbyeReason, str] | None = None
        is_over = False
        try:
            with self._scope:
                await self._serve()
                why, is_over = "closed by the peer", True
        except* RemoteProtocolError as group:
            error = _first(group)
            why = f"protocol breach: {error}"
            goodbye = s.GoodbyeReason.BREACH, str(error)
            self.log.warning("protocol breach", breach=error.breach.value, detail=str(error))
        except* (ConfigError, StoreError) as group:
            error = _first(group)
            why = str(error)
            is_version = isinstance(error, VersionMismatch)
            goodbye = s.GoodbyeReason.VERSION if is_version else s.GoodbyeReason.REFUSED, why
            self.log.error("guest refused", reason=why)
        except* ConnectionCut as group:
            why, is_over = str(_first(group)), True
        except* TransportClosed as group:
            why, is_over = f"connection lost: {_first(group)}", True
        except* trio.TooSlowError:
            why = f"no negotiation within {HANDSHAKE_SECONDS} s"
            goodbye = s.GoodbyeReason.REFUSED, why
            self.log.warning("guest refused", reason=why)
        except* HcalldError:
            # From an observer: nothing that this session could go on without.
            raise
        except* Exception:
            # Our bug. It costs this guest its connection; the others live on.
            if self._strict:
                raise
            why = "internal error"
            goodbye = s.GoodbyeReason.INTERNAL, "internal error, see hcalld's log"
            self.log.exception("bug in a session")
        finally:
            with trio.CancelScope(shield=True):
                if not is_over:
                    await self._farewell(
                        *(goodbye or (s.GoodbyeReason.SHUTDOWN, self._why_stopped))
                    )
                await self._end(why)

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                with trio.fail_after(HANDSHAKE_SECONDS):
                    while self.connection.state is not State.READY:
                        if not await self._serve_once():
                            return
                self.log.info("guest ready", calls=len(self._entries))
                while await self._serve_once():
                    pass
                nursery.cancel_scope.cancel()
            finally:
                # It takes no more tasks soon, and others ask for some.
                self._nursery = None

    async def _farewell(self, reason: s.GoodbyeReason, text: str) -> None:
        """Tell the shim why, if it still listens."""
        goodbye = f.Goodbye(reason, text, self.connection.reset)
        with trio.move_on_after(FAREWELL_SECONDS):
            try:
                # Past the connection, which sends nothing more after an error.
                data = encode(goodbye)
                if self._tap is not None:
                    self._tap.sent(goodbye, data, "")
                await self.transport.send(data)
            except TransportClosed:
                return

    async def _end(self, why: str) -> None:
        self._is_ending = True
        if self._tap is not None:
            self._tap.closed(why)
            self.end_tap()
        if self._calls is not None:
            self._calls.ram.close()
            self._calls.has_attended()
        partition = self.partition
        is_client = partition is not None and not partition.kind.is_machine
        if not is_client:
            await self.transport.aclose()
        try:
            if partition is not None:
                await self._give_up(partition)
        finally:
            # The end of file tells a client that nothing of it is left (docs/wire.rst, Commands).
            if is_client:
                await self.transport.aclose()
        self.log.info("guest gone", reason=why)
        self.ended.set()

    async def _give_up(self, partition: Partition) -> None:
        try:
            await partition.flush()
        except StoreError as error:
            self.log.error("store not flushed", reason=str(error))
        try:
            await partition.close()
        except StoreError as error:
            self.log.error("store not closed", reason=str(error))
        self._owner.release(partition, self)

    async def _serve_once(self) -> bool:
        """Receive, answer what came. False at end of file."""
        connection = self.connection
        room = connection.room()
        data = self._receive_fast(room) if self._spin_ns else None
        if data is None:
            data = await self.transport.receive(room)
        if room is None:
            connection.receive_data(data)
        else:
            connection.filled(len(data))
        while (frame := connection.next_frame()) is not None:
            if self._tap is not None:
                self._tap.received(frame, connection.frame_data)
            if type(frame) is f.Call:
                assert self._calls is not None
                self._calls.answer(frame)
            else:
                await self._dispatch(frame)
            if connection.state is State.CLOSED:
                return False
        if not self._outbox.send_now():
            await self._outbox.flush()
        return connection.state is not State.CLOSED

    def _receive_fast(self, room: memoryview | None) -> memoryview | bytes | None:
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
            return receive(room)
        until = time.perf_counter_ns() + self._spin_ns
        while True:
            data = receive(room)
            if data is not None:
                self._turns += 1
                return data
            if time.perf_counter_ns() > until:
                self._turns = 0
                return None

    # -- frames -------------------------------------------------------------------------

    async def _dispatch(self, frame: f.Frame) -> None:
        match frame:
            case f.Hello():
                await self._hello(frame)
            case f.Accept():
                self._accept(frame)
            case f.Ram():
                self._ram(frame)
            case f.ReadReply() | f.WriteReply() | f.PagesReply():
                assert self._calls is not None
                self._calls.memory.answered(frame)
            case f.Cancel():
                assert self._calls is not None
                self._calls.cancel(frame)
            case f.Event():
                self._event(frame)
            case f.ShimGoodbye():
                is_normal = frame.reason is s.GoodbyeReason.SHUTDOWN
                say = self.log.info if is_normal else self.log.warning
                say("shim says goodbye", reason=frame.reason.name, text=frame.text)
            case _:
                raise TypeError(f"{type(frame).__name__} is not for a daemon")

    async def _hello(self, hello: f.Hello) -> None:
        check_version(hello)
        self.hello = hello
        self.vcpu_count = hello.vcpu_count
        partition = self.partition = await self._owner.claim(hello, self)
        partition.page_shift = hello.page_shift
        self.log = self.log.bind(partition=partition.id)
        await partition.prepare()
        world = self._world = self._owner.world(partition)
        world.begin(Run(hello.instance, hello.reset))
        self._log_orders(partition)
        negotiated = negotiate(
            hello,
            partition,
            self.log,
            passes_descriptors=self.transport.passes_descriptors,
        )
        self._entries = negotiated.entries
        assert self._nursery is not None
        self._calls = Calls(
            self.connection,
            self._outbox,
            partition,
            world,
            self._entries,
            self._nursery,
            self._observers,
            self.log,
            strict=self._strict,
            tally=None if self._owner.tallies is None else self._owner.tallies.of(partition.id),
        )
        welcome = negotiated.welcome
        self._context |= {f.Hello: hello, f.Welcome: welcome}
        self.begin_tap(is_continued=False)
        self._outbox.queue(welcome)
        self.log.info(
            "guest connected",
            program=hello.program,
            name=hello.name,
            vcpus=hello.vcpu_count,
            connection=hello.connection,
            reset=hello.reset,
            profile=partition.profile.source,
            shared_ram=negotiated.has_shared_ram,
            secure_mode=negotiated.is_pef,
        )

    def _log_orders(self, partition: Partition) -> None:
        """What became of the profile."""
        done, waiting = (
            " ".join(f"{name}={value}" for name, value in orders.items())
            for orders in (partition.carried.done, partition.carried.waiting)
        )
        source = partition.profile.source
        if done:
            self.log.info("attributes set", attributes=done, profile=source)
        if waiting:
            self.log.warning(
                "profile changed while the guest is on",
                attributes=waiting,
                profile=source,
                reason="attributes change when the guest is next powered on",
            )

    def begin_tap(self, *, is_continued: bool = True) -> None:
        """Tell what keeps frames of this connection, if its HELLO was taken and it is not over.

        Args:
            is_continued: frames have passed that will not be told of.
        """
        if self.partition is None or self._calls is None or self._is_ending:
            return
        if self._owner.taps is None:
            return
        attributes = flatten(self.partition.attributes)
        profile = {name: str(value) for name, value in attributes.items()}
        tap = self._owner.taps.tap(self.partition.id, profile, is_continued=is_continued)
        for frame in self._context.values():
            if not isinstance(frame, f.Welcome):
                tap.received(frame, encode(frame))
            elif is_continued:
                tap.sent(frame, encode(frame), "")
        if tap.keeps_secrets:
            assert self.hello is not None
            run = Run(self.hello.instance, self.connection.reset)
            waiting = self._calls.pending
            tap.happened(state_of(self.partition, run, waiting=waiting, is_begin=not is_continued))
            self.enter(recording_to(tap))
        self._tap = self._outbox.tap = tap

    def end_tap(self) -> None:
        """Keep no more frames."""
        self.enter(unrecorded)
        self._tap = self._outbox.tap = None

    def _accept(self, accept: f.Accept) -> None:
        self._context[f.Accept] = accept
        for refused in accept.refused:
            entry = self._entries.get(entry_key(refused.number, refused.level))
            self.log.warning(
                "call not forwarded",
                call=entry.hcall.name if entry else hex(refused.number),
                reason=refused.reason.name,
            )

    def _ram(self, ram: f.Ram) -> None:
        assert self._calls is not None
        self._context[f.Ram] = ram
        descriptors = self.transport.take_descriptors(ram.descriptor_count)
        self._calls.ram.close()
        self._calls.ram = SharedRam(ram.regions, descriptors)
        self._calls.ram_changed()

    def _event(self, event: f.Event) -> None:
        self.log.info("event", kind=event.kind.name)
        self.vcpu_count += _VCPU_CHANGES.get(event.kind, 0)
        if event.kind is not s.EventKind.RESET:
            return
        assert self._calls is not None
        assert self._world is not None
        assert self.partition is not None
        assert self.hello is not None
        self._calls.reset()
        self._world.begin(Run(self.hello.instance, event.reset))
        if self.partition.tpm is not None and self._nursery is not None:
            self._nursery.start_soon(self.partition.tpm.settle)
        self._outbox.queue(f.EventAck(event.kind, event.request, event.reset))


def _first(group: BaseExceptionGroup[Any]) -> Any:
    """The first leaf of an exception group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
