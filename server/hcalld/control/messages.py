# SPDX-License-Identifier: Apache-2.0
"""What passes over the control socket: every request and every reply, declared once.

Newline-delimited JSON. The daemon begins with a Greeting; then each line of the client is a
request, and each request gets one line, in the order of the requests. A request says what it
is in ``command``, a reply in ``reply``; what goes wrong is a Failure, and the connection goes
on. A client ignores members of a reply that it does not know, so that replies may grow; the
daemon refuses members of a request that it does not know, for it would not do what they say.

No message has bytes, and none has a secret: ``tests/unit/hcalld/control`` looks at each field.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Generic, Literal, TypeVar, get_args

import msgspec

from hcalld.faults.rules import Rule

PROTOCOL: Final = 1
"""Raised when a client of an older one would misunderstand."""

MAX_REQUEST_SIZE: Final = 64 << 10
"""Bytes of a request, its end of line included."""
MAX_REPLY_SIZE: Final = 16 << 20
"""More than a client reads of one reply."""
MAX_REASON_SIZE: Final = 400
"""Characters of a Failure's message that may come from a request."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply"):
    """Base of what the daemon answers."""


ReplyT = TypeVar("ReplyT", bound=Reply, covariant=True)


class Request(
    msgspec.Struct,
    Generic[ReplyT],
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="command",
):
    """Base of what a client asks, with the reply that it gets if all is well."""


# -- what is the same for all ---------------------------------------------------------------


class Kind(enum.Enum):
    """What kind of failure it is, for programs; people read the message."""

    MALFORMED = "malformed"
    UNKNOWN_COMMAND = "unknown-command"
    TOO_LONG = "too-long"
    TOO_MANY_CLIENTS = "too-many-clients"
    NOT_ALLOWED = "not-allowed"
    NO_GUEST = "no-guest"
    NOT_SECURE = "not-secure"
    IN_PROGRESS = "in-progress"
    NO_ANSWER = "no-answer"
    FAILED = "failed"
    INTERNAL = "internal"


class Greeting(Reply, frozen=True, tag="greeting"):
    """The first line of the daemon."""

    protocol: int
    version: str
    """hcalld's."""
    pid: int
    commands: list[str]
    """That it knows."""


class Failure(Reply, frozen=True, tag="failure"):
    """Instead of the reply that was asked for, or of the greeting."""

    kind: Kind
    message: str


# -- guests -----------------------------------------------------------------------------------

PefState = Literal["none", "normal", "entering", "secure", "ended"]


