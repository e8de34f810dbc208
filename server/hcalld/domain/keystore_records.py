# SPDX-License-Identifier: Apache-2.0
"""The keystore's records: how objects and passwords are written to a store.

All in namespace ``pks``. A key begins with one letter that says what it is::

    o  consumer (u8)  label            an object; value: OBJECT_HEAD, data
    p  consumer (u8)                   a password; value: PASSWORD_HEAD, password
    t  token (u64)                     a continue token (``continuations.py``)

A value begins with the version of its format. What a newer hcalld wrote is refused, and
so is anything that is not exactly as written here: a store is sealed, so a malformed
record is a bug or a newer format and never noise to be skipped.
"""

from __future__ import annotations

import struct
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.core.records import Record
from hcalld.domain.attributes import MAX_LABEL_SIZE, MAX_OBJECT_SIZE, MAX_PASSWORD_SIZE
from hcallproto.payloads.pks import ALL_POLICIES, Consumer

NAMESPACE: Final = "pks"
VALUE_VERSION: Final = 1

OBJECT_TAG: Final = b"o"
PASSWORD_TAG: Final = b"p"

OBJECT_HEAD: Final = struct.Struct(">BxxxI")
"""Version, three zero bytes, policy."""
PASSWORD_HEAD: Final = struct.Struct(">Bxxx")
"""Version, three zero bytes."""


def object_key(consumer: int, label: bytes) -> bytes:
    """The record key of an object; also its identity in the model."""
    return OBJECT_TAG + consumer.to_bytes(1, "big") + label


def split_object_key(key: bytes) -> tuple[Consumer, bytes]:
    """Consumer and label of ``object_key``.

    Raises:
        StoreError: it is none.
    """
    if len(key) < 3 or key[:1] != OBJECT_TAG or len(key) > 2 + MAX_LABEL_SIZE:
        raise _malformed(key, "not an object's key")
    return _consumer(key), key[2:]


def password_key(consumer: int) -> bytes:
    """The record key of a consumer's password."""
    return PASSWORD_TAG + consumer.to_bytes(1, "big")


def split_password_key(key: bytes) -> Consumer:
    """Consumer of ``password_key``.

    Raises:
        StoreError: it is none.
    """
    if len(key) != 2 or key[:1] != PASSWORD_TAG:
        raise _malformed(key, "not a password's key")
    return _consumer(key)


def encode_object(policy: int, data: bytes) -> bytes:
    """The value of an object's record."""
    return OBJECT_HEAD.pack(VALUE_VERSION, policy) + data


def decode_object(record: Record) -> tuple[int, bytes]:
    """Policy and data of an object's record.

    Raises:
        StoreError: malformed, or written by a newer version.
    """
    value = record.value
    _check_head(record, OBJECT_HEAD.size)
    _, policy = OBJECT_HEAD.unpack_from(value)
    size = len(value) - OBJECT_HEAD.size
    if policy & ~ALL_POLICIES:
        raise _malformed(record.key, f"policy 0x{policy:08x} has undefined bits")
    if not 1 <= size <= MAX_OBJECT_SIZE:
        raise _malformed(record.key, f"{size} bytes of data, expected 1 to {MAX_OBJECT_SIZE}")
    return policy, value[OBJECT_HEAD.size :]


def encode_password(password: bytes) -> bytes:
    """The value of a password's record."""
    return PASSWORD_HEAD.pack(VALUE_VERSION) + password


def decode_password(record: Record) -> bytes:
    """The password of a password's record.

    Raises:
        StoreError: malformed, or written by a newer version.
    """
    _check_head(record, PASSWORD_HEAD.size)
    size = len(record.value) - PASSWORD_HEAD.size
    if not 1 <= size <= MAX_PASSWORD_SIZE:
        raise _malformed(record.key, f"{size} bytes, expected 1 to {MAX_PASSWORD_SIZE}")
    return record.value[PASSWORD_HEAD.size :]


def _consumer(key: bytes) -> Consumer:
    try:
        return Consumer(key[1])
    except ValueError:
        raise _malformed(key, f"consumer {key[1]}, expected 1 to 3") from None


def _check_head(record: Record, size: int) -> None:
    value = record.value
    if value and value[0] > VALUE_VERSION:
        raise StoreError(
            f"keystore record {_name(record.key)} has format {value[0]}, this version knows "
            f"up to {VALUE_VERSION}: it was written by a newer hcalld, use that one"
        )
    if len(value) < size or value[0] != VALUE_VERSION or any(value[1:4]):
        raise _malformed(record.key, "bad head")


def _name(key: bytes) -> str:
    shown = key[:64]
    return shown.hex() + ("..." if len(key) > len(shown) else "")


def _malformed(key: bytes, why: str) -> StoreError:
    return StoreError(
        f"keystore record {_name(key)} is malformed ({why}): restore the partition's store "
        "from a backup, or report a bug"
    )
