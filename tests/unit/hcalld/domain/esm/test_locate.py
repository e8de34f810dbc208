# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
from tests.esm import INITRD, INITRD_BASE
from tests.unit.hcalld.domain.esm.guest import Guest, blob

from hcalld.crypto.tpm_session import run
from hcalld.domain.esm.authoring import archive
from hcalld.domain.esm.blob import MAX_SIZE
from hcalld.domain.esm.boot_tree import Range
from hcalld.domain.esm.errors import EsmError, NoBlobError
from hcalld.domain.esm.locate import CHUNK_SIZE, MAX_ENTRIES, Located, locate
from hcallproto.payloads import cpio

BLOB = blob().build()
ARCHIVE = archive(BLOB)


def find(guest: Guest) -> Located:
    return run(locate(guest.memory.read, guest.tree))


def guest_with(before: bytes) -> Guest:
    return Guest.make(before)


def test_blob_when_it_is_before_the_initrd_then_found():
    guest = Guest.make()
    found = find(guest)
    assert found.blob == BLOB
    assert found.place == Range(INITRD_BASE, len(ARCHIVE))
    assert found.initrd == Range(INITRD_BASE + len(ARCHIVE), len(INITRD))
    assert BLOB.hex() not in repr(found)


def test_blob_when_the_initrd_is_not_aligned_then_the_archive_is_looked_for_at_four():
    guest = Guest.make(b"\0" + ARCHIVE)
    guest.memory.put(INITRD_BASE + 4, ARCHIVE + INITRD)
    size = len(ARCHIVE) + len(INITRD) + 3
    guest.tree = dataclasses.replace(guest.tree, initrd=Range(INITRD_BASE + 1, size))
    found = find(guest)
    assert found.initrd == Range(INITRD_BASE + 4 + len(ARCHIVE), len(INITRD))


def test_blob_when_a_wrapper_names_it_then_the_initrd_is_measured_whole():
    guest = Guest.make(b"")
    guest.memory.put(0x5000, BLOB)
    guest.tree = dataclasses.replace(guest.tree, blob=Range(0x5000, len(BLOB) + 100))
    found = find(guest)
    assert found.blob == BLOB
    assert found.place == Range(0x5000, len(BLOB) + 100)
    assert found.initrd == guest.tree.initrd == Range(INITRD_BASE, len(INITRD))


@pytest.mark.parametrize("elsewhere", [0x9000, 1 << 40])
def test_blob_when_a_wrapper_tells_it_in_its_own_order_then_found(elsewhere: int):
    """The first place has none, or is no memory; the second one has it."""
    guest = Guest.make(b"")
    guest.memory.put(0x5000, BLOB)
    guest.memory.put(0x9000, bytes(4096))
    first, second = Range(elsewhere, 4096), Range(0x5000, len(BLOB))
    guest.tree = dataclasses.replace(guest.tree, blob=first, swapped_blob=second)
    found = find(guest)
    assert found.blob == BLOB
    assert found.place == second
    assert found.initrd == Range(INITRD_BASE, len(INITRD))


def test_blob_when_it_is_in_neither_order_then_the_usual_one_is_told():
    guest = Guest.make(b"")
    guest.memory.put(0x5000, bytes(4096))
    place = Range(0x5000, 4096)
    guest.tree = dataclasses.replace(guest.tree, blob=place, swapped_blob=Range(1 << 40, 64))
    with pytest.raises(EsmError, match="at 0x5000: magic"):
        find(guest)


def test_blob_when_it_is_deep_in_its_file_then_found_at_a_multiple_of_four():
    filling = b"\xd0\x0d\xfe" + bytes(CHUNK_SIZE)
    for offset in (0, 4, CHUNK_SIZE - 4, CHUNK_SIZE, CHUNK_SIZE + 4):
        # A magic that is not at a multiple of four is none.
        data = (b"x\xd0\x0d\xfe\xed" + filling)[: max(offset, 0)].ljust(offset, b"\0")
        found = find(guest_with(cpio.build([("opt/ibm/pef-blob", data + BLOB + b"tail")])))
        assert found.blob == BLOB


