# SPDX-License-Identifier: Apache-2.0
"""What a run came to, for people. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hcallproto.payloads.quoting import printable

if TYPE_CHECKING:
    from hcalld.guest.plan import Expected
    from hcalld.guest.run import Booted


def counts(booted: Booted) -> str:
    """How many of a boot's tests ended how."""
    numbers = Counter(verdict.got for verdict in booted.verdicts)
    words = [f"{number} {outcome}" for outcome, number in sorted(numbers.items())]
    return ", ".join(words) or "no test"


def found(boots: Sequence[Booted]) -> list[tuple[str, Expected]]:
    """The tests that changed, by suite, as they ended."""
    return [
        (booted.name, verdict.found)
        for booted in boots
        for verdict in booted.verdicts
        if verdict.is_changed and verdict.expected is not None and verdict.found is not None
    ]


def lines(boots: Sequence[Booted]) -> Iterator[str]:
    """The summary: a line for each boot, then what is not as expected, then the verdict."""
    width = max((len(booted.name) for booted in boots), default=0)
    for booted in boots:
        word = "as expected" if booted.is_good else "CHANGED"
        yield f"{booted.name:{width}}  {booted.seconds:5.0f} s  {counts(booted)}: {word}"
    for booted in boots:
        for verdict in booted.verdicts:
            for change in verdict.changes:
                yield f"  {booted.name}: {printable(verdict.name)}: {printable(change)}"
        for error in booted.errors:
            yield f"  {booted.name}: {error}"
        if not booted.is_good:
            yield (
                f"  {booted.name}: console.log, qemu.log, daemon.log, capture.pcapng are in "
                f"{booted.folder}"
            )
    total = sum(len(booted.verdicts) for booted in boots)
    changed = sum(verdict.is_changed for booted in boots for verdict in booted.verdicts)
    failed = sum(bool(booted.errors) for booted in boots)
    if changed or failed:
        yield (
            f"FAILED: {changed} of {total} tests changed, {failed} of {len(boots)} boots went wrong"
        )
    else:
        yield f"passed: {total} tests in {len(boots)} boots ended as expected"
        for folder in sorted({booted.folder.parent for booted in boots}):
            yield f"consoles, logs and captures are in {folder}"
