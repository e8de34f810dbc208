# SPDX-License-Identifier: Apache-2.0
"""What is captured, as pieces of a file: blocks of pcapng that are written at once.

A piece has what a reader must know of its connections, then what is sealed of them, then
their frames. So whoever reads has an entry before the frame that it is about. Frames are
blanked and encoded where they are taken; sealing is left to ``Piece.data``, for a thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import msgspec

from hcalld.captures.sealing import CaptureKey, FileSeal
from hcallproto.capture import entries as e
from hcallproto.capture import pcapng
from hcallproto.capture.blank import Blanker
from hcallproto.capture.pcapng import Direction, LinkType
from hcallproto.capture.records import REPEATED, Record, Start
from hcallproto.capture.records import encode as encode_record
from hcallproto.wire import frames as f
from hcallproto.wire.encode import encode

PIECE_SIZE: Final = 1 << 20
"""A piece that is longer is written."""

_CONTEXT: Final = (f.Hello, f.Welcome, f.Announce, f.Accept, f.Ram)
"""Frames that others cannot be understood without."""


class Track:
    """One connection in the files.

    Args:
        partition: whose it is.
        profile: the partition's attributes as text, without secrets.
        description: tells it from other connections.
        is_continued: frames have passed that are in no file.
    """

    def __init__(
        self, partition: str, profile: Mapping[str, str], description: str, *, is_continued: bool
    ) -> None:
        self.name = partition, description
        self.profile = profile
        self.is_continued = is_continued
        self.blanker = Blanker()
        self.context: dict[type[f.Frame], tuple[Direction, f.Frame]] = {}
        """The newest of the frames that others cannot be understood without."""
        self.interface = 0
        """Its first interface's number in the file of this number:"""
        self.file = 0
        self.packets = 0
        """Of its first interface in this file; of these are repeated from earlier ones:"""
        self.repeated = 0
        self.known = 0
        """Frames in earlier files."""
        self.covered = 0
        """Packets in this file that sealed records speak of."""
        self.entries: list[e.AnyEntry] = []
        """That are not sealed yet."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Batch:
    """Entries that are to be sealed."""

    interface: int
    name: tuple[str, str]
    batch: e.Batch


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file."""

    head: bytes
    batches: list[_Batch]
    seal: FileSeal | None
    time_ns: int
    """Of its first packet."""
    body: bytes

    def data(self) -> bytes:
        """Its bytes. May run in a thread, one piece after another."""
        parts = [self.head]
        for one in self.batches:
            assert self.seal is not None
            parts += [
                pcapng.packet(one.interface, self.time_ns, encode_record(record))
                for record in self.seal.seal(one.name, one.batch)
            ]
        parts.append(self.body)
        return b"".join(parts)


class Pieces:
    """Puts a capture's pieces together.

    Args:
        program: name and version of the daemon.
        key: seals what is secret; None: it is left out.
    """

    def __init__(self, program: str, key: CaptureKey | None = None) -> None:
        self._program = program
        self._key = key
        self._seal: FileSeal | None = None
        self._file = 0
        self._interfaces = 0
        self._head = bytearray()
        self._body = bytearray()
        self._time_ns = 0
        self._entry_size = 0
        self._touched: dict[Track, None] = {}
        """Connections with something new in this piece."""
        self.begin_file()

    def begin_file(self) -> None:
        """What comes from now on is for a new file."""
        self._file += 1
        self._interfaces = 0
        self._head += pcapng.section(self._program)
        if self._key is not None:
            self._seal = self._key.of_file()

    @property
    def is_full(self) -> bool:
        """The piece is to be written."""
        return len(self._body) >= PIECE_SIZE or self._entry_size >= e.MAX_SIZE

    def frame(
        self,
        track: Track,
        time_ns: int,
        direction: Direction,
        frame: f.Frame,
        data: bytes,
        comment: str,
    ) -> None:
        """Add a frame, blanked; what is blanked of it is sealed.

        Args:
            track: whose it is.
            time_ns: when it passed.
            direction: which way.
            frame: what it says.
            data: its bytes.
            comment: what it does not say.
        """
        number = self._interface_of(track, time_ns)
        shown = track.blanker.blank(frame)
        if isinstance(shown, _CONTEXT):
            track.context[type(shown)] = direction, shown
        if shown is not frame and shown != frame:
            if self._seal is not None:
                self._add(track, e.Full(track.packets, data))
            data = encode(shown)
        track.packets += 1
        self._body += pcapng.packet(number, time_ns, data, direction, comment)

    def entry(self, track: Track, time_ns: int, entry: e.AnyEntry) -> None:
        """Add what happened before the connection's next frame."""
        self._interface_of(track, time_ns)
        self._add(track, msgspec.structs.replace(entry, at=track.packets))

    def record(self, track: Track, time_ns: int, record: Record) -> None:
        """Add a record."""
        number = self._interface_of(track, time_ns)
        self._body += pcapng.packet(number + 1, time_ns, encode_record(record))

    def statistics(self, track: Track, time_ns: int, received: int, dropped: int) -> None:
        """Add how many frames a connection had."""
        number = self._interface_of(track, time_ns)
        self._body += pcapng.statistics(number, time_ns, received, dropped)

    def take(self) -> Piece | None:
        """The piece so far; a new one is begun. None: there is nothing."""
        if not self._head and not self._body and not self._touched:
            return None
        batches = []
        if self._seal is not None:
            batches = [_batch_of(track) for track in self._touched]
        piece = Piece(bytes(self._head), batches, self._seal, self._time_ns, bytes(self._body))
        self._head.clear()
        self._body.clear()
        self._touched.clear()
        self._entry_size = 0
        return piece

    def _add(self, track: Track, entry: e.AnyEntry) -> None:
        track.entries.append(entry)
        self._entry_size += e.size_of(entry)

    def _interface_of(self, track: Track, now: int) -> int:
        """Its number in this file; the first time also what a reader must know of it."""
        if not self._touched:
            self._time_ns = now
        if track not in self._touched:
            self._touched[track] = None
            if track.file != self._file:
                self._introduce(track, now)
        return track.interface

    def _introduce(self, track: Track, now: int) -> None:
        track.is_continued |= track.file > 0
        track.known += track.packets - track.repeated
        track.file = self._file
        track.interface = self._interfaces
        self._interfaces += 2
        for link in (LinkType.FRAMES, LinkType.RECORDS):
            self._head += pcapng.interface(link, *track.name)
        start = Start(
            program=self._program,
            partition=track.name[0],
            profile=track.profile,
            has_secrets=self._seal is not None,
            is_continued=track.is_continued,
        )
        records: list[Record] = [start]
        if self._seal is not None:
            records.append(self._seal.record)
        for record in records:
            self._head += pcapng.packet(track.interface + 1, now, encode_record(record))
        for direction, frame in track.context.values():
            self._head += pcapng.packet(track.interface, now, encode(frame), direction, REPEATED)
        track.packets = track.repeated = track.covered = len(track.context)


def _batch_of(track: Track) -> _Batch:
    """What is new of a connection, to be sealed."""
    batch = e.Batch(track.covered, track.packets, track.known, track.repeated, track.entries)
    one = _Batch(track.interface + 1, track.name, batch)
    track.covered = track.packets
    track.entries = []
    return one
