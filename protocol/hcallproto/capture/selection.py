# SPDX-License-Identifier: Apache-2.0
"""Which calls of a capture are wanted: by guest, vCPU, call, return code and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from hcallproto.abi import shim
from hcallproto.abi.registry import BY_NAME, CALLS, FAMILIES
from hcallproto.abi.returns import CODE_SETS, Code, code_name
from hcallproto.abi.spec import Level
from hcallproto.abi.verdicts import Verdict
from hcallproto.capture.exchanges import Exchange
from hcallproto.wire.schema import LEVEL_SHIM


class SelectionError(Exception):
    """A name that no call or return code has; the text says which there are."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a call must be to be wanted; what is empty is not asked."""

    guests: frozenset[str] = frozenset()
    vcpus: frozenset[int] = frozenset()
    calls: frozenset[tuple[int, int]] = frozenset()
    """(level, number)."""
    returns: frozenset[tuple[type[Code] | None, int]] = frozenset()
    """(set of codes or None for both, value)."""
    is_refused: bool = False
    """Only calls that were refused."""
    since_ns: int | None = None
    """Calls that were answered before are left out; nanoseconds since the epoch."""
    until_ns: int | None = None

    def wants(self, guest: str, exchange: Exchange) -> bool:
        """Whether a call is wanted."""
        call = exchange.call
        if self.guests and guest not in self.guests:
            return False
        if self.vcpus and call.vcpu not in self.vcpus:
            return False
        if self.calls and (call.level, call.number) not in self.calls:
            return False
        if self.since_ns is not None and exchange.end_ns < self.since_ns:
            return False
        if self.until_ns is not None and exchange.start_ns > self.until_ns:
            return False
        if self.is_refused and exchange.verdict is not Verdict.REFUSED:
            return False
        return not self.returns or self._has_code(exchange)

    def _has_code(self, exchange: Exchange) -> bool:
        if exchange.reply is None:
            return False
        status = exchange.reply.status
        return (exchange.codes, status) in self.returns or (None, status) in self.returns


def parse_calls(words: Iterable[str]) -> frozenset[tuple[int, int]]:
    """Calls by their names, or parts of these, by their family or by number.

    Raises:
        SelectionError: no call has such a name.
    """
    found: set[tuple[int, int]] = set()
    for word in words:
        found.update(_calls_named(word) or _calls_numbered(word))
    return frozenset(found)


def _calls_named(word: str) -> list[tuple[int, int]]:
    name = word.upper()
    of_shim = [call for call in shim.FAMILY.calls if call.name == name]
    if of_shim:
        return [(LEVEL_SHIM, call.number) for call in of_shim]
    if name in BY_NAME:
        matching = [BY_NAME[name]]
    else:
        families = [family for family in FAMILIES if family.name == word.lower()]
        matching = [call for family in families for call in family.calls] or [
            call for call in CALLS if name in call.name
        ]
    return [(call.level, call.number) for call in matching]


def _calls_numbered(word: str) -> list[tuple[int, int]]:
    """Those of any level: the table may not know the number."""
    try:
        number = int(word, 0)
    except ValueError:
        raise SelectionError(
            f"no call has {word!r} in its name; 'hcalld list' shows all; or give a number"
        ) from None
    return [(level, number) for level in Level]


def parse_returns(words: Iterable[str]) -> frozenset[tuple[type[Code] | None, int]]:
    """Return codes by their names, or as numbers.

    Raises:
        SelectionError: there is no such code.
    """
    names: dict[str, tuple[type[Code] | None, int]] = {
        code_name(code): (type(code), code.value) for codes in CODE_SETS for code in codes
    }
    found = set()
    for word in words:
        if word.upper() in names:
            found.add(names[word.upper()])
            continue
        try:
            found.add((None, int(word, 0)))
        except ValueError:
            raise SelectionError(
                f"no return code is called {word!r}; expected a name such as H_NOT_FOUND, or a "
                "number"
            ) from None
    return frozenset(found)
