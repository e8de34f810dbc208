# SPDX-License-Identifier: Apache-2.0
"""Reads a guest's console as it comes: results, failures, the end. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Final

from hcalld.guest import boot, ktap
from hcalld.guest.ktap import Result

TAIL_LINES: Final = 20
MAX_LINE: Final = 1 << 14
"""Characters of a line that is not ended; what is longer is taken in pieces."""

_EXIT: Final = re.compile(boot.EXIT)


class Reading:
    """What a guest has printed so far.

    Args:
        failures: Patterns of a line that tell of a broken kernel.
    """

    def __init__(self, failures: Sequence[str]) -> None:
        self._failures = [re.compile(pattern) for pattern in failures]
        self._parser = ktap.Parser()
        self._rest = ""
        self._is_log = False
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.is_up = False
        """The guest's first process runs."""
        self.status: int | None = None
        """The exit status of the guest's script."""
        self.failure: str | None = None
        """The first line that a pattern of failure fits."""

    @property
    def current(self) -> str:
        """The test that is running, as far as known."""
        return self._parser.current

    def feed(self, text: str) -> list[Result]:
        """Takes what was printed; gives the tests that ended in it."""
        lines = (self._rest + text.replace("\r", "")).split("\n")
        self._rest = lines.pop()
        while len(self._rest) > MAX_LINE:
            lines.append(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]
        ended = [self._line(line) for line in lines]
        return [result for result in ended if result is not None]

    def finish(self) -> ktap.Report:
        """Ends the console."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""
        return self._parser.finish()

    def tail(self) -> list[str]:
        """The last lines that are not empty."""
        return [*self._tail, self._rest][-TAIL_LINES:] if self._rest.strip() else list(self._tail)

    def _line(self, line: str) -> Result | None:
        if line.strip():
            self._tail.append(line[: ktap.MAX_LINE])
        if self.failure is None and any(pattern.search(line) for pattern in self._failures):
            self.failure = line.strip()[: ktap.MAX_NAME]
        if found := _EXIT.match(line):
            self.status = int(found[1])
        elif not self.is_up:
            # Not before: the kernel's own lines are no results.
            self.is_up = line == boot.READY
        elif line == boot.KERNEL_LOG:
            self._is_log = True
        elif not self._is_log:
            return self._parser.feed(line)
        return None
