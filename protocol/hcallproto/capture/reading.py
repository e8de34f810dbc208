# SPDX-License-Identifier: Apache-2.0
"""A capture as a sequence of frames and records, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

from hcallproto.capture.blocks import Reader
from hcallproto.capture.exchanges import Exchange, Exchanges
from hcallproto.capture.packed import unpacked
from hcallproto.capture.pcapng import Direction, Interface, LinkType, Packet
from hcallproto.capture.problems import Problems
from hcallproto.capture.records import Record, Records, Stop
from hcallproto.errors import CaptureDamage, CaptureError, CaptureVersion, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire.decode import Header, decode, decode_header, is_plain

MAX_CONNECTIONS: Final = 1 << 16
"""That are told apart in one file."""

_FRAMES: Final = int(LinkType.FRAMES)
_RECORDS: Final = int(LinkType.RECORDS)


class Entry(NamedTuple):
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
    data: bytes = b""
    """The packet's."""


class Plain(NamedTuple):
    """A packet that is a frame, known to be one without being taken apart."""

    guest: str
    connection: int
    time_ns: int
    direction: Direction
    comment: str
    what: Header
    offset: int
    data: bytes

    def decoded(self) -> Entry:
        """The same, taken apart."""
        return Entry(*self[:5], decode(self.what, self.data), *self[6:])


_Read = TypeVar("_Read")


class _Connection:
    """What both interfaces of a connection belong to."""

    __slots__ = ("number", "records")

    def __init__(self, number: int) -> None:
        self.number = number
        self.records = Records()


class CaptureReader:
    """Reads a capture.

    Args:
        chunks: the file's bytes, in pieces of any size; they may be compressed by gzip.

    Attributes:
        problems: what could not be understood, in words.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.problems = Problems()
        self._chunks = chunks
        self._reader = Reader(self.problems)
        self._connections: dict[tuple[str, str], _Connection] = {}
        """By guest and description of an interface."""
        self._names: list[tuple[str, str]] = []
        """The same, by number."""
        self._interface: Interface | None = None
        """The newest packet's, and whose it is:"""
        self._connection = _Connection(0)
        self._strangers: set[int] = set()
        """Other link types."""

    @property
    def dropped(self) -> int:
        """Packets that the daemon could not write."""
        return self._reader.dropped

    def __iter__(self) -> Iterator[Entry]:
        """Everything up to the end, or to the damage, which ``problems`` then ends with.

        Raises:
            CaptureError: it is no capture of ours, or of a newer version.
        """
        return self._each(self._entry)

    def undecoded(self) -> Iterator[Entry | Plain]:
        """The same for who wants bytes: ordinary frames are checked, and not taken apart."""
        return self._each(self._plain)

    def _each(self, read: Callable[[Packet], _Read | None]) -> Iterator[_Read]:
        feed = self._reader.feed
        try:
            for chunk in unpacked(self._chunks):
                for packet in feed(chunk):
                    entry = read(packet)
                    if entry is not None:
                        yield entry
            self._reader.end()
        except CaptureDamage as error:
            if not self._connections:
                raise
            self.problems.append(f"{error}; all before it was read")
        if self._strangers and not self._connections:
            raise CaptureError(
                f"no capture of hcalld: its packets are of link type {min(self._strangers)}, "
                f"expected {_FRAMES}"
            )

    def name_of(self, connection: int) -> tuple[str, str]:
        """The guest of a connection, and what tells it from the guest's others."""
        return self._names[connection]

    def _plain(self, packet: Packet) -> Entry | Plain | None:
        interface, time_ns, data, direction, comment, offset, missing = packet
        if missing or interface.link_type != _FRAMES:
            return self._entry(packet)
        if interface is not self._interface:
            self._connection = self._connection_of(interface)
            self._interface = interface
        try:
            header = decode_header(data)
            if header.size != len(data) or not is_plain(header, data):
                return self._entry(packet)
        except RemoteProtocolError:
            return self._entry(packet)
        number = self._connection.number
        return tuple.__new__(
            Plain, (interface.name, number, time_ns, direction, comment, header, offset, data)
        )

    def _entry(self, packet: Packet) -> Entry | None:
        interface, time_ns, data, direction, comment, offset, missing = packet
        kind = interface.link_type
        if kind not in (_FRAMES, _RECORDS):
            if len(self._strangers) < MAX_CONNECTIONS:
                self._strangers.add(kind)
            return None
        if interface is not self._interface:
            self._connection = self._connection_of(interface)
            self._interface = interface
        connection = self._connection
        what: f.Frame | Record | None
        try:
            if missing:
                raise CaptureError(
                    f"{missing} bytes of a packet were cut off when the file was written; "
                    "expected whole packets, such as of editcap without -s"
                )
            if kind == _FRAMES:
                header = decode_header(data)
                if header.size != len(data):
                    raise CaptureError(
                        f"not a frame: it has {len(data)} bytes and says that it has {header.size}"
                    )
                what = decode(header, data)
            else:
                what = connection.records.decode(data)
        except RemoteProtocolError as error:
            self.problems.add(offset, f"not a frame: {error}")
            return None
        except CaptureVersion as error:
            raise CaptureVersion(f"at byte {offset}: {error}") from None
        except CaptureError as error:
            self.problems.add(offset, str(error))
            return None
        if what is None:
            return None
        new: Entry = tuple.__new__(
            Entry,
            (interface.name, connection.number, time_ns, direction, comment, what, offset, data),
        )
        return new

    def _connection_of(self, interface: Interface) -> _Connection:
        name = interface.name, interface.description
        found = self._connections.get(name)
        if found is None:
            if len(self._connections) >= MAX_CONNECTIONS:
                raise CaptureError(
                    f"at byte {self._reader.offset}: more than {MAX_CONNECTIONS} connections; "
                    "read fewer files at once"
                )
            found = self._connections[name] = _Connection(len(self._connections))
            self._names.append(name)
        return found


def exchanges(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Exchange]]:
    """The calls of a capture, each with the entry that ended it, in that order."""
    following: dict[int, Exchanges] = {}
    last: dict[int, Entry] = {}
    entry: Entry | None = None
    for entry in entries:
        what = entry.what
        connection = entry.connection
        if isinstance(what, Record):
            if isinstance(what, Stop) and connection in following:
                for exchange in following.pop(connection).end(entry.time_ns):
                    yield entry, exchange
                del last[connection]
            continue
        one = following.get(connection)
        if one is None:
            one = following[connection] = Exchanges()
        last[connection] = entry
        for exchange in one.take(what, entry.time_ns, entry.comment):
            yield entry, exchange
    for connection, one in following.items():
        assert entry is not None
        for exchange in one.end(entry.time_ns):
            yield last[connection], exchange
