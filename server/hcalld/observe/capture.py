# SPDX-License-Identifier: Apache-2.0
"""The capture: every frame of every guest, in a pcapng file.

Guests are never held up. A connection hands its frames over as they are and goes on; they
are blanked, encoded and written afterwards, between other work. If the disk is slower than
the guests, frames are dropped and counted, and the file says where. If it fails, the
capture ends the daemon: who asked for one would take what is in it for all there was.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Final

import trio

from hcalld.core.errors import ConfigError, HcalldError
from hcallproto.capture import pcapng
from hcallproto.capture.blank import Blanker
from hcallproto.capture.pcapng import Direction, LinkType
from hcallproto.capture.records import Dropped, Record, Start, Stop
from hcallproto.capture.records import encode as encode_record
from hcallproto.wire import frames as f
from hcallproto.wire.encode import encode

MAX_PENDING_BYTES: Final = 64 << 20
"""Of frames that are not written yet; more are dropped."""
MAX_PENDING_FRAMES: Final = 1 << 16
SLICE: Final = 64
"""Frames that are encoded between two turns of the event loop."""
PAUSE_SECONDS: Final = 0.05
"""Frames are gathered for so long: a guest that calls now and then shares its processor less."""


class CaptureFailed(HcalldError):
    """The capture cannot be written."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """Where a capture goes, and how much of it is kept.

    Attributes:
        path: of the file; with ``file_bytes`` a number comes before its suffix.
        file_bytes: a new file is begun when one is longer; None: never.
        files: so many are kept, the oldest go; None: all.
    """

    path: pathlib.Path
    file_bytes: int | None = None
    files: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Pending:
    """Something that is to be written."""

    tap: _Tap
    time_ns: int
    direction: Direction
    what: f.Frame | Record
    size: int
    comment: str = ""


class _Tap:
    """One connection's way into the capture."""

    def __init__(
        self, capture: Capture, number: int, partition: str, profile: Mapping[str, str]
    ) -> None:
        self.partition = partition
        self.profile = profile
        self.description = f"{capture.name} {number}"
        self.blanker = Blanker()
        self.interface = 0
        """Its first interface's number in the file of this number:"""
        self.file = 0
        self.is_continued = False
        self.context: dict[type[f.Frame], tuple[Direction, f.Frame]] = {}
        """The newest of the frames that others cannot be understood without."""
        self.passed = 0
        self.dropped = 0
        self.dropped_now = 0
        """Since the last that was not."""
        self._capture = capture

    def received(self, frame: f.Frame, size: int) -> None:
        """See Tap."""
        self._capture.put(self, Direction.INBOUND, frame, size, "")

    def sent(self, frame: f.Frame, size: int, why: str) -> None:
        """See Tap."""
        self._capture.put(self, Direction.OUTBOUND, frame, size, why)

    def closed(self, why: str) -> None:
        """See Tap."""
        self._capture.close_tap(self, why)


_CONTEXT: Final = (f.Hello, f.Welcome, f.Announce, f.Accept, f.Ram)


