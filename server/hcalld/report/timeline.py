# SPDX-License-Identifier: Apache-2.0
"""Calls as bars, one lane for each virtual CPU; so many bars at most, however many calls.

While there is room each call has a bar of its own. When there is none, time is cut into cells,
and the calls of a lane that begin in one cell become one bar that counts them; cells double
their width until there is room again. So calls that stand alone keep a bar, and what is merged
is what could hardly be told apart on a screen.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Final

MAX_BARS: Final = 12_000
MAX_LANES: Final = 128
"""Further virtual CPUs share one lane."""
OTHERS: Final = ("and others", -1)
"""That lane's name."""


class Kind(enum.IntEnum):
    """How a call ended; of several the greatest tells."""

    DONE = 0
    BUSY = 1
    """The guest was told to ask again."""
    REFUSED = 2
    UNANSWERED = 3


class Bar:
    """One call, or several that are shown as one.

    Attributes:
        start: when the first of them began.
        end: when the last of them ended.
        count: how many.
        kind: the worst end of them.
        refused: how many were refused or not answered.
        names: how many of which call.
        text: of one call, all about it; "" of several.
    """

    __slots__ = ("count", "end", "kind", "names", "refused", "start", "text")

    def __init__(self, start: int, end: int, name: str, kind: Kind, text: str) -> None:
        self.start = start
        self.end = end
        self.count = 1
        self.kind = kind
        self.refused = int(kind >= Kind.REFUSED)
        self.names: dict[str, int] = {name: 1}
        self.text = text

    def add(self, start: int, end: int, kind: Kind, refused: int, names: dict[str, int]) -> None:
        """Take others in."""
        self.start = min(self.start, start)
        self.end = max(self.end, end)
        self.kind = max(self.kind, kind)
        self.refused += refused
        for name, count in names.items():
            self.names[name] = self.names.get(name, 0) + count
            self.count += count
        self.text = ""

    @property
    def most(self) -> str:
        """The call that there are most of."""
        return max(self.names, key=self.names.__getitem__)


class Timeline:
    """All lanes.

    Attributes:
        lanes: by guest and virtual CPU, bars in the order in which their calls ended.
        cell: how wide a cell is, in nanoseconds; 0 while each call has a bar of its own.
        merged: calls that are in a bar with others.
    """

    def __init__(self, max_bars: int = MAX_BARS, max_lanes: int = MAX_LANES) -> None:
        self.lanes: dict[tuple[str, int], list[Bar]] = {}
        self.cell = 0
        self._max_bars = max_bars
        self._max_lanes = max_lanes
        self._count = 0

    def add(
        self,
        lane: tuple[str, int],
        start: int,
        end: int,
        name: str,
        kind: Kind,
        text: Callable[[], str],
    ) -> None:
        """A call.

        Args:
            lane: its guest and virtual CPU.
            start: when it began, in nanoseconds.
            end: when it ended.
            name: what was called.
            kind: how it ended.
            text: all about it; asked only if it has a bar of its own.
        """
        end = max(start, end)
        bars = self.lanes.get(lane)
        if bars is None:
            if len(self.lanes) >= self._max_lanes:
                lane = OTHERS
            bars = self.lanes.setdefault(lane, [])
        if self.cell and bars and bars[-1].start // self.cell == start // self.cell:
            bars[-1].add(start, end, kind, int(kind >= Kind.REFUSED), {name: 1})
            return
        bars.append(Bar(start, end, name, kind, text()))
        self._count += 1
        if self._count > self._max_bars:
            self._make_room()

    @property
    def merged(self) -> int:
        """Calls that are in a bar with others."""
        return sum(bar.count for bar in self._bars() if bar.count > 1)

    def _bars(self) -> Iterator[Bar]:
        for bars in self.lanes.values():
            yield from bars

    def _make_room(self) -> None:
        if not self.cell:
            first = min(bar.start for bar in self._bars())
            last = max(bar.end for bar in self._bars())
            self.cell = max(1, (last - first) // (4 * self._max_bars))
        while self._count > self._max_bars // 2 and self.cell < 1 << 64:
            self.cell *= 2
            self.lanes = {lane: _folded(bars, self.cell) for lane, bars in self.lanes.items()}
            self._count = sum(map(len, self.lanes.values()))


def _folded(bars: list[Bar], cell: int) -> list[Bar]:
    folded = bars[:1]
    for bar in bars[1:]:
        last = folded[-1]
        if last.start // cell == bar.start // cell:
            last.add(bar.start, bar.end, bar.kind, bar.refused, bar.names)
        else:
            folded.append(bar)
    return folded
