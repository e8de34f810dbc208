# SPDX-License-Identifier: Apache-2.0
"""The world of a connection that is replayed: the capture answers, in its order.

An effect whose answer is next in the capture is answered at once. Otherwise its call waits,
as it did then, until the capture has come so far. A call that asks for what the capture has
not is found out by the player, when nothing else can go on, and told to make do.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec
import trio

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
from hcalld.core.records import Change, RecordedReply, Run
from hcalld.faults.engine import Meets, Met
from hcalld.faults.rules import Rule
from hcalld.replay.track import Event, Name, Outbound, head_of
from hcalld.runtime.orders import Order
from hcalld.runtime.partition import Partition
from hcalld.runtime.recording import FAILURES, KINDS, asked_of
from hcalld.runtime.world import MustWait, ReadShared
from hcallproto.abi.spec import Hcall
from hcallproto.capture import entries as e
from hcallproto.wire import frames as f

_ERRORS: Final[dict[e.Failure, type[StoreError | BackendUnavailable | ConfigError]]] = {
    failure: kind  # type: ignore[misc]  # they are these three
    for kind, failure in FAILURES.items()
}


class Place(Protocol):
    """Where the replay is in the capture: the player."""

    def peek(self) -> Event | None:
        """What is next; None: it has not been read yet."""

    def goes_on_for(self, name: Name) -> bool:
        """Whether, after the next event, a call lets others go first before all else."""

    def take(self) -> None:
        """It has happened again."""

    def mismatch(self, name: Name, what: str, captured: str) -> None:
        """A call asks for something else than the capture answered it."""

    @property
    def time_ns(self) -> int:
        """What the clock said there."""


@dataclasses.dataclass(slots=True)
class Waiter:
    """A call that waits for its turn or for an answer."""

    effect: Effect[Any] | None
    """None: for its turn."""
    woken: trio.Event = dataclasses.field(default_factory=trio.Event)
    must_do: bool = False
    """It is to go on without."""


class Answers:
    """See ``runtime.world.World``.

    Args:
        partition: whose store is committed to.
        place: where the replay is.
    """

    def __init__(self, partition: Partition, place: Place) -> None:
        self.commit_now = partition.commit
        self.waiting: dict[Name, Waiter] = {}
        self._partition = partition
        self._place = place
        self._made_up = 0
        self._platform: bytes | None = None
        """The SEV platform as the capture told it last."""
        self._faults = _Faults(place)

    @property
    def faults(self) -> Meets | None:
        """See World."""
        return self._faults if type(self._place.peek()) is e.Fault else None

    def model(self, family: str) -> Model:
        """See World."""
        self._fail_as_captured(e.EffectKind.LOAD)
        return self._partition.model(family)

    def begin(self, run: Run) -> None:
        """See World."""
        self._fail_as_captured(e.EffectKind.BEGIN)
        self._partition.begin(run)

    def commit(self, changes: Sequence[Change], reply: RecordedReply) -> None:
        """See World."""
        try:
            self._fail_as_captured(e.EffectKind.COMMIT)
        except StoreError:
            self._partition.discard()
            raise
        self.commit_now(changes, reply)

    def answer(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """See World."""
        event = self._place.peek()
        name = frame.vcpu, frame.seq
        if type(event) is not e.Answer or (event.vcpu, event.seq) != name:
            raise MustWait
        if self._place.goes_on_for(name):
            # It was waited for then, or had taken its time.
            raise MustWait
        return self._answered(event, name, effect)

    async def wait_for(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """See World."""
        name = frame.vcpu, frame.seq
        while True:
            event = self._place.peek()
            if isinstance(event, e.Answer | e.Turn) and (event.vcpu, event.seq) == name:
                if isinstance(event, e.Answer):
                    return self._answered(event, name, effect)
                # It let others go first: it had taken its time.
                self._place.take()
                continue
            if await self._wait(name, effect):
                self._place.mismatch(name, asked(effect), _captured(self._place.peek(), name))
                return self._make_do(effect)

    def wake(self, name: Name, *, is_turn: bool = False) -> bool:
        """What is next is a call's: it may go on, if it waits (for its turn); True: it does."""
        waiter = self.waiting.get(name)
        if waiter is None or waiter.woken.is_set() or (is_turn and waiter.effect is not None):
            return False
        waiter.woken.set()
        return True

    def give_up(self, frame: f.Call) -> None:
        """See World."""

    async def turn(self, frame: f.Call) -> None:
        """See World."""
        name = frame.vcpu, frame.seq
        while True:
            event = self._place.peek()
            if isinstance(event, e.Answer | e.Turn) and (event.vcpu, event.seq) == name:
                if isinstance(event, e.Turn):
                    self._place.take()
                return
            if isinstance(event, Outbound) and head_of(event.data).call == name:
                return
            if await self._wait(name, None):
                return

    async def sleep(self, seconds: float) -> None:
        """See World: its turn is long enough."""

    def ordered(self, order: Order) -> None:
        """See World."""

    async def _wait(self, name: Name, effect: Effect[Any] | None) -> bool:
        """Wait until the capture has come to the call; True: it has nothing for it."""
        waiter = self.waiting[name] = Waiter(effect)
        try:
            await waiter.woken.wait()
        finally:
            if self.waiting.get(name) is waiter:
                del self.waiting[name]
        return waiter.must_do

    def _answered(self, event: e.Answer, name: Name, effect: Effect[Any]) -> Any:
        """The capture's answer, if it is one to this."""
        if event.effect is not KINDS[type(effect)]:
            self._place.mismatch(name, asked(effect), told(event))
            return self._make_do(effect)
        if not _is_about(event, effect):
            self._place.mismatch(name, asked(effect), told(event, _ANOTHER.get(event.effect, "")))
            return self._make_do(effect)
        self._place.take()
        if event.raised is not None:
            raise _ERRORS[event.raised.failure](event.raised.text)
        if event.effect is e.EffectKind.READ_PLATFORM:
            if isinstance(event.value, bytes):
                self._platform = event.value
            return self._platform_as_told()
        return event.value

    def _platform_as_told(self) -> bytes:
        if self._platform is None:
            raise StoreError("the capture does not tell what the SEV platform was")
        return self._platform

    def _make_do(self, effect: Effect[Any]) -> Any:
        """An answer of our own, so that the call comes to its end."""
        match effect:
            case Entropy(size):
                return self.made_up(size)
            case Now():
                return self._place.time_ns
            case ReadShared(_, size):
                return bytes(size)
            case ReadPlatform():
                return self._platform_as_told()
            case TpmTransmit() | TpmClose():
                raise BackendUnavailable("the capture has no answer to this command")
            case _:
                return None

    def made_up(self, size: int) -> bytes:
        """Bytes that are the same in each replay."""
        self._made_up += 1
        return hashlib.shake_256(b"replay" + self._made_up.to_bytes(8, "big")).digest(size)

    def _fail_as_captured(self, kind: e.EffectKind) -> None:
        event = self._place.peek()
        if type(event) is e.Answer and event.effect is kind and event.raised is not None:
            self._place.take()
            raise _ERRORS[event.raised.failure](event.raised.text)


