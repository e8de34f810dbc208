# SPDX-License-Identifier: Apache-2.0
"""The calls of one connection, from CALL to REPLY.

What needs no waiting is answered where it arrives. A call that has to wait gets a task of
its own, which the shim can cancel and a reset ends. It can be stopped wherever it waits,
and has changed nothing then, for a handler changes its model only after its last effect;
only a TPM may have carried out what was sent to it.

Whether a call meets a rule of faults is asked once, in ``answer``; ``runtime.mishaps`` has what
a rule then does.

This is the one place where an exception of a handler is caught: the guest gets
H_HARDWARE, the log the traceback, and everything else lives on. ``strict`` re-raises it
instead; tests set it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import trio

from hcalld.core.answered import Answered, Observer
from hcalld.core.call import Call
from hcalld.core.errors import ConfigError, HcallError, StoreError
from hcalld.core.outcome import Outcome, refusal
from hcalld.core.records import RecordedReply
from hcalld.core.tally import Tally
from hcalld.domain.pef.attend import is_wanting, memory_changed
from hcalld.domain.ultravisor.vm_states import VmState
from hcalld.faults.engine import Meets
from hcalld.faults.rules import Close
from hcalld.runtime.driver import Execution
from hcalld.runtime.guestmemory import GuestMemory
from hcalld.runtime.guestram import SharedRam
from hcalld.runtime.milestones import milestone
from hcalld.runtime.mishaps import ConnectionCut, Mishap, answered
from hcalld.runtime.outbox import Outbox
from hcalld.runtime.partition import Entry, Partition, entry_key
from hcalld.runtime.replies import outcome_of, reply_frame
from hcalld.runtime.transport import TransportClosed
from hcalld.runtime.world import World
from hcallproto.abi.families import uv
from hcallproto.abi.registers import MSR_HV, MSR_S
from hcallproto.abi.returns import U, code_name
from hcallproto.abi.spec import Level, level_codes
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import State
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.decode import decode, decode_header
from hcallproto.wire.encode import encode

_ULTRAVISORS = frozenset({Level.SC2, s.LEVEL_SHIM})
"""Levels of calls to an ultravisor."""
_RECORDED = "recorded reply"
"""Said of a reply that is sent a second time."""


@dataclasses.dataclass(slots=True)
class _Pending:
    """A call that has to wait."""

    frame: f.Call
    entry: Entry
    started: int
    world: World
    mishap: Mishap | None
    execution: Execution | None = None
    """None: it has not been looked at yet."""
    scope: trio.CancelScope = dataclasses.field(default_factory=trio.CancelScope)
    cancel: f.Cancel | None = None
    """The shim's, if it no longer wants the reply."""


