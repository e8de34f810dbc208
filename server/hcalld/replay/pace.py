# SPDX-License-Identifier: Apache-2.0
"""How fast a capture is played: as it was, as fast as it goes, or so many times as fast."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import trio

WORDS: Final = {"real": 1.0, "fast": math.inf}


class PaceError(Exception):
    """A word is no pace; the text says what is."""


def parse_pace(word: str) -> float:
    """How many times as fast as the capture; infinite: without waiting.

    Raises:
        PaceError: it is neither a word that we know nor a number above 0.
    """
    if word in WORDS:
        return WORDS[word]
    try:
        factor = float(word)
    except ValueError:
        factor = 0.0
    if not 0 < factor < math.inf:
        raise PaceError(
            f"{word!r} is no pace; expected real, fast, or a number above 0 such as 2 for twice as "
            "fast"
        )
    return factor


@dataclasses.dataclass
class Pace:
    """Waits until it is time.

    Args:
        factor: how many times as fast as the capture.
    """

    factor: float = math.inf
    _begin: tuple[int, float] | None = None
    """The capture's time in nanoseconds, and the clock's, at the first frame."""

    async def until(self, time_ns: int) -> None:
        """Wait for the moment that the capture's moment corresponds to."""
        if math.isinf(self.factor):
            return
        if self._begin is None:
            self._begin = time_ns, trio.current_time()
        first, begin = self._begin
        await trio.sleep_until(begin + max(0, time_ns - first) / 1e9 / self.factor)

    async def between(self, start_ns: int, end_ns: int) -> None:
        """Wait as long as something took in the capture."""
        if not math.isinf(self.factor):
            await trio.sleep(max(0, end_ns - start_ns) / 1e9 / self.factor)
