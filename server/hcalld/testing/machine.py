# SPDX-License-Identifier: Apache-2.0
"""A whole guest in one object: registers in, registers and memory out.

What the runtime's session does over a socket, done by hand: the gate, the checks of the
arguments, the handler with its effects, the commit, the writes. Time and entropy are
made up and repeat; nothing else is faked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from hcalld.core.call import Call, Plan
from hcalld.core.effects import (
    Effect,
    Entropy,
    Flush,
    GuestMemoryError,
    Note,
    Now,
    ReadBuffer,
    ReadGuest,
    TpmClose,
    TpmTransmit,
    WriteGuest,
    ZeroGuest,
)
from hcalld.core.errors import BackendUnavailable, HcallError
from hcalld.core.handlers import Handler, HandlerSet, Model
from hcalld.core.outcome import Outcome, refusal
from hcalld.core.records import RecordedReply, Run
from hcalld.domain.attribute_orders import connect
from hcalld.domain.attribute_records import Orders, flatten, load
from hcalld.domain.attributes import PartitionAttributes
from hcalld.families.registry import SERVED, Kind, Served
from hcalld.stores.base import Store
from hcalld.stores.memory import MemoryStore
from hcalld.testing.driver import run_pure
from hcalld.testing.guest import FakeGuest
from hcallproto.abi.spec import Hcall


def _served() -> list[Served[Any]]:
    return [served for served in SERVED if served.kind is Kind.GUEST]


class UndeclaredError(AssertionError):
    """A handler gave a code or a register that the table does not declare for its call."""


class PureMachine:
    """One guest with every served family.

    Args:
        attributes: what its profile says, every key of it.
        guest: its memory; 1 MiB at 0 by default.
        store: its store; in memory by default. It is entered with a run of its own; one
            that another machine of this kind has entered is taken over as by a daemon
            that was restarted, with the attributes in force.
        tpm: its TPM, from command to response; may raise BackendUnavailable. It has a
            session from the first command on.

    Raises:
        ConfigError: the attributes are refused.
    """

    def __init__(
        self,
        attributes: PartitionAttributes | None = None,
        *,
        guest: FakeGuest | None = None,
        store: Store | None = None,
        tpm: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.attributes = attributes or PartitionAttributes()
        """Those in force."""
        self.guest = guest or FakeGuest()
        self.store: Store = store if store is not None else MemoryStore()
        self.trail: list[Effect[Any]] = []
        """The effects of the last call."""
        self.notes: list[str] = []
        self.flush_count = 0
        self.has_tpm_session = False
        self._tpm = tpm
        self._profile: Orders = flatten(self.attributes)
        self._power_count = 0
        self._reset_count = 0
        self._entropy_count = 0
        self._seq = 0
        self._handlers: dict[str, tuple[Hcall, Handler[Any], str]] = {}
        self._sets: dict[str, HandlerSet[Any]] = {}
        for served in _served():
            family = served.handlers.family.name
            self._sets[family] = served.handlers
            for hcall, handler in served.handlers.by_call.items():
                self._handlers[hcall.name] = (hcall, handler, family)
        self._connect()

    def _run(self) -> Run:
        instance = f"pure machine{self._power_count or '':.<4}"
        return Run(instance.encode(), self._reset_count)

    def _connect(self) -> None:
        run = self._run()
        carried = connect(self.store.load().records, self._profile, run.instance)
        if carried.changes:
            self.store.commit(carried.changes, None)
        self.store.begin_run(run)
        self.reload()

    def power_on(self, attributes: PartitionAttributes | None = None) -> None:
        """Switch the machine off and on again.

        Args:
            attributes: what its profile says from now on; by default the same as before.

        Raises:
            ConfigError: the profile orders what is refused.
        """
        if attributes is not None:
            self._profile = flatten(attributes)
        self._power_count += 1
        self._reset_count = 0
        self._connect()

    def reload(self) -> None:
        """Build the models anew from the store, as after the daemon's restart."""
        loaded = self.store.load()
        held = load(loaded.records)
        assert held is not None, "connecting puts attributes in force"
        self.attributes = held.attributes
        self.models: dict[str, Model] = {}
        for served in _served():
            shared = self.models.get(served.shares or "")
            model = shared or served.build(self.attributes, loaded.records)
            self.models[served.handlers.family.name] = model

    def reset(self) -> None:
        """The machine's system reset."""
        self._reset_count += 1
        self.store.begin_run(self._run())
        self.reload()

    def hcall(self, hcall: Hcall, *registers: int, vcpu: int = 0) -> Outcome:
        """Make a call of a normal VM's kernel with values for its arguments, in order.

        Returns:
            The outcome; its writes have been carried out.

        Raises:
            UndeclaredError: the code, or a register, is not in the table.
        """
        values = {arg.register: value for arg, value in zip(hcall.args, registers, strict=True)}
        return self.issue(hcall, values, vcpu=vcpu)

    def issue(self, hcall: Hcall, registers: Mapping[int, int], *, vcpu: int = 0) -> Outcome:
        """Make a call with values for registers; see ``hcall``."""
        _, handler, family = self._handlers[hcall.name]
        model = self.models[family]
        plan = Plan(hcall, self.attributes.limits())
        self._seq += 1
        self.trail = []
        try:
            gate = self._sets[family].gate
            if gate is not None:
                gate(model)
            admission = self._sets[family].admission
            if admission is not None:
                admission(hcall, 0, model)
            call = Call(hcall, plan.arguments(registers, self.guest.ram), vcpu, self.guest.ram)
            outcome = run_pure(
                handler(call, model),
                lambda effect: self._perform(plan, call, effect),
                trail=self.trail,
            )
        except HcallError as error:
            outcome = refusal(hcall, error)
        if outcome.code not in plan.codes:
            raise UndeclaredError(f"{hcall.name} gave {outcome.code!r}, which it does not declare")
        outputs = {output.register for output in hcall.outputs}
        for register, _ in outcome.registers:
            if register not in outputs:
                raise UndeclaredError(f"{hcall.name} gave r{register}, which is no output of it")
        changes = model.take_changes()
        if changes:
            self.store.commit(changes, RecordedReply(vcpu, self._seq, b"reply"))
        for gpa, data in outcome.writes:
            self.guest.write(gpa, data)
        return outcome

    def _perform(self, plan: Plan, call: Call, effect: Effect[Any]) -> Any:
        match effect:
            case ReadBuffer(name):
                return self._read_buffer(plan, call, name)
            case ReadGuest(gpa, size):
                return self.guest.read(gpa, size)
            case WriteGuest(gpa, data):
                return self.guest.write(gpa, data)
            case ZeroGuest(gpa, size):
                return self.guest.write(gpa, bytes(size))
            case Entropy(size):
                self._entropy_count += 1
                seed = self._entropy_count.to_bytes(8, "big")
                return hashlib.shake_256(seed).digest(size)
            case Now():
                return 1_700_000_000_000_000_000 + self._seq
            case Flush():
                self.flush_count += 1
                return self.store.flush()
            case TpmTransmit(command):
                if self._tpm is None:
                    raise BackendUnavailable("the machine has no TPM")
                self.has_tpm_session = False
                response = self._tpm(command)
                self.has_tpm_session = True
                return response
            case TpmClose():
                self.has_tpm_session = False
                return None
            case Note(text):
                return self.notes.append(text)
            case _:
                raise TypeError(f"no way to perform {effect!r}")

    def _read_buffer(self, plan: Plan, call: Call, name: str) -> bytes:
        gpa, size = plan.range_of(name, call)
        try:
            return self.guest.read(gpa, size)
        except GuestMemoryError as error:
            raise call.refuse(name, str(error)) from None
