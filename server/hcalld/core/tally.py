# SPDX-License-Identifier: Apache-2.0
"""What a connection tells those who count its calls."""

from __future__ import annotations

from typing import Protocol

from hcalld.core.outcome import Outcome
from hcallproto.abi.spec import Hcall
from hcallproto.wire import frames as f


class Tally(Protocol):
    """One partition's counts. Every call pays for it; never waits, and never raises."""

    def answered(
        self, hcall: Hcall | None, frame: f.Call, outcome: Outcome, duration_ns: int
    ) -> None:
        """A call was answered, or stopped.

        Args:
            hcall: which; None: none that is served.
            frame: as it was made.
            outcome: what the caller is told.
            duration_ns: from the call to its answer.
        """


class Tallies(Protocol):
    """Where calls are counted."""

    def of(self, partition: str) -> Tally:
        """What counts a partition's calls."""
