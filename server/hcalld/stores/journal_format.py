# SPDX-License-Identifier: Apache-2.0
"""The bytes of a journal: what several partitions committed, behind one another.

Layout::

    head     magic 8 bytes, epoch 16 random bytes
    frame    magic 4 bytes, the epoch, number u64, size u32, BLAKE2b-256 of all this and
             of the payload
    payload  msgpack: marks, which say that a store needs nothing of what is before, and
             what others committed

Frames are numbered from 0. A frame is written only after the one before it is on stable
storage, so what is not whole may stand at the end and nowhere else: there it was never
told of as flushed, anywhere else the file is damaged. Values are sealed, as the store has
them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

MAGIC: Final = b"hcjrnl\x00\x01"
_FAMILY: Final = MAGIC[:7]
EPOCH_SIZE: Final = 16
HEAD_SIZE: Final = len(MAGIC) + EPOCH_SIZE

_FRAME_MAGIC: Final = b"HJfr"
_FRAME: Final = struct.Struct(">4s16sQI32s")
_DIGEST_SIZE: Final = 32

MAX_FRAME_SIZE: Final = 16 << 20
MAX_SIZE: Final = 64 << 20
"""More is not read. A journal is done with long before (``group.py``)."""
_MAX_CANDIDATES: Final = 16
"""Frames looked for behind one that is not whole. The epoch is random: nobody can make
something that looks like one without having read the file."""


class JournalDamaged(Exception):
    """A journal that is not what was written."""


class JournalNewer(Exception):
    """A journal of a newer format."""


# -- rows: the changes of a store, as its tables have them -----------------------------------


class PutRow(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    """A row of table records, created or replaced."""

    namespace: str
    key: bytes
    lifetime: int
    value: bytes


class DeleteRow(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    """A row of table records, removed; it need not exist."""

    namespace: str
    key: bytes


class ReplyRow(msgspec.Struct, frozen=True, array_like=True, tag="reply"):
    """A row of table replies, created or replaced."""

    vcpu: int
    seq: int
    frame: bytes


class RunRow(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """Another run begins: RUN records and replies are dropped."""

    instance: bytes
    reset: int


Row = PutRow | DeleteRow | ReplyRow | RunRow


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One commit of a store: what leads from the generation before to this one."""

    generation: int
    rows: list[Row]


# -- payloads --------------------------------------------------------------------------------


class StoreName(msgspec.Struct, frozen=True, array_like=True):
    """A store: its partition, and what tells it from others that had that name."""

    partition: str
    store_id: bytes


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What one round has of one store: entries as ``encode_entry`` made them."""

    store: StoreName
    entries: list[bytes]


class Round(msgspec.Struct, frozen=True, array_like=True):
    """One payload: commits of several stores, flushed together."""

    marks: list[StoreName]
    """Stores that need nothing of what is before."""
    parts: list[Part]


encode_entry: Final = msgspec.msgpack.Encoder().encode
_encode_payload: Final = msgspec.msgpack.Encoder().encode
_decode_payload: Final = msgspec.msgpack.Decoder(Round).decode
_decode_entry: Final = msgspec.msgpack.Decoder(Entry).decode


# -- frames ----------------------------------------------------------------------------------


def head(epoch: bytes) -> bytes:
    """The beginning of a journal."""
    return MAGIC + epoch


def frame(epoch: bytes, number: int, payload: Round) -> bytes:
    """One frame."""
    data = _encode_payload(payload)
    digest = _digest(epoch, number, data)
    return _FRAME.pack(_FRAME_MAGIC, epoch, number, len(data), digest) + data


def _digest(epoch: bytes, number: int, data: bytes | memoryview) -> bytes:
    state = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    state.update(_FRAME_MAGIC + epoch + struct.pack(">QI", number, len(data)))
    state.update(data)
    return state.digest()


class Contents:
    """A journal that was read: its whole payloads in order, and where they end."""

    def __init__(self, data: bytes) -> None:
        """Read it.

        Raises:
            JournalDamaged: something that was flushed is not whole.
            JournalNewer: a newer hcalld wrote it.
        """
        if data[: len(_FAMILY)] == _FAMILY and data[: len(MAGIC)] != MAGIC:
            raise JournalNewer
        if len(data) < HEAD_SIZE or data[: len(MAGIC)] != MAGIC:
            raise JournalDamaged("it does not begin as a journal does")
        self.epoch = data[len(MAGIC) : HEAD_SIZE]
        self.payloads: list[Round] = []
        self.end = HEAD_SIZE
        """Where the next frame is to be written: what is behind was never flushed."""
        while (payload := self._frame_at(data, self.end, len(self.payloads))) is not None:
            try:
                self.payloads.append(_decode_payload(payload))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise JournalDamaged(f"frame {len(self.payloads)}: {error}") from None
            self.end += _FRAME.size + len(payload)
        if len(data) - self.end > MAX_FRAME_SIZE + _FRAME.size:
            raise JournalDamaged(f"no whole frame at {self.end}, and more than one is missing")
        self._must_be_the_end(data)

    def _frame_at(self, data: bytes, offset: int, number: int | None) -> memoryview | None:
        """The payload of the whole frame at ``offset``, of a number or any that is to come."""
        if len(data) - offset < _FRAME.size:
            return None
        magic, epoch, found, size, digest = _FRAME.unpack_from(data, offset)
        if magic != _FRAME_MAGIC or epoch != self.epoch or size > MAX_FRAME_SIZE:
            return None
        if found != number if number is not None else found <= len(self.payloads):
            return None
        payload = memoryview(data)[offset + _FRAME.size :][:size]
        is_whole = len(payload) == size and _digest(epoch, found, payload) == digest
        return payload if is_whole else None

    def _must_be_the_end(self, data: bytes) -> None:
        start = _FRAME_MAGIC + self.epoch
        offset = self.end - 1
        for _ in range(_MAX_CANDIDATES):
            offset = data.find(start, offset + 1)
            if offset < 0:
                return
            if self._frame_at(data, offset, None) is not None:
                break
        raise JournalDamaged(f"the frame at {self.end} is not whole, but later ones are")

    def stores(self) -> set[StoreName]:
        """The stores that may need this journal: named in it, and not marked since."""
        needed: set[StoreName] = set()
        for payload in self.payloads:
            needed.difference_update(payload.marks)
            needed.update(part.store for part in payload.parts)
        return needed

    def entries(self, store: StoreName) -> Iterator[Entry]:
        """The entries of a store that may still be needed, in order.

        Raises:
            JournalDamaged: one is malformed.
        """
        needed: list[bytes] = []
        for payload in self.payloads:
            if store in payload.marks:
                needed.clear()
            for part in payload.parts:
                if part.store == store:
                    needed += part.entries
        return map(_entry, needed)


def _entry(data: bytes) -> Entry:
    try:
        return _decode_entry(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalDamaged(f"an entry is malformed: {error}") from None