class _Faults:
    """The rules that calls met, as the capture has them."""

    def __init__(self, place: Place) -> None:
        self.is_active = True
        self._place = place

    def meet(self, guest: str, vcpu: int, hcall: Hcall, registers: Sequence[int]) -> Met | None:
        """See Meets."""
        event = self._place.peek()
        if not isinstance(event, e.Fault) or event.vcpu != vcpu:
            return None
        self._place.take()
        return Met(event.number, msgspec.json.decode(event.rule, type=Rule), event.count)


def _is_about(event: e.Answer, effect: Effect[Any]) -> bool:
    """Whether an answer to this kind of effect is to this very one."""
    if event.asked is not None:
        return event.asked == asked_of(effect)
    # Of version 1, or all such effects are the same. Then its size alone could tell.
    if isinstance(effect, Entropy | ReadShared) and isinstance(event.value, bytes):
        return len(event.value) == effect.size
    return True


_ASKED: Final[dict[type[Effect[Any]], Callable[[Any], str]]] = {
    Entropy: lambda effect: f"{effect.size} bytes of entropy",
    Now: lambda effect: "the time",
    ReadShared: lambda effect: f"{effect.size} bytes of shared RAM at 0x{effect.gpa:x}",
    Flush: lambda effect: "a flush",
    TpmTransmit: lambda effect: f"the TPM's answer to a command of {len(effect.command)} bytes",
    TpmClose: lambda effect: "the TPM session's end",
    ReadPlatform: lambda effect: "the SEV platform",
    ChangePlatform: lambda effect: f"a change of the SEV platform, of {len(effect.change)} bytes",
}

_TOLD: Final[dict[e.EffectKind, str]] = {
    e.EffectKind.ENTROPY: "entropy",
    e.EffectKind.NOW: "the time",
    e.EffectKind.READ_RAM: "shared RAM",
    e.EffectKind.FLUSH: "a flush",
    e.EffectKind.TPM_TRANSMIT: "the TPM's answer",
    e.EffectKind.TPM_CLOSE: "the TPM session's end",
    e.EffectKind.LOAD: "that the store could not be loaded",
    e.EffectKind.BEGIN: "that the run could not begin",
    e.EffectKind.COMMIT: "that nothing could be committed",
    e.EffectKind.READ_PLATFORM: "the SEV platform",
    e.EffectKind.CHANGE_PLATFORM: "a change of the SEV platform",
}


def asked(effect: Effect[Any]) -> str:
    """What a call asks for, in words."""
    return _ASKED[type(effect)](effect)


_ANOTHER: Final[dict[e.EffectKind, str]] = {
    e.EffectKind.TPM_TRANSMIT: " to another command",
    e.EffectKind.CHANGE_PLATFORM: " to something else",
}
"""What can be said of one whose digest alone is known; it may hold a password, or a key."""


def told(event: e.Answer, digested: str = "") -> str:
    """What the capture has answered, in words.

    Args:
        event: the answer.
        digested: says to what, if that cannot be shown.
    """
    what = _TOLD[event.effect]
    match event.asked:
        case int(size):
            return f"{size} bytes of {what}"
        case (gpa, size):
            return f"{size} bytes of {what} at 0x{gpa:x}"
        case bytes():
            return what + digested
        case _:
            value = event.value
            return f"{len(value)} bytes of {what}" if isinstance(value, bytes) else what


def _captured(event: Event | None, name: Name) -> str:
    """What the capture has in the place of an answer."""
    if isinstance(event, e.Answer) and (event.vcpu, event.seq) == name:
        return told(event)
    return "nothing"
