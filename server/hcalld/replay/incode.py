# SPDX-License-Identifier: Apache-2.0
"""A whole capture, run again by the daemon's own code, in this process.

The file is read in pieces, and each connection plays as far as its events go; then more is
read. The clock stands still: what then took its time needs none.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator

import trio
import trio.testing

from hcalld.captures.events import Event as Happened
from hcalld.replay.blanked import BlankedPlayer, Memory
from hcalld.replay.differences import Comparer
from hcalld.replay.player import Player
from hcalld.replay.score import Score
from hcalld.replay.track import Event, Gap, Inbound, Outbound, Track
from hcallproto.capture.entries import Entry
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.reading import Plain
from hcallproto.capture.records import Dropped, Record, Start, Stop
from hcallproto.errors import CaptureError
from hcallproto.wire.encode import encode

Told = Happened | Plain

AHEAD = 4096
"""Events that are read at a time."""


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
        self._waiting: list[Player] = []
        """Of them not enough has been read to begin."""

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
                going = [player for player in self.players if not player.is_done]
                if is_going or len(going) < len(self.players):
                    self.players = going
                elif self._is_over:
                    break
                else:
                    self._read()
            nursery.cancel_scope.cancel()

    def _begin(self, nursery: trio.Nursery) -> bool:
        """Begin what can be; True: something has."""
        has_begun = False
        playing = {player.track.guest for player in self.players}
        for player in list(self._waiting):
            if player.track.guest not in playing and player.is_ready():
                playing.add(player.track.guest)
                self._waiting.remove(player)
                self.players.append(player)
                self.guests[player.track.guest] += 1
                try:
                    has_begun |= player.begin(nursery)
                except CaptureError as error:
                    # The others are played first.
                    self._error = error
                    player.why_out = str(error)
                    player.has_ended = True
        return has_begun

    # -- reading ----------------------------------------------------------------------------

    def _read(self) -> None:
        count = 0
        try:
            for told in itertools.islice(self._source, AHEAD):
                count += 1
                if self._guest is None or told.guest == self._guest:
                    self._take(told)
        except CaptureError as error:
            # What was read is played first.
            self._error = error
        if count < AHEAD or self._error is not None:
            self._is_over = True
            for track in self._tracks.values():
                track.is_over = True

    def _take(self, told: Told) -> None:
        track = self._tracks.get(told.connection)
        if track is None:
            track = self._track(told)
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
        for other in self._tracks.values():
            # The daemon ended before it could say so.
            if other.guest == told.guest and other is not track:
                other.is_over = True
        self._waiting.append(self._player(track))
        return track

    def _player(self, track: Track) -> Player:
        if not self._is_blanked:
            return Player(track, self._comparer, self._score)
        memory = self._memories.setdefault(track.guest, Memory())
        return BlankedPlayer(track, self._comparer, self._score, memory)
