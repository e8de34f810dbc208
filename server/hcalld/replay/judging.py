# SPDX-License-Identifier: Apache-2.0
"""How the calls of a connection that is run again came out: each is the same, or it is told."""

from __future__ import annotations

from collections.abc import Iterable

from hcalld.replay.beginning import frame_of
from hcalld.replay.differences import Comparer, Difference, call_name
from hcalld.replay.score import Score, Where
from hcalld.replay.track import Name, Outbound, Track
from hcallproto.conn.states import CALL_FRAMES
from hcallproto.wire import frames as f
from hcallproto.wire.encode import encode


class Judge:
    """Judges one connection.

    Args:
        track: the connection.
        comparer: compares frames that are not the same bytes.
        score: counts, and is told.
    """

    def __init__(self, track: Track, comparer: Comparer, score: Score) -> None:
        self.score = score
        self.open: dict[Name, f.Call] = {}
        """Calls whose end has not been compared."""
        self.different: set[Name] = set()
        """Of these, those of which a difference was told."""
        self._track = track
        self._comparer = comparer
        self.made_count = 0
        self._settled = 0

    @property
    def unsettled(self) -> int:
        """Calls that were made, and whose end was not compared."""
        return self.made_count - self._settled

    def made(self, call: f.Call) -> None:
        """A call is made."""
        self.open[call.vcpu, call.seq] = call
        self.made_count += 1
        self.score.calls += 1

    def compare(self, event: Outbound, frame: f.Frame) -> None:
        """A frame that the session sends, and what the capture has for it."""
        if encode(frame) == event.data:
            return
        name = name_of(frame)
        call = None if name is None else self.open.get(name)
        for difference in self._comparer.compare(call, frame_of(event.data), frame):
            self.found(name, difference)

    def settle(self, name: Name) -> bool:
        """A call is over, and was compared; False: it was before, as a CANCEL has crossed it."""
        if name not in self.open:
            return False
        self._settled += 1
        self.count(name, is_different=name in self.different)
        del self.open[name]
        self.different.discard(name)
        return True

    def settle_equal(self, frames: Iterable[f.Frame]) -> None:
        """Frames are what the capture has, to the byte: so the calls that they end are over."""
        count = 0
        opened = self.open
        for frame in frames:
            if isinstance(frame, f.Reply | f.Cancelled):
                count += opened.pop((frame.vcpu, frame.seq), None) is not None
        self._settled += count
        self.score.equal += count

    def forget(self) -> None:
        """A reset: no call is left."""
        self.open.clear()

    def count(self, name: Name, *, is_different: bool) -> None:
        """A call was compared."""
        if is_different:
            self.score.differ += 1
        else:
            self.score.equal += 1

    def found(self, name: Name | None, difference: Difference) -> None:
        """Something is different in a call, or beside calls."""
        if name is not None:
            self.different.add(name)
        self.score.difference(self.where(name), difference)

    def tell(self, name: Name | None, field: str, expected: str, got: str) -> None:
        """The same, in words."""
        call = None if name is None else self.open.get(name)
        what = "connection" if call is None else call_name(call)
        self.found(name, Difference(what, field, expected, got))

    def where(self, name: Name | None) -> Where:
        """Which call that is, or which connection."""
        vcpu, seq = (None, None) if name is None else name
        return Where(self._track.guest, self._track.number, vcpu, seq)


def name_of(frame: f.Frame) -> Name | None:
    """The call that a frame is about, if it is about one."""
    if f.FRAME_TYPES[type(frame)] not in CALL_FRAMES:
        return None
    return frame.vcpu, frame.seq  # type: ignore[union-attr]  # such a frame has both
