# SPDX-License-Identifier: Apache-2.0
"""Rules of faults that come and go while the daemon runs, and what is said of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from hcalld.control.messages import Fault
from hcalld.core.log import Log
from hcalld.faults.engine import Active, Faults
from hcalld.faults.rules import Rule, calls_of
from hcallproto.abi.families import svm
from hcallproto.abi.spec import Caller

_LOG: Final = Log()


def told(active: Active) -> Fault:
    """A rule, for who asks."""
    return Fault(
        number=active.number,
        rule=active.rule,
        matched=active.matched,
        met=active.met,
        spent=active.is_spent,
    )


def warnings_of(rule: Rule, guests: Collection[str]) -> list[str]:
    """What a user may not have meant, though it is allowed.

    Args:
        rule: that is in force now.
        guests: the partitions whose guests are connected.
    """
    found = []
    if rule.guest and rule.guest not in guests:
        known = ", ".join(map(repr, sorted(guests))) or "none"
        found.append(
            f"no guest is connected as partition {rule.guest!r}; connected are: {known}. The rule "
            "waits for it"
        )
    calls = calls_of(rule.call)
    if all(call.caller is Caller.ULTRAVISOR and call in svm.FAMILY.calls for call in calls):
        found.append(
            f"{rule.call} is the ultravisor's own call: only one that a guest makes itself meets "
            "the rule, none that UV_ESM brings about"
        )
    return found


def add(faults: Faults, rule: Rule, guests: Collection[str]) -> tuple[Fault, list[str]]:
    """Put a rule in force; gives warnings too.

    Raises:
        ConfigError: it could never be met.
    """
    active = faults.add(rule)
    _LOG.warning("fault added", fault=active.number, rule=rule.summary())
    return told(active), warnings_of(rule, guests)


def end(ended: Iterable[Active]) -> None:
    """Say what rules did that are in force no more."""
    for active in ended:
        number, rule = active.number, active.rule.summary()
        if active.matched:
            counts = {"matched": active.matched, "met": active.met}
            _LOG.info("fault ended", fault=number, rule=rule, **counts)
        else:
            _LOG.warning(
                "fault ended", fault=number, rule=rule, reason="no call has ever matched it"
            )
