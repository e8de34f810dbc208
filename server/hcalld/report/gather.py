# SPDX-License-Identifier: Apache-2.0
"""Reads a capture once, and keeps of it what a page can show; bounded, whatever the file has."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from hcalld.core.histogram import Histogram
from hcalld.families.uv.shim_table import FAMILY as SHIM_FAMILY
from hcalld.report.memory import Memory
from hcalld.report.timeline import Kind, Timeline
from hcallproto.abi.registry import FAMILY_OF
from hcallproto.abi.returns import status_name
from hcallproto.abi.spec import level_codes
from hcallproto.abi.verdicts import Verdict, is_number
from hcallproto.capture.exchanges import Exchange, Fate
from hcallproto.capture.lines import line_of
from hcallproto.capture.reading import CaptureReader, Entry, exchanges
from hcallproto.capture.records import REPEATED, Dropped, Start, Stop
from hcallproto.payloads.quoting import printable
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

MAX_NAMES: Final = 128
"""Calls that have a row; a guest can make up numbers."""
MAX_REFUSALS: Final = 500
"""Kinds of refusals that have a row."""
MAX_CODES: Final = 64
"""Return codes of a call that are told apart: a fault can give any number."""
MAX_CONNECTIONS: Final = 64
MAX_ATTRIBUTES: Final = 100
MAX_MARKS: Final = 500
MAX_TEXT: Final = 600
"""Characters of what is said of one call."""
OTHER_CALLS: Final = "other calls"
OTHER_CODES: Final = "others"
UNKNOWN: Final = "unknown"
"""The family of calls that are in no table."""
SHIM: Final = "shim"
"""Of QEMU's own calls."""

_OF_SHIM: Final = {hcall.number: hcall for hcall in SHIM_FAMILY.calls}
_KINDS: Final = {
    Verdict.DONE: Kind.DONE,
    Verdict.AGAIN: Kind.BUSY,
    Verdict.REFUSED: Kind.REFUSED,
    None: Kind.UNANSWERED,
}


@dataclasses.dataclass(slots=True)
class CallSummary:
    """All calls of one name."""

    name: str
    family: str
    doc: str
    count: int = 0
    refused: int = 0
    unanswered: int = 0
    codes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Return code to how often; a fate, for those that were not answered."""
    latency: Histogram = dataclasses.field(default_factory=Histogram)
    """Of those that were answered."""


@dataclasses.dataclass(slots=True)
class RefusalSummary:
    """Calls that were refused in the same way."""

    guest: str
    name: str
    code: str
    reason: str
    first_ns: int
    last_ns: int
    count: int = 0
    vcpus: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(slots=True)
class Connection:
    """One guest's connection."""

    guest: str
    first_ns: int
    last_ns: int
    start: Start | None = None
    hello: f.Hello | None = None
    version: int | None = None
    """Of the protocol."""
    why: str = ""
    """It ended."""
    frames: int = 0
    dropped: int = 0


@dataclasses.dataclass(slots=True)
class Mark:
    """Something that happened to a guest at a time."""

    time_ns: int
    guest: str
    text: str


