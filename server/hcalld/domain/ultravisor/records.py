# SPDX-License-Identifier: Apache-2.0
"""The ultravisor's records: how secure VMs are written to a store.

All in namespace ``uv``, all of lifetime RUN: they outlive the daemon and end with the
machine's reset. A VM that is not secure yet has none, so what a crash leaves of a UV_ESM
is nothing. A key is one letter, the LPID (u32), and what else names it::

    v                    the VM: state, identity, next version, breaches, page key
    s  slot (u16)        a memory slot: start, size
    g  chunk (u32)       page states of 16 MiB, as ``Runs.pack`` has them
    o  page (u64)        a page that is out: version, nonce, tag
    f  name              a file: 1 and its content, or 0 if it cannot be decrypted
    r  name              who reads it: PIDR, end of what was read
    p                    the partition table entry
    x                    a register that is the ultravisor's (LPID 0; its number follows)

A value begins with the version of its format.
"""

from __future__ import annotations

import struct
from typing import Final

from hcalld.core.errors import StoreError
from hcalld.core.pages import STATE_SHIFT
from hcalld.core.records import Lifetime, Record
from hcalld.core.secret import Secret
from hcalld.domain.runs import CHUNK_SHIFT as CHUNK_PAGES_SHIFT
from hcalld.domain.runs import STATES_AT, Runs
from hcalld.domain.ultravisor.abi import KEY_SIZE, PAGE_SHIFT, VM_SHIFT
from hcalld.domain.ultravisor.files import MAX_NAME_SIZE, Reader
from hcalld.domain.ultravisor.page_states import TRANSIENT, PageState
from hcalld.domain.ultravisor.sealing import IDENTITY_SIZE, NONCE_SIZE, TAG_SIZE, Sealed
from hcalld.domain.ultravisor.slots import Slot
from hcalld.domain.ultravisor.vm_states import VmState
from hcallproto.abi.families import uv

NAMESPACE: Final = "uv"
VALUE_VERSION: Final = 1

VM_TAG: Final = b"v"
SLOT_TAG: Final = b"s"
CHUNK_TAG: Final = b"g"
OUT_TAG: Final = b"o"
FILE_TAG: Final = b"f"
READER_TAG: Final = b"r"
PATE_TAG: Final = b"p"
SPR_TAG: Final = b"x"

CHUNK_SHIFT: Final = CHUNK_PAGES_SHIFT + STATE_SHIFT
"""Page states of so many bytes are one record: a call changes few."""

_HEAD: Final = struct.Struct(">B")
_KEY: Final = struct.Struct(">cI")
_VM: Final = struct.Struct(f">B{IDENTITY_SIZE}sQIB{KEY_SIZE}s")
_SLOT: Final = struct.Struct(">QQ")
_CHUNK: Final = struct.Struct(">I")
_OUT: Final = struct.Struct(f">Q{NONCE_SIZE}s{TAG_SIZE}s")
_READER: Final = struct.Struct(">QI")
_PATE: Final = struct.Struct(">QQ")
_SPR: Final = struct.Struct(">Q")


def key(tag: bytes, lpid: int, rest: bytes = b"") -> bytes:
    """A record's key."""
    return _KEY.pack(tag, lpid) + rest


def split_key(whole: bytes) -> tuple[bytes, int, bytes]:
    """Tag, LPID and the rest of a key.

    Raises:
        StoreError: it is none.
    """
    if len(whole) < _KEY.size:
        raise malformed(whole, "its key is too short")
    tag, lpid = _KEY.unpack_from(whole)
    return tag, lpid, whole[_KEY.size :]


def put(whole_key: bytes, content: bytes) -> Record:
    """A record."""
    return Record(NAMESPACE, whole_key, _HEAD.pack(VALUE_VERSION) + content, Lifetime.RUN)


def content_of(record: Record) -> bytes:
    """What a record holds, without its head.

    Raises:
        StoreError: malformed, or written by a newer version.
    """
    value = record.value
    if value and value[0] > VALUE_VERSION:
        raise StoreError(
            f"secure-VM record {record.key[:64].hex()} has format {value[0]}, this version knows "
            f"up to {VALUE_VERSION}: it was written by a newer hcalld, use that one"
        )
    if not value or value[0] != VALUE_VERSION or record.lifetime is not Lifetime.RUN:
        raise malformed(record.key, "bad head")
    return value[_HEAD.size :]


def malformed(whole_key: bytes, why: str) -> StoreError:
    """What to say of a malformed record."""
    return StoreError(
        f"secure-VM record {whole_key[:64].hex()} is malformed ({why}): reset the guest, which "
        "ends such records, or report a bug"
    )


def _unpack(form: struct.Struct, whole_key: bytes, content: bytes) -> tuple[int | bytes, ...]:
    if len(content) != form.size:
        raise malformed(whole_key, f"{len(content)} bytes, expected {form.size}")
    return form.unpack(content)


# -- the VM ---------------------------------------------------------------------------------