class Calls:
    """Answers a guest's calls.

    Args:
        connection: the protocol's state.
        outbox: takes the frames.
        partition: whose models and store are used.
        world: what frames do not determine.
        entries: the calls that were announced.
        nursery: runs the calls that wait; ends with the connection.
        observers: are told of each call.
        tally: counts each call, if anything does.
        log: a log that knows whose connection this is.
        strict: raise bugs of handlers.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        partition: Partition,
        world: World,
        entries: Mapping[int, Entry],
        nursery: trio.Nursery,
        observers: Sequence[Observer],
        log: Any,
        *,
        strict: bool,
        tally: Tally | None = None,
    ) -> None:
        self.ram = SharedRam()
        self.memory = GuestMemory(connection, outbox, nursery)
        self.world = world
        """May be exchanged; calls that wait go on with the one that they began with."""
        self.answered_count = 0
        self.attended = trio.Event()
        """Set when QEMU's next ATTEND has been answered, or none will come any more."""
        self._connection = connection
        self._outbox = outbox
        self._partition = partition
        self._entries = entries
        self._nursery = nursery
        self._observers = observers
        self._tally = tally
        self._log = log
        self._strict = strict
        self._unsaid: dict[int, tuple[int, s.Effect, str]] = {}
        """Of each vCPU the last call whose reply was dropped: its number, and what is said of it
        when the shim gives it up."""
        self._pending: dict[tuple[int, int], _Pending] = {}

    @property
    def pending_count(self) -> int:
        """How many calls wait."""
        return len(self._pending)

    @property
    def pending(self) -> Collection[tuple[int, int]]:
        """Virtual CPU and sequence number of each."""
        return self._pending.keys()

    def answer(self, frame: f.Call) -> None:
        """Answer a call now, or start a task that will."""
        started = time.perf_counter_ns()
        if frame.is_resent and self._replay(frame, started):
            return
        entry = self._entries.get(entry_key(frame.gpr[2], frame.level))
        if entry is None:
            code = level_codes(frame.level).function
            self._reply(frame, None, Outcome(code, why="no handler for this call"), None, started)
            return
        world, mishap = self.world, None
        if world.faults is not None and world.faults.is_active:
            mishap = self._mishap(frame, entry, world.faults)
            if mishap is not None and mishap.seconds:
                self._wait(_Pending(frame, entry, started, world, mishap))
                return
        execution, outcome = self._begin(frame, entry, world, mishap)
        if outcome is not None:
            self._reply(frame, entry, outcome, execution, started, mishap)
            return
        self._wait(_Pending(frame, entry, started, world, mishap, execution))

    def _mishap(self, frame: f.Call, entry: Entry, faults: Meets) -> Mishap | None:
        """The one place where a call meets its rule."""
        registers = frame.by_number()
        met = faults.meet(self._partition.id, frame.vcpu, entry.hcall, registers)
        if met is None:
            return None
        # Once for each rule: a guest that tries again for ever would fill the log.
        say = self._log.warning if met.count == 1 else self._log.debug
        say("fault met", call=entry.hcall.name, vcpu=frame.vcpu, seq=frame.seq, fault=met.note())
        return Mishap(met)

    def _begin(
        self, frame: f.Call, entry: Entry, world: World, mishap: Mishap | None
    ) -> tuple[Execution | None, Outcome | None]:
        """Carry a call out as far as it goes without waiting.

        Returns:
            What was begun, and its outcome; without one ``_outcome`` must go on.

        Raises:
            ConnectionCut: a rule says so.
        """
        partition = self._partition
        machine = partition.pef
        if machine is not None and machine.is_secure and _is_outside(frame):
            return None, machine.expel(entry.hcall.timeout_code)
        if mishap is not None:
            rule = mishap.met.rule
            if rule.close is Close.BEFORE:
                raise ConnectionCut(mishap.note)
            if rule.returns is not None:
                return None, answered(entry.hcall, frame, mishap.met)
        execution: Execution | None = None
        try:
            model = world.model(entry.family)
            if entry.gate is not None:
                entry.gate(model)
            if entry.admission is not None:
                entry.admission(entry.hcall, frame.msr, model)
            ram = self.ram
            call = Call(
                entry.hcall,
                entry.plan.arguments(frame.by_number(), ram.map),
                frame.vcpu,
                ram.map,
                frame.nip,
                frame.msr,
                frame.pidr,
                frame.lpidr,
                frame.is_resent,
                frame.is_alone,
            )
            execution = Execution(frame, entry, call, model, ram, self.memory, world)
            execution.mishap = mishap
            return execution, execution.start()
        except HcallError as error:
            outcome = self._refused(entry, error)
        except (StoreError, ConfigError) as error:
            outcome = self._store_failed(entry, error)
        except Exception as error:
            outcome = self._bug(entry, frame, error)
        return execution, outcome

    def _wait(self, pending: _Pending) -> None:
        """Go on with a call in a task of its own."""
        self._pending[pending.frame.vcpu, pending.frame.seq] = pending
        self._nursery.start_soon(self._finish, pending)

    def cancel(self, cancel: f.Cancel) -> None:
        """The shim no longer wants a reply: stop the call, say what it left behind."""
        self._log.warning(
            "call cancelled by the shim",
            vcpu=cancel.vcpu,
            seq=cancel.seq,
            reason=cancel.reason.name,
        )
        pending = self._pending.get((cancel.vcpu, cancel.seq))
        if pending is not None:
            # Its task sends CANCELLED when it has stopped.
            pending.cancel = cancel
            pending.scope.cancel()
            return
        # Already answered, or never seen. Only what changed something has left a record.
        recorded = self._partition.replies.get(cancel.vcpu)
        is_done = recorded is not None and recorded.seq == cancel.seq
        effect, why = s.Effect.DONE if is_done else s.Effect.NONE, ""
        unsaid = self._unsaid.get(cancel.vcpu)
        if unsaid is not None and unsaid[0] == cancel.seq:
            del self._unsaid[cancel.vcpu]
            effect, why = unsaid[1] if effect is s.Effect.NONE else effect, unsaid[2]
        cancelled = f.Cancelled(cancel.vcpu, cancel.reset, cancel.seq, effect)
        self._outbox.queue(cancelled, why=why)

    def reset(self) -> None:
        """The machine has been reset: no call that waits will be answered."""
        self._unsaid = {}
        for pending in self._pending.values():
            pending.scope.cancel()
        self.memory.reset()
        self.has_attended()

    # -- calls that wait ------------------------------------------------------------------

    async def _finish(self, pending: _Pending) -> None:
        """Go on with a call that has to wait, until it is answered or stopped."""
        frame = pending.frame
        outcome: Outcome | None = None
        try:
            with pending.scope:
                if pending.execution is None:
                    outcome = await self._begin_late(pending)
                if outcome is None:
                    assert pending.execution is not None
                    outcome = await self._outcome(pending.execution)
            # With a REPLY it is a refusal that leaves something unread.
            await self.memory.until_answered(frame)
            if outcome is None:
                await pending.world.turn(frame)
            # After an outcome that changes anything nothing is awaited before it is committed.
            self._conclude(pending, outcome)
        finally:
            self.memory.forget(frame)
            del self._pending[frame.vcpu, frame.seq]
        await self._outbox.flush()

    async def _begin_late(self, pending: _Pending) -> Outcome | None:
        """Look at a call as late as a rule says."""
        assert pending.mishap is not None
        await pending.world.sleep(pending.mishap.seconds)
        await pending.world.turn(pending.frame)
        # The end of the call may have come together with that of the delay.
        await trio.lowlevel.checkpoint_if_cancelled()
        pending.execution, outcome = self._begin(
            pending.frame, pending.entry, pending.world, pending.mishap
        )
        return outcome

    async def _outcome(self, execution: Execution) -> Outcome:
        entry = execution.entry
        try:
            outcome = await execution.finish()
            if not self._partition.holds(entry.family, execution.model):
                raise StoreError("the partition's state was loaded anew while the call waited")
        except HcallError as error:
            return self._refused(entry, error)
        except (StoreError, ConfigError) as error:
            return self._store_failed(entry, error)
        except TransportClosed:
            # From asking for memory: nobody is there to be answered.
            raise
        except Exception as error:
            return self._bug(entry, execution.frame, error)
        return outcome

    def _conclude(self, pending: _Pending, outcome: Outcome | None) -> None:
        """Tell the shim what became of a call that waited; None: it was stopped."""
        execution, cancel = pending.execution, pending.cancel
        frame, entry, mishap = pending.frame, pending.entry, pending.mishap
        connection = self._connection
        if frame.reset != connection.reset or connection.state is not State.READY:
            return
        if cancel is None:
            assert outcome is not None
            self._reply(frame, entry, outcome, execution, pending.started, mishap)
            return
        may_remain = execution is not None and execution.may_remain
        effect = s.Effect.MAY_REMAIN if may_remain else s.Effect.NONE
        why = "" if mishap is None else mishap.note
        self._outbox.queue(f.Cancelled(frame.vcpu, frame.reset, frame.seq, effect), why=why)
        told = Outcome(entry.hcall.timeout_code, why=f"cancelled by the shim: {cancel.reason.name}")
        self._observe(frame, entry, told, _notes(execution, mishap), pending.started)

    # -- answering ------------------------------------------------------------------------

    def _reply(
        self,
        frame: f.Call,
        entry: Entry | None,
        outcome: Outcome,
        execution: Execution | None,
        started: int,
        mishap: Mishap | None = None,
    ) -> None:
        """Commit what the call changed, with its reply, and queue the reply."""
        partition = self._partition
        if mishap is not None and execution is not None:
            outcome = mishap.spoil(execution.entry.hcall, execution.call.args, outcome)
        reply = reply_frame(frame, outcome)
        encoded: bytes | None = None
        changes = partition.take_changes()
        if changes:
            assert entry is not None
            encoded = encode(reply)
            try:
                if mishap is not None:
                    mishap.commit(partition)
                self.world.commit(changes, RecordedReply(frame.vcpu, frame.seq, encoded))
            except StoreError as error:
                outcome = self._store_failed(entry, error)
                reply, encoded = reply_frame(frame, outcome), None
        if outcome.terminate:
            # Before the reply: the caller must not go on.
            self._terminate(outcome.terminate)
        notes = _notes(execution, mishap)
        if mishap is not None and self._is_unsaid(mishap, frame, execution):
            self.answered_count += 1
            if self._observers:
                self._observe(frame, entry, outcome, notes, started)
            if mishap.met.rule.close is not None:
                raise ConnectionCut(mishap.note)
            return
        why = ""
        if self._outbox.tap is not None and (outcome.why or notes or outcome.notes):
            why = "; ".join(filter(None, (outcome.why, *notes, *outcome.notes)))
        self._outbox.queue(reply, encoded, why)
        self.answered_count += 1
        if frame.level in _ULTRAVISORS:
            self._after_ultracall(frame, entry, outcome)
        if entry is not None and entry.hcall.milestone is not None:
            told = milestone(entry.hcall, frame.registers(), outcome)
            if told:
                self._log.info(**told)
        if outcome.why and entry is not None:
            self._log.debug(
                outcome.verdict(entry.hcall, frame.by_number()).value,
                call=entry.hcall.name,
                code=code_name(outcome.code),
                reason=outcome.why,
            )
        self._observe(frame, entry, outcome, notes, started)

    def _is_unsaid(self, mishap: Mishap, frame: f.Call, execution: Execution | None) -> bool:
        """Whether the reply of a call is not to be sent; then its end is still to come."""
        rule = mishap.met.rule
        if rule.drop_reply:
            may_remain = execution is not None and execution.may_remain
            effect = s.Effect.MAY_REMAIN if may_remain else s.Effect.NONE
            self._unsaid[frame.vcpu] = frame.seq, effect, mishap.note
        return rule.drop_reply or rule.close is not None

    # -- secure VMs -----------------------------------------------------------------------

    def _terminate(self, why: str) -> None:
        self._log.error("guest taken down", reason=why)
        self._outbox.queue(f.Control(s.ControlAction.TERMINATE, why, self._connection.reset))

    def ram_changed(self) -> None:
        """There is a RAM map: the first one of the connection, or memory came or went."""
        machine = self._partition.pef
        if machine is None:
            return
        if machine.state is VmState.ABORT:
            self._terminate("it was taken down before, and the daemon ended")
        elif memory_changed(machine, self.ram.map.regions, self.ram.map.generations):
            self._ask_to_attend()

    def _after_ultracall(self, frame: f.Call, entry: Entry | None, outcome: Outcome) -> None:
        """Say what became of a UV_ESM; ask for an ATTEND if there is anything to do."""
        if outcome.context is not None:
            self._log.info("guest enters secure mode", nip=hex(outcome.context.nip))
        elif entry is not None and entry.hcall is uv.ESM:
            self._log.warning("guest does not become secure", reason=outcome.why)
        if frame.level == s.LEVEL_SHIM and frame.number == s.ShimCall.ATTEND:
            if outcome.code is U.BUSY:
                self._ask_to_attend()
            self.has_attended()
            return
        machine = self._partition.pef
        # What was plugged in while the guest was checked is not the secure VM's yet.
        ram = self.ram.map
        memory = None if outcome.context is None else ram.regions
        if machine is not None and is_wanting(machine, memory, ram.generations):
            self._ask_to_attend()

    def has_attended(self) -> None:
        """Wake up who waits for an ATTEND."""
        done, self.attended = self.attended, trio.Event()
        done.set()

    def attend(self) -> trio.Event:
        """Ask QEMU for an ATTEND in nobody's name; gives ``attended`` of it."""
        self._ask_to_attend()
        # In a task of the connection's own: what cannot be sent is its end, not the asker's.
        self._nursery.start_soon(self._outbox.flush)
        return self.attended

    def _ask_to_attend(self) -> None:
        self._outbox.queue(f.Control(s.ControlAction.ATTEND, "", self._connection.reset))

    # -- what is told of a call -----------------------------------------------------------

    def _replay(self, frame: f.Call, started: int) -> bool:
        """Answer a resent call with its recorded reply, if there is one.

        A call without one changed nothing the first time and is carried out again.
        """
        recorded = self._partition.replies.get(frame.vcpu)
        if recorded is None or recorded.seq != frame.seq:
            return False
        reply = decode(decode_header(recorded.frame), recorded.frame)
        assert isinstance(reply, f.Reply)
        self._outbox.queue(reply, recorded.frame, _RECORDED)
        self.answered_count += 1
        entry = self._entries.get(entry_key(frame.number, frame.level))
        outcome = outcome_of(None if entry is None else entry.hcall, reply)
        self._observe(frame, entry, outcome, (_RECORDED,), started, is_replayed=True)
        return True

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
        hcall = entry.hcall if entry is not None else None
        duration_ns = time.perf_counter_ns() - started
        if self._tally is not None:
            self._tally.answered(hcall, frame, outcome, duration_ns)
        if not self._observers:
            return
        if frame.is_resent and not is_replayed:
            notes = (*notes, "sent again, carried out now")
        answered = Answered(
            self._partition.id,
            frame,
            hcall,
            _buffers(frame, entry) if entry is not None else {},
            outcome,
            (*notes, *outcome.notes),
            duration_ns,
            is_replayed,
        )
        for observer in self._observers:
            observer(answered)

    def _refused(self, entry: Entry, error: HcallError) -> Outcome:
        if isinstance(error.__cause__, StoreError):
            # The handler has a code of its own for it; the operator must know all the same.
            self._log_store_failure(entry, error.__cause__)
        return refusal(entry.hcall, error)

    def _store_failed(self, entry: Entry, error: StoreError | ConfigError) -> Outcome:
        self._log_store_failure(entry, error)
        return Outcome(entry.hcall.timeout_code, why=str(error))

    def _log_store_failure(self, entry: Entry, error: StoreError | ConfigError) -> None:
        self._log.error("store failed", call=entry.hcall.name, reason=str(error))

    def _bug(self, entry: Entry, frame: f.Call, error: Exception) -> Outcome:
        """A handler raised what no handler raises: our bug, this guest's H_HARDWARE."""
        if self._strict:
            raise error
        self._log.exception("bug in a handler", call=entry.hcall.name, seq=frame.seq)
        self._partition.discard()
        return Outcome(
            level_codes(frame.level).broken, why=f"internal error: {type(error).__name__}"
        )


def _buffers(frame: f.Call, entry: Entry) -> dict[str, bytes | None]:
    """What came with a call, by the names of its address arguments."""
    names = {index: name for name, index in entry.inline.items()}
    return {
        names[segment.buffer]: segment.data if segment.status is s.SegmentStatus.OK else None
        for segment in frame.segments
        if segment.buffer in names
    }


def _notes(execution: Execution | None, mishap: Mishap | None) -> tuple[str, ...]:
    notes = tuple(execution.notes) if execution is not None else ()
    if mishap is None or (execution is None and mishap.met.rule.returns is not None):
        # A code that a rule gives has the rule for its reason.
        return notes
    return (*notes, mishap.note)


def _is_outside(frame: f.Call) -> bool:
    """A vCPU of the guest made the call, or missed a page, with MSR[S] = 0."""
    return frame.vcpu != s.MACHINE_VCPU and not frame.msr & (MSR_S | MSR_HV)
