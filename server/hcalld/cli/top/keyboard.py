# SPDX-License-Identifier: Apache-2.0
"""Keys, while something else is shown on the terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Self


class Keyboard:
    """The terminal on standard input, key by key; no keys come if it is none.

    As a context manager it gives the terminal back as it was.
    """

    def __init__(self) -> None:
        self._fd: int | None = None
        self._before: list[int | list[bytes | int]] = []

    def __enter__(self) -> Self:
        if sys.stdin.isatty():
            self._fd = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float, keys: str) -> str:
        """Wait for one of some keys, and not longer than that; "" if none came."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._fd is None:
                time.sleep(left)
                break
            if not select.select([self._fd], [], [], left)[0]:
                break
            pressed = os.read(self._fd, 1).decode("ascii", "replace")
            if not pressed:  # it was hung up
                self._fd = None
            elif pressed in keys:
                return pressed
        return ""
