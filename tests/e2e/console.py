# SPDX-License-Identifier: Apache-2.0
"""A guest's console: what it prints, and waiting for it.

Who waits for a pattern names patterns of failure too, so that a guest that has crashed ends the
test at once and not at the deadline.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.e2e.patience import patience

from hcalld.guest.machine import LINUX_FAILURES

__all__ = ["LINUX_FAILURES", "STUB_FAILURES", "Console", "ConsoleError"]

STUB_FAILURES: Final = (r"Bail out!", r"SLOF.*(?:EXCEPTION|exception)")
"""What the guest stub or its firmware prints when it cannot go on."""

_TAIL_LINES = 40
_OVERLAP = 4096
"""What was searched is searched again for so many characters: a match may have come in pieces."""


class ConsoleError(AssertionError):
    """The guest printed what it must not, or not what it must."""


class Console:
    """Reads a guest's console in a thread of its own, from a pipe, into a log.

    Args:
        descriptor: The pipe's reading end; owned from now on.
        log: File that gets everything.
        failures: Patterns that end every wait with an error.
    """

    def __init__(self, descriptor: int, log: Path, failures: Sequence[str]) -> None:
        self._descriptor = descriptor
        self._log = log
        self._failures = [re.compile(pattern) for pattern in failures]
        self._text = ""
        self._is_over = False
        self._seen = 0
        self._checked = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """All that was printed so far."""
        with self._changed:
            return self._text

    @property
    def size(self) -> int:
        """How many characters were printed so far."""
        with self._changed:
            return len(self._text)

    @property
    def is_over(self) -> bool:
        """True when QEMU has closed the console."""
        with self._changed:
            return self._is_over

    def expect(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Waits for a pattern after the one that was waited for before.

        Raises:
            ConsoleError: A pattern of failure came first, the guest ended, or time is up.
        """
        wanted = re.compile(pattern, re.MULTILINE)
        end = time.monotonic() + patience(seconds)
        with self._changed:
            start = self._seen
            while True:
                found = wanted.search(self._text, start)
                self._check_failures(found.start() if found else len(self._text))
                start = max(start, len(self._text) - _OVERLAP)
                if found is not None:
                    self._seen = found.end()
                    return found
                if self._is_over:
                    raise self._error(f"the guest ended without printing {pattern!r}")
                left = end - time.monotonic()
                if left <= 0:
                    raise self._error(f"{pattern!r} was not printed within {patience(seconds)} s")
                self._changed.wait(left)

    def expect_end(self, seconds: float = 60) -> str:
        """Waits until QEMU closes the console; gives all of it.

        Raises:
            ConsoleError: A pattern of failure came, or time is up.
        """
        end = time.monotonic() + patience(seconds)
        with self._changed:
            while True:
                self._check_failures(len(self._text))
                if self._is_over:
                    return self._text
                left = end - time.monotonic()
                if left <= 0:
                    raise self._error(f"the guest has not ended within {patience(seconds)} s")
                self._changed.wait(left)

    def close(self) -> None:
        """Waits for the reader, which ends with QEMU."""
        self._thread.join(patience(10))
        if not self._thread.is_alive() and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_failures(self, until: int) -> None:
        start = max(self._checked - _OVERLAP, 0)
        self._checked = max(self._checked, until)
        for failure in self._failures:
            found = failure.search(self._text, start, until)
            if found is not None:
                # What follows is the register dump or the list of tests: wanted in the log.
                self._changed.wait(0.5)
                raise self._error(f"the guest printed {found.group(0)!r}")

    def _error(self, what: str) -> ConsoleError:
        tail = "\n".join(self._text.splitlines()[-_TAIL_LINES:])
        return ConsoleError(f"{what}; the console ends with\n{tail}")

    def _read(self) -> None:
        with self._log.open("ab") as log:
            while True:
                try:
                    data = os.read(self._descriptor, 1 << 16)
                except OSError:
                    data = b""
                if not data:
                    break
                log.write(data)
                log.flush()
                text = data.decode("utf-8", "replace").replace("\r", "")
                with self._changed:
                    self._text += text
                    self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
