# SPDX-License-Identifier: Apache-2.0
"""A connection of a capture without secrets, run again as far as the capture goes.

Nobody knows what the partition held, so it begins empty, and goes on with what the replay has
made of it. What was secret is zeros, and what else came from outside is made up. So there are
calls that cannot be carried out, and results that cannot be the same: these are left out, with
the reason, and so are those that differ because of them.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from typing import Any, Final

import trio

from hcalld.config import Emulation, PefChoice, Profile
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
from hcalld.core.errors import ConfigError
from hcalld.domain.attribute_records import Value, flatten
from hcalld.domain.attributes import PartitionAttributes
from hcalld.families.registry import SERVED, Kind
from hcalld.families.uv.shim_calls import FAMILY as SHIM
from hcalld.replay.answers import Answers
from hcalld.replay.beginning import welcome_of
from hcalld.replay.differences import Comparer, Difference, call_name
from hcalld.replay.judging import Judge
from hcalld.replay.player import Player
from hcalld.replay.score import Score
from hcalld.replay.stage import AtOnce, NoTpm
from hcalld.replay.track import Inbound, Name, Outbound, Track, head_of
from hcalld.runtime.negotiation import SECURE_FEATURES
from hcalld.runtime.partition import Partition
from hcalld.runtime.tpm import TpmSession
from hcalld.runtime.world import ReadShared
from hcalld.stores.memory import MemoryState, MemoryStore
from hcallproto.abi.registry import FAMILY_OF, find
from hcallproto.errors import CaptureError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

CONTINUED: Final = "what the partition held when the capture began is not known"
_BLANKED: Final = "what they were given is blanked"
_FAULT: Final = "a fault on purpose"


@dataclasses.dataclass(slots=True)
class Memory:
    """What the replay knows of a partition, from one connection to the next."""

    store: MemoryState = dataclasses.field(default_factory=MemoryState)
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    """Models that may be others than they were, by family, to the reason."""


class NotCapturedError(Exception):
    """A call asks for what no capture without secrets has."""


_MISSING: Final[dict[type[Effect[Any]], str]] = {
    ReadShared: "they read memory that the guest shares, which is not in the capture",
    TpmTransmit: "they ask the TPM, whose answers are not in the capture",
    TpmClose: "they ask the TPM, whose answers are not in the capture",
    ReadPlatform: "they hang on the SEV platform's keys, which are not in the capture",
    ChangePlatform: "they hang on the SEV platform's keys, which are not in the capture",
}


class MadeUp(Answers):
    """A world that answers by itself, the same each time."""

    def __init__(self, partition: Partition, player: BlankedPlayer) -> None:
        super().__init__(partition, player)
        self._player = player

    def answer(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """See World."""
        match effect:
            case Entropy(size):
                return self.made_up(size)
            case Now():
                return self._player.time_ns
            case Flush():
                return None
            case _:
                why = _MISSING[type(effect)]
                self._player.judge.leave_out((frame.vcpu, frame.seq), why)
                raise NotCapturedError(why)

    async def wait_for(self, frame: f.Call, effect: Effect[Any]) -> Any:
        """See World."""
        return self.answer(frame, effect)


class BlankedJudge(Judge):
    """Judges one connection, as far as anything can be said.

    Args:
        track: the connection.
        comparer: compares frames that are not the same bytes.
        score: counts, and is told.
        memory: of the partition.
    """

    def __init__(self, track: Track, comparer: Comparer, score: Score, memory: Memory) -> None:
        super().__init__(track, comparer, score)
        self._memory = memory
        self._out: dict[Name, str] = {}
        """Calls that are not compared, to the reason."""
        self._incomplete: set[Name] = set()
        """Calls that were given what is blanked."""

    def lacks_something(self, name: Name) -> None:
        """A call is given what is blanked."""
        self._incomplete.add(name)

    def will_not_compare(self, name: Name, why: str) -> None:
        """A call's end says nothing; what hangs on it is known all the same."""
        self._out.setdefault(name, why)

    def leave_out(self, name: Name, why: str) -> None:
        """A call is not compared; what hangs on it is not known from now on."""
        self.will_not_compare(name, why)
        call = self.open.get(name)
        if call is None:
            return
        hcall = find(call.number, call.level)
        family = _family(call)
        if family == SHIM.name or hcall is None or hcall.effect_may_remain:
            self._memory.unknown.setdefault(
                family, f"they hang on {call_name(call)}, call {call.seq}, which was left out"
            )

    def found(self, name: Name | None, difference: Difference) -> None:
        """See Judge."""
        if difference.by_nature:
            self.score.fields_left_out[f"{difference.call}.{difference.field}"] += 1
            return
        if name is None:
            if difference.got == "CONTROL" or difference.expected == "CONTROL":
                unknown = self._memory.unknown.get(SHIM.name)
                if unknown is not None:
                    self.score.fields_left_out["CONTROL"] += 1
                    return
            super().found(name, difference)
            return
        if name in self._out:
            return
        why = self._why_different(name)
        if why is None:
            super().found(name, difference)
            return
        self.leave_out(name, why)

    def count(self, name: Name, *, is_different: bool) -> None:
        """See Judge."""
        why = self._out.pop(name, None)
        self._incomplete.discard(name)
        if why is None:
            super().count(name, is_different=is_different)
        else:
            self.score.left_out[why] += 1

    def _why_different(self, name: Name) -> str | None:
        """Why a call may give something else than it did, if it may."""
        if name in self._incomplete:
            return _BLANKED
        call = self.open.get(name)
        return None if call is None else self._memory.unknown.get(_family(call))


