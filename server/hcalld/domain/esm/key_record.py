# SPDX-License-Identifier: Apache-2.0
"""What is kept of a TPM's wrapping key: its handle, its name, its password.

A partition's is a record of its store, in namespace ``esm``, made by ``hcalld esm
provision-tpm``; a value is one byte, the version of its format, and then JSON. Without a
partition the same JSON is a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from hcalld.core.errors import StoreError
from hcalld.core.records import Record
from hcalld.core.secret import Secret
from hcalld.crypto.wrapping_key import HANDLE, NAME_SIZE, PASSWORD_SIZE, WrappingKey

NAMESPACE: Final = "esm"
KEY: Final = b"wrapping-key"
VALUE_VERSION: Final = 1
_HEAD: Final = bytes((VALUE_VERSION,))


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    handle: Annotated[int, msgspec.Meta(ge=0x81000000, le=0x81FFFFFF)] = HANDLE
    name: Annotated[bytes, msgspec.Meta(min_length=NAME_SIZE, max_length=NAME_SIZE)]
    password: Annotated[bytes, msgspec.Meta(min_length=PASSWORD_SIZE, max_length=PASSWORD_SIZE)]


def to_json(key: WrappingKey) -> bytes:
    """A wrapping key as a file has it; the password is in it."""
    kept = _Kept(handle=key.handle, name=key.name, password=key.password.reveal())
    return msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n"


def from_json(data: bytes) -> WrappingKey:
    """Read such a file.

    Raises:
        ValueError: it is none.
    """
    kept = msgspec.json.decode(data, type=_Kept)
    return WrappingKey(Secret(kept.password), kept.name, kept.handle)


def to_record(key: WrappingKey) -> Record:
    """A wrapping key as a partition's store has it."""
    return Record(NAMESPACE, KEY, _HEAD + to_json(key))


def from_records(records: Iterable[Record]) -> WrappingKey | None:
    """A partition's wrapping key, if it has one.

    Raises:
        StoreError: it is malformed, or a newer hcalld wrote it.
    """
    for record in records:
        if (record.namespace, record.key) != (NAMESPACE, KEY):
            continue
        if record.value[:1] != _HEAD:
            raise StoreError(
                "the wrapping key's record is of an unknown version; a newer hcalld wrote it"
            )
        try:
            return from_json(record.value[1:])
        except ValueError:
            raise StoreError(
                "the wrapping key's record is damaged; run hcalld esm provision-tpm again"
            ) from None
    return None
