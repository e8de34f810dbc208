# SPDX-License-Identifier: Apache-2.0
"""What happened on the connections of a capture, in order: frames, and what is sealed.

With its key a capture with secrets gives whole frames, and between them the state, answers
and orders that were sealed. Without, it gives what every capture does: frames that are
blanked, and which of them are.

Ring files are read as one: their bytes, one file after another. What a file repeats of the
ones before is passed over; with the key, what is missing between them is told as dropped.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from hcalld.captures.sealing import FileOpener, Keys
from hcalld.crypto.locks import Unlock
from hcallproto.capture import entries as e
from hcallproto.capture.blank import Blanker
from hcallproto.capture.pcapng import Direction
from hcallproto.capture.problems import Problems
from hcallproto.capture.reading import CaptureReader, Entry, Plain
from hcallproto.capture.records import REPEATED, Dropped, Key, Record, Sealed, Start, Stop
from hcallproto.errors import CaptureDamage, CaptureError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire.decode import decode, decode_header

_MARK: Final = 0xA5
"""Takes the place of blanked bytes, to see where they are."""

MAX_HELD: Final = 512 << 20
"""Bytes of what was opened and waits for the frame before which it happened, of all
connections: a piece of a file holds 1 MiB of it and one entry that is larger."""
_RECORD_BYTES: Final = 128
"""That a record or reply of a state takes in memory beyond what ``size_of`` counts."""
_ADDRESS_BYTES: Final = 32
"""That a guest address does."""

_BEFORE_STATE: Final = (f.Hello, f.Welcome, f.Announce, f.Accept, f.Ram)
"""Frames that may come before the state; those that begin a capture in mid-connection."""


class Event(NamedTuple):
    """One thing that happened on a connection."""

    guest: str
    connection: int
    """Counts the guests' connections from 0."""
    time_ns: int
    """Of what is sealed: when the next frame passed."""
    direction: Direction
    comment: str
    what: f.Frame | Record | e.AnyEntry
    """Records are Start, Stop and Dropped. Entries are all but Full, Lost and End."""
    is_blanked: bool
    """A frame, and some of its bytes are not shown."""
    offset: int
    """In the file."""
    data: bytes = b""
    """A frame's, if they are at hand."""


class Events:
    """The events of a capture.

    Args:
        chunks: the bytes of the file, or of several one after another.
        unlock: opens what is sealed; None: it stays closed.

    Attributes:
        inexact: why a connection cannot be replayed to the byte, by its number; of those that
            are not in it everything was there so far.
        remarks: at the end, which connections have none: a daemon that was killed leaves a file
            that is whole otherwise.
        says_asked: of all answers that were opened it is known what they were given to.
    """

    def __init__(self, chunks: Iterable[bytes], unlock: Unlock | None = None) -> None:
        self.inexact: dict[int, str] = {}
        self.remarks = Problems()
        self.says_asked = True
        self._reader = CaptureReader(chunks)
        self._keys = None if unlock is None else Keys(unlock)
        self._followed: dict[int, _Followed] = {}
        self._held = _Held()

    @property
    def problems(self) -> list[str]:
        """What is damaged and could not be understood, in words."""
        return self._reader.problems

    def __iter__(self) -> Iterator[Event]:
        """Everything up to the end, or to what is damaged.

        Raises:
            CaptureError: it is no capture, none with secrets, or not for this key.
            CaptureDamage: sealed records were altered, moved or removed.
        """
        # Of entries that are none of Plain, only events are made.
        return self._each(iter(self._reader))  # type: ignore[return-value]

    def undecoded(self) -> Iterator[Event | Plain]:
        """The same, but frames of which there is no more to say than their bytes stay bytes."""
        return self._each(self._reader.undecoded())

    def _each(self, entries: Iterator[Entry | Plain]) -> Iterator[Event | Plain]:
        for entry in entries:
            followed = self._followed.get(entry.connection)
            if followed is None:
                name = self._reader.name_of(entry.connection)
                followed = _Followed(name, self._keys, self._held)
                self._followed[entry.connection] = followed
            if isinstance(entry, Plain):
                if followed.is_shown():
                    if followed.waiting:
                        yield from followed.until_now(entry)
                        self._keep(followed, entry)
                    followed.take_plain(entry)
                    yield entry
                    continue
                entry = entry.decoded()
            try:
                yield from followed.take(entry)
            except CaptureDamage as error:
                raise CaptureDamage(f"at byte {entry.offset}: {error}") from None
            except CaptureError as error:
                raise CaptureError(f"at byte {entry.offset}: {error}") from None
            self._keep(followed, entry)
            self.says_asked &= followed.says_asked
        for number, followed in self._followed.items():
            yield from followed.end()
            if not followed.is_over:
                why = "its end is missing: the capture was cut off, or goes on in another file"
                what = f"connection {number} of guest {followed.name[0]!r}: {why}"
                self.remarks.add(followed.last_offset, what)
                self.inexact.setdefault(number, why)

    def _keep(self, followed: _Followed, entry: Entry | Plain) -> None:
        """The first reason for which a connection is inexact."""
        if followed.inexact:
            self.inexact.setdefault(entry.connection, followed.inexact)


