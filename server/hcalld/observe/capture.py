# SPDX-License-Identifier: Apache-2.0
"""The capture: every frame of every guest, in a pcapng file.

Guests are never held up. A connection hands its frames over as they are and goes on; they
are blanked, encoded and written afterwards, between other work. If the disk is slower than
the guests, frames are dropped and counted, and the file says where. If it fails, the
capture ends the daemon: who asked for one would take what is in it for all there was.

A file may be one that takes nothing for ever, such as a pipe whose reader sleeps. Nobody waits
for it longer than he wants to: threads that write are left behind, with the file.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, TypeVarTuple

import trio

from hcalld.captures.sealing import CaptureKey
from hcalld.core.errors import ConfigError, HcalldError
from hcalld.core.tap import NOW
from hcalld.observe.files import CaptureFiles
from hcalld.observe.pieces import Piece, Pieces, Track
from hcallproto.capture.entries import AnyEntry, End, Entry, Lost, size_of
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.records import Dropped, Record, Stop
from hcallproto.wire import frames as f

MAX_PENDING_BYTES: Final = 64 << 20
"""Of what is not written yet; more is dropped."""
MAX_PENDING_BYTES_SEALED: Final = 256 << 20
"""With secrets: a secure VM's start reads its kernel faster than it is compressed."""
MAX_PENDING: Final = 1 << 16
"""Frames and entries that are not written yet."""
MAX_PENDING_ENDS: Final = 1 << 12
"""Beside these, what is said of connections that end while nothing can be written."""
WRITE_BYTES: Final = 1 << 16
"""At a time, that it be seen whether a slow file takes anything."""
CLOSE_SECONDS: Final = 5
SLICE: Final = 16
"""Frames that are encoded between two turns of the event loop."""
PAUSE_SECONDS: Final = 0.05
"""Frames are gathered for so long: a guest that calls now and then shares its processor less."""
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK


_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class CaptureFailed(HcalldError):
    """The capture cannot be written."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """Where a capture goes, and how much of it is kept.

    Attributes:
        path: of the file; with ``file_bytes`` a number comes before its suffix.
        file_bytes: a new file is begun when one is longer; None: never.
        files: so many are kept, the oldest go; None: all.
        key: seals what is secret; None: it is left out.
    """

    path: pathlib.Path
    file_bytes: int | None = None
    files: int | None = None
    key: CaptureKey | None = None


class _Tap:
    """One connection's way into the capture."""

    def __init__(self, capture: Capture, track: Track, *, keeps_secrets: bool) -> None:
        self.track = track
        self.keeps_secrets = keeps_secrets
        self.passed = 0
        self.dropped = 0
        self.is_losing = False
        """The last was dropped. Since the last that was not, so many frames were, and entries:"""
        self.frames_lost = 0
        self.entries_lost = 0
        self._capture = capture

    def received(self, frame: f.Frame, data: bytes) -> None:
        """See Tap."""
        self._capture.put(self, Direction.INBOUND, frame, data, "")

    def sent(self, frame: f.Frame, data: bytes, why: str) -> None:
        """See Tap."""
        self._capture.put(self, Direction.OUTBOUND, frame, data, why)

    def happened(self, entry: AnyEntry) -> None:
        """See Tap."""
        self._capture.put_entry(self, entry)

    def closed(self, why: str) -> None:
        """See Tap."""
        self._capture.close_tap(self, why)


