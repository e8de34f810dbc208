# SPDX-License-Identifier: Apache-2.0
"""The capture of a running daemon: begun with it or by an operator, ended by either."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Final, Protocol

import trio

from hcalld.core.errors import ConfigError
from hcalld.core.log import Log
from hcalld.core.tap import Taps
from hcalld.observe.capture import Capture, CaptureFailed, CaptureOptions

STALL_SECONDS: Final = 10
"""At its end a capture is given up if none of it was written for so long,"""
END_SECONDS: Final = 60
"""or if it takes so long; a service manager waits for 90 s before it kills."""


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
    is_whole: bool = True
    """All that was not dropped is in the file; if not, so many frames are missing beside:"""
    unwritten: int = 0
    is_vital: bool = False
    """The daemon was asked for it when it was started."""

    def must_be_whole(self) -> None:
        """See whether all that was not dropped is in the file.

        Raises:
            CaptureFailed: it is not.
        """
        if not self.is_whole:
            raise CaptureFailed(
                f"{self.path}: the capture is not whole: {self.unwritten} frames are not written, "
                "for the file took nothing any more; see that its disk, or the pipe's reader, goes "
                "on, and take it again"
            )


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
        self._is_vital = False
        self._ended = trio.Event()
        self._log = Log()

    @property
    def now(self) -> Captured | None:
        """The capture that goes on."""
        capture = self._capture
        return None if capture is None else _captured(capture)

    def begin(self, options: CaptureOptions, *, is_vital: bool = False) -> None:
        """Begin a capture.

        Args:
            options: where to.
            is_vital: if it cannot be written, the daemon ends, and fails.

        Raises:
            ConfigError: there is one already, or the file cannot be made.
        """
        self.must_be_free()
        self._capture, self._is_vital = Capture(options, self._program), is_vital
        self._ended = trio.Event()
        # First: whatever happens next, the capture can be ended.
        self._nursery.start_soon(self._run, self._capture)
        self._guests.begin_taps(self._capture)
        self._log.info("capture begun", path=str(options.path))
        if self._capture.put_aside is not None:
            aside = str(self._capture.put_aside)
            self._log.warning("an earlier capture has another name now", path=aside)

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
        """End the capture, if one goes on, and wait until all of it is written.

        What a file does not take in time is given up, and told.
        """
        capture = self._capture
        if capture is None:
            return None
        ended, is_vital = self._ended, self._is_vital
        self._guests.end_taps()
        capture.close()
        with trio.move_on_after(END_SECONDS):
            await _wait_while_written(capture, ended)
        if not ended.is_set():
            capture.give_up()
            await ended.wait()
        return dataclasses.replace(_over(capture), is_vital=is_vital)

    async def _run(self, capture: Capture) -> None:
        is_vital = self._is_vital
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
            self._tell(_over(capture), capture.ends_dropped)

    def _tell(self, done: Captured, ends_dropped: int) -> None:
        counts = {
            "path": str(done.path),
            "frames": done.frames,
            "dropped": done.dropped,
            "answers_dropped": done.entries_dropped,
        }
        if ends_dropped:
            counts["ends_dropped"] = ends_dropped
        if not done.is_whole:
            self._log.error("the capture is not whole", **counts, not_written=done.unwritten)
        elif done.dropped or done.entries_dropped or ends_dropped:
            self._log.warning("capture ended", **counts)
        else:
            self._log.info("capture ended", **counts)


async def _wait_while_written(capture: Capture, ended: trio.Event) -> None:
    """Wait for the capture's end, or until nothing is written any more."""
    before = -1
    while not ended.is_set() and capture.bytes_written != before:
        before = capture.bytes_written
        with trio.move_on_after(STALL_SECONDS):
            await ended.wait()


def _captured(capture: Capture) -> Captured:
    return Captured(capture.path, capture.passed, capture.dropped, capture.entries_dropped)


def _over(capture: Capture) -> Captured:
    """A capture that has ended."""
    return dataclasses.replace(
        _captured(capture), is_whole=capture.is_whole, unwritten=capture.unwritten
    )
