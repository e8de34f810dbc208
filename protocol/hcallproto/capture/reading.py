# SPDX-License-Identifier: Apache-2.0
"""A capture as a sequence of frames and records, in bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from hcallproto.capture.exchanges import Exchange, Exchanges
from hcallproto.capture.pcapng import Direction, Interface, LinkType, Packet, Reader
from hcallproto.capture.records import Record, Records
from hcallproto.errors import CaptureDamage, CaptureError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire.decode import decode, decode_header


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One packet of a capture."""

    guest: str
    connection: int
    """Counts the guests' connections in the file from 0."""
    time_ns: int
    direction: Direction
    comment: str
    what: f.Frame | Record
    offset: int
    """In the file."""


class CaptureReader:
    """Reads a capture.

    Args:
        chunks: the file's bytes, in pieces of any size.

    Attributes:
        problems: what could not be understood, in words.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.problems: list[str] = []
        self._chunks = chunks
        self._reader = Reader()
        self._records = Records()
        self._connections: dict[tuple[str, str], int] = {}
        """Guest and description of an interface, to the connection's number."""

    @property
    def dropped(self) -> int:
        """Packets that the daemon could not write."""
        return self._reader.dropped

    def __iter__(self) -> Iterator[Entry]:
        """Everything up to the end, or to the damage, which ``problems`` then ends with.

        Raises:
            CaptureError: it is no capture of ours, or of a newer version.
        """
        try:
            for chunk in self._chunks:
                for packet in self._reader.feed(chunk):
                    entry = self._entry(packet)
                    if entry is not None:
                        yield entry
            self._reader.end()
        except CaptureDamage as error:
            if not self._connections:
                raise
            self.problems.append(f"{error}; all before it was read")

    def _entry(self, packet: Packet) -> Entry | None:
        what = self._what(packet)
        if what is None:
            return None
        interface = packet.interface
        number = self._connections.setdefault(
            (interface.name, interface.description), len(self._connections)
        )
        return Entry(
            interface.name,
            number,
            packet.time_ns,
            packet.direction,
            packet.comment,
            what,
            packet.offset,
        )

    def _what(self, packet: Packet) -> f.Frame | Record | None:
        interface: Interface = packet.interface
        if interface.link_type == LinkType.RECORDS:
            try:
                return self._records.decode(packet.data)
            except CaptureError as error:
                raise CaptureError(f"at byte {packet.offset}: {error}") from None
        if interface.link_type != LinkType.FRAMES:
            return None
        try:
            return decode(decode_header(packet.data), packet.data)
        except RemoteProtocolError as error:
            self.problems.append(f"at byte {packet.offset}: not a frame: {error}")
            return None


def exchanges(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Exchange]]:
    """The calls of a capture, each with the entry that ended it, in that order."""
    following: dict[int, Exchanges] = {}
    last: Entry | None = None
    for entry in entries:
        last = entry
        if isinstance(entry.what, Record):
            continue
        if entry.connection not in following:
            following[entry.connection] = Exchanges()
        one = following[entry.connection]
        for exchange in one.take(entry.what, entry.time_ns, entry.comment):
            yield entry, exchange
    for one in following.values():
        assert last is not None
        for exchange in one.end(last.time_ns):
            yield last, exchange
