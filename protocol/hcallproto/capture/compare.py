# SPDX-License-Identifier: Apache-2.0
"""Two sequences of calls side by side: what one has and the other has not, what changed.

Calls are the same if the guest asked for the same: name, arguments, what its buffers held.
Addresses are left out, for no two boots have the same. If they are the same, their replies
are compared. Memory is bounded by ``WINDOW``: a call that the other side has later than that
is taken for one that it has not.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from hcallproto.abi.registers import FIRST_ARGUMENT, LAST_ARGUMENT
from hcallproto.abi.returns import status_name
from hcallproto.abi.spec import ArgKind
from hcallproto.capture.exchanges import Exchange, Fate
from hcallproto.capture.selection import codes_of

WINDOW: Final = 2000
"""Calls that are looked at ahead to find where both go on alike."""

_SHOWN_BYTES: Final = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One field of a reply that differs."""

    field: str
    left: str
    right: str


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """A call that only one side has, or whose replies differ."""

    left: Exchange | None
    right: Exchange | None
    changes: tuple[Change, ...] = ()


def asked(exchange: Exchange, ignored: Collection[str] = ()) -> tuple[tuple[str, object], ...]:
    """What a guest asked for, by field; equal for calls that are the same."""
    call, hcall = exchange.call, exchange.hcall
    registers = call.by_number()
    fields: list[tuple[str, object]] = [("level", call.level), ("number", call.number)]
    if hcall is None:
        fields += [
            (f"r{number}", registers[number]) for number in range(FIRST_ARGUMENT, LAST_ARGUMENT + 1)
        ]
    else:
        buffers = {buffer.address for buffer in hcall.buffers}
        fields += [
            (arg.name, registers[arg.register])
            for arg in hcall.args
            if arg.kind is not ArgKind.ADDRESS and arg.register < len(registers)
        ]
        fields += [(f"{name}[]", exchange.buffers.get(name)) for name in sorted(buffers)]
    return tuple(field for field in fields if field[0] not in ignored)


def answered(exchange: Exchange, ignored: Collection[str] = ()) -> Mapping[str, str]:
    """What became of a call, by field, as text."""
    fields = {"fate": exchange.fate.value}
    reply = exchange.reply
    if exchange.fate is Fate.ANSWERED and reply is not None:
        fields["return"] = status_name(reply.status, codes_of(exchange))
        hcall = exchange.hcall
        names = {one.register: one.name for one in hcall.outputs} if hcall is not None else {}
        for number, value in reply.registers:
            fields[names.get(number, f"r{number}")] = f"0x{value:x}"
        for name, data in exchange.written().items():
            fields[f"{name}[]"] = _bytes(data)
        if reply.context:
            fields["nip"] = f"0x{reply.nip:x}"
    return {name: value for name, value in fields.items() if name not in ignored}


def _bytes(data: bytes) -> str:
    shown = data[:_SHOWN_BYTES].hex()
    return f"{shown}... {len(data)} bytes" if len(data) > _SHOWN_BYTES else shown


def changes(left: Exchange, right: Exchange, ignored: Collection[str] = ()) -> tuple[Change, ...]:
    """The fields in which the replies to two calls that are the same differ."""
    mine, its = answered(left, ignored), answered(right, ignored)
    return tuple(
        Change(name, mine.get(name, "-"), its.get(name, "-"))
        for name in dict.fromkeys((*mine, *its))
        if mine.get(name) != its.get(name)
    )


class _Side:
    """One sequence, read ahead."""

    def __init__(self, exchanges: Iterable[Exchange], ignored: Collection[str]) -> None:
        self._source = iter(exchanges)
        self._ignored = ignored
        self.ahead: collections.deque[tuple[object, Exchange]] = collections.deque()
        """What was asked, and the call."""

    def fill(self, count: int) -> None:
        while len(self.ahead) < count:
            exchange = next(self._source, None)
            if exchange is None:
                return
            self.ahead.append((asked(exchange, self._ignored), exchange))

    def rest(self) -> Iterator[Exchange]:
        """All that is left."""
        while self.ahead:
            yield self.ahead.popleft()[1]
        yield from self._source


def compare(
    left: Iterable[Exchange], right: Iterable[Exchange], ignored: Collection[str] = ()
) -> Iterator[Difference]:
    """Compare two sequences of calls.

    Args:
        left: calls in their order.
        right: calls in their order.
        ignored: names of arguments, results and registers that are not compared; a buffer's
            content is its argument's name with ``[]``; also ``fate`` and ``return``.
    """
    one, two = _Side(left, ignored), _Side(right, ignored)
    while True:
        one.fill(1)
        two.fill(1)
        if not one.ahead or not two.ahead:
            break
        if one.ahead[0][0] == two.ahead[0][0]:
            mine, its = one.ahead.popleft()[1], two.ahead.popleft()[1]
            found = changes(mine, its, ignored)
            if found:
                yield Difference(mine, its, found)
            continue
        yield from _resume(one, two)
    for exchange in one.rest():
        yield Difference(exchange, None)
    for exchange in two.rest():
        yield Difference(None, exchange)


def _resume(one: _Side, two: _Side) -> Iterator[Difference]:
    """Leave out the fewest calls after which both sides go on alike."""
    one.fill(WINDOW)
    two.fill(WINDOW)
    places: dict[object, int] = {}
    for index, (key, _) in enumerate(two.ahead):
        places.setdefault(key, index)
    best: tuple[int, int] | None = None
    for index, (key, _) in enumerate(one.ahead):
        if best is not None and index >= sum(best):
            break
        other = places.get(key)
        if other is not None and (best is None or index + other < sum(best)):
            best = index, other
    skipped = best if best is not None else (len(one.ahead), len(two.ahead))
    for _ in range(skipped[0]):
        yield Difference(one.ahead.popleft()[1], None)
    for _ in range(skipped[1]):
        yield Difference(None, two.ahead.popleft()[1])
