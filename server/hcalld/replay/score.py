# SPDX-License-Identifier: Apache-2.0
"""What a replay in process has to say: differences, what was left out and why, and the sums."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

from hcalld.replay.differences import Difference


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """A call of the capture, or a connection."""

    guest: str
    connection: int
    vcpu: int | None = None
    seq: int | None = None

    def __str__(self) -> str:
        text = f"{self.guest}, connection {self.connection}"
        return text if self.vcpu is None else f"{text}, vcpu {self.vcpu}, call {self.seq}:"


class Score:
    """Counts, and hands differences on.

    Args:
        tell: takes each difference.
        stop: the first one ends the replay.
    """

    def __init__(self, tell: Callable[[Where, Difference], None], *, stop: bool = False) -> None:
        self.calls = 0
        """Calls that the capture has."""
        self.equal = 0
        """Of these, those whose reply was compared and found the same."""
        self.differ = 0
        self.differences = 0
        """Also between calls: in negotiations, at the end."""
        self.left_out: collections.Counter[str] = collections.Counter()
        """Why calls were not compared, to how many."""
        self.lacking: set[str] = set()
        """Why not all of the capture was compared that came before its end."""
        self.fields_left_out: collections.Counter[str] = collections.Counter()
        """CALL.FIELD that was not compared in calls that were, to how often."""
        self.notes: list[str] = []
        self.is_enough = False
        """The first difference was to be the last."""
        self._tell = tell
        self._stop = stop

    @property
    def compared(self) -> int:
        """Calls whose reply was compared."""
        return self.equal + self.differ

    def difference(self, where: Where, difference: Difference) -> None:
        """Something is not as the capture has it."""
        if not self.is_enough:
            self.differences += 1
            self._tell(where, difference)
            self.is_enough = self._stop