class Gathered:
    """What a page is made of.

    Attributes:
        calls: by name.
        refusals: by guest, call, return code and reason.
        other_refusals: refused calls that are in none of these.
        timeline: the bars.
        memory: of each guest.
        connections: the first ones.
        connection_count: how many there are.
        marks: the first ones.
        first_ns: when the first packet passed; None: there is none.
        last_ns: when the last one did.
        frames: how many there are.
        reader: what it says of damage and drops.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.calls: dict[str, CallSummary] = {}
        self.refusals: dict[tuple[str, str, str, str], RefusalSummary] = {}
        self.other_refusals = 0
        self.timeline = Timeline()
        self.memory: dict[str, Memory] = {}
        self.connections: dict[int, Connection] = {}
        self.connection_count = 0
        self.marks: list[Mark] = []
        self.mark_count = 0
        self.first_ns: int | None = None
        self.last_ns = 0
        self.frames = 0
        self.reader = CaptureReader(chunks)
        for entry, exchange in exchanges(self._followed(self.reader)):
            self._call(entry.guest, exchange)

    @property
    def call_count(self) -> int:
        """All calls."""
        return sum(call.count for call in self.calls.values())

    @property
    def refused_count(self) -> int:
        """Calls that were refused."""
        return sum(call.refused for call in self.calls.values())

    @property
    def unanswered_count(self) -> int:
        """Calls that were cancelled, or lost."""
        return sum(call.unanswered for call in self.calls.values())

    @property
    def dropped(self) -> int:
        """Frames that could not be written; a file that was cut off tells of them in its midst."""
        told = sum(connection.dropped for connection in self.connections.values())
        return max(self.reader.dropped, told)

    # -- frames and records ----------------------------------------------------------------

    def _followed(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries, after a look at each."""
        for entry in entries:
            self._entry(entry)
            yield entry

    def _entry(self, entry: Entry) -> None:
        what, time_ns = entry.what, entry.time_ns
        if self.first_ns is None or time_ns < self.first_ns:
            self.first_ns = time_ns
        self.last_ns = max(self.last_ns, time_ns)
        connection = self._connection(entry)
        connection.last_ns = max(connection.last_ns, time_ns)
        match what:
            case Start():
                connection.start = _bounded(what)
            case Stop():
                connection.why = _cut(what.why)
                self._mark(entry, f"connection ended: {what.why}")
            case Dropped():
                connection.dropped += what.frames
                self._mark(entry, f"{what.frames} frames are missing here")
            case f.Hello():
                connection.hello = what
            case f.Welcome():
                connection.version = what.version
            case f.Event():
                self._mark(entry, f"event {what.kind.name}")
            case f.Control() if what.action is s.ControlAction.ATTEND:
                pass  # the calls that follow tell of it
            case f.Control() | f.Goodbye() | f.ShimGoodbye():
                self._mark(entry, _said(what))
            case _:
                pass
        if isinstance(what, tuple):
            connection.frames += 1
            self.frames += 1
            if len(self.memory) < MAX_CONNECTIONS or entry.guest in self.memory:
                self.memory.setdefault(entry.guest, Memory()).take(what, time_ns)

    def _connection(self, entry: Entry) -> Connection:
        number = entry.connection
        self.connection_count = max(self.connection_count, number + 1)
        # All that come after the last one that is kept are counted as that one.
        number = min(number, MAX_CONNECTIONS)
        if number not in self.connections:
            self.connections[number] = Connection(entry.guest, entry.time_ns, entry.time_ns)
        return self.connections[number]

    def _mark(self, entry: Entry, text: str) -> None:
        self.mark_count += 1
        if len(self.marks) < MAX_MARKS and entry.comment != REPEATED:
            self.marks.append(Mark(entry.time_ns, entry.guest, _cut(text)))

    # -- calls -----------------------------------------------------------------------------

    def _call(self, guest: str, exchange: Exchange) -> None:
        if exchange.hcall is None and exchange.call.level == s.LEVEL_SHIM:
            exchange.hcall = _OF_SHIM.get(exchange.call.number)
        name, family = _named(exchange)
        summary = self.calls.get(name)
        if summary is None:
            if len(self.calls) >= MAX_NAMES:
                name, family = OTHER_CALLS, UNKNOWN
            doc = "" if exchange.hcall is None else exchange.hcall.doc
            summary = self.calls.setdefault(name, CallSummary(name, family, doc))
        summary.count += 1
        kind, code = _end_of(exchange)
        if code not in summary.codes and len(summary.codes) >= MAX_CODES:
            code = OTHER_CODES
        summary.codes[code] = summary.codes.get(code, 0) + 1
        if exchange.reply is not None:
            summary.latency.add(exchange.end_ns - exchange.start_ns)
        summary.refused += kind is Kind.REFUSED
        summary.unanswered += kind is Kind.UNANSWERED
        if kind >= Kind.REFUSED:
            self._refusal(guest, name, code, exchange)
        lane = guest, exchange.call.vcpu
        self.timeline.add(
            lane, exchange.start_ns, exchange.end_ns, name, kind, lambda: _text(exchange)
        )

    def _refusal(self, guest: str, name: str, code: str, exchange: Exchange) -> None:
        key = guest, name, code, _cut(exchange.reason)
        summary = self.refusals.get(key)
        if summary is None:
            if len(self.refusals) >= MAX_REFUSALS:
                self.other_refusals += 1
                return
            time_ns = exchange.start_ns
            summary = self.refusals[key] = RefusalSummary(*key, time_ns, time_ns)
        summary.count += 1
        summary.last_ns = max(summary.last_ns, exchange.start_ns)
        if len(summary.vcpus) < s.MAX_VCPUS:
            summary.vcpus.add(exchange.call.vcpu)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _bounded(start: Start) -> Start:
    """Without what no daemon of ours would have written."""
    profile = dict(itertools.islice(start.profile.items(), MAX_ATTRIBUTES))
    return msgspec.structs.replace(
        start,
        program=_cut(start.program),
        profile={_cut(name): _cut(value) for name, value in profile.items()},
    )


def _said(frame: f.Control | f.Goodbye | f.ShimGoodbye) -> str:
    if isinstance(frame, f.Control):
        return f"asked QEMU for {frame.action.name}: {frame.text}".removesuffix(": ")
    who = "daemon" if isinstance(frame, f.Goodbye) else "QEMU"
    return f"{who} says goodbye, {frame.reason.name}: {frame.text}".removesuffix(": ")


def _named(exchange: Exchange) -> tuple[str, str]:
    """What was called, and of which family that is."""
    call, hcall = exchange.call, exchange.hcall
    if hcall is not None:
        family = FAMILY_OF.get(hcall.name)
        return hcall.name, SHIM if family is None else family.name
    return f"{level_codes(call.level).kind} 0x{call.number:x}", UNKNOWN


def _end_of(exchange: Exchange) -> tuple[Kind, str]:
    """How it ended, and the name of that."""
    kind, reply, hcall = _KINDS[exchange.verdict], exchange.reply, exchange.hcall
    if reply is None:
        return kind, exchange.fate.value
    assert exchange.fate is Fate.ANSWERED
    if hcall is not None and is_number(hcall, reply.status):
        # How many bytes, say.
        return kind, hcall.result
    return kind, status_name(reply.status, exchange.codes)


def _text(exchange: Exchange) -> str:
    """All about a call, in a line."""
    return _cut(printable(line_of(exchange, where=f"#{exchange.call.seq}")))
