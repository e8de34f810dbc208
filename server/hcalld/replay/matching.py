# SPDX-License-Identifier: Apache-2.0
"""Which of a capture's answers a call of another run gets.

No two boots are the same: addresses differ, vCPUs take turns in another order, a driver
reads an entry once more. So the next answer is looked for that was given to the same call
with the same arguments and the same open bytes in its buffers; if there is none, to the same
call with the same arguments; then to the same call. Addresses do not matter.
"""

from __future__ import annotations

import collections
from typing import Final

from hcalld.captures.events import Event
from hcalld.replay.errors import ReplayError
from hcalld.replay.script import Script
from hcallproto.abi.spec import Buffer
from hcallproto.capture import entries as sealed
from hcallproto.capture.compare import asked
from hcallproto.capture.exchanges import Exchange, Exchanges, Fate
from hcallproto.capture.records import Record
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

WINDOW: Final = 2000
"""Answers that are kept until they are asked for; of more the oldest go."""

_SAME_CALL: Final = 1
_SAME_ARGUMENTS: Final = 2
_SAME: Final = 3


def refuse_secure(frame: f.Frame) -> None:
    """Refuse a guest that is a secure VM: it cannot be played to another one.

    Raises:
        ReplayError: the frame is one of such a guest.
    """
    match frame:
        case f.Call(level=s.LEVEL_SHIM) | f.Pages():
            is_secure = True
        case f.Reply():
            is_secure = bool(frame.pages or frame.context)
        case _:
            is_secure = False
    if is_secure:
        raise ReplayError(
            "the guest became a secure VM: states and contents of its pages come from its own "
            "memory, and no other guest can be given them; play it with 'hcalld replay code'"
        )


class Matcher:
    """Finds answers.

    Args:
        script: the capture.
        is_strict: the next answer or none.

    Attributes:
        welcomes: how the guest's connections were greeted, as far as was read.
        problem: why no more of the capture could be read.
    """

    def __init__(self, script: Script, *, is_strict: bool = False) -> None:
        self.welcomes: collections.deque[f.Welcome] = collections.deque()
        self.problem = ""
        self._is_strict = is_strict
        self._script = script
        self._following: dict[int, Exchanges] = {}
        self._window: collections.OrderedDict[int, Exchange] = collections.OrderedDict()
        """By the order in which they were given."""
        self._count = 0
        self._newest = -1
        self._dropped = 0

    async def begin(self) -> f.Welcome:
        """The first WELCOME.

        Raises:
            ReplayError: there is none, or it cannot be played.
            CaptureError: it is no capture.
        """
        while not self.welcomes and await self._read():
            pass
        if not self.welcomes:
            raise ReplayError(self.problem or "no daemon says WELCOME to a guest in it")
        return self.welcomes.popleft()

    @property
    def passed_over(self) -> int:
        """How many answers nobody has asked for, before the newest that was given."""
        return self._dropped + sum(order < self._newest for order in self._window)

    def following(self) -> Exchange | None:
        """The call that must be next, if the order is strict."""
        return next(iter(self._window.values()), None) if self._is_strict else None

    async def find(self, live: Exchange) -> Exchange | None:
        """The captured call whose answer fits best; it is given once.

        Args:
            live: the call.

        Raises:
            CaptureError: no more can be read.
        """
        best: tuple[int, int] | None = None
        checked = -1
        while True:
            for order, captured in self._window.items():
                if order <= checked:
                    continue
                checked = order
                likeness = _likeness(live, captured)
                if likeness and (best is None or likeness > best[0]):
                    best = likeness, order
                if likeness == _SAME or self._is_strict:
                    return self._take(best, _SAME_ARGUMENTS if self._is_strict else _SAME_CALL)
            if len(self._window) >= WINDOW or not await self._read():
                return self._take(best, _SAME_CALL)

    def _take(self, best: tuple[int, int] | None, least: int) -> Exchange | None:
        if best is None or best[0] < least:
            return None
        found = self._window.pop(best[1])
        self._newest = max(self._newest, best[1])
        # What is far behind will hardly be asked for any more.
        while len(self._window) >= WINDOW - 1:
            self._window.popitem(last=False)
            self._dropped += 1
        return found

    async def _read(self) -> bool:
        """Read on, to the next answer or WELCOME."""
        before = self._count, len(self.welcomes)
        while not self.problem and before == (self._count, len(self.welcomes)):
            try:
                event = await self._script.next()
            except ReplayError as error:
                self.problem = str(error)
                return False
            if event is None:
                return False
            if not isinstance(event.what, Record | sealed.Entry):
                self._take_frame(event, event.what)
        return not self.problem

    def _take_frame(self, event: Event, frame: f.Frame) -> None:
        refuse_secure(frame)
        if isinstance(frame, f.Welcome):
            self.welcomes.append(frame)
        following = self._following.setdefault(event.connection, Exchanges())
        for exchange in following.take(frame, event.time_ns, event.comment):
            if exchange.fate is Fate.ANSWERED:
                self._window[self._count] = exchange
                self._count += 1


def _likeness(live: Exchange, captured: Exchange) -> int:
    """How much two calls ask for the same; 0: they are other calls."""
    if live.call.number != captured.call.number or live.call.level != captured.call.level:
        return 0
    buffers: tuple[Buffer, ...] = live.hcall.buffers if live.hcall is not None else ()
    if _arguments(live) != _arguments(captured):
        return _SAME_CALL
    for buffer in buffers:
        mine, its = live.buffers.get(buffer.address), captured.buffers.get(buffer.address)
        # What only one side has had read says nothing.
        if mine is not None and its is not None and _open(buffer, mine) != _open(buffer, its):
            return _SAME_ARGUMENTS
    return _SAME


def _arguments(exchange: Exchange) -> list[tuple[str, object]]:
    """What was asked, without contents of buffers: they may have been read on one side alone."""
    return [field for field in asked(exchange) if not field[0].endswith("[]")]


def _open(buffer: Buffer, data: bytes) -> bytes:
    return data[: buffer.open_size] if buffer.secret else data
