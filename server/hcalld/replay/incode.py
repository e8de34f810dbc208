# SPDX-License-Identifier: Apache-2.0
"""A whole capture, run again by the daemon's own code, in this process.

The file is read in pieces, and each connection plays as far as its events go; then more is
read. The clock stands still: what then took its time needs none.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Final

import trio
import trio.testing

from hcalld.captures.events import Event as Happened
from hcalld.replay.blanked import BlankedJudge, BlankedPlayer, Memory
from hcalld.replay.differences import Comparer
from hcalld.replay.judging import Judge
from hcalld.replay.player import Player
from hcalld.replay.score import Score
from hcalld.replay.track import Event, Gap, Inbound, Outbound, Track, head_of
from hcallproto.capture.entries import Entry, size_of
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.reading import Plain
from hcallproto.capture.records import Dropped, Record, Start, Stop
from hcallproto.errors import CaptureError
from hcallproto.wire.encode import encode
from hcallproto.wire.frames import Call
from hcallproto.wire.schema import FrameType

Told = Happened | Plain

AHEAD: Final = 4096
"""Events that are read at a time,"""
AHEAD_BYTES: Final = 64 << 20
"""as long as they are not larger together. So much is kept, too, of connections that could
not begin yet; those that have more have not what they need."""
_EVENT_BYTES: Final = 1 << 10
"""That an event counts beside its bytes."""
AFTER_END: Final = "they come after their connection's end"


class Replay:
    """Plays a capture.

    Args:
        events: of the capture.
        score: counts, and is told.
        comparer: compares frames that are not the same bytes.
        guest: whose connections are played; None: all.
        is_blanked: secrets are blanked, and nothing is there of what frames do not determine.
    """

    def __init__(
        self,
        events: Iterable[Told],
        score: Score,
        comparer: Comparer,
        guest: str | None = None,
        *,
        is_blanked: bool = False,
    ) -> None:
        self.players: list[Player] = []
        """Those that are not done."""
        self.guests: collections.Counter[str] = collections.Counter()
        """Guests to connections that were played."""
        self._source: Iterator[Told] = iter(events)
        self._is_over = False
        self._score = score
        self._comparer = comparer
        self._guest = guest
        self._is_blanked = is_blanked
        self._memories: dict[str, Memory] = {}
        self._error: CaptureError | None = None
        self._tracks: dict[int, Track] = {}
        self._newest: dict[str, Track] = {}
        """Of each guest."""
        self._waiting: dict[str, collections.deque[Player]] = {}
        """By guest: one is played after another, and none before enough of it was read."""
        self._playing: set[str] = set()
        """Guests."""
        self._before_begin = 0
        """Bytes of events of connections that are not played yet."""
        self._changed: dict[str, None] = {}
        """Guests of which more was read, or a connection is done: the next one may begin."""

    def run(self) -> None:
        """Play it all.

        Raises:
            CaptureError: it is no capture, or damaged where that matters.
        """
        trio.run(self._run, clock=trio.testing.MockClock())
        if self._error is not None:
            raise self._error

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.testing.wait_all_tasks_blocked()
                if self._score.is_enough:
                    break
                if self._begin(nursery):
                    continue
                is_going = False
                for player in self.players:
                    is_going |= player.step()
                if self._take_leave() or is_going:
                    continue
                if self._is_over:
                    break
                if self._before_begin > AHEAD_BYTES:
                    self._begin(nursery, must=True)
                else:
                    self._read()
            nursery.cancel_scope.cancel()

    def _begin(self, nursery: trio.Nursery, *, must: bool = False) -> bool:
        """Begin what can be, or all that is next of its guest; True: something has."""
        has_begun = False
        changed, self._changed = self._changed, {}
        for guest in self._waiting if must else changed:
            waiting = self._waiting.get(guest)
            if not waiting or guest in self._playing or not (must or waiting[0].is_ready()):
                continue
            player = waiting.popleft()
            player.track.has_begun = True
            self._before_begin -= player.track.before_begin
            self._playing.add(guest)
            self.players.append(player)
            self.guests[guest] += 1
            try:
                has_begun |= player.begin(nursery)
            except CaptureError as error:
                # The others are played first.
                self._error = error
                player.why_out = str(error)
                player.has_ended = True
        return has_begun

    def _take_leave(self) -> bool:
        """Forget those that are done; True: there were some."""
        done = [player.track for player in self.players if player.is_done]
        for track in done:
            track.is_played = True
            self._playing.discard(track.guest)
            self._changed[track.guest] = None
        if done:
            self.players = [player for player in self.players if not player.is_done]
        return bool(done)

    # -- reading ----------------------------------------------------------------------------

    def _read(self) -> None:
        total = 0
        self._is_over = True
        try:
            for count, told in enumerate(self._source, 1):
                total += (size := _size_of(told))
                if self._guest is None or told.guest == self._guest:
                    self._take(told)
                    self._count(self._tracks[told.connection], size)
                if count >= AHEAD or total > AHEAD_BYTES:
                    self._is_over = False
                    break
        except CaptureError as error:
            # What was read is played first.
            self._error = error
        if self._is_over or self._error is not None:
            self._is_over = True
            for track in self._tracks.values():
                track.is_over = True
                self._changed[track.guest] = None

    def _count(self, track: Track, size: int) -> None:
        """An event is kept."""
        if not track.has_begun:
            track.before_begin += size
            self._before_begin += size

    def _take(self, told: Told) -> None:
        track = self._tracks.get(told.connection)
        if track is None:
            track = self._track(told)
        self._changed[track.guest] = None
        if track.is_played:
            self._too_late(told)
            return
        direction = told.direction
        if isinstance(told, Plain):
            if direction is Direction.INBOUND:
                track.events.append(Inbound(told.data, told.time_ns))
            elif direction is Direction.OUTBOUND:
                track.events.append(Outbound(told.data, told.time_ns, told.comment))
            return
        what = told.what
        event: Event
        if direction is Direction.INBOUND:
            data = told.data or encode(what)  # type: ignore[arg-type]  # only frames have one
            track.events.append(Inbound(data, told.time_ns, told.is_blanked))
            return
        if direction is Direction.OUTBOUND:
            data = told.data or encode(what)  # type: ignore[arg-type]  # only frames have one
            track.events.append(Outbound(data, told.time_ns, told.comment))
            return
        match what:
            case Start():
                track.has_secrets = what.has_secrets
                track.is_continued = what.is_continued
                track.profile = dict(what.profile)
                return
            case Stop():
                track.end = what.why
                track.is_over = True
                return
            case Dropped():
                event = Gap(
                    f"{what.frames} frames and {what.entries} answers are missing in the capture: "
                    "the disk was too slow"
                )
            case Record():
                return
            case Entry():
                event = what
            case _:
                return
        track.events.append(event)

    def _track(self, told: Told) -> Track:
        track = self._tracks[told.connection] = Track(told.guest, told.connection)
        before = self._newest.get(told.guest)
        if before is not None:
            # The daemon ended before it could say so.
            before.is_over = True
        self._newest[told.guest] = track
        waiting = self._waiting.setdefault(told.guest, collections.deque())
        waiting.append(self._player(track))
        return track

    def _too_late(self, told: Told) -> None:
        """An event of a connection that is done."""
        if told.direction is not Direction.INBOUND:
            return
        if isinstance(told, Plain):
            is_call = head_of(told.data).type == FrameType.CALL
        else:
            is_call = isinstance(told.what, Call)
        if is_call:
            self._score.calls += 1
            self._score.left_out[AFTER_END] += 1
            self._score.lacking.add(AFTER_END)

    def _player(self, track: Track) -> Player:
        if not self._is_blanked:
            return Player(track, Judge(track, self._comparer, self._score))
        memory = self._memories.setdefault(track.guest, Memory())
        judge = BlankedJudge(track, self._comparer, self._score, memory)
        return BlankedPlayer(track, judge, memory)


def _size_of(told: Told) -> int:
    """About how many bytes an event takes."""
    if isinstance(told, Happened) and isinstance(told.what, Entry):
        return _EVENT_BYTES + size_of(told.what)
    return _EVENT_BYTES + len(told.data)
