# SPDX-License-Identifier: Apache-2.0
"""Compares what a boot's tests said with what its suite expects. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Final

from hcalld.guest import ktap, plan
from hcalld.guest.ktap import Outcome, Result

MISSING: Final = "missing"
"""How a test ended that was to run and did not."""

NOT_SAID: Final = "as it was when this was written; why is not said"

_EXPECTATIONS: Final[dict[Outcome, plan.Expectation]] = {
    Outcome.PASS: "pass",
    Outcome.FAIL: "fail",
    Outcome.SKIP: "skip",
    Outcome.XFAIL: "xfail",
    Outcome.TIMEOUT: "timeout",
}

_KSELFTEST: Final = re.compile(r"selftests: (.+): ([^:]+)$")

MAX_CHANGED_PARTS: Final = 10
"""Of one test's parts that are named in a message."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One test of one boot."""

    name: str
    got: str
    """An outcome, or ``missing``."""
    expected: str | None
    """None: nothing is said of it; then it must not fail."""
    why: str
    """Why the expected result is not a pass, or what the test gave as reason."""
    changes: tuple[str, ...]
    """What differs from what is expected; empty: nothing."""
    notes: tuple[str, ...] = ()
    found: plan.Expected | None = None
    """What would have been expected rightly; None: it did not run, or not to its end."""

    @property
    def is_changed(self) -> bool:
        """Whether it fails the run."""
        return bool(self.changes)


def name_of(result: Result) -> str:
    """A result's name as lists have it: ``COLLECTION:PROGRAM`` for those of kselftest's runner."""
    found = _KSELFTEST.fullmatch(result.name)
    return f"{found[1]}:{found[2]}" if found else result.name


def judge(expected: Sequence[plan.Expected], report: ktap.Report) -> list[Verdict]:
    """Gives a verdict on every test that was expected or ran.

    Of tests that nobody expects none may fail.
    """
    ran: dict[str, Result] = {}
    verdicts: list[Verdict] = []
    for result in report.tests:
        name = name_of(result)
        if name in ran:
            verdicts.append(_verdict(name, result, None, ("it ran twice",)))
        else:
            ran[name] = result
    for wanted in expected:
        found = ran.pop(wanted.name, None)
        if found is None:
            change = f"expected {wanted.result}, and it did not run"
            verdicts.append(Verdict(wanted.name, MISSING, wanted.result, wanted.why, (change,)))
        else:
            verdicts.append(_verdict(wanted.name, found, wanted, _changes(wanted, found)))
    for name, result in ran.items():
        changes = (f"it is no test of the list, and ended with {result.outcome}",)
        verdicts.append(_verdict(name, result, None, changes if result.is_bad else ()))
    return verdicts


def _verdict(
    name: str, result: Result, expected: plan.Expected | None, changes: tuple[str, ...]
) -> Verdict:
    return Verdict(
        name,
        result.outcome.value,
        None if expected is None else expected.result,
        expected.why if expected is not None and expected.why else result.reason,
        changes,
        result.notes,
        _found(name, result),
    )


def _found(name: str, result: Result) -> plan.Expected | None:
    """What a list would say of a test for it to be as expected."""
    if result.outcome is Outcome.CUT_OFF:
        return None
    outcome = _EXPECTATIONS[result.outcome]
    leaves = {part.name: part for whole in result.parts for part in whole.walk() if not part.parts}
    usual = _usual(outcome)
    parts = {
        part.name: _EXPECTATIONS[part.outcome]
        for part in leaves.values()
        if part.outcome not in usual and part.outcome is not Outcome.CUT_OFF
    }
    why = "" if outcome == "pass" and not parts else result.reason or NOT_SAID
    return plan.Expected(name=name, result=outcome, why=why, parts=parts)


def _usual(result: plan.Expectation) -> frozenset[Outcome]:
    """How the parts that are not named end in a test of a result."""
    return frozenset({Outcome.PASS, Outcome.SKIP} if result == "skip" else {Outcome.PASS})


def _changes(wanted: plan.Expected, result: Result) -> tuple[str, ...]:
    changes = []
    if not plan.is_met(wanted.result, result.outcome):
        reason = f" ({result.reason})" if result.reason else ""
        changes.append(f"expected {wanted.result}, was {result.outcome}{reason}")
    parts = {part.name: part for whole in result.parts for part in whole.walk()}
    for name, outcome in wanted.parts.items():
        part = parts.pop(name, None)
        if part is None:
            changes.append(f"its part {name} was expected to {outcome}, and did not run")
        elif not plan.is_met(outcome, part.outcome):
            changes.append(f"its part {name} was expected to {outcome}, was {part.outcome}")
    # The parts that are not named are what a test of that result is made of.
    usual = _usual(wanted.result)
    if wanted.result in ("pass", "skip") or wanted.parts:
        # A part that has parts of its own is bad because of them.
        unusual = [part for part in parts.values() if part.outcome not in usual and not part.parts]
        changes += [f"its part {part.name} was {part.outcome}" for part in unusual]
    if len(changes) > MAX_CHANGED_PARTS:
        left = len(changes) - MAX_CHANGED_PARTS
        changes[MAX_CHANGED_PARTS:] = [f"and {left} more"]
    return tuple(changes)
