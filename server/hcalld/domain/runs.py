# SPDX-License-Identifier: Apache-2.0
"""A state for each of many pages, and sets of ranges.

A VM of a TiB has 2^28 pages of 4 KiB, and nearly all are in the same state.
"""

from __future__ import annotations

import enum
import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final, Generic, TypeVar, cast

T = TypeVar("T", bound=int)

CHUNK_SHIFT: Final = 12
CHUNK_SIZE: Final = 1 << CHUNK_SHIFT
_MASK: Final = CHUNK_SIZE - 1
_STATES: Final = 256
_UNIFORM: Final = tuple(bytes((state,)) * CHUNK_SIZE for state in range(_STATES))
"""A chunk of numbers that are all in one state; shared, for they cannot be changed."""

_FEW: Final = 64
"""So many numbers are looked at one by one."""

_PART_SIZE: Final = 256
_UNIFORM_PART: Final = tuple(chunk[:_PART_SIZE] for chunk in _UNIFORM)
_PARTS: Final = CHUNK_SIZE // _PART_SIZE
STATES_AT: Final = _PARTS // 8
"""Where the states begin in what ``Runs.pack`` gives."""


class Runs(Generic[T]):
    """Number from 0 on to state; ``default`` where nothing was set.

    A state is a byte. The bytes are in chunks, and a chunk whose numbers are all alike
    takes no memory of its own: what one number costs does not depend on the others, however
    they are strewn.

    Args:
        default: the state where nothing was set.
        states: all others; by default those of its enumeration.
    """

    __slots__ = ("_chunks", "_default_chunk", "_states", "default")

    def __init__(self, default: T, states: Iterable[T] | None = None) -> None:
        self.default = default
        if states is None:
            assert isinstance(default, enum.IntEnum | enum.IntFlag)
            states = cast("Iterable[T]", type(default).__members__.values())
        self._states: dict[int, T] = {int(state): state for state in states}
        self._states[int(default)] = default
        self._default_chunk = _UNIFORM[default]
        self._chunks: dict[int, bytes | bytearray] = {}

    def __getitem__(self, number: int) -> T:
        chunk = self._chunks.get(number >> CHUNK_SHIFT)
        return self.default if chunk is None else self._states[chunk[number & _MASK]]

    def __len__(self) -> int:
        """How many chunks are kept."""
        return len(self._chunks)

    def set(self, low: int, high: int, state: T) -> None:
        """Give all numbers from ``low`` to ``high`` - 1 a state."""
        while low < high:
            number = low >> CHUNK_SHIFT
            first = low & _MASK
            end = min(high - low + first, CHUNK_SIZE)
            self._set(number, first, end, state)
            low += end - first

    def _set(self, number: int, first: int, end: int, state: T) -> None:
        chunks = self._chunks
        if end - first == CHUNK_SIZE:
            if state == self.default:
                chunks.pop(number, None)
            else:
                chunks[number] = _UNIFORM[state]
            return
        chunk = chunks.get(number)
        if type(chunk) is not bytearray:
            chunk = chunks[number] = bytearray(chunk or self._default_chunk)
        if end - first == 1:
            chunk[first] = state
        else:
            chunk[first:end] = _UNIFORM[state][first:end]
        if state == self.default and chunk == self._default_chunk:
            del chunks[number]

    def only(self, low: int, high: int) -> T | None:
        """The state of all numbers from ``low`` to ``high`` - 1; None if they differ."""
        number = low >> CHUNK_SHIFT
        size = high - low
        if size < 1 or high - 1 >> CHUNK_SHIFT != number:
            runs = self.runs(low, high)
            return runs[0][2] if len(runs) == 1 else None
        chunk = self._chunks.get(number)
        if chunk is None:
            return self.default
        first = low & _MASK
        value = chunk[first]
        if size > 1 and chunk[first : first + size] != _UNIFORM[value][:size]:
            return None
        return self._states[value]

    def runs(self, low: int, high: int) -> list[tuple[int, int, T]]:
        """(first, after the last, state) from ``low`` to ``high`` - 1, without a gap."""
        number = low >> CHUNK_SHIFT
        size = high - low
        if size > 0 and high - 1 >> CHUNK_SHIFT == number:
            chunk = self._chunks.get(number)
            if chunk is None:
                return [(low, high, self.default)]
            first = low & _MASK
            value = chunk[first]
            if size == 1 or chunk[first : first + size] == _UNIFORM[value][:size]:
                return [(low, high, self._states[value])]
            if size <= _FEW:
                return self._few_runs(low, chunk[first : first + size])
        found: list[tuple[int, int, T]] = []
        for first, end, state in self._pieces(low, high):
            if found and found[-1][2] == state:
                found[-1] = (found[-1][0], end, state)
            else:
                found.append((first, end, state))
        return found

    def _few_runs(self, low: int, part: bytes | bytearray) -> list[tuple[int, int, T]]:
        """The same of a few numbers."""
        states = self._states
        before = part[0]
        found = []
        begin = at = low
        for value in part:
            if value != before:
                found.append((begin, at, states[before]))
                begin, before = at, value
            at += 1
        found.append((begin, at, states[before]))
        return found

    def _pieces(self, low: int, high: int) -> Iterator[tuple[int, int, T]]:
        """The same, but neighbours may be alike."""
        chunks = self._chunks
        while low < high:
            number = low >> CHUNK_SHIFT
            base = number << CHUNK_SHIFT
            end = min(high, base + CHUNK_SIZE)
            chunk = chunks.get(number)
            if chunk is None and len(chunks) < (high >> CHUNK_SHIFT) - number:
                # Most of a large range is in no chunk.
                after = min((n for n in chunks if n > number), default=None)
                end = high if after is None else min(high, after << CHUNK_SHIFT)
            if type(chunk) is bytearray:
                for value, group in groupby(chunk[low - base : end - base]):
                    size = sum(1 for _ in group)
                    yield low, low + size, self._states[value]
                    low += size
            else:
                yield low, end, self.default if chunk is None else self._states[chunk[0]]
                low = end

    def all_runs(self) -> Iterator[tuple[int, int, T]]:
        """The runs whose state is not the default."""
        pending: tuple[int, int, T] | None = None
        for number in sorted(self._chunks):
            base = number << CHUNK_SHIFT
            for low, high, state in self.runs(base, base + CHUNK_SIZE):
                if pending is not None and pending[1:] == (low, state):
                    pending = (pending[0], high, state)
                    continue
                if pending is not None and pending[2] != self.default:
                    yield pending
                pending = (low, high, state)
        if pending is not None and pending[2] != self.default:
            yield pending

    def count(self, *states: T) -> int:
        """How many numbers have one of these states, none of which is the default."""
        return sum(chunk.count(state) for chunk in self._chunks.values() for state in states)

    # -- as records ---------------------------------------------------------------------

    def chunk_numbers(self) -> list[int]:
        """The chunks in which a number has another state than the default."""
        return list(self._chunks)

    def pack(self, number: int) -> bytes | None:
        """The states of a chunk, for a record; None: all have the default.

        Sixteen bits say which parts of 256 numbers have a byte for each number; the others
        have one for all. So a change costs the same however many runs there are.
        """
        chunk = self._chunks.get(number)
        if chunk is None:
            return None
        states = bytes(chunk)
        mask = 0
        parts = [b""]
        for index, at in enumerate(range(0, CHUNK_SIZE, _PART_SIZE)):
            part = states[at : at + _PART_SIZE]
            if part == _UNIFORM_PART[part[0]]:
                part = part[:1]
            else:
                mask |= 1 << index
            parts.append(part)
        parts[0] = mask.to_bytes(STATES_AT, "big")
        return b"".join(parts)

    def unpack(self, number: int, packed: bytes) -> None:
        """Give a chunk the states that were packed.

        Raises:
            ValueError: they are malformed.
        """
        mask = int.from_bytes(packed[:STATES_AT], "big")
        whole = mask.bit_count()
        if len(packed) != STATES_AT + whole * _PART_SIZE + _PARTS - whole:
            raise ValueError(f"{len(packed)} bytes of states")
        unknown = set(packed[STATES_AT:]).difference(self._states)
        if unknown:
            raise ValueError(f"there is no state {min(unknown)}")
        parts = []
        offset = STATES_AT
        for index in range(_PARTS):
            size = _PART_SIZE if mask & 1 << index else 1
            part = packed[offset : offset + size]
            parts.append(part if size > 1 else _UNIFORM_PART[part[0]])
            offset += size
        chunk = b"".join(parts)
        if chunk == self._default_chunk:
            raise ValueError("a chunk of default states")
        self._chunks[number] = bytearray(chunk)