class BlankedPlayer(Player):
    """Plays one connection.

    Args:
        track: the connection.
        judge: says how its calls came out.
        memory: of the partition.
    """

    def __init__(self, track: Track, judge: BlankedJudge, memory: Memory) -> None:
        super().__init__(track, judge)
        self.judge = judge
        self._memory = memory

    # -- beginning ------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """See Player."""
        return welcome_of(self.track) is not None or self.track.is_over or self.track.has_call()

    def begin(self, nursery: trio.Nursery) -> bool:
        """See Player."""
        welcome = welcome_of(self.track)
        if welcome is None or self.track.is_continued:
            self.why_out = CONTINUED
            self.has_ended = True
            return False
        try:
            partition = self._empty(welcome)
        except (ConfigError, ValueError) as error:
            raise CaptureError(
                f"the profile that the capture tells of guest {self.track.guest!r}: {error}"
            ) from None
        self.seat(partition)
        nursery.start_soon(self.run_session)
        return True

    def make_answers(self, partition: Partition) -> Answers:
        """See Player."""
        return MadeUp(partition, self)

    def _empty(self, welcome: f.Welcome) -> Partition:
        """A partition with the profile that the capture tells of, and what WELCOME shows of it."""
        guest, calls = self.track.guest, welcome.announcement.calls
        forwarded = [spec for spec in calls if spec.disposition is s.Disposition.FORWARD]
        names = {hcall.name for spec in calls if (hcall := find(spec.number, spec.level))}
        has_tpm = any(
            served.needs_tpm and names & {call.name for call in served.handlers.by_call}
            for served in SERVED
        )
        profile = Profile(
            partition=guest,
            source="the capture",
            orders=_orders(self.track.profile),
            emulation=Emulation(
                unserved="function" if len(forwarded) < len(calls) else "qemu",
                deadline_ms=_deadline(forwarded),
            ),
            pef=PefChoice(enabled=welcome.features & SECURE_FEATURES == SECURE_FEATURES),
        )
        store = self._memory.store
        tpm = TpmSession(NoTpm()) if has_tpm else None
        kind = Kind.of(welcome.features)
        return Partition(profile, lambda: MemoryStore(store, guest), AtOnce(), tpm, kind)

    # -- what is left out -----------------------------------------------------------------

    def blanked(self, event: Inbound) -> None:
        """See Player."""
        name = head_of(event.data).call
        if name is not None:
            self.judge.lacks_something(name)

    def look(self) -> bool:
        """See Player."""
        is_going = super().look()
        event = self.peek()
        if isinstance(event, Outbound) and event.comment.startswith("fault "):
            name = head_of(event.data).call
            if name is not None:
                self.judge.will_not_compare(name, _FAULT)
        return is_going


_SHARING: Final = {
    served.handlers.family.name: served.shares for served in SERVED if served.shares is not None
}


def _family(call: f.Call) -> str:
    """The family whose model a call uses; a secure VM's has one name."""
    hcall = find(call.number, call.level)
    if hcall is None:
        return SHIM.name
    name = FAMILY_OF[hcall.name].name
    return _SHARING.get(name, name)


_NO_VALUE: Final = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
"""What ``ast.literal_eval`` says of texts that anybody may have written."""


def _orders(profile: dict[str, str]) -> dict[str, Value]:
    """Attributes from their texts."""
    known = flatten(PartitionAttributes())
    found: dict[str, Value] = {}
    for name in profile.keys() & known.keys():
        with contextlib.suppress(*_NO_VALUE):
            found[name] = ast.literal_eval(profile[name])
    return found


def _deadline(forwarded: list[f.CallSpec]) -> int | None:
    """What the profile has in the place of each call's deadline, if it has."""
    found = {spec.deadline_ms for spec in forwarded}
    own = {hcall.deadline_ms for spec in forwarded if (hcall := find(spec.number, spec.level))}
    return found.pop() if len(found) == 1 and found != own else None