class Pef(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's secure VM. Pages have 64 KiB unless said otherwise."""

    state: PefState
    """``none``: its profile does not allow secure mode."""
    secure: int = 0
    shared: int = 0
    """Normal pages, because the VM shares them or a part of them."""
    out: int = 0
    shared_4k: int = 0
    """Pages of 4 KiB that it shares."""
    paged_out: int = 0
    """How often a page went out since it became secure."""
    limit: int | None = None
    """Pages that it may have in secure memory."""


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A connected guest."""

    partition: str
    peer: str
    vcpus: int
    calls: int
    """Answered on this connection."""
    waiting: int
    """Calls that wait for something."""
    tpm: Literal["none", "closed", "open", "stale"]
    """Its session with its TPM."""
    pef: Pef
    problem: str = ""
    """Why its state cannot be told."""


class GuestList(Reply, frozen=True, tag="guests"):
    """All guests, by partition."""

    guests: list[Guest]


class ListGuests(Request[GuestList], frozen=True, tag="guests"):
    """Tell of all connected guests."""


# -- page-out ---------------------------------------------------------------------------------


class PagedOut(Reply, frozen=True, tag="paged-out"):
    """What became of it."""

    partition: str
    wanted: int
    """Pages that were to go out."""
    went: int
    """Page-outs; the guest may have brought pages back since."""
    pef: Pef
    """The VM after it."""
    why: str = ""
    """Why fewer went than were wanted, if so."""


class PageOut(Request[PagedOut], frozen=True, tag="page-out"):
    """Page a secure VM's pages out, each once."""

    partition: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    pages: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    """At most so many of 64 KiB; without it, all that are in secure memory."""


# -- captures ---------------------------------------------------------------------------------


class CaptureState(Reply, frozen=True, tag="capture"):
    """The capture that goes on, or has just ended."""

    path: str | None
    """Of the file that is written; None: no capture goes on."""
    frames: int = 0
    dropped: int = 0
    """Of these frames are not in the file."""
    answers_dropped: int = 0
    """Of what a capture with secrets has beside frames, so much is not in it."""
    is_whole: bool = True
    """False: its end was not waited for, or failed; these are not in the file either:"""
    not_written: int = 0


class PassphraseFile(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="passphrase-file"
):
    """Where the daemon finds a passphrase."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern="^/")]


class RecipientKey(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="recipient"
):
    """Whose private key opens a file."""

    key: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """The X25519 public key."""


class BeginCapture(Request[CaptureState], frozen=True, tag="capture-begin"):
    """Keep all guests' frames from now on."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern="^/")]
    file_bytes: Annotated[int, msgspec.Meta(ge=1 << 16, le=1 << 40)] | None = None
    """A new file is begun when one is longer."""
    files: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    """So many of these are kept."""
    secrets: PassphraseFile | RecipientKey | None = None
    """Keep what is secret, too, encrypted; what opens it."""


class EndCapture(Request[CaptureState], frozen=True, tag="capture-end"):
    """Keep no more frames; answered when all are written, or given up."""


class ShowCapture(Request[CaptureState], frozen=True, tag="capture-show"):
    """Tell of the capture that goes on."""


# -- numbers ----------------------------------------------------------------------------------


class CallStats(msgspec.Struct, frozen=True, kw_only=True):
    """One call of one guest, since the daemon began. Times are from the call to its answer."""

    call: str
    """Its name; ``unknown`` for all that are not served."""
    codes: dict[str, int]
    """Return code to how often."""
    p50_ns: int
    """So long or less took 50 of 100; told from ``latency``."""
    p90_ns: int
    p99_ns: int
    max_ns: int
    total_ns: int
    latency: list[tuple[int, int]]
    """(nanoseconds, how many took so long or up to a sixteenth longer), in rising order."""


class RefusalStats(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was refused."""

    time_ns: int
    """Since the epoch."""
    vcpu: int
    call: str
    code: str
    reason: str


class KeystoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """The space in a guest's keystore, in bytes."""

    used: int
    total: int
    objects: int


class GuestStats(msgspec.Struct, frozen=True, kw_only=True):
    """A partition whose guest is or was connected since the daemon began."""

    partition: str
    guest: Guest | None
    """None: it is gone."""
    keystore: KeystoreStats | None
    """None: it is gone, or has no keystore."""
    refused: int
    calls: list[CallStats]
    """By name."""
    refusals: list[RefusalStats]
    """The last ones, the newest last."""


class Stats(Reply, frozen=True, tag="stats"):
    """The daemon's numbers."""

    uptime_ns: int
    """By a clock that is never set: what two replies differ by took so long."""
    guests: list[GuestStats]
    """By partition."""
    capture: CaptureState
    faults: list[Fault]
    """Rules in force."""


class ShowStats(Request[Stats], frozen=True, tag="stats"):
    """Tell the numbers of all guests."""


# -- faults -----------------------------------------------------------------------------------


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A rule in force, or one that was until now."""

    number: int
    rule: Rule
    matched: int
    """Calls that it is about."""
    met: int
    """Calls with which something went wrong."""
    spent: bool
    """It will do nothing any more."""


class FaultList(Reply, frozen=True, tag="faults"):
    """Rules, in the order in which calls are held against them."""

    faults: list[Fault]


class FaultAdded(Reply, frozen=True, tag="fault-added"):
    """A rule is in force."""

    fault: Fault
    warnings: list[str]
    """What may not have been meant."""


class AddFault(Request[FaultAdded], frozen=True, tag="fault-add"):
    """Put a rule in force, behind the others."""

    rule: Rule


class ListFaults(Request[FaultList], frozen=True, tag="fault-list"):
    """Tell of the rules in force."""


class RemoveFault(Request[FaultList], frozen=True, tag="fault-remove"):
    """Take a rule out of force; answered with what it was."""

    number: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]


class ClearFaults(Request[FaultList], frozen=True, tag="fault-clear"):
    """Take all rules out of force; answered with what they were."""


# -- SEV platforms ----------------------------------------------------------------------------


class SevRoot(Reply, frozen=True, tag="sev-root"):
    """Who has made a platform, as AMD publishes it of its own; in base64."""

    platform: str
    ask: str
    ark: str


class ShowSevRoot(Request[SevRoot], frozen=True, tag="sev-root"):
    """Tell of the certificates above a platform's CEK, which no command of SEV's tells."""

    platform: Annotated[str, msgspec.Meta(max_length=256)] = ""
    """Its name; "" for the default one."""


# -- the table --------------------------------------------------------------------------------

COMMANDS: Final[tuple[type[Request[Reply]], ...]] = (
    ListGuests,
    PageOut,
    BeginCapture,
    EndCapture,
    ShowCapture,
    ShowStats,
    AddFault,
    ListFaults,
    RemoveFault,
    ClearFaults,
    ShowSevRoot,
)
"""Every command: dispatch, the client, the greeting and the documents go by it."""


def name_of(command: type[Request[Reply]]) -> str:
    """What a request says in ``command``."""
    tag = command.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def reply_of(command: type[Request[ReplyT]]) -> type[ReplyT]:
    """The reply that a request gets if all is well."""
    (base,) = command.__orig_bases__  # type: ignore[attr-defined]  # of every Generic's child
    (reply,) = get_args(base)
    found: type[ReplyT] = reply
    return found


BY_NAME: Final[Mapping[str, type[Request[Reply]]]] = MappingProxyType(
    {name_of(command): command for command in COMMANDS}
)


class MalformedRequest(Exception):
    """A line is no request; says what it should have been."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Head(msgspec.Struct):
    """What is looked at first."""

    command: str


_HEAD: Final = msgspec.json.Decoder(_Head)
_DECODERS: Final = {name: msgspec.json.Decoder(command) for name, command in BY_NAME.items()}


def decode_request(line: bytes | bytearray) -> Request[Reply]:
    """A request.

    Raises:
        MalformedRequest: it is none.
    """
    name = ""
    try:
        name = _HEAD.decode(line).command
        decoder = _DECODERS.get(name)
        if decoder is not None:
            return decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        what = f"not a request {name!r}" if name else "not a request"
        expected = (
            f"expected {shape_of(BY_NAME[name])}"
            if name
            else 'expected {"command": "..."} in a line'
        )
        raise MalformedRequest(Kind.MALFORMED, f"{what}: {_cut(str(error))}; {expected}") from None
    known = ", ".join(sorted(BY_NAME))
    raise MalformedRequest(
        Kind.UNKNOWN_COMMAND, f"no command {_cut(name)!r}; this hcalld has: {known}"
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_REASON_SIZE else text[:MAX_REASON_SIZE] + "..."


def shape_of(command: type[Request[Reply]]) -> str:
    """A request as people write it, members that may be left out in brackets."""
    members = [f'"command": "{name_of(command)}"']
    for field in msgspec.structs.fields(command):
        member = f'"{field.encode_name}": ...'
        members.append(member if field.required else f"[{member}]")
    return "{" + ", ".join(members) + "}"


def encode(message: Request[Reply] | Reply) -> bytes:
    """A line."""
    return msgspec.json.encode(message) + b"\n"
