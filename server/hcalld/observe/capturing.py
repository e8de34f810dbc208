# SPDX-License-Identifier: Apache-2.0
"""The capture of a running daemon: begun with it or by an operator, ended by either."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Protocol

import structlog
import trio

from hcalld.core.errors import ConfigError
from hcalld.core.tap import Taps
from hcalld.observe.capture import Capture, CaptureFailed, CaptureOptions


class Guests(Protocol):
    """Whose frames are kept: the server."""

    def begin_taps(self, taps: Taps) -> None:
        """Have all connections' frames kept from now on."""

    def end_taps(self) -> None:
        """Have no more frames kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Captured:
    """A capture, while it goes on or at its end."""

    path: pathlib.Path
    frames: int
    dropped: int
    entries_dropped: int = 0
    """Of what a capture with secrets has beside frames."""


class Capturing:
    """Begins and ends captures, one at a time.

    Args:
        guests: whose frames are kept.
        nursery: runs the capture; it outlives the guests.
        program: name and version of the daemon.
    """

    def __init__(self, guests: Guests, nursery: trio.Nursery, program: str) -> None:
        self._guests = guests
        self._nursery = nursery
        self._program = program
        self._capture: Capture | None = None
        self._ended = trio.Event()
        self._log = structlog.get_logger()

    @property
    def now(self) -> Captured | None:
        """The capture that goes on."""
        capture = self._capture
        return None if capture is None else _captured(capture)

    def begin(self, options: CaptureOptions, *, is_vital: bool = False) -> None:
        """Begin a capture.

        Args:
            options: where to.
            is_vital: if it cannot be written, the daemon ends.

        Raises:
            ConfigError: there is one already, or the file cannot be made.
        """
        self.must_be_free()
        self._capture = Capture(options, self._program)
        self._ended = trio.Event()
        # First: whatever happens next, the capture can be ended.
        self._nursery.start_soon(self._run, self._capture, is_vital)
        self._guests.begin_taps(self._capture)
        self._log.info("capture begun", path=str(options.path))

    def must_be_free(self) -> None:
        """See whether a capture can begin.

        Raises:
            ConfigError: there is one already.
        """
        if self._capture is not None:
            raise ConfigError(
                f"a capture goes on already, to {self._capture.path}; end it first with "
                "'hcalld ctl capture stop'"
            )

    async def end(self) -> Captured | None:
        """End the capture, if one goes on, and wait until all of it is written."""
        capture = self._capture
        if capture is None:
            return None
        self._guests.end_taps()
        capture.close()
        await self._ended.wait()
        return _captured(capture)

    async def _run(self, capture: Capture, is_vital: bool) -> None:
        try:
            await capture.run()
        except CaptureFailed as error:
            if is_vital:
                raise
            self._log.error("capture ended", reason=str(error))
        finally:
            self._guests.end_taps()
            self._capture = None
            self._ended.set()
            with trio.CancelScope(shield=True):
                await capture.aclose()
            done = _captured(capture)
            say = self._log.warning if done.dropped or done.entries_dropped else self._log.info
            say(
                "capture ended",
                path=str(done.path),
                frames=done.frames,
                dropped=done.dropped,
                answers_dropped=done.entries_dropped,
            )


def _captured(capture: Capture) -> Captured:
    return Captured(capture.path, capture.passed, capture.dropped, capture.entries_dropped)
