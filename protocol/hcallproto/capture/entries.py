# SPDX-License-Identifier: Apache-2.0
"""What a capture with secrets seals: all that a daemon's replies depend on beside frames.

Entries of one connection are in the order in which things happened. Each says before which
of the connection's frames it happened (``at``): frames are the packets of the connection's
USER0 interface, counted from 0 in each file. An entry and a frame of the same number: the
entry first; ``Full`` alone is about the frame itself.

A ``State`` and the frames and entries after it are enough to run the daemon again to the
same bytes: nothing else comes from outside. Entries are MessagePack arrays, tagged by
number; a new field goes to the end and has a default.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from hcallproto.errors import CaptureError

MAX_SIZE: Final = 1 << 20
"""Bytes of a batch before it is compressed; one entry that is larger has its own."""
MAX_PLAIN: Final = 64 << 20
"""Bytes of the largest batch that is read: the largest entry and much to spare."""
MAX_ENTRIES: Final = 1 << 16
"""Of a batch that is read: four times what fits into ``MAX_SIZE``, as ``size_of`` counts."""


class Entry(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    """Base of all entries."""

    at: int
    """It happened before the connection's frame of this number."""


# -- frames ------------------------------------------------------------------------------


class Full(Entry, frozen=True, tag=0):
    """A frame that the packet of this number shows only in part."""

    data: bytes
    """All of it, as it passed."""

    def __repr__(self) -> str:
        """Without the bytes."""
        return f"Full(at={self.at}, {len(self.data)} bytes)"


# -- what effects were answered ----------------------------------------------------------


class EffectKind(enum.IntEnum):
    """What the daemon asked of the world outside of it."""

    ENTROPY = 0
    """Answered with bytes. Asked: how many."""
    NOW = 1
    """With nanoseconds since the epoch."""
    READ_RAM = 2
    """Shared RAM: with bytes; None: it is not shared, and the shim is asked by READ.
    Asked: guest address and size."""
    FLUSH = 3
    """With None, when all is on stable storage."""
    TPM_TRANSMIT = 4
    """With the response. Asked: the first bytes of the command's SHA-256."""
    TPM_CLOSE = 5
    """With None."""
    LOAD = 6
    """The store was to be loaded; only what failed is told."""
    COMMIT = 7
    """A transaction; only what failed is told, for it makes the models be loaded anew."""
    BEGIN = 8
    """A run of the machine, after a reset; only what failed is told. No call asks for it."""
    READ_PLATFORM = 9
    """The SEV platform as it is: with bytes; None: with those of the connection's last such
    answer in this capture."""
    CHANGE_PLATFORM = 10
    """With None, when it is changed. Asked: the first bytes of the change's SHA-256."""


SAY_WHAT: Final = frozenset(
    {
        EffectKind.ENTROPY,
        EffectKind.READ_RAM,
        EffectKind.TPM_TRANSMIT,
        EffectKind.CHANGE_PLATFORM,
    }
)
"""Effects that can be asked for in more than one way: their answers say what was asked."""


class Failure(enum.IntEnum):
    """Which error an effect raised."""

    STORE = 0
    """StoreError."""
    BACKEND = 1
    """BackendUnavailable."""
    CONFIG = 2
    """ConfigError."""
    STOPPED = 3
    """It was cancelled while it waited."""


class Raised(msgspec.Struct, frozen=True, array_like=True):
    """An error instead of an answer."""

    failure: Failure
    text: str


Asked = int | tuple[int, int] | bytes | None
"""What an effect was about, as ``EffectKind`` says."""

DIGEST_SIZE: Final = 16
"""Bytes of a SHA-256 that tell a TPM's command, or a platform's change, from others."""


class Answer(Entry, frozen=True, tag=1):
    """An effect was answered."""

    vcpu: int
    """Whose call asked for it; with ``seq`` its name. NO_CALL: none did."""
    seq: int
    effect: EffectKind
    value: bytes | int | None = None
    raised: Raised | None = None
    asked: Asked = None
    """None also in captures of version 1, which do not say it."""

    def __repr__(self) -> str:
        """Without the value, and what was asked for."""
        what = "" if self.raised is None else f", {self.raised!r}"
        return f"Answer(at={self.at}, {self.vcpu}/{self.seq}, {self.effect.name}{what})"


NO_CALL: Final = 0xFFFF_FFFF


# -- the partition's state ---------------------------------------------------------------


class StoredRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record of the partition's store."""

    namespace: str
    key: bytes
    value: bytes
    lifetime: int
    """A ``Lifetime``."""

    def __repr__(self) -> str:
        """Without the value."""
        return f"StoredRecord({self.namespace!r}, {self.key!r})"


class StoredReply(msgspec.Struct, frozen=True, array_like=True):
    """A reply that is kept until its vCPU's next call."""

    vcpu: int
    seq: int
    frame: bytes

    def __repr__(self) -> str:
        """Without the frame."""
        return f"StoredReply({self.vcpu}/{self.seq})"