class _Held:
    """What was opened of all connections and was not given out yet."""

    def __init__(self) -> None:
        self.size = 0

    def add(self, size: int) -> None:
        """So many bytes more, or less.

        Raises:
            CaptureDamage: these are too many.
        """
        self.size += size
        if size > 0 and self.size > MAX_HELD:
            raise CaptureDamage(
                f"more than {MAX_HELD >> 20} MiB of what is sealed waits for its frames, as in no "
                "capture of hcalld's"
            )


class _Followed:
    """One connection.

    Args:
        name: its interfaces' name and description.
        keys: of whoever reads.
        held: the sum over all connections.
    """

    def __init__(self, name: tuple[str, str], keys: Keys | None, held: _Held) -> None:
        self.name = name
        self.inexact = ""
        self.is_over = False
        self._keys = keys
        self._all_held = held
        self._held = 0
        """Of these this connection's: entries, and parts of sealed records."""
        self._parts = 0
        self._marker = Blanker(_MARK)
        self._files = 0
        """That it is in."""
        self._passed = 0
        """Frames of it in all of them."""
        self.says_asked = True
        self._has_state = False
        self._last: Entry | Plain | None = None
        self._begin_file()

    def _begin_file(self) -> None:
        self._hold(-self._held)
        self._parts = 0
        self._opener: FileOpener | None = None
        self._packets = 0
        self._is_sealed = False
        """Some of it was opened. So many frames are spoken of:"""
        self._covered = 0
        self.waiting: collections.deque[e.AnyEntry] = collections.deque()
        self._full: dict[int, e.Full] = {}
        self._has_end = False

    def take(self, entry: Entry) -> Iterator[Event]:
        """What is known by the next packet."""
        self._last = entry
        what = entry.what
        match what:
            case Start():
                yield from self._start(entry, what)
            case Key():
                if self._keys is not None:
                    self._opener = self._keys.of(what)
            case Sealed():
                if self._opener is not None:
                    yield from self._open(entry, what, self._opener)
            case Dropped():
                self._miss(what.frames + what.entries)
                if self._opener is None:
                    yield _event(entry, what)
            case Stop():
                yield from self._until(self._packets, entry)
                if self._opener is not None and not self._has_end:
                    raise CaptureDamage("the connection's last sealed record is missing")
                self.is_over = True
                yield _event(entry, what)
            case Record():
                yield _event(entry, what)
            case _:
                yield from self._frame(entry, what)

    @property
    def last_offset(self) -> int:
        """Where its last packet is."""
        return 0 if self._last is None else self._last.offset

    def is_shown(self) -> bool:
        """Whether the next packet's bytes are all that there is to say of its frame."""
        number = self._packets
        return (
            number < self._covered
            and number not in self._full
            and (self._has_state or bool(self.inexact))
        )

    def until_now(self, entry: Entry | Plain) -> Iterator[Event]:
        """What happened before the next packet."""
        return self._until(self._packets, entry)

    def take_plain(self, entry: Plain) -> None:
        """The next packet, if ``is_shown``."""
        self._last = entry
        self._packets += 1
        self._passed += 1

    def end(self) -> Iterator[Event]:
        """The file is over."""
        if self._last is not None:
            yield from self._until(self._packets, self._last)

    def _start(self, entry: Entry, start: Start) -> Iterator[Event]:
        if self._files:
            yield from self._until(self._packets, entry)
        self._begin_file()
        self.says_asked = start.says_asked or self._keys is None
        self._files += 1
        if self._files > 1:
            return
        if not start.has_secrets:
            if self._keys is not None:
                raise CaptureError(
                    "the capture has no secrets to open; it was made without --capture-secrets"
                )
            self.inexact = "its secrets were not captured"
        elif self._keys is None:
            self.inexact = "its secrets were not opened"
        yield _event(entry, start)

    def _open(self, entry: Entry, record: Sealed, opener: FileOpener) -> Iterator[Event]:
        yield from self._until(self._packets, entry)
        if self._packets != self._covered and self._is_sealed:
            raise CaptureDamage(
                f"{self._packets} frames of the connection, expected {self._covered}: some were "
                "removed or added"
            )
        batch = opener.open(self.name, record)
        parts, self._parts = self._parts, opener.held
        self._hold(self._parts - parts)
        if batch is None:
            return
        if not self._is_sealed:
            if self._packets != batch.context:
                raise CaptureDamage(
                    f"the file begins with {self._packets} frames of the connection, expected "
                    f"{batch.context}"
                )
            if batch.known > self._passed:
                yield from self._gap(entry, batch.known - self._passed)
        elif batch.first != self._covered:
            raise CaptureDamage(f"a sealed record from frame {batch.first}, not {self._covered}")
        self._is_sealed = True
        self._covered = batch.end
        self._full = {}
        # All that waited was given out; of frames there were as many as were spoken of.
        self._hold(-self._held)
        at = batch.first
        for one in batch.entries:
            if not at <= one.at <= batch.end:
                raise CaptureDamage(f"an entry of frame {one.at}, expected {at} to {batch.end}")
            at = one.at
            if isinstance(one, e.Full):
                self._full[at] = one
            elif type(one) is e.Answer and self._is_unsaid(one):
                raise CaptureDamage(f"an answer of frame {at} does not say what was asked")
            else:
                self.waiting.append(one)
            self._hold(_size_of(one))

    def _hold(self, size: int) -> None:
        """More is kept, or less."""
        self._held += size
        self._all_held.add(size)

    def _is_unsaid(self, answer: e.Answer) -> bool:
        """Whether an answer ought to say what was asked, and does not."""
        return answer.asked is None and self.says_asked and answer.effect in e.SAY_WHAT

    def _gap(self, entry: Entry, frames: int) -> Iterator[Event]:
        """Earlier files are missing."""
        if not self.inexact:
            self.inexact = f"{frames} frames of it are in earlier files of the capture"
        if self._passed:
            yield _event(entry, Dropped(frames=frames))
        self._passed += frames

    def _frame(self, entry: Entry, frame: f.Frame) -> Iterator[Event]:
        number = self._packets
        if entry.comment == REPEATED and not self._is_sealed:
            self._packets += 1
            self._marker.blank(frame)
            if self._files == 1:
                yield _event(entry, frame)
            return
        if self._opener is None:
            self._packets += 1
            self._passed += 1
            yield _event(entry, frame, is_blanked=self._marker.blank(frame) != frame)
            return
        if number >= self._covered:
            raise CaptureDamage(f"no sealed record speaks of the connection's frame {number}")
        yield from self._until(number, entry)
        self._packets += 1
        self._passed += 1
        if not (self._has_state or self.inexact or isinstance(frame, _BEFORE_STATE)):
            self.inexact = "the partition's state at its begin is missing"
        full = self._full.pop(number, None)
        if full is None:
            yield _event(entry, frame)
        else:
            self._hold(-_size_of(full))
            yield _event(entry, _whole(frame, full.data))._replace(data=full.data)

    def _until(self, number: int, entry: Entry | Plain) -> Iterator[Event]:
        """What happened before the connection's frame of a number."""
        waiting = self.waiting
        while waiting and waiting[0].at <= number:
            one = waiting.popleft()
            self._hold(-_size_of(one))
            match one:
                case e.End():
                    self._has_end = True
                    continue
                case e.Lost():
                    self._miss(one.frames + one.entries)
                    yield _event(entry, Dropped(frames=one.frames, entries=one.entries))
                    continue
                case e.State():
                    self._has_state = True
                    if one.problem and not self.inexact:
                        self.inexact = one.problem
                case _:
                    pass
            yield Event(
                entry.guest,
                entry.connection,
                entry.time_ns,
                Direction.UNKNOWN,
                "",
                one,
                False,
                entry.offset,
            )

    def _miss(self, count: int) -> None:
        if not self.inexact:
            self.inexact = f"{count} frames or answers are missing: the disk was too slow"


def _size_of(entry: e.AnyEntry) -> int:
    """About how many bytes an entry takes in memory."""
    size = e.size_of(entry)
    match entry:
        case e.State():
            return size + _RECORD_BYTES * (len(entry.records) + len(entry.replies))
        case e.PageOut() | e.Withdraw():
            return size + _ADDRESS_BYTES * len(entry.gpas)
        case _:
            return size


def _event(entry: Entry | Plain, what: f.Frame | Record, *, is_blanked: bool = False) -> Event:
    return Event(
        entry.guest,
        entry.connection,
        entry.time_ns,
        entry.direction,
        entry.comment,
        what,
        is_blanked,
        entry.offset,
        entry.data,
    )


def _whole(shown: f.Frame, data: bytes) -> f.Frame:
    """The frame whose packet shows only a part."""
    try:
        frame = decode(decode_header(data), data)
    except RemoteProtocolError as error:
        raise CaptureDamage(f"a sealed frame is none: {error}") from None
    if type(frame) is not type(shown):
        raise CaptureDamage(
            f"a sealed {type(frame).__name__} in the place of a {type(shown).__name__}"
        )
    return frame