_first: Final = operator.itemgetter(0)


class Spans:
    """Ranges of numbers, merged: a set of them without states.

    Most have one range or none, and are asked once what is in them: adding is cheap.
    """

    __slots__ = ("_is_merged", "_ranges")

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._is_merged = True

    def add(self, low: int, high: int) -> None:
        """Take a range in."""
        ranges = self._ranges
        if low >= high or (ranges and ranges[-1][0] <= low and high <= ranges[-1][1]):
            return
        self._is_merged = not ranges
        ranges.append((low, high))

    def remove(self, low: int, high: int) -> None:
        """Take a range out."""
        if low >= high or not self._ranges:
            return
        kept = []
        for first, end in self.ranges():
            if first < min(end, low):
                kept.append((first, min(end, low)))
            if max(first, high) < end:
                kept.append((max(first, high), end))
        self._ranges = kept

    def clear(self) -> None:
        """Take all out."""
        self._ranges = []
        self._is_merged = True

    def ranges(self) -> list[tuple[int, int]]:
        """All (first, after the last) pairs."""
        if not self._is_merged:
            merged: list[tuple[int, int]] = []
            for low, high in sorted(self._ranges):
                if merged and low <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
                else:
                    merged.append((low, high))
            self._ranges = merged
            self._is_merged = True
        return self._ranges

    def within(self, low: int, high: int) -> list[tuple[int, int]]:
        """What of the range is in."""
        if low >= high:
            return []
        ranges = self.ranges()
        index = max(0, bisect_right(ranges, (low, low)) - 1)
        found = []
        for first, end in ranges[index:]:
            if first >= high:
                break
            if low < end:
                found.append((max(first, low), min(end, high)))
        return found

    def gaps(self, low: int, high: int) -> list[tuple[int, int]]:
        """What of the range is not in."""
        found = []
        for first, end in self.within(low, high):
            if low < first:
                found.append((low, first))
            low = end
        if low < high:
            found.append((low, high))
        return found

    def holds(self, low: int, high: int) -> bool:
        """True if all of the range is in."""
        if low >= high:
            return True
        ranges = self.ranges()
        index = bisect_right(ranges, low, key=_first) - 1
        return index >= 0 and high <= ranges[index][1]

    def touches(self, low: int, high: int) -> bool:
        """True if any of the range is in."""
        return bool(self.within(low, high))

    def __bool__(self) -> bool:
        return bool(self._ranges)
