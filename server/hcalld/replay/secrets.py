# SPDX-License-Identifier: Apache-2.0
"""Which bytes and registers of a daemon's frame are secret, and must not be shown."""

from __future__ import annotations

from collections.abc import Sequence

from hcalld.replay.memory_ranges import Piece, ranges
from hcallproto.abi.registers import U64_MAX
from hcallproto.capture.blank import Blanker
from hcallproto.wire import frames as f

Stretches = list[tuple[int, int, bool]]
"""(low, high, may it be shown) of parts of a piece of memory."""


class Secrets:
    """Which bytes and registers of a frame a capture blanks: what is blanked is secret."""

    def __init__(self, call: f.Call, frame: f.Reply | f.Write) -> None:
        blanker = Blanker()
        blanker.blank(call._replace(segments=()))
        full = _full(frame)
        blanked = blanker.blank(full)
        assert isinstance(blanked, f.Reply | f.Write)
        self._open_bytes = ranges(writes(blanked))
        """The same memory; 0xff where a byte may be shown."""
        registers = blanked.registers if isinstance(blanked, f.Reply) else ()
        self.registers = frozenset(number for number, value in registers if not value)

    def stretches(self, piece: Piece) -> Stretches:
        """Which bytes of a piece of the frame's memory may be shown."""
        found: Stretches = []
        end = piece.gpa + piece.size
        for one in self._open_bytes:
            low, high = max(one.gpa, piece.gpa), min(one.gpa + one.size, end)
            if low >= high:
                continue
            part = one.part(low, high)
            if part.data is None:
                found.append((low - piece.gpa, high - piece.gpa, True))
                continue
            # Blanking leaves the leading bytes of each segment.
            opened = len(part.data) - len(part.data.lstrip(b"\xff"))
            found.append((low - piece.gpa, low + opened - piece.gpa, True))
            found.append((low + opened - piece.gpa, high - piece.gpa, False))
        return found


def _full(frame: f.Reply | f.Write) -> f.Reply | f.Write:
    """The frame with all bits set in what may be blanked."""
    segments = tuple(
        segment if segment.data is None else segment._replace(data=b"\xff" * len(segment.data))
        for segment in writes(frame)
    )
    if isinstance(frame, f.Write):
        return frame._replace(segments=segments)
    registers = tuple((number, U64_MAX) for number, _ in frame.registers)
    return frame._replace(writes=segments, registers=registers)


def writes(frame: f.Reply | f.Write) -> tuple[f.WriteSegment, ...]:
    """What a frame writes to guest memory."""
    return frame.writes if isinstance(frame, f.Reply) else frame.segments


def open_at(sides: Sequence[Stretches], at: int) -> int:
    """How many bytes from there on both sides may show."""
    return min(
        next((high - at for low, high, may in side if may and low <= at < high), 0)
        for side in sides
    )


def next_open(sides: Sequence[Stretches], at: int) -> int | None:
    """The next byte that both sides may show."""
    starts = sorted({low for side in sides for low, _, may in side if may and low > at})
    return next((low for low in starts if open_at(sides, low)), None)
