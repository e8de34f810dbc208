# SPDX-License-Identifier: Apache-2.0
"""The hypervisor's records: what it knows of its VM, and the pages that are out.

All in namespace ``svm``, all of lifetime RUN, for they are of no use without the
ultravisor's (``hcalld.domain.ultravisor.records``)::

    v                    the VM's phase
    s  slot (u16)        a memory slot: start, size
    g  chunk (u32)       page states of 256 MiB, as ``Runs.pack`` has them
    o  page (u64)        where a page that is out is: number of a page of ``c``
    c  number (u32)      64 KiB of ciphertext

A value begins with the version of its format.
"""

from __future__ import annotations

import struct
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.core.records import Lifetime, Record
from hcalld.domain.hypervisor.memory import MAX_PAGES
from hcalld.domain.hypervisor.states import GfnState, VmPhase
from hcalld.domain.runs import Runs
from hcalld.domain.ultravisor.abi import PAGE_SIZE, VM_SHIFT

NAMESPACE: Final = "svm"
VALUE_VERSION: Final = 1

VM_TAG: Final = b"v"
SLOT_TAG: Final = b"s"
CHUNK_TAG: Final = b"g"
OUT_TAG: Final = b"o"
CONTENT_TAG: Final = b"c"

SLOT_NUMBER: Final = struct.Struct(">H")
CHUNK_NUMBER: Final = struct.Struct(">I")
PAGE_NUMBER: Final = struct.Struct(">Q")
CONTENT_NUMBER: Final = struct.Struct(">I")
_SLOT: Final = struct.Struct(">QQ")
_SIZES: Final = {
    VM_TAG: 0,
    SLOT_TAG: SLOT_NUMBER.size,
    CHUNK_TAG: CHUNK_NUMBER.size,
    OUT_TAG: PAGE_NUMBER.size,
    CONTENT_TAG: CONTENT_NUMBER.size,
}


def put(key: bytes, content: bytes) -> Record:
    """A record."""
    return Record(NAMESPACE, key, bytes((VALUE_VERSION,)) + content, Lifetime.RUN)


def malformed(key: bytes, why: str) -> StoreError:
    """What to say of a malformed record."""
    return StoreError(
        f"hypervisor record {key[:64].hex()} is malformed ({why}): reset the guest, which ends "
        "such records, or report a bug"
    )


def content_of(record: Record) -> tuple[bytes, int, bytes]:
    """Tag, number and content of a record.

    Raises:
        StoreError: malformed, or written by a newer version.
    """
    key, value = record.key, record.value
    if value and value[0] > VALUE_VERSION:
        raise StoreError(
            f"hypervisor record {key[:64].hex()} has format {value[0]}, this version knows up to "
            f"{VALUE_VERSION}: it was written by a newer hcalld, use that one"
        )
    if value[:1] != bytes((VALUE_VERSION,)) or record.lifetime is not Lifetime.RUN:
        raise malformed(key, "bad head")
    if _SIZES.get(key[:1]) != len(key) - 1:
        raise malformed(key, "unknown kind; a newer hcalld's?")
    return key[:1], int.from_bytes(key[1:], "big"), value[1:]


def decode_phase(key: bytes, content: bytes) -> VmPhase:
    """The VM's phase."""
    if len(content) != 1 or content[0] not in set(VmPhase):
        raise malformed(key, "no phase of a VM")
    return VmPhase(content[0])


def encode_slot(start: int, size: int) -> bytes:
    """A memory slot."""
    return _SLOT.pack(start, size)


def decode_slot(key: bytes, content: bytes) -> tuple[int, int]:
    """Start and size of a memory slot."""
    if len(content) != _SLOT.size:
        raise malformed(key, f"{len(content)} bytes, expected {_SLOT.size}")
    start, size = _SLOT.unpack(content)
    if (start | size) % PAGE_SIZE or not size or start + size > 1 << VM_SHIFT:
        raise malformed(key, f"slot 0x{start:x} + 0x{size:x}")
    return start, size


def decode_states(key: bytes, number: int, content: bytes, gfns: Runs[GfnState]) -> None:
    """Take the states of a chunk's pages."""
    try:
        gfns.unpack(number, content)
    except ValueError as error:
        raise malformed(key, str(error)) from None


def decode_out(key: bytes, content: bytes) -> int:
    """Number of the page that holds the ciphertext."""
    number = int.from_bytes(content, "big")
    if len(content) != CONTENT_NUMBER.size or not 0 < number <= MAX_PAGES:
        raise malformed(key, "no page of the hypervisor's")
    return number


def check_content(key: bytes, number: int, content: bytes) -> None:
    """Raises StoreError if this is no page of ciphertext."""
    if len(content) != PAGE_SIZE or not 0 < number <= MAX_PAGES:
        raise malformed(key, f"{len(content)} bytes of page {number}")