def test_blob_when_it_is_in_a_later_file_then_found():
    files = [("opt/ibm/pef/readme", b"text"), ("opt/ibm/pef/x", BLOB), ("etc/more", b"more")]
    assert find(guest_with(cpio.build(files))).blob == BLOB


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (b"", "entry at 0x200000: a size is not eight"),
        (b"\x1f\x8b compressed", "magic"),
        (bytes(512), "magic"),
        (
            cpio.build([("etc/passwd", b"x"), ("opt/ibm/pef/b", BLOB)]),
            "first file is b'etc/passwd'",
        ),
        (cpio.build([("opt/ibm/pe", b"x")]), "first file is b'opt/ibm/pe'"),
        (cpio.build([("opt/ibm/pef/b", b"nothing of this kind")]), "no file in it has an ESM blob"),
        (cpio.build([("opt/ibm/pef/b", b"")]), "no file in it has an ESM blob"),
        (cpio.build([("opt/ibm/pef/b", b"x" + BLOB)]), "no file in it has an ESM blob"),
        (cpio.build([]), "no file in it has an ESM blob"),
        (cpio.build([("opt/ibm/pef/b", BLOB[:39])]), "39 bytes at .* are none"),
    ],
)
def test_blob_when_there_is_none_then_told(before: bytes, why: str):
    with pytest.raises(NoBlobError, match=why):
        find(guest_with(before))


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (cpio.build([("opt/ibm/pef/b", BLOB[:-1])]), "it claims .* bytes, but has"),
        (cpio.build([("opt/ibm/pef/b", BLOB[:4] + b"\xff" * 60)]), "version"),
        (
            cpio.build([("opt/ibm/pef/b", BLOB[:4] + b"\x7f" + BLOB[5:])]),
            f"total size .* expected 40 to {MAX_SIZE}",
        ),
        (cpio.build([(f"opt/{i}", b"") for i in range(MAX_ENTRIES)]), "more than 64 entries"),
        (ARCHIVE.replace(b"0" * 8 + b"%08X" % len(BLOB), b"0" * 8 + b"7FFFFFFF"), "initrd's end"),
    ],
)
def test_archive_when_it_is_malformed_then_refused(before: bytes, why: str):
    with pytest.raises(EsmError, match=why):
        find(guest_with(before))


def test_archive_when_it_is_too_large_then_refused():
    guest = Guest.make()
    guest.memory.size = 64 << 20
    guest.memory.data.extend(bytes(60 << 20))
    guest.tree = dataclasses.replace(guest.tree, initrd=Range(INITRD_BASE, 48 << 20))
    head = bytearray(cpio.build([("opt/ibm/pef", b"x")]))
    at = head.index(b"070701", 200)
    head[at + 54 : at + 62] = b"02000000"
    guest.memory.put(INITRD_BASE, bytes(head))
    with pytest.raises(EsmError, match="larger than"):
        find(guest)
    # Only the heads were read.
    assert guest.memory.largest < 4096


def test_archive_when_the_initrd_ends_anywhere_in_it_then_refused():
    for size in range(1, len(ARCHIVE)):
        guest = Guest.make()
        guest.tree = dataclasses.replace(guest.tree, initrd=Range(INITRD_BASE, size))
        with pytest.raises(EsmError):
            find(guest)


def test_archive_when_nothing_is_behind_it_then_the_initrd_is_empty():
    guest = Guest.make(initrd=b"")
    assert find(guest).initrd.size == 0


def test_archive_when_the_initrd_is_not_memory_then_told():
    guest = Guest.make()
    guest.tree = dataclasses.replace(guest.tree, initrd=Range(1 << 40, 1 << 20))
    with pytest.raises(EsmError, match="not in guest RAM"):
        find(guest)
