# SPDX-License-Identifier: Apache-2.0
"""Tables in guest memory that SEV's firmware does not parse: hashes, and secrets."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable
from typing import Any, Final

from construct import Bytes, Const, Construct, Int16ul, Int32ul, Struct
from construct.core import ConstError

from hcallproto.payloads.sev.constants import BLOB_MAX_SIZE
from hcallproto.payloads.sev.errors import SevFormatError

HASHES_GUID: Final = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
CMDLINE_GUID: Final = uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
INITRD_GUID: Final = uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
KERNEL_GUID: Final = uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b")

_ENTRY_SIZE: Final = 50
_HASHES_LENGTH: Final = 168


def _entry(guid: uuid.UUID) -> Construct[Any, Any]:
    return Struct(
        "guid" / Const(guid.bytes_le),
        "length" / Const(_ENTRY_SIZE, Int16ul) * "of the entry",
        "hash" / Bytes(32) * "SHA-256",
    )


HASHES_TABLE = Struct(
    "guid" / Const(HASHES_GUID.bytes_le) * str(HASHES_GUID),
    "length" / Const(_HASHES_LENGTH, Int16ul) * "168, without the padding",
    "cmdline" / _entry(CMDLINE_GUID) * f"{CMDLINE_GUID}, its length 50 (u16), SHA-256",
    "initrd" / _entry(INITRD_GUID) * f"{INITRD_GUID}, the same",
    "kernel" / _entry(KERNEL_GUID) * f"{KERNEL_GUID}, the same",
    "padding" / Const(bytes(8)),
)
"""QEMU's ``PaddedSevHashTable``, for ``kernel-hashes=on``; OVMF's AmdSev platform reads it."""
HASHES_TABLE_SIZE: Final = 176


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HashesTable:
    """Digests of what QEMU loads beside the firmware."""

    cmdline: bytes
    """Of the text and a NUL."""
    initrd: bytes
    kernel: bytes

    @classmethod
    def parse(cls, data: bytes) -> HashesTable:
        """From 176 bytes.

        Raises:
            SevFormatError: malformed.
        """
        what = "hashes table"
        if len(data) != HASHES_TABLE_SIZE:
            raise SevFormatError(what, "length", len(data), str(HASHES_TABLE_SIZE))
        try:
            read = HASHES_TABLE.parse(data)
        except ConstError as error:
            raise SevFormatError(what, "a field", "another", f"QEMU's table ({error})") from None
        return cls(cmdline=read.cmdline.hash, initrd=read.initrd.hash, kernel=read.kernel.hash)

    def build(self) -> bytes:
        """The 176 bytes."""
        return HASHES_TABLE.build(
            {
                "cmdline": {"hash": self.cmdline},
                "initrd": {"hash": self.initrd},
                "kernel": {"hash": self.kernel},
            }
        )


# -- secrets --------------------------------------------------------------------------------

SECRETS_GUID: Final = uuid.UUID("1e74f542-71dd-4d66-963e-ef4287ff173b")
LUKS_KEY_GUID: Final = uuid.UUID("736869e5-84f0-4973-92ec-06879ce3da0b")
"""What virt-qemu-sev-validate and GRUB call ``luks-key``."""

SECRET_HEAD = Struct(
    "guid" / Bytes(16),
    "length" / Int32ul * "of the entry with this head; of the table if it is the table's",
)
"""Head of the table and of each entry (QEMU ``docs``, Linux ``efi_secret.c``)."""
_HEAD_SIZE: Final = 20
_BLOCK_SIZE: Final = 16


@dataclasses.dataclass(frozen=True, slots=True)
class SecretEntry:
    """A secret and what it is for."""

    guid: uuid.UUID
    value: bytes = dataclasses.field(repr=False)


def build_secrets(entries: Iterable[SecretEntry]) -> bytes:
    """A table of secrets, padded with zeros to whole blocks.

    Raises:
        SevFormatError: more than a packet holds.
    """
    body = b"".join(
        SECRET_HEAD.build({"guid": entry.guid.bytes_le, "length": _HEAD_SIZE + len(entry.value)})
        + entry.value
        for entry in entries
    )
    size = _HEAD_SIZE + len(body)
    table = SECRET_HEAD.build({"guid": SECRETS_GUID.bytes_le, "length": size}) + body
    table += bytes(-size % _BLOCK_SIZE)
    if len(table) > BLOB_MAX_SIZE:
        raise SevFormatError("secrets table", "length", len(table), f"at most {BLOB_MAX_SIZE}")
    return table


def parse_secrets(data: bytes) -> tuple[SecretEntry, ...]:
    """The entries of a table of secrets; what follows the table is not looked at.

    Raises:
        SevFormatError: malformed.
    """
    what = "secrets table"
    guid, end = _secret_head(data, 0, len(data), what)
    if guid != SECRETS_GUID:
        raise SevFormatError(what, "GUID", guid, str(SECRETS_GUID))
    entries: list[SecretEntry] = []
    offset = _HEAD_SIZE
    while offset < end:
        guid, after = _secret_head(data, offset, end, f"{what}, entry {len(entries)}")
        entries.append(SecretEntry(guid, data[offset + _HEAD_SIZE : after]))
        offset = after
    return tuple(entries)


def _secret_head(data: bytes, offset: int, end: int, what: str) -> tuple[uuid.UUID, int]:
    if end - offset < _HEAD_SIZE:
        raise SevFormatError(what, "length", end - offset, f"at least {_HEAD_SIZE}")
    read = SECRET_HEAD.parse(data[offset : offset + _HEAD_SIZE])
    if not _HEAD_SIZE <= read.length <= end - offset:
        raise SevFormatError(what, "length", read.length, f"{_HEAD_SIZE} to {end - offset}")
    return uuid.UUID(bytes_le=read.guid), offset + read.length
