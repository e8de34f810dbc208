# SPDX-License-Identifier: Apache-2.0
"""How the sealed records of captures are encrypted.

A capture has one key, made as that of an export is (``crypto/locks.py``). Each of its files
has a salt: ``crypto/seal.py`` derives the file's key from both, and counts nonces. What a
sealed record is bound to is the file's salt, the connection, and the record's number in
it. So one that was removed, moved, or taken from another connection or file is noticed: the
next that is read does not open.

What is sealed is an ``entries.Batch``, compressed by zlib, in parts: Wireshark reads no packet
that is larger than 256 KiB. A byte before each part says whether another one follows.
"""

from __future__ import annotations

import collections
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from hcalld.core.errors import StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.locks import KeyInfo, Lock, Unlock, opened
from hcalld.crypto.passphrase import key_check
from hcalld.crypto.seal import SALT_SIZE, Sealer, SealError
from hcallproto.capture import entries as e
from hcallproto.capture.records import Key, Sealed
from hcallproto.errors import CaptureDamage, CaptureError

PART_SIZE: Final = 184 << 10
"""Bytes of a part: with base64 and the record's other fields it has less than 256 KiB."""
_LAST: Final = b"\0"
_MORE: Final = b"\1"

_LEVEL: Final = 1
"""Of compression: a secure VM's start reads all of its memory, and the daemon shares its
processors with guests."""


class CaptureKey:
    """The key of a capture that is being written.

    Args:
        lock: what opens it; a passphrase takes its time.
    """

    def __init__(self, lock: Lock) -> None:
        info, self._key = lock.lock()
        encoded: Any = msgspec.to_builtins(info)
        self._lock: Mapping[str, Any] = encoded
        self._check = key_check(self._key)

    def of_file(self) -> FileSeal:
        """What seals the records of a new file."""
        salt = os.urandom(SALT_SIZE)
        return FileSeal(self._key, Key(lock=self._lock, check=self._check, salt=salt))


class FileSeal:
    """Seals the records of one file.

    Attributes:
        record: is written once for each connection.
    """

    def __init__(self, key: Secret, record: Key) -> None:
        self.record = record
        self._sealer = Sealer(key, record.salt)
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        """Of sealed records, by connection."""

    def seal(self, connection: tuple[str, str], batch: e.Batch) -> Iterator[Sealed]:
        """The records of a batch. May run in a thread, one batch after another.

        Args:
            connection: its interfaces' name and description.
            batch: what they hold.
        """
        plain = memoryview(zlib.compress(e.encode(batch), _LEVEL))
        while plain:
            part, plain = plain[:PART_SIZE], plain[PART_SIZE:]
            number = self._counts[connection]
            self._counts[connection] += 1
            identity = _identity(self.record.salt, connection, number)
            sealed = self._sealer.seal((_MORE if plain else _LAST) + part, identity)
            yield Sealed(number=number, data=sealed)


class FileOpener:
    """Opens the sealed records of one connection in one file.

    Args:
        key: of the capture.
        salt: of the file.
    """

    def __init__(self, key: Secret, salt: bytes) -> None:
        self._sealer = Sealer(key, salt)
        self._salt = salt
        self._count = 0
        self._parts = bytearray()

    @property
    def held(self) -> int:
        """Bytes of parts whose last one has not come."""
        return len(self._parts)

    def open(self, connection: tuple[str, str], record: Sealed) -> e.Batch | None:
        """What ``FileSeal.seal`` was given; None: a part of it.

        Args:
            connection: its interfaces' name and description.
            record: the next one.

        Raises:
            CaptureDamage: it is not the one that was written here.
        """
        number = self._count
        self._count += 1
        if record.number != number:
            raise CaptureDamage(
                f"sealed record {record.number} of a connection, expected {number}: one was "
                "removed or moved"
            )
        try:
            plain = self._sealer.open(record.data, _identity(self._salt, connection, number))
        except SealError as error:
            raise CaptureDamage(f"sealed record {number} of a connection: {error}") from None
        self._parts += plain[1:]
        if len(self._parts) > e.MAX_PLAIN:
            raise CaptureDamage("sealed records hold what no hcalld wrote: too much at once")
        if plain[:1] == _MORE:
            return None
        parts, self._parts = self._parts, bytearray()
        return e.decode(_decompress(parts))


class Keys:
    """The keys of the captures that are read, from the one thing that their reader has.

    Args:
        unlock: a passphrase or a private key.
    """

    def __init__(self, unlock: Unlock) -> None:
        self._unlock = unlock
        self._found: dict[bytes, Secret] = {}
        """By account of the lock: a passphrase's key takes its time."""

    def of(self, record: Key) -> FileOpener:
        """What opens the records of a file.

        Raises:
            CaptureError: the file is for somebody else, or its account of the key damaged.
        """
        account = msgspec.json.encode([record.lock, record.check])
        key = self._found.get(account)
        if key is None:
            try:
                info: KeyInfo = msgspec.convert(record.lock, KeyInfo)
                key = opened(info, record.check, self._unlock)
            except (msgspec.ValidationError, ValueError) as error:
                raise CaptureError(
                    f"the capture's account of its key is damaged: {error}"
                ) from None
            except StoreError as error:
                raise CaptureError(f"the capture's secrets stay closed: {error}") from None
            self._found = {account: key}
        if len(record.salt) != SALT_SIZE:
            raise CaptureError(
                f"the file's salt has {len(record.salt)} bytes, expected {SALT_SIZE}"
            )
        return FileOpener(key, record.salt)


def _identity(salt: bytes, connection: tuple[str, str], number: int) -> bytes:
    names = b"".join(
        len(name).to_bytes(4, "big") + name for name in (text.encode() for text in connection)
    )
    return b"hcalld capture\0" + salt + number.to_bytes(8, "big") + names


def _decompress(data: bytearray) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        plain = decompressor.decompress(data, e.MAX_PLAIN)
    except zlib.error as error:
        raise CaptureDamage(f"a sealed record holds what no hcalld wrote: {error}") from None
    if decompressor.unconsumed_tail or not decompressor.eof or decompressor.unused_data:
        raise CaptureDamage(
            f"a sealed record holds what no hcalld wrote: more than {e.MAX_PLAIN >> 20} MiB, or "
            "not whole"
        )
    return plain
