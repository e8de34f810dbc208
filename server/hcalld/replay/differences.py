# SPDX-License-Identifier: Apache-2.0
"""Two frames of the daemon side by side, field by field, in the words of the table of calls.

One is what a capture has, the other what came now, for the same call. What the table says
is secret is never shown: such a difference says where it is. In a capture without secrets
these bytes are zeros, so there they are left out, and ``Comparer.left_out`` lists them.
What the table says is ``fresh`` (keys, tokens, a TPM's answers) is different by nature when
a live daemon has made it anew.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from hcalld.replay.ignoring import Ignored
from hcalld.replay.memory_ranges import Piece, Range, first_difference, pieces, ranges, shown
from hcalld.replay.places import Place, field_at, places_of, spot
from hcalld.replay.secrets import Secrets, next_open, open_at, writes
from hcallproto.abi.registry import find
from hcallproto.abi.returns import Code, status_name
from hcallproto.abi.spec import ArgKind, Hcall, Output, level_codes
from hcallproto.wire import frames as f
from hcallproto.wire.schema import CONTEXT_MSR, CONTEXT_NIP

SHOWN_BYTES: Final = 16

_NAMES: Final = frozenset({"vcpu", "reset", "seq", "request"})
"""Of calls and requests: they are how frames are told apart, not what these say."""


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not what the capture has."""

    call: str
    """The call's name, or the frame's."""
    field: str
    expected: str
    got: str
    by_nature: bool = False
    """A live daemon makes it anew each time."""

    def __str__(self) -> str:
        return f"{self.call}: {self.field}: {self.got}, expected {self.expected}"


class Report(Protocol):
    """Told of what a replay finds."""

    def difference(self, where: str, difference: Difference) -> None:
        """Something came out differently. May raise Stopped."""


class Comparer:
    """Compares frames of one capture with what came now.

    Args:
        ignored: fields that are not compared.
        is_blanked: secrets are zeros in the capture.
        is_live: keys, tokens and the like have been made anew.

    Attributes:
        left_out: CALL.FIELD that the capture has blanked, to how often it was left out.
    """

    def __init__(
        self,
        ignored: Ignored | None = None,
        *,
        is_blanked: bool = False,
        is_live: bool = False,
    ) -> None:
        self.left_out: collections.Counter[str] = collections.Counter()
        self.ignored = ignored if ignored is not None else Ignored()
        self._is_blanked = is_blanked
        self._is_live = is_live

    def compare(
        self, call: f.Call | None, expected: f.Frame, got: f.Frame
    ) -> tuple[Difference, ...]:
        """What differs.

        Args:
            call: the call that both frames are for, as the capture has it; None: for none.
            expected: the capture's frame.
            got: the frame that came.
        """
        if expected == got:
            return ()
        return tuple(self._differences(call, expected, got))

    def _differences(
        self, call: f.Call | None, expected: f.Frame, got: f.Frame
    ) -> Iterator[Difference]:
        name = call_name(call) if call is not None else _frame_name(expected)
        if type(expected) is not type(got):
            yield Difference(name, "frame", _frame_name(expected), _frame_name(got))
            return
        if call is None or not isinstance(expected, f.Reply | f.Write):
            yield from self._fields(name, expected, got)
            return
        hcall = find(call.number, call.level)
        secrets = Secrets(call, expected), Secrets(call, got)  # type: ignore[arg-type]
        if isinstance(expected, f.Reply):
            assert isinstance(got, f.Reply)
            yield from self._reply(name, hcall, call, expected, got, secrets)
        assert isinstance(got, f.Reply | f.Write)
        yield from self._memory(name, hcall, call, writes(expected), writes(got), secrets)

    # -- registers ------------------------------------------------------------------------

    def _reply(
        self,
        name: str,
        hcall: Hcall | None,
        call: f.Call,
        expected: f.Reply,
        got: f.Reply,
        secrets: tuple[Secrets, Secrets],
    ) -> Iterator[Difference]:
        if expected.status != got.status and not self.ignored.covers(name, "status"):
            codes = _codes(hcall, call)
            yield Difference(
                name, "status", status_name(expected.status, codes), status_name(got.status, codes)
            )
        outputs = {output.register: output for output in hcall.outputs} if hcall is not None else {}
        mine, its = dict(expected.registers), dict(got.registers)
        hidden = secrets[0].registers | secrets[1].registers
        for number in sorted(mine.keys() | its):
            output = outputs.get(number)
            words = (f"r{number}", *(() if output is None else (output.name,)))
            if mine.get(number) == its.get(number) or self.ignored.covers(name, *words):
                continue
            if number in hidden and self._is_blanked and number in mine and number in its:
                self.left_out[f"{name}.{words[-1]}"] += 1
                continue
            is_secret = number in hidden
            yield Difference(
                name,
                words[0] if output is None else f"{words[0]} ({output.name})",
                _register(mine.get(number), output, is_secret),
                _register(its.get(number), output, is_secret),
                self._is_live
                and output is not None
                and output.fresh
                and number in mine
                and number in its,
            )
        yield from self._context(name, expected, got)

    def _context(self, name: str, expected: f.Reply, got: f.Reply) -> Iterator[Difference]:
        for field, mine, its in (
            ("nip", _nip(expected), _nip(got)),
            ("msr", _msr(expected), _msr(got)),
            ("pages", _pages(expected.pages), _pages(got.pages)),
        ):
            if mine != its and not self.ignored.covers(name, field):
                yield Difference(name, field, mine, its)

    # -- memory ---------------------------------------------------------------------------

    def _memory(
        self,
        name: str,
        hcall: Hcall | None,
        call: f.Call,
        expected: Sequence[f.WriteSegment],
        got: Sequence[f.WriteSegment],
        secrets: tuple[Secrets, Secrets],
    ) -> Iterator[Difference]:
        if expected == got:
            return
        places = [] if hcall is None else places_of(hcall, call)
        cuts = [mark for place in places for mark in place.marks()]
        told: set[str] = set()
        for piece in pieces(ranges(expected), ranges(got), cuts):
            place = next((one for one in places if one.gpa <= piece.gpa < one.end), None)
            field = field_at(place, piece.gpa)
            if field in told:
                continue
            found = self._piece(name, place, field, piece, secrets)
            if found is not None:
                told.add(field)
                yield found

    def _piece(
        self,
        name: str,
        place: Place | None,
        field: str,
        piece: Piece,
        secrets: tuple[Secrets, Secrets],
    ) -> Difference | None:
        words = [field] if place is None else [field, place.buffer.address]
        if self.ignored.covers(name, *words):
            return None
        if piece.expected is None or piece.got is None:
            return Difference(
                name, spot(field, place, piece.gpa), _whole(piece.expected), _whole(piece.got)
            )
        is_open = [one.stretches(piece) for one in secrets]
        at = first_difference(piece.expected, piece.got)
        while at is not None and self._is_blanked and not open_at(is_open, at):
            # What a capture has blanked is left out; behind it may be what it has not.
            self.left_out[f"{name}.{field}"] += 1
            at = next_open(is_open, at)
            at = None if at is None else first_difference(piece.expected, piece.got, at)
        if at is None:
            return None
        if place is not None and field != place.buffer.address:
            at = 0  # a field is shown as a whole
        size = open_at(is_open, at)
        if place is None:
            is_fresh = False
        else:
            is_fresh = place.buffer.fresh and piece.gpa + at >= place.gpa + place.buffer.open_size
        where = spot(field, place, piece.gpa + at)
        if not size:
            mine, its = (_hidden(one) for one in (piece.expected, piece.got))
        else:
            end = at + min(SHOWN_BYTES, size)
            mine, its = (shown(one, at, end).hex() for one in (piece.expected, piece.got))
        return Difference(name, where, mine, its, self._is_live and is_fresh)

    # -- other frames ---------------------------------------------------------------------

    def _fields(self, name: str, expected: Any, got: Any) -> Iterator[Difference]:
        """Of a frame that is no reply to a call."""
        for field in expected._fields:
            mine, its = getattr(expected, field), getattr(got, field)
            frame = _frame_name(expected)
            if mine == its or field in _NAMES or self.ignored.covers(frame, field):
                continue
            if isinstance(mine, f.Announcement):
                yield from _announced(name, mine, its)
            elif isinstance(mine, bytes):
                yield Difference(name, field, f"{len(mine)} bytes", f"{len(its)} other bytes")
            else:
                yield Difference(name, field, _text(mine), _text(its))


