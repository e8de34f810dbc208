# SPDX-License-Identifier: Apache-2.0
"""The rules in force, and which of them a call meets.

``Meets`` is what the runtime sees: whoever knows otherwise which rule a call met, as a
recording does, can stand in its place.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Protocol

from hcalld.core.errors import ConfigError
from hcalld.faults.rules import MAX_RULES, Rule, calls_of, parse, value_of
from hcallproto.abi.spec import Arg, Hcall


@dataclasses.dataclass(frozen=True, slots=True)
class Met:
    """A rule that a call has met, and all that decides what goes wrong with the call."""

    number: int
    """The rule's."""
    rule: Rule
    count: int = 1
    """So many calls have met it, this one included."""

    def note(self) -> str:
        """What the trace, the log and the capture say of the call."""
        return f"fault {self.number}: {self.rule.describe()}"


class Meets(Protocol):
    """Says which rule a call meets."""

    is_active: bool
    """False: no call meets any, and none need be asked about."""

    def meet(self, guest: str, vcpu: int, hcall: Hcall, registers: Sequence[int]) -> Met | None:
        """The rule that a call meets.

        Args:
            guest: the partition's name.
            vcpu: who calls.
            hcall: the call.
            registers: by number.
        """


@dataclasses.dataclass(slots=True)
class Active:
    """A rule in force."""

    number: int
    """Its name, as long as it is there."""
    rule: Rule
    matched: int = 0
    """Calls of which it says something."""
    met: int = 0
    """Calls with which something went wrong."""
    random: random.Random = dataclasses.field(default_factory=random.Random)

    @property
    def is_spent(self) -> bool:
        """It will do nothing any more."""
        return self.rule.times is not None and self.met >= self.rule.times


class Faults:
    """All rules of a daemon. The first that a call meets is the one that holds."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._active: dict[int, Active] = {}
        self._by_call: dict[tuple[int, int], list[Active]] = {}
        self._last = 0
        self.is_active = False
        """See Meets."""
        for rule in rules:
            self.add(rule)

    def __len__(self) -> int:
        return len(self._active)

    def __iter__(self) -> Iterator[Active]:
        return iter(list(self._active.values()))

    def add(self, rule: Rule) -> Active:
        """Put a rule in force, behind the others.

        Raises:
            ConfigError: there are too many, or it could never be met.
        """
        if len(self._active) >= MAX_RULES:
            raise ConfigError(f"{MAX_RULES} rules are in force already; remove some")
        for other in self._active.values():
            if other.rule.is_endless and _covers(other.rule, rule):
                raise ConfigError(
                    f"rule {other.number} ({other.rule.describe()}) takes every call that this one "
                    "would; remove it first"
                )
        self._last += 1
        active = Active(self._last, rule, random=random.Random(rule.seed))
        self._active[active.number] = active
        self._index()
        return active

    def remove(self, number: int) -> Active:
        """Take a rule out of force.

        Raises:
            ConfigError: there is none of this number.
        """
        active = self._active.pop(number, None)
        if active is None:
            known = ", ".join(map(str, self._active)) or "none"
            raise ConfigError(f"no rule {number}; in force are: {known}")
        self._index()
        return active

    def clear(self) -> list[Active]:
        """Take all rules out of force; gives them."""
        cleared = list(self._active.values())
        self._active.clear()
        self._index()
        return cleared

    def meet(self, guest: str, vcpu: int, hcall: Hcall, registers: Sequence[int]) -> Met | None:
        """See Meets."""
        for active in self._by_call.get((hcall.level, hcall.number), ()):
            if active.is_spent or not _matches(active.rule, guest, vcpu, hcall, registers):
                continue
            active.matched += 1
            if active.matched <= active.rule.after:
                continue
            if active.rule.probability < 1 and active.random.random() >= active.rule.probability:
                continue
            active.met += 1
            return Met(active.number, active.rule, active.met)
        return None

    def _index(self) -> None:
        self._by_call = {}
        self.is_active = bool(self._active)
        for active in self._active.values():
            for hcall in calls_of(active.rule.call):
                self._by_call.setdefault((hcall.level, hcall.number), []).append(active)


def _covers(general: Rule, special: Rule) -> bool:
    """Whether every call that matches the second rule matches the first."""
    wider = {(call.level, call.number) for call in calls_of(general.call)}
    narrower = {(call.level, call.number) for call in calls_of(special.call)}
    return (
        narrower <= wider
        and general.guest in ("", special.guest)
        and general.vcpu in (None, special.vcpu)
        and general.arguments.items() <= special.arguments.items()
    )


def _matches(rule: Rule, guest: str, vcpu: int, hcall: Hcall, registers: Sequence[int]) -> bool:
    if rule.guest not in ("", guest) or rule.vcpu not in (None, vcpu):
        return False
    for name, wanted in rule.arguments.items():
        arg = next((one for one in hcall.args if one.name == name), None)
        if arg is None or not _is(arg, registers[arg.register], wanted):
            return False
    return True


def _is(arg: Arg, value: int, wanted: int | str) -> bool:
    if isinstance(wanted, int):
        return value == wanted & ((1 << 64) - 1)
    return value == value_of(arg, wanted)


def load(text: str, source: str) -> Faults:
    """The rules of a file, in force.

    Args:
        text: TOML, with a table ``[[fault]]`` for each rule.
        source: its name, for messages.

    Raises:
        ConfigError: it is malformed, or a rule could never be met; says which and why.
    """
    faults = Faults()
    for number, rule in enumerate(parse(text, source), 1):
        try:
            faults.add(rule)
        except ConfigError as error:
            raise ConfigError(f"{source}: rule {number}: {error}") from None
    return faults
