# SPDX-License-Identifier: Apache-2.0
"""What of a guest's memory is a secure VM's own, shared, and paged out, as time passes.

Told from the states of pages that the daemon gave QEMU, by PAGES and by replies
(docs/wire.rst, "States of pages"), whatever call brought them about.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple

from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

MAX_POINTS: Final = 4000
MAX_RUNS: Final = 1 << 16
"""Ranges of pages in different states; a guest that has more is followed no further."""
MAX_ADDRESS: Final = 1 << 60

_UNSHARED: Final = int(s.PageState.UNSHARED)
_OUT: Final = int(s.PageState.UNSHARED | s.PageState.PAGED_OUT)


class Point(NamedTuple):
    """From a time on, bytes of memory in each state."""

    time_ns: int
    secure: int
    shared: int
    out: int


class States:
    """Address to state; 0 where nothing was set.

    Attributes:
        sizes: of each state, how many bytes are in it; without state 0.
    """

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._starts: list[int] = [0]
        self._states: list[int] = [0]
        """Of what begins at each start, up to the next."""

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._starts)

    def set(self, low: int, high: int, state: int) -> None:
        """Give a range a state."""
        if low >= high:
            return
        starts, states = self._starts, self._states
        first = bisect_left(starts, low)
        before = states[first - 1] if first else 0
        end = bisect_right(starts, high)
        after = states[end - 1]
        edges = [low, *starts[first:end], high]
        inside = [before, *states[first:end]]
        for at, old in enumerate(inside):
            self._count(old, -(min(edges[at + 1], high) - max(edges[at], low)))
        self._count(state, high - low)
        new = [(low, state)] if not first or before != state else []
        if after != state:
            new.append((high, after))
        starts[first:end] = [start for start, _ in new]
        states[first:end] = [one for _, one in new]

    def _count(self, state: int, size: int) -> None:
        if state and size:
            self.sizes[state] = self.sizes.get(state, 0) + size


class Memory:
    """One guest's memory.

    Attributes:
        points: in the order of time; of those that are close together the last.
        cell: so close, in nanoseconds; 0: all are there.
        is_complete: False once the memory was in more pieces than are followed.
    """

    def __init__(self, max_points: int = MAX_POINTS, max_runs: int = MAX_RUNS) -> None:
        self.points: list[Point] = []
        self.cell = 0
        self.is_complete = True
        self._states = States()
        self._regions: tuple[f.RamRegion, ...] = ()
        self._max_points = max_points
        self._max_runs = max_runs

    def take(self, frame: object, time_ns: int) -> None:
        """Look at the next frame of the guest's connection."""
        match frame:
            case f.Reply(pages=pages) if pages:
                self._set(pages, time_ns)
            case f.Pages():
                self._set(frame.ranges, time_ns)
            case f.Ram():
                self._ram(frame.regions, time_ns)
            case f.Event() if frame.kind is s.EventKind.RESET:
                self._states = States()
                self._tell(time_ns)
            case _:
                pass

    @property
    def is_secure(self) -> bool:
        """It was a secure VM's at some time."""
        return any(point.secure or point.out for point in self.points)

    def _set(self, ranges: tuple[f.PageRange, ...], time_ns: int) -> None:
        if len(self._states) > self._max_runs:
            self.is_complete = False
            return
        for gpa, size, state in ranges:
            self._states.set(min(gpa, MAX_ADDRESS), min(gpa + size, MAX_ADDRESS), int(state))
        self._tell(time_ns)

    def _ram(self, regions: tuple[f.RamRegion, ...], time_ns: int) -> None:
        """Of memory that is gone no state is left; what comes to a secure VM is out at first."""
        old = {(region.gpa, region.size) for region in self._regions}
        new = {(region.gpa, region.size) for region in regions}
        was_secure = any(self._states.sizes.values())
        self._regions = regions
        for gpa, size in sorted(old - new):
            self._states.set(min(gpa, MAX_ADDRESS), min(gpa + size, MAX_ADDRESS), 0)
        if was_secure and old:
            for gpa, size in sorted(new - old):
                self._states.set(min(gpa, MAX_ADDRESS), min(gpa + size, MAX_ADDRESS), _OUT)
        if old - new or was_secure:
            self._tell(time_ns)

    def _tell(self, time_ns: int) -> None:
        sizes = self._states.sizes
        secure, out = sizes.get(_UNSHARED, 0), sizes.get(_OUT, 0)
        total = sum(region.size for region in self._regions)
        shared = max(0, total - secure - out) if secure or out else 0
        self._put(Point(time_ns, secure, shared, out))
        if len(self.points) > self._max_points:
            self._make_room()

    def _put(self, point: Point) -> None:
        points, cell = self.points, self.cell or 1
        if points and points[-1].time_ns // cell == point.time_ns // cell:
            points[-1] = point
        elif not points or points[-1][1:] != point[1:]:
            points.append(point)

    def _make_room(self) -> None:
        span = max(point.time_ns for point in self.points) - self.points[0].time_ns
        self.cell = max(self.cell, abs(span) // (4 * self._max_points), 1)
        while len(self.points) > self._max_points // 2 and self.cell < 1 << 64:
            self.cell *= 2
            points, self.points = self.points, []
            for point in points:
                self._put(point)
