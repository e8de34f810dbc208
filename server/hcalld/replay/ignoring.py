# SPDX-License-Identifier: Apache-2.0
"""Which differences nobody wants to hear of: ``FIELD``, or ``CALL.FIELD``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final

from hcallproto.abi.registers import FIRST_ARGUMENT, LAST_ARGUMENT
from hcallproto.abi.registry import CALLS
from hcallproto.abi.spec import Direction, Hcall
from hcallproto.wire import frames as f

REPLY_FIELDS: Final = ("call", "reply", "status", "memory", "pages", "nip", "msr")
"""What each call has: whether it can be made or answered, whether it is in time, r3, what is
written beside its buffers, states of pages, context."""

DAEMON_FRAMES: Final = tuple(kind for kind, number in f.FRAME_TYPES.items() if number % 2 == 0)


class IgnoreError(Exception):
    """A word names no field; the text says what there is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ignored:
    """Fields that are not compared, as (call or frame or "", field), in lower case."""

    fields: frozenset[tuple[str, str]] = frozenset()

    def covers(self, call: str, *fields: str) -> bool:
        """Whether a field, by any of its names, is left out."""
        if not self.fields:
            return False
        names = {field.lower() for field in fields}
        return any((owner, name) in self.fields for owner in ("", call.lower()) for name in names)


def fields_of(hcall: Hcall) -> Iterator[str]:
    """The names of what a reply to a call may bring."""
    yield from REPLY_FIELDS
    yield from (output.name for output in hcall.outputs)
    for buffer in hcall.buffers:
        if buffer.direction is Direction.OUT:
            yield buffer.address
            if buffer.layout is not None:
                yield from (part.name for part in buffer.layout.subcons if part.name)


def _known() -> dict[str, frozenset[str]]:
    """Lower-case names of calls and frames to those of their fields."""
    registers = {f"r{number}" for number in range(FIRST_ARGUMENT, LAST_ARGUMENT + 1)}
    known = {
        call.name.lower(): frozenset({name.lower() for name in fields_of(call)} | registers)
        for call in CALLS
    }
    for kind in DAEMON_FRAMES:
        known[f.FRAME_TYPES[kind].name.lower()] = frozenset(kind._fields)
    return known


def parse_ignored(words: Iterable[str]) -> Ignored:
    """Fields by the table's names.

    Raises:
        IgnoreError: a word names nothing.
    """
    known = _known()
    found = set()
    for word in words:
        owner, dot, field = word.lower().rpartition(".")
        if dot and owner not in known:
            raise IgnoreError(
                f"{word!r}: no call or frame is called {owner.upper()}; 'hcalld list' shows calls"
            )
        if owner and field not in known[owner]:
            raise IgnoreError(
                f"{word!r}: {owner.upper()} has no result {field!r}; there are "
                f"{', '.join(sorted(known[owner]))}"
            )
        if not owner and not any(field in fields for fields in known.values()):
            raise IgnoreError(
                f"{word!r} is no field of any call's result; expected one such as status, r4, "
                "H_PKS_GET_CONFIG.usedspace or WELCOME.features"
            )
        found.add((owner, field))
    return Ignored(frozenset(found))
