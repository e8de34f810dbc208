# SPDX-License-Identifier: Apache-2.0
"""Connections of a daemon in the test's process, recorded, and played again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hcalld.captures.events import Event
from hcalld.replay.differences import Comparer, Difference
from hcalld.replay.ignoring import Ignored
from hcalld.replay.incode import Replay
from hcalld.replay.score import Score, Where
from hcallproto.capture.entries import AnyEntry
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.records import Start, Stop
from hcallproto.wire import frames as f


class Recorder:
    """Keeps the frames of all connections, and what happened beside them; see ``Taps``."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.count = 0

    def tap(
        self, partition: str, profile: Mapping[str, str], *, is_continued: bool = False
    ) -> _Tap:
        """See Taps."""
        tap = _Tap(self.events, partition, self.count)
        self.count += 1
        tap.put(
            Start(
                program="test",
                partition=partition,
                profile=profile,
                has_secrets=True,
                is_continued=is_continued,
            )
        )
        return tap


class _Tap:
    keeps_secrets = True

    def __init__(self, events: list[Event], guest: str, number: int) -> None:
        self._events = events
        self._guest = guest
        self._number = number

    def put(
        self, what: f.Frame | Start | Stop | AnyEntry, direction: Direction = Direction.UNKNOWN
    ) -> None:
        self._events.append(
            Event(self._guest, self._number, len(self._events), direction, "", what, False, 0)
        )

    def received(self, frame: f.Frame, data: bytes) -> None:
        self.put(frame, Direction.INBOUND)

    def sent(self, frame: f.Frame, data: bytes, why: str) -> None:
        self.put(frame, Direction.OUTBOUND)

    def happened(self, entry: AnyEntry) -> None:
        self.put(entry)

    def closed(self, why: str) -> None:
        self.put(Stop(why=why))


class Played:
    """What came of playing a recording.

    Args:
        events: of the recording.
        stop: at the first difference.
        ignored: fields that are not compared.
        is_blanked: the recording has no secrets.
    """

    def __init__(
        self,
        events: Iterable[Event],
        *,
        stop: bool = False,
        ignored: Ignored | None = None,
        is_blanked: bool = False,
    ) -> None:
        self.told: list[str] = []
        self.score = Score(self._tell, stop=stop)
        self.comparer = Comparer(ignored, is_blanked=is_blanked, is_live=is_blanked)
        self.replay = Replay(events, self.score, self.comparer, is_blanked=is_blanked)
        self.replay.run()

    def _tell(self, where: Where, difference: Difference) -> None:
        self.told.append(f"{where} {difference}")