class State(Entry, frozen=True, tag=2):
    """The partition before the next frame that is received.

    At a connection's begin that is after the machine was connected: the profile's orders
    are carried out, the run has begun, HELLO has come, and WELCOME is next.
    """

    partition: str
    profile: bytes
    """JSON of ``hcalld.config.Profile``: orders, [hcalld], [tpm], [pef]."""
    records: tuple[StoredRecord, ...]
    """All that the store holds, attributes in force included."""
    replies: tuple[StoredReply, ...]
    instance: bytes
    """The run of the machine: its instance,"""
    reset: int
    """and how often it was reset."""
    generation: int
    """Of the store."""
    is_dirty: bool
    """Some of it is not on stable storage yet."""
    page_shift: int
    """QEMU's guess of the guest kernel's page size; 0: none."""
    has_tpm: bool
    is_begin: bool = True
    """The connection begins here; else the capture does, in the middle of it."""
    waiting: tuple[tuple[int, int], ...] = ()
    """vCPU and sequence number of calls that waited then: of these the begin is missing."""
    problem: str = ""
    """Why this is not all, if so: then no replay of it is exact."""
    is_client: bool = False
    """It is a program that uses a SEV platform, and no machine."""

    def __repr__(self) -> str:
        """Without records and replies."""
        return f"State(at={self.at}, {self.partition!r}, {len(self.records)} records)"


# -- what is decided outside -------------------------------------------------------------


class Turn(Entry, frozen=True, tag=3):
    """A call that waited goes on now; of several that may, nothing else says which is first."""

    vcpu: int
    seq: int


class Fault(Entry, frozen=True, tag=4):
    """A rule was met: something goes wrong on purpose with the call that came last."""

    vcpu: int
    """Whose call it is."""
    number: int
    """The rule's."""
    count: int
    """So many calls have met it, this one included."""
    rule: str
    """JSON of ``hcalld.faults.rules.Rule``."""


class PageOut(Entry, frozen=True, tag=5):
    """An operator wants pages of the secure VM out, by guest address."""

    gpas: tuple[int, ...]


class Withdraw(Entry, frozen=True, tag=6):
    """These pages may stay, if they are still there."""

    gpas: tuple[int, ...]


class Attend(Entry, frozen=True, tag=7):
    """QEMU is asked for an ATTEND in nobody's name."""


class Rest(Entry, frozen=True, tag=8):
    """The models are given up; the next call loads the store anew."""


class Stop(Entry, frozen=True, tag=9):
    """The daemon ends the connection."""

    why: str
    """What the shim is told."""


# -- the end ---------------------------------------------------------------------


class Lost(Entry, frozen=True, tag=10):
    """Frames or entries are missing here: the disk was too slow, or too much came at once."""

    frames: int
    entries: int


class End(Entry, frozen=True, tag=11):
    """The end of the connection or of the capture: what is not here was not there."""

    why: str


Order = PageOut | Withdraw | Attend | Rest | Stop
AnyEntry = Full | Answer | State | Turn | Fault | Order | Lost | End


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """What one sealed record holds, of one connection."""

    first: int
    """Frames before this number are not spoken of."""
    end: int
    """Of the frames from ``first`` to before this one, and of what happened before it, all
    is here or in batches before."""
    known: int
    """Frames of the connection in earlier files of the capture."""
    context: int
    """So many frames at the file's begin are repeated from earlier ones."""
    entries: Annotated[Sequence[AnyEntry], msgspec.Meta(max_length=MAX_ENTRIES)]


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Batch)


def size_of(entry: Entry) -> int:
    """About how many bytes an entry takes, without encoding it."""
    match entry:
        case Full():
            return _OVERHEAD + len(entry.data)
        case Answer():
            size = _OVERHEAD + (len(entry.value) if isinstance(entry.value, bytes) else 0)
            if isinstance(entry.asked, bytes):
                size += len(entry.asked)
            return size if entry.raised is None else size + len(entry.raised.text)
        case State():
            return (
                sum(
                    len(one.namespace) + len(one.key) + len(one.value) + _OVERHEAD
                    for one in entry.records
                )
                + sum(len(one.frame) + _OVERHEAD for one in entry.replies)
                + sum(map(len, (entry.partition, entry.profile, entry.instance, entry.problem)))
                + _OVERHEAD * (1 + len(entry.waiting))
            )
        case PageOut() | Withdraw():
            return _OVERHEAD + 9 * len(entry.gpas)
        case Fault():
            return _OVERHEAD + len(entry.rule)
        case Stop() | End():
            return _OVERHEAD + len(entry.why)
        case _:
            return _OVERHEAD


_OVERHEAD: Final = 64


def encode(batch: Batch) -> bytes:
    """A batch's bytes."""
    return _ENCODER.encode(batch)


def decode(data: bytes) -> Batch:
    """A batch.

    Raises:
        CaptureError: it is none.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CaptureError(f"a sealed record holds what no hcalld wrote: {error}") from None
