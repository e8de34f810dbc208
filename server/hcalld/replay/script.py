# SPDX-License-Identifier: Apache-2.0
"""What a capture has to play: one guest's frames in their order, and some way ahead of them.

The file is read as it is played, in a thread, in bounded memory: it may be long, or a pipe.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from typing import Final

import trio

from hcalld.captures.events import Event, Events
from hcalld.config import UNNAMED_PLATFORM
from hcalld.replay.errors import ReplayError
from hcallproto.capture import entries as sealed
from hcallproto.capture.records import Dropped, Record
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

MAX_AHEAD: Final = 20_000
"""Frames that are looked at before it is their turn."""
MAX_AHEAD_BYTES: Final = 64 << 20
_BATCH: Final = 256


class Script:
    """One guest's part of a capture.

    Args:
        events: of the file.
        guest: whose frames; None: there is only one guest.
        joins_clients: all that programs do with one SEV platform is one guest's, whose name is the
            platform's; frames alone.
    """

    def __init__(
        self, events: Events, guest: str | None = None, *, joins_clients: bool = False
    ) -> None:
        self.guest = guest
        self._events = events
        self._is_chosen = guest is not None
        self._joins_clients = joins_clients
        self._platforms: dict[int, str] = {}
        """Of connections of programs that use one."""
        self._source: Iterator[Event] = iter(events)
        self._ahead: collections.deque[Event] = collections.deque()
        self._taken = 0
        """Entries whose turn has come."""
        self._has_frames = False
        self._is_over = False
        self._reading = trio.Lock()

    async def next(self) -> Event | None:
        """What is next; None: that was all.

        Raises:
            ReplayError: the file is damaged, frames are missing, or there are more guests.
            CaptureError: it is no capture.
        """
        while not self._ahead:
            # Whoever looks ahead may have read meanwhile, up to the end.
            if not await self._read() and not self._ahead:
                self._check()
                return None
        self._taken += 1
        return self._ahead.popleft()

    def ahead(self) -> Ahead:
        """What comes after that, as far as may be looked."""
        return Ahead(self, self._taken)

    async def at(self, place: int) -> tuple[int, Event] | None:
        """What is at a place, or whose turn is next if that is past; None: it is out of sight."""
        while True:
            place = max(place, self._taken)
            if place - self._taken < len(self._ahead):
                return place, self._ahead[place - self._taken]
            if not self._may_look():
                return None
            if not await self._read() and place - self._taken >= len(self._ahead):
                return None

    def _check(self) -> None:
        """See that all was as it should be."""
        if not self._has_frames:
            raise ReplayError(
                "no guest has frames in it"
                if self.guest is None
                else f"no guest called {self.guest!r} has frames in it; see 'hcalld decode'"
            )
        if self._events.problems:
            raise ReplayError(f"{self._events.problems[0]}; all before that was played")

    def _may_look(self) -> bool:
        ahead = self._ahead
        if len(ahead) >= MAX_AHEAD:
            return False
        return not ahead or ahead[-1].offset - ahead[0].offset < MAX_AHEAD_BYTES

    async def _read(self) -> bool:
        """Read some more; False at the end."""
        async with self._reading:
            if self._is_over:
                return False
            batch = await trio.to_thread.run_sync(self._batch)
            self._is_over = not batch
            for entry in batch:
                self._take(entry)
            return bool(batch)

    def _batch(self) -> list[Event]:
        return list(itertools.islice(self._source, _BATCH))

    def _take(self, entry: Event) -> None:
        what = entry.what
        if self._joins_clients:
            if isinstance(what, Record | sealed.Entry) and not isinstance(what, Dropped):
                return
            if isinstance(what, f.Hello) and what.features & s.Feature.COMMANDS:
                self._platforms[entry.connection] = what.name or UNNAMED_PLATFORM
        joined = self._platforms.get(entry.connection, entry.guest)
        if self.guest is None:
            self.guest = joined
        if self.guest not in (entry.guest, joined):
            if self._is_chosen:
                return
            raise ReplayError(
                f"more than one guest is in it, {self.guest!r} and {joined!r}; choose one with "
                "--guest"
            )
        if isinstance(what, Dropped):
            raise ReplayError(
                f"at byte {entry.offset}: {what.frames} frames are missing, for the disk was too "
                "slow; what follows cannot be played"
            )
        self._has_frames |= not isinstance(what, Record | sealed.Entry)
        self._ahead.append(entry)


class Ahead:
    """Iterates over what comes, while its turn may come."""

    def __init__(self, script: Script, place: int) -> None:
        self._script = script
        self._place = place

    def __aiter__(self) -> Ahead:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next that has not been seen."""
        found = await self._script.at(self._place)
        if found is None:
            raise StopAsyncIteration
        self._place = found[0] + 1
        return found[1]