class Capture:
    """A capture that is being written.

    Args:
        options: where to.
        program: name and version of the daemon, for whoever reads it.
        clock: nanoseconds since the epoch.

    Raises:
        ConfigError: the file cannot be made.
    """

    def __init__(
        self,
        options: CaptureOptions,
        program: str,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name = os.urandom(4).hex()
        """Tells connections in this capture from those in others."""
        self.passed = 0
        """Frames that there were, those that were dropped included."""
        self.dropped = 0
        self._options = options
        self._program = program
        self._clock = clock
        self._pending: collections.deque[_Pending] = collections.deque()
        self._pending_bytes = 0
        self._wanted = trio.Event()
        self._is_closing = False
        self._taps: dict[_Tap, None] = {}
        self._count = 0
        self._paths: collections.deque[pathlib.Path] = collections.deque()
        self._file_number = 0
        self._written = 0
        self._interfaces = 0
        self._fd = self._open()
        self._data = bytearray(self._head())

    @property
    def path(self) -> pathlib.Path:
        """The file that is being written."""
        return self._paths[-1]

    # -- what connections do ---------------------------------------------------------------

    def tap(
        self, partition: str, profile: Mapping[str, str], *, is_continued: bool = False
    ) -> _Tap:
        """A connection's way in.

        Args:
            partition: whose it is.
            profile: the partition's attributes as text, without secrets.
            is_continued: there were frames before that are not in the capture.
        """
        self._count += 1
        tap = _Tap(self, self._count, partition, profile)
        tap.is_continued = is_continued
        self._taps[tap] = None
        return tap

    def put(
        self, tap: _Tap, direction: Direction, what: f.Frame | Record, size: int, comment: str
    ) -> None:
        """Take a frame, or drop it."""
        pending = self._pending
        tap.passed += 1
        self.passed += 1
        if len(pending) >= MAX_PENDING_FRAMES or self._pending_bytes + size > MAX_PENDING_BYTES:
            tap.dropped += 1
            tap.dropped_now += 1
            self.dropped += 1
            return
        now = self._clock()
        if tap.dropped_now:
            record = Dropped(frames=tap.dropped_now)
            pending.append(_Pending(tap, now, Direction.UNKNOWN, record, 0))
            tap.dropped_now = 0
        pending.append(_Pending(tap, now, direction, what, size, comment))
        self._pending_bytes += size
        self._wanted.set()

    def close_tap(self, tap: _Tap, why: str) -> None:
        """A connection has ended."""
        if tap in self._taps:
            del self._taps[tap]
            # Never dropped: so few there are.
            now = self._clock()
            if tap.dropped_now:
                record = Dropped(frames=tap.dropped_now)
                self._pending.append(_Pending(tap, now, Direction.UNKNOWN, record, 0))
            self._pending.append(_Pending(tap, now, Direction.UNKNOWN, Stop(why=why), 0))
            self._wanted.set()

    # -- writing ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what comes, until ``close``.

        Raises:
            CaptureFailed: the file cannot be written.
        """
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if not self._is_closing:
                await trio.sleep(PAUSE_SECONDS)
            await self._drain()
            if self._is_closing:
                return

    def close(self, why: str = "the capture was ended") -> None:
        """Have ``run`` write what there is, and end."""
        for tap in list(self._taps):
            self.close_tap(tap, why)
        self._is_closing = True
        self._wanted.set()

    async def aclose(self) -> None:
        """Close the file, after ``run``."""
        await trio.to_thread.run_sync(os.close, self._fd)

    async def _drain(self) -> None:
        while self._pending:
            for _ in range(min(SLICE, len(self._pending))):
                self._encode(self._pending.popleft())
            await trio.lowlevel.checkpoint()
            if len(self._data) >= 1 << 20:
                await self._write()
        await self._write()

    async def _write(self) -> None:
        data, self._data = bytes(self._data), bytearray()
        if data:
            self._written += len(data)
            await trio.to_thread.run_sync(self._write_now, data)
        limit = self._options.file_bytes
        if limit is not None and self._written >= limit:
            await trio.to_thread.run_sync(self._turn)
            self._data += self._head()

    def _write_now(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> CaptureFailed:
        return CaptureFailed(
            f"{self._paths[-1]}: the capture cannot be written: {error.strerror}; make room or "
            "give another file, and start again: guests wait"
        )

    def _encode(self, one: _Pending) -> None:
        tap = one.tap
        self._pending_bytes -= one.size
        number = self._interface_of(tap, one.time_ns)
        if isinstance(one.what, Record):
            self._record(tap, one.what, one.time_ns)
            if isinstance(one.what, Stop):
                self._data += pcapng.statistics(number, one.time_ns, tap.passed, tap.dropped)
            return
        shown = tap.blanker.blank(one.what)
        if isinstance(shown, _CONTEXT):
            tap.context[type(shown)] = one.direction, shown
        self._data += pcapng.packet(number, one.time_ns, encode(shown), one.direction, one.comment)

    def _interface_of(self, tap: _Tap, now: int) -> int:
        """Its number in this file; the first time also what a reader must know of it."""
        if tap.file != self._file_number:
            tap.is_continued |= tap.file > 0
            tap.file = self._file_number
            tap.interface = self._interfaces
            self._interfaces += 2
            for link in (LinkType.FRAMES, LinkType.RECORDS):
                self._data += pcapng.interface(link, tap.partition, tap.description)
            start = Start(
                program=self._program,
                partition=tap.partition,
                profile=tap.profile,
                is_continued=tap.is_continued,
            )
            self._record(tap, start, now)
            for direction, frame in tap.context.values():
                self._data += pcapng.packet(
                    tap.interface, now, encode(frame), direction, "from an earlier file"
                )
        return tap.interface

    def _record(self, tap: _Tap, record: Record, now: int) -> None:
        self._data += pcapng.packet(tap.interface + 1, now, encode_record(record))

    # -- files -----------------------------------------------------------------------------

    def _head(self) -> bytes:
        return pcapng.section(self._program)

    def _path(self) -> pathlib.Path:
        path = self._options.path
        self._file_number += 1
        if self._options.file_bytes is None:
            return path
        return path.with_name(f"{path.stem}_{self._file_number:05}{path.suffix}")

    def _open(self) -> int:
        path = self._path()
        self._paths.append(path)
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{path}: the capture cannot be made: {error.strerror}; expected a path in a "
                "directory that exists and that we may write"
            ) from None

    def _turn(self) -> None:
        """Go on in a new file."""
        os.close(self._fd)
        try:
            self._fd = self._open()
            keep = self._options.files or math.inf
            while len(self._paths) > keep:
                self._paths.popleft().unlink(missing_ok=True)
        except OSError as error:
            raise self._failed(error) from None
        except ConfigError as error:
            raise CaptureFailed(str(error)) from None
        self._written = self._interfaces = 0