_What = f.Frame | Record | AnyEntry
_Pending = tuple[_Tap, int, Direction, _What, bytes, int, str]
"""Whose, when, which way, what, a frame's bytes, how much memory it takes, and the comment: not a
class, for making one must not cost a call a microsecond."""


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
        self.dropped = 0
        self.entries_dropped = 0
        self.ends_dropped = 0
        """Connections of whose end the capture says nothing."""
        self.bytes_written = 0
        """In all files."""
        self.is_whole = False
        """It has ended, and all that was not dropped is in the files."""
        self._scope = trio.CancelScope()
        self._limiter = trio.CapacityLimiter(1)
        """Its own: threads that are left behind must not be missed elsewhere."""
        self._lock = threading.Lock()
        self._is_busy = False
        """A thread uses the file; once ``aclose`` has come, it closes the file at its end:"""
        self._is_closed = False
        self._frames_taken = 0
        """Frames that are encoded, but not written yet."""
        self._options = options
        self._max_bytes = MAX_PENDING_BYTES if options.key is None else MAX_PENDING_BYTES_SEALED
        self._clock = clock
        self._pending: collections.deque[_Pending] = collections.deque()
        self._pending_bytes = 0
        self._wanted = trio.Event()
        self._is_closing = False
        self._taps: dict[_Tap, None] = {}
        self._passed_before = 0
        """Frames of connections that have ended."""
        self._count = 0
        self._files = CaptureFiles(
            options.path, is_ring=options.file_bytes is not None, keep=options.files
        )
        self._written = 0
        self._fd = self._open()
        self._pieces = Pieces(program, options.key)

    @property
    def passed(self) -> int:
        """Frames that there were, those that were dropped included."""
        return self._passed_before + sum(tap.passed for tap in self._taps)

    @property
    def unwritten(self) -> int:
        """Frames that were not dropped, and are not written."""
        waiting = (not isinstance(what, Entry | Record) for _, _, _, what, *_ in self._pending)
        return self._frames_taken + sum(waiting)

    @property
    def put_aside(self) -> pathlib.Path | None:
        """Where what had this capture's name before is now."""
        return self._files.put_aside

    @property
    def path(self) -> pathlib.Path:
        """The file that is being written."""
        return self._files.paths[-1]

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
        description = f"{self.name} {self._count}"
        track = Track(partition, profile, description, is_continued=is_continued)
        tap = _Tap(self, track, keeps_secrets=self._options.key is not None)
        self._taps[tap] = None
        return tap

    def put(
        self, tap: _Tap, direction: Direction, frame: f.Frame, data: bytes, comment: str
    ) -> None:
        """Take a frame, or drop it."""
        # Each line costs every call: a twentieth of a microsecond, twice.
        tap.passed += 1
        pending = self._pending
        if not pending:
            self._wanted.set()
        total = self._pending_bytes + len(data)
        if len(pending) >= MAX_PENDING or total > self._max_bytes:
            tap.is_losing = True
            tap.dropped += 1
            tap.frames_lost += 1
            self.dropped += 1
            return
        if tap.is_losing:
            self._tell_of_loss(tap)
        pending.append((tap, self._clock(), direction, frame, data, len(data), comment))
        self._pending_bytes = total

    def put_entry(self, tap: _Tap, entry: AnyEntry) -> None:
        """Take an entry, or drop it; after the connection's end there are none."""
        if tap not in self._taps:
            return
        size = size_of(entry)
        self._wanted.set()
        if len(self._pending) >= MAX_PENDING or self._pending_bytes + size > self._max_bytes:
            tap.is_losing = True
            tap.entries_lost += 1
            self.entries_dropped += 1
            return
        if tap.is_losing:
            self._tell_of_loss(tap)
        self._pending.append((tap, self._clock(), Direction.UNKNOWN, entry, b"", size, ""))
        self._pending_bytes += size

    def close_tap(self, tap: _Tap, why: str) -> None:
        """A connection has ended."""
        if tap in self._taps:
            del self._taps[tap]
            self._passed_before += tap.passed
            # Not dropped with the frames, so few there are; but a guest may come and go for ever.
            if len(self._pending) >= MAX_PENDING + MAX_PENDING_ENDS:
                self.ends_dropped += 1
                return
            if tap.is_losing:
                self._tell_of_loss(tap)
            now = self._clock()
            if tap.keeps_secrets:
                self._pending.append((tap, now, Direction.UNKNOWN, End(NOW, why), b"", 0, ""))
            self._pending.append((tap, now, Direction.UNKNOWN, Stop(why=why), b"", 0, ""))
            self._wanted.set()

    def _tell_of_loss(self, tap: _Tap) -> None:
        now = self._clock()
        if tap.keeps_secrets:
            lost = Lost(NOW, tap.frames_lost, tap.entries_lost)
            self._pending.append((tap, now, Direction.UNKNOWN, lost, b"", 0, ""))
        record = Dropped(frames=tap.frames_lost, entries=tap.entries_lost)
        self._pending.append((tap, now, Direction.UNKNOWN, record, b"", 0, ""))
        tap.frames_lost = tap.entries_lost = 0
        tap.is_losing = False

    # -- writing ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what comes, until ``close``, or ``give_up``.

        Raises:
            CaptureFailed: the file cannot be written.
        """
        with self._scope:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                if not self._is_closing:
                    await trio.sleep(PAUSE_SECONDS)
                await self._drain()
                # It may have been closed while the last piece was written.
                if self._is_closing and not self._pending:
                    self.is_whole = True
                    return

    def close(self, why: str = "the capture was ended") -> None:
        """Have ``run`` write what there is, and end."""
        for tap in list(self._taps):
            self.close_tap(tap, why)
        self._is_closing = True
        self._wanted.set()

    def give_up(self) -> None:
        """Have ``run`` end, whatever is not written."""
        self._scope.cancel()

    async def aclose(self) -> None:
        """Close the file, after ``run``."""
        with self._lock:
            self._is_closed = True
            if self._is_busy:
                # Its number may be another file's before the thread has gone on.
                return
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await trio.to_thread.run_sync(
                os.close, self._fd, abandon_on_cancel=True, limiter=self._limiter
            )

    async def _in_thread(self, function: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """Use the file, for as long as it takes or until ``give_up``."""

        def use() -> _T:
            with self._lock:
                if self._is_closed:
                    # Left behind before it began.
                    raise trio.ClosedResourceError
                self._is_busy = True
            try:
                return function(*args)
            finally:
                self._release()

        return await trio.to_thread.run_sync(use, abandon_on_cancel=True, limiter=self._limiter)

    def _release(self) -> None:
        with self._lock:
            self._is_busy = False
            if self._is_closed:
                os.close(self._fd)

    async def _drain(self) -> None:
        pending, pieces = self._pending, self._pieces
        while pending:
            for _ in range(min(SLICE, len(pending))):
                self._encode(pending.popleft())
                if pieces.is_full:
                    break
            await trio.lowlevel.checkpoint()
            if pieces.is_full:
                await self._write()
        await self._write()

    async def _write(self) -> None:
        piece = self._pieces.take()
        if piece is not None:
            self._written += await self._in_thread(self._write_now, piece)
            self._frames_taken = 0
        limit = self._options.file_bytes
        if limit is not None and self._written >= limit:
            await self._in_thread(self._turn)
            self._pieces.begin_file()

    def _write_now(self, piece: Piece) -> int:
        data = piece.data()
        rest = memoryview(data)
        try:
            while rest:
                count = os.write(self._fd, rest[:WRITE_BYTES])
                self.bytes_written += count
                rest = rest[count:]
        except OSError as error:
            raise self._failed(error) from None
        return len(data)

    def _failed(self, error: OSError) -> CaptureFailed:
        return CaptureFailed(
            f"{self.path}: the capture cannot be written: {error.strerror}; make room or "
            "give another file, and start again: guests wait"
        )

    def _encode(self, one: _Pending) -> None:
        tap, now, direction, what, data, size, comment = one
        self._pending_bytes -= size
        pieces, track = self._pieces, tap.track
        if isinstance(what, Entry):
            pieces.entry(track, now, what)
        elif isinstance(what, Record):
            pieces.record(track, now, what)
            if isinstance(what, Stop):
                pieces.statistics(track, now, tap.passed, tap.dropped)
        else:
            self._frames_taken += 1
            pieces.frame(track, now, direction, what, data, comment)

    # -- files -----------------------------------------------------------------------------

    def _open(self) -> int:
        path, fd = self._options.path, -1
        try:
            path = self._files.next_path()
            # A named pipe that nobody reads would hold up all guests until somebody does.
            fd = os.open(path, _FLAGS, 0o600)
            self._files.begun(path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            expected = "a path in a directory that exists and that we may write"
            if error.errno == errno.ENXIO:
                expected = "a file, or a named pipe that is read already; start its reader first"
            raise ConfigError(
                f"{path}: the capture cannot be made: {error.strerror}; expected {expected}"
            ) from None
        os.set_blocking(fd, True)
        return fd

    def _turn(self) -> None:
        """Go on in a new file."""
        try:
            # The old one stays open until then: ``aclose`` closes one, whatever fails here.
            fd, self._fd = self._fd, self._open()
            os.close(fd)
        except OSError as error:
            raise self._failed(error) from None
        except ConfigError as error:
            raise CaptureFailed(str(error)) from None
        self._written = 0
