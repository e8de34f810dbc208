# SPDX-License-Identifier: Apache-2.0
"""Two sequences of calls side by side: what one has and the other has not, what changed.

Calls are the same if the guest asked for the same: name, arguments, what its buffers held.
If they are the same, their replies are compared. What no two boots have the same is left out:
addresses, continue tokens, and what the table calls ``fresh``, such as random numbers. Memory
is bounded by ``WINDOW``: a call that the other side has later than that is taken for one that
it has not.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import construct

from hcallproto.abi.registers import FIRST_ARGUMENT, LAST_ARGUMENT
from hcallproto.abi.returns import status_name
from hcallproto.abi.spec import ArgKind, Buffer, Direction
from hcallproto.capture.exchanges import Exchange, Fate

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


Ignores = Callable[[str, tuple[str, ...]], bool]
"""Whether a call's field, by any of its names, is left out."""


def nothing(call: str, names: tuple[str, ...]) -> bool:
    """Leaves nothing out."""
    return False


def asked(exchange: Exchange, ignores: Ignores = nothing) -> tuple[tuple[str, object], ...]:
    """What a guest asked for, by field; equal for calls that are the same."""
    call, hcall = exchange.call, exchange.hcall
    registers = call.by_number()
    fields: list[tuple[str, object]] = [("level", call.level), ("number", call.number)]
    if hcall is None:
        fields += [
            (f"r{number}", registers[number])
            for number in range(FIRST_ARGUMENT, LAST_ARGUMENT + 1)
            if not ignores("", (f"r{number}",))
        ]
        return tuple(fields)
    for arg in hcall.args:
        if arg.kind not in _ANEW and not ignores(hcall.name, (arg.name, f"r{arg.register}")):
            fields.append((arg.name, registers[arg.register]))
    for buffer in hcall.buffers:
        if buffer.direction is not Direction.OUT and not ignores(hcall.name, (buffer.address,)):
            fields.append((f"{buffer.address}[]", exchange.buffers.get(buffer.address)))
    return tuple(fields)


_ANEW: Final = (ArgKind.ADDRESS, ArgKind.TOKEN)


def answered(exchange: Exchange, ignores: Ignores = nothing) -> Mapping[str, str]:
    """What became of a call, by field, as text."""
    hcall = exchange.hcall
    name = "" if hcall is None else hcall.name
    fields = {names[0]: value for names, value in _answered(exchange) if not ignores(name, names)}
    return fields


def _answered(exchange: Exchange) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each field's names, the first of which is shown, and its value."""
    yield ("reply",), exchange.fate.value
    reply, hcall = exchange.reply, exchange.hcall
    if exchange.fate is not Fate.ANSWERED or reply is None:
        return
    yield ("status",), status_name(reply.status, exchange.codes)
    outputs = {one.register: one for one in hcall.outputs} if hcall is not None else {}
    for number, value in reply.registers:
        output = outputs.get(number)
        if output is None:
            yield (f"r{number}",), f"0x{value:x}"
        elif not output.fresh:
            yield (output.name, f"r{number}"), f"0x{value:x}"
    written = exchange.written()
    for buffer in hcall.buffers if hcall is not None else ():
        if buffer.address in written:
            yield from _written(buffer, written[buffer.address])
    if reply.pages:
        pages = (f"0x{one.gpa:x} {one.size} bytes {int(one.state)}" for one in reply.pages)
        yield ("pages",), ", ".join(pages)
    if reply.context:
        yield ("nip",), f"0x{reply.nip:x}"
        yield ("msr",), f"0x{reply.msr:x}/0x{reply.msr_mask:x}"


def _written(buffer: Buffer, data: bytes) -> Iterator[tuple[tuple[str, ...], str]]:
    """A buffer's fields, if it begins with a structure, and its bytes."""
    name = buffer.address
    if buffer.layout is not None:
        size = buffer.layout.sizeof()
        # A capture may hold anything; what is no such structure is bytes.
        with contextlib.suppress(construct.ConstructError):
            fields = buffer.layout.parse(data)
            data = data[size:]
            for field, value in fields.items():
                if isinstance(value, int):
                    yield (field, name), f"0x{value:x}"
                elif isinstance(value, bytes):
                    yield (field, name), _bytes(value)
    if buffer.fresh:
        yield (name,), f"{len(data)} bytes"
    elif data:
        yield (name,), _bytes(data)


def _bytes(data: bytes) -> str:
    shown = data[:_SHOWN_BYTES].hex()
    if len(data) <= _SHOWN_BYTES:
        return shown
    # Two that differ further on must not look alike.
    return f"{shown}... {len(data)} bytes, CRC {zlib.crc32(data):08x}"


def changes(left: Exchange, right: Exchange, ignores: Ignores = nothing) -> tuple[Change, ...]:
    """The fields in which the replies to two calls that are the same differ."""
    mine, its = answered(left, ignores), answered(right, ignores)
    return tuple(
        Change(name, mine.get(name, "-"), its.get(name, "-"))
        for name in dict.fromkeys((*mine, *its))
        if mine.get(name) != its.get(name)
    )


class _Side:
    """One sequence, read ahead."""

    def __init__(self, exchanges: Iterable[Exchange], ignores: Ignores) -> None:
        self._source = iter(exchanges)
        self._ignores = ignores
        self.ahead: collections.deque[tuple[object, Exchange]] = collections.deque()
        """What was asked, and the call."""

    def fill(self, count: int) -> None:
        while len(self.ahead) < count:
            exchange = next(self._source, None)
            if exchange is None:
                return
            self.ahead.append((asked(exchange, self._ignores), exchange))

    def rest(self) -> Iterator[Exchange]:
        """All that is left."""
        while self.ahead:
            yield self.ahead.popleft()[1]
        yield from self._source


def compare(
    left: Iterable[Exchange], right: Iterable[Exchange], ignores: Ignores = nothing
) -> Iterator[Difference]:
    """Compare two sequences of calls.

    Args:
        left: calls in their order.
        right: calls in their order.
        ignores: which fields are not compared: arguments and results by their names and
            registers, a buffer's content by its argument's name, ``reply``, ``status``,
            ``pages``, ``nip`` and ``msr``.
    """
    one, two = _Side(left, ignores), _Side(right, ignores)
    while True:
        one.fill(1)
        two.fill(1)
        if not one.ahead or not two.ahead:
            break
        if one.ahead[0][0] == two.ahead[0][0]:
            mine, its = one.ahead.popleft()[1], two.ahead.popleft()[1]
            found = changes(mine, its, ignores)
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