def call_name(call: f.Call) -> str:
    """A call's name, or its number."""
    hcall = find(call.number, call.level)
    if hcall is not None:
        return hcall.name
    return f"{level_codes(call.level).kind} 0x{call.number:x}"


def _frame_name(frame: f.Frame) -> str:
    return f.FRAME_TYPES[type(frame)].name


def _codes(hcall: Hcall | None, call: f.Call) -> type[Code]:
    if hcall is not None:
        return hcall.return_codes
    return level_codes(call.level).codes


def _register(value: int | None, output: Output | None, is_secret: bool) -> str:
    if value is None:
        return "not set"
    if is_secret:
        return "a secret"
    if output is not None and output.kind in (ArgKind.SIZE, ArgKind.VALUE):
        return str(value)
    return f"0x{value:x}"


def _nip(reply: f.Reply) -> str:
    return f"0x{reply.nip:x}" if reply.context & CONTEXT_NIP else "not set"


def _msr(reply: f.Reply) -> str:
    is_set = reply.context & CONTEXT_MSR
    return f"0x{reply.msr:x} under 0x{reply.msr_mask:x}" if is_set else "not set"


def _pages(found: Sequence[f.PageRange]) -> str:
    if not found:
        return "none"
    texts = [f"0x{one.gpa:x}+0x{one.size:x} {_text(one.state)}" for one in found[:SHOWN_BYTES]]
    return ", ".join(texts) + (f" and {len(found) - SHOWN_BYTES} more" * (len(found) > SHOWN_BYTES))


# -- memory, in words -----------------------------------------------------------------------


def _whole(one: Range | None) -> str:
    if one is None:
        return "nothing written"
    return f"{one.size} bytes zeroed" if one.data is None else f"{one.size} bytes written"


def _hidden(one: Range) -> str:
    what = "zeroed" if one.data is None else "that are secret"
    return f"{one.size} bytes {what}"


def _text(value: object) -> str:
    name = getattr(value, "name", None)
    if isinstance(name, str):
        return name
    text = f"0x{value:x}" if isinstance(value, int) and value > 9 else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _announced(name: str, mine: f.Announcement, its: f.Announcement) -> Iterator[Difference]:
    """What two daemons take differently."""
    left = {(spec.level, spec.number): spec for spec in mine.calls}
    right = {(spec.level, spec.number): spec for spec in its.calls}
    for key in left.keys() | right.keys():
        one, other = left.get(key), right.get(key)
        if one != other:
            hcall = find(key[1], key[0])
            call = hcall.name if hcall is not None else f"call 0x{key[1]:x} of level {key[0]}"
            yield Difference(
                name,
                f"announcement of {call}",
                "absent" if one is None else "another" if other is not None else "present",
                "absent" if other is None else "another" if one is not None else "present",
            )
    for field, first, second in (
        ("strings", mine.strings, its.strings),
        ("properties", dict(mine.properties), dict(its.properties)),
    ):
        if first != second:
            yield Difference(name, f"announcement's {field}", _text(first), _text(second))
