# SPDX-License-Identifier: Apache-2.0
"""Writing down what frames do not determine, for a capture with secrets.

``Recording`` stands around a connection's world and tells the tap what comes through.
``state_of`` is what a partition is when the recording begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from hcalld.core.effects import (
    ChangePlatform,
    Effect,
    Entropy,
    Flush,
    Now,
    ReadPlatform,
    TpmClose,
    TpmTransmit,
)
from hcalld.core.errors import BackendUnavailable, ConfigError, StoreError
from hcalld.core.handlers import Model
from hcalld.core.records import Change, Loaded, RecordedReply, Run
from hcalld.core.tap import NOW, Tap
from hcalld.families.registry import Kind
from hcalld.families.uv.shim_calls import FAMILY as PEF_FAMILY
from hcalld.faults.engine import Meets, Met
from hcalld.runtime import orders
from hcalld.runtime.partition import Partition
from hcalld.runtime.world import ReadShared, World
from hcallproto.abi.spec import Hcall
from hcallproto.capture import entries as e
from hcallproto.wire import frames as f

KINDS: Final[dict[type[Effect[Any]], e.EffectKind]] = {
    Entropy: e.EffectKind.ENTROPY,
    Now: e.EffectKind.NOW,
    ReadShared: e.EffectKind.READ_RAM,
    Flush: e.EffectKind.FLUSH,
    TpmTransmit: e.EffectKind.TPM_TRANSMIT,
    TpmClose: e.EffectKind.TPM_CLOSE,
    ReadPlatform: e.EffectKind.READ_PLATFORM,
    ChangePlatform: e.EffectKind.CHANGE_PLATFORM,
}
"""What an effect is called in a capture."""

_ASKED: Final[Mapping[type[Effect[Any]], Callable[[Any], e.Asked]]] = {
    Entropy: lambda effect: effect.size,
    ReadShared: lambda effect: (effect.gpa, effect.size),
    TpmTransmit: lambda effect: _digest(effect.command),
    ChangePlatform: lambda effect: _digest(effect.change),
}


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[: e.DIGEST_SIZE]


def asked_of(effect: Effect[Any]) -> e.Asked:
    """What a capture says of what an effect asks for, beside its kind."""
    tell = _ASKED.get(type(effect))
    return None if tell is None else tell(effect)


FAILURES: Final[dict[type[Exception], e.Failure]] = {
    StoreError: e.Failure.STORE,
    BackendUnavailable: e.Failure.BACKEND,
    ConfigError: e.Failure.CONFIG,
}
"""What an error is called in a capture."""

_Told = (StoreError, BackendUnavailable, ConfigError)


def _raised(error: Exception) -> e.Raised:
    for kind, failure in FAILURES.items():
        if isinstance(error, kind):
            return e.Raised(failure, str(error))
    raise TypeError(f"no capture tells of a {type(error).__name__}")


class Recording:
    """A world whose answers are told; see ``World``.

    Args:
        world: answers.
        tap: is told.
    """

    def __init__(self, world: World, tap: Tap) -> None:
        self.world = world
        faults = world.faults
        self.faults: Meets | None = None if faults is None else _Meeting(faults, tap)
        self.model: Callable[[str], Model] = self._model
        self.begin: Callable[[Run], None] = self._begin
        self._tap = tap
        self._platform: bytes | None = None
        """What was told of the SEV platform last, which most commands only read."""

    def _model(self, family: str) -> Model:
        """See World."""
        try:
            return self.world.model(family)
        except _Told as error:
            self._failed(e.NO_CALL, 0, e.EffectKind.LOAD, error)
            raise

    def _begin(self, run: Run) -> None:
        """See World."""
        try:
            self.world.begin(run)
        except _Told as error:
            self._failed(e.NO_CALL, 0, e.EffectKind.BEGIN, error)
            raise

    def answer(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """See World."""
        try:
            value = self.world.answer(frame, effect)
        except _Told as error:
            self._answered(frame, effect, None, error)
            raise
        self._answered(frame, effect, value)
        return value

    async def wait_for(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """See World."""
        try:
            value = await self.world.wait_for(frame, effect)
        except _Told as error:
            self._answered(frame, effect, None, error)
            raise
        self._answered(frame, effect, value)
        return value

    def give_up(self, frame: f.Call) -> None:
        """See World."""
        self.world.give_up(frame)

    async def turn(self, frame: f.Call) -> None:
        """See World."""
        await self.world.turn(frame)
        self._tap.happened(e.Turn(NOW, frame.vcpu, frame.seq))

    async def sleep(self, seconds: float) -> None:
        """See World: its end is told as a turn."""
        await self.world.sleep(seconds)

    def commit(self, changes: Sequence[Change], reply: RecordedReply) -> None:
        """See World."""
        try:
            self.world.commit(changes, reply)
        except _Told as error:
            self._failed(reply.vcpu, reply.seq, e.EffectKind.COMMIT, error)
            raise

    def ordered(self, order: orders.Order) -> None:
        """See World."""
        self._tap.happened(entry_of(order))
        self.world.ordered(order)

    def _answered(
        self,
        frame: f.Call,
        effect: Effect[Any],
        value: bytes | int | None,
        error: Exception | None = None,
    ) -> None:
        raised = None if error is None else _raised(error)
        kind, asked = KINDS[type(effect)], asked_of(effect)
        if kind is e.EffectKind.READ_PLATFORM and raised is None:
            assert isinstance(value, bytes)
            # The same object, until the platform is changed.
            if value is self._platform or value == self._platform:
                value = None
            else:
                self._platform = value
        self._tap.happened(e.Answer(NOW, frame.vcpu, frame.seq, kind, value, raised, asked))

    def _failed(self, vcpu: int, seq: int, kind: e.EffectKind, error: Exception) -> None:
        self._tap.happened(e.Answer(NOW, vcpu, seq, kind, None, _raised(error)))


class _Meeting:
    """Rules of faults; those that are met are told."""

    def __init__(self, faults: Meets, tap: Tap) -> None:
        self.is_active = True
        self._faults = faults
        self._tap = tap

    def meet(self, guest: str, vcpu: int, hcall: Hcall, registers: Sequence[int]) -> Met | None:
        """See Meets."""
        met = self._faults.meet(guest, vcpu, hcall, registers)
        if met is not None:
            rule = msgspec.json.encode(met.rule).decode()
            self._tap.happened(e.Fault(NOW, vcpu, met.number, met.count, rule))
        return met


def entry_of(order: orders.Order) -> e.Order:
    """What a capture says of an order."""
    match order:
        case orders.PageOut(gpas):
            return e.PageOut(NOW, gpas)
        case orders.Withdraw(gpas):
            return e.Withdraw(NOW, gpas)
        case orders.Attend():
            return e.Attend(NOW)
        case orders.Rest():
            return e.Rest(NOW)
        case orders.Stop(why):
            return e.Stop(NOW, why)


# -- the state --------------------------------------------------------------------------------


def state_of(
    partition: Partition, run: Run, *, waiting: Collection[tuple[int, int]], is_begin: bool
) -> e.State:
    """All that the partition's next replies depend on.

    In the middle of a connection the store says it, once the models are built from it anew:
    they are given up, if they hold nothing else.

    Args:
        partition: whose state.
        run: of its machine.
        waiting: vCPU and sequence number of each call that waits.
        is_begin: the connection begins.
    """
    problem = ""
    try:
        if not is_begin:
            problem = _begin_anew(partition, waiting)
        loaded = partition.stored()
    except StoreError as error:
        problem = f"the partition's store could not be read: {error}"
        loaded = Loaded((), ())
    return e.State(
        NOW,
        partition.id,
        msgspec.json.encode(partition.profile),
        tuple(
            e.StoredRecord(one.namespace, one.key, one.value, one.lifetime)
            for one in loaded.records
        ),
        tuple(e.StoredReply(one.vcpu, one.seq, one.frame) for one in loaded.replies),
        run.instance,
        run.reset,
        loaded.generation,
        partition.is_dirty,
        partition.page_shift,
        partition.tpm is not None,
        is_begin,
        tuple(sorted(waiting)),
        problem,
        partition.kind is Kind.CLIENT,
    )


def _begin_anew(partition: Partition, waiting: Collection[tuple[int, int]]) -> str:
    """Have the models be what the store holds; why they cannot be, if so. Raises StoreError."""
    if waiting:
        return f"{len(waiting)} calls waited when the capture began; their begin is not in it"
    held = partition.held
    if held:
        return f"{held} when the capture began"
    partition.discard()
    if partition.may_be_secure:
        # The next call asks it who may call, before it asks for a model.
        partition.model(PEF_FAMILY.name)
    return ""


def recording_to(tap: Tap) -> Callable[[World], World]:
    """What ``Session.enter`` takes to have a connection recorded."""
    return lambda world: Recording(world, tap)


def unrecorded(world: World) -> World:
    """What ``Session.enter`` takes to end that."""
    return world.world if isinstance(world, Recording) else world
