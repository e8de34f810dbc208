# SPDX-License-Identifier: Apache-2.0
"""A partition's lasting records in one encrypted file: the container ``hcalld-export-v1``.

Layout, numbers big-endian::

    magic        17 bytes  "hcalld-export-v1" and a newline
    header size  u32       at most MAX_HEADER_SIZE
    header       JSON      how the key is made, its check, the body's size
    sum          32 bytes  SHA-256 of all before
    body                   AES-256-GCM: ciphertext, then the tag of 16 bytes

The body's key is used once, so its nonce is 12 zero bytes; all that is before the body is
authenticated with it. The sum and the body's size tell a cut or damaged file from a wrong
passphrase before the passphrase is tried. ``crypto/locks.py`` describes the header's field
``key``.

The body is JSON: the partition's name, the generation of its store, and its persistent
records with key and value in base64. Records of a run (passwords, TRANSIENT objects) are
not in it.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hcalld.core.errors import StoreError
from hcalld.core.records import Record
from hcalld.crypto.locks import Check, KeyInfo, Lock, Unlock, opened
from hcalld.crypto.passphrase import key_check
from hcalld.crypto.seal import NONCE_SIZE, TAG_SIZE

MAGIC: Final = b"hcalld-export-v1\n"
_ANY_VERSION: Final = re.compile(rb"hcalld-export-v[0-9]{1,4}\n")
MAX_HEADER_SIZE: Final = 4096
MAX_SIZE: Final = 256 << 20
"""Bytes of a file; a keystore has at most 128 KiB."""

_SIZE: Final = struct.Struct(">I")
_SUM_SIZE: Final = 32
_NONCE: Final = bytes(NONCE_SIZE)


# -- content --------------------------------------------------------------------------------


class ExportedRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One persistent record."""

    namespace: str
    key: bytes
    value: bytes

    def __repr__(self) -> str:
        """Without the value."""
        return f"ExportedRecord(namespace={self.namespace!r}, key={self.key!r})"

    def record(self) -> Record:
        """The record, as models and stores know it."""
        return Record(self.namespace, self.key, self.value)


class Export(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A partition's lasting content."""

    partition: str
    generation: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    records: list[ExportedRecord]


# -- the container --------------------------------------------------------------------------


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: KeyInfo
    check: Check
    body_size: Annotated[int, msgspec.Meta(ge=TAG_SIZE, le=MAX_SIZE)]


def pack(export: Export, lock: Lock) -> bytes:
    """The file of an export.

    Raises:
        StoreError: it is larger than any that is read.
    """
    info, key = lock.lock()
    plain = msgspec.json.encode(export)
    header = msgspec.json.encode(
        _Header(key=info, check=key_check(key), body_size=len(plain) + TAG_SIZE)
    )
    head = MAGIC + _SIZE.pack(len(header)) + header
    head += hashlib.sha256(head).digest()
    if len(head) + len(plain) + TAG_SIZE > MAX_SIZE:
        raise StoreError(f"the partition has more than {MAX_SIZE >> 20} MiB of records")
    return head + AESGCM(key.reveal()).encrypt(_NONCE, plain, head)


def unpack(data: bytes, unlock: Unlock) -> Export:
    """What ``pack`` was given.

    Raises:
        StoreError: not whole, damaged, of another version, or another key.
    """
    head_size, header = _read_head(data)
    key = opened(header.key, header.check, unlock)
    try:
        plain = AESGCM(key.reveal()).decrypt(_NONCE, data[head_size:], data[:head_size])
    except InvalidTag:
        raise _damaged("the body was altered") from None
    try:
        return msgspec.json.decode(plain, type=Export)
    except msgspec.MsgspecError as error:
        raise StoreError(f"the file holds no export that this version knows ({error})") from None


def _read_head(data: bytes) -> tuple[int, _Header]:
    """Where the body begins, and the header, once all of the file is known to be there."""
    if len(data) > MAX_SIZE:
        raise StoreError(f"the file has more than {MAX_SIZE >> 20} MiB, as no export has")
    if not data.startswith(MAGIC):
        if _ANY_VERSION.match(data):
            raise StoreError("the file was exported by a newer hcalld; use that one")
        if MAGIC.startswith(data):
            raise _damaged("it is not whole")
        raise StoreError("the file is no export of hcalld")
    start = len(MAGIC) + _SIZE.size
    if len(data) < start:
        raise _damaged("it is not whole")
    (header_size,) = _SIZE.unpack_from(data, len(MAGIC))
    if header_size > MAX_HEADER_SIZE:
        raise _damaged(f"a header of {header_size} bytes")
    end = start + header_size
    head_size = end + _SUM_SIZE
    if len(data) < head_size:
        raise _damaged("it is not whole")
    if hashlib.sha256(data[:end]).digest() != data[end:head_size]:
        raise _damaged("the header was altered")
    try:
        header = msgspec.json.decode(data[start:end], type=_Header)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreError(f"the file's header is none that this version knows ({error})") from None
    expected = head_size + header.body_size
    if len(data) != expected:
        raise _damaged(f"it has {len(data)} bytes, expected {expected}")
    return head_size, header


def _damaged(why: str) -> StoreError:
    return StoreError(f"the file is damaged ({why}); copy or export it again")