def encode_vm(
    state: VmState, identity: bytes, next_version: int, breaches: int, page_key: Secret | None
) -> bytes:
    """A VM's own record."""
    revealed = bytes(KEY_SIZE) if page_key is None else page_key.reveal()
    has_key = page_key is not None
    return _VM.pack(state, identity, next_version, min(breaches, 0xFFFFFFFF), has_key, revealed)


def decode_vm(whole_key: bytes, content: bytes) -> tuple[VmState, bytes, int, int, Secret | None]:
    """State, identity, next version, breaches and page key of a VM."""
    if len(content) != _VM.size:
        raise malformed(whole_key, f"{len(content)} bytes, expected {_VM.size}")
    state, identity, next_version, breaches, has_key, page_key = _VM.unpack(content)
    if state not in (VmState.SECURE, VmState.ABORT) or has_key > 1:
        raise malformed(whole_key, f"state {state}, key flag {has_key}")
    return VmState(state), identity, next_version, breaches, Secret(page_key) if has_key else None


def encode_slot(slot: Slot) -> bytes:
    """A memory slot."""
    return _SLOT.pack(*slot)


def decode_slot(whole_key: bytes, rest: bytes, content: bytes) -> tuple[int, Slot]:
    """Id and range of a memory slot."""
    slot_id = int.from_bytes(rest, "big")
    if len(rest) != 2 or slot_id >= uv.MAX_SLOTS:
        raise malformed(whole_key, "no slot id")
    start, size = _unpack(_SLOT, whole_key, content)
    assert isinstance(start, int)
    assert isinstance(size, int)
    return slot_id, Slot(start, size)


# -- pages ----------------------------------------------------------------------------------


def decode_states(whole_key: bytes, rest: bytes, content: bytes, pages: Runs[PageState]) -> None:
    """Take the states of a chunk's pages."""
    if len(rest) != _CHUNK.size:
        raise malformed(whole_key, "no chunk number")
    (number,) = _CHUNK.unpack(rest)
    try:
        pages.unpack(number, content)
    except ValueError as error:
        raise malformed(whole_key, str(error)) from None
    transient = set(content[STATES_AT:]).intersection(TRANSIENT)
    if transient:
        raise malformed(whole_key, f"pages are {PageState(min(transient)).name}")


def encode_out(sealed: Sealed) -> bytes:
    """What is kept of a page that is out."""
    return _OUT.pack(*sealed)


def decode_out(whole_key: bytes, rest: bytes, content: bytes) -> tuple[int, Sealed]:
    """Page number and what is kept of a page that is out."""
    number = int.from_bytes(rest, "big")
    if len(rest) != 8 or number >> (VM_SHIFT - PAGE_SHIFT):
        raise malformed(whole_key, "no page number")
    version, nonce, tag = _unpack(_OUT, whole_key, content)
    assert isinstance(version, int)
    assert isinstance(nonce, bytes)
    assert isinstance(tag, bytes)
    return number, Sealed(version, nonce, tag)


# -- files ----------------------------------------------------------------------------------


def encode_file(content: Secret | None) -> bytes:
    """A file of the blob."""
    return b"\0" if content is None else b"\1" + content.reveal()


def decode_file(whole_key: bytes, rest: bytes, content: bytes) -> tuple[bytes, Secret | None]:
    """Name and content of a file."""
    check_name(whole_key, rest)
    if content == b"\0":
        return rest, None
    if content[:1] != b"\1" or len(content) - 1 > uv.MAX_FILE_SIZE:
        raise malformed(whole_key, f"{len(content)} bytes of a file")
    return rest, Secret(content[1:])


def check_name(whole_key: bytes, name: bytes) -> None:
    """Raises StoreError if this is no file's name."""
    if not 0 < len(name) <= MAX_NAME_SIZE:
        raise malformed(whole_key, f"a name of {len(name)} bytes")


def encode_reader(reader: Reader) -> bytes:
    """Who reads a file."""
    return _READER.pack(*reader)


def decode_reader(whole_key: bytes, rest: bytes, content: bytes) -> tuple[bytes, Reader]:
    """Name of a file, and who reads it."""
    check_name(whole_key, rest)
    pidr, end = _unpack(_READER, whole_key, content)
    assert isinstance(pidr, int)
    assert isinstance(end, int)
    return rest, Reader(pidr, end)


# -- the machine ------------------------------------------------------------------------------


def encode_pate(entry: tuple[int, int]) -> bytes:
    """A partition table entry."""
    return _PATE.pack(*entry)


def decode_pate(whole_key: bytes, content: bytes) -> tuple[int, int]:
    """A partition table entry."""
    dw0, dw1 = _unpack(_PATE, whole_key, content)
    assert isinstance(dw0, int)
    assert isinstance(dw1, int)
    return dw0, dw1


def encode_spr(number: int) -> bytes:
    """A register."""
    return _SPR.pack(number)


def decode_spr(whole_key: bytes, rest: bytes, content: bytes) -> tuple[int, int]:
    """Number and value of a register."""
    (number,) = _unpack(_SPR, whole_key, content)
    assert isinstance(number, int)
    if len(rest) != 2:
        raise malformed(whole_key, "no register number")
    return int.from_bytes(rest, "big"), number
