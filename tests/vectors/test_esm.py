# SPDX-License-Identifier: Apache-2.0
"""Blobs that svm-tool made, and one of ours: they open for ever; see esm/README.md."""

from __future__ import annotations

import pathlib
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from tests.esm import CMDLINE, INITRD, kernel_elf

from hcalld.crypto.lockbox import fingerprint
from hcalld.crypto.signing import load_private_key
from hcalld.crypto.tpm_session import run
from hcalld.domain.esm import blob
from hcalld.domain.esm.authoring import Recipient, authorize
from hcalld.domain.esm.boot_tree import BootTree, Range, read_boot_tree
from hcalld.domain.esm.digests import digests_of, open_digests, open_file
from hcalld.domain.esm.errors import BlobError, EsmError
from hcalld.domain.esm.flat_kernel import flat_kernel
from hcalld.domain.esm.locate import Located, locate
from hcalld.domain.esm.unlock import unlock_with_key
from hcallproto.payloads import fdt

FOLDER: Final = pathlib.Path(__file__).parent / "esm"
BLOBS: Final = ("svm-tool.blob", "hcalld.blob")


def read(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def key(name: str) -> RSAPrivateKey:
    return load_private_key(read(f"{name}.key"))


def test_guest_when_read_then_it_is_the_one_of_the_tests():
    assert read("vmlinux") == kernel_elf()
    assert read("initrd") == INITRD


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize(
    ("who", "box"), [("owner", "origin-lockbox"), ("machine", "lockbox-1"), ("other", "lockbox-2")]
)
def test_blob_when_a_recipient_opens_it_then_the_digests_are_the_guests(
    name: str, who: str, box: str
):
    found = blob.parse(read(name))
    if len(found.lockboxes) < 3 and who == "other":
        # Ours is for one machine: add the other, as its owner does.
        found = authorize(
            found, Recipient(read("other.pem")), unlock_with_key(found, key("owner")).key
        )
    unlocked = unlock_with_key(found, key(who))
    assert unlocked.lockbox.name == box
    assert unlocked.lockbox.fingerprint == fingerprint(read(f"{who}.pem"))
    expected = digests_of(flat_kernel(read("vmlinux")), read("initrd"), CMDLINE)
    assert open_digests(found, unlocked.key) == expected
    assert open_file(found, "rootd", unlocked.key) == read("rootd")


@pytest.mark.parametrize("name", BLOBS)
def test_blob_when_truncated_at_any_length_then_refused(name: str):
    whole = read(name)
    assert blob.parse(blob.parse(whole).build()) == blob.parse(whole)
    for size in range(len(whole)):
        with pytest.raises(BlobError):
            blob.parse(whole[:size])


@pytest.mark.parametrize("name", BLOBS)
def test_blob_when_any_bit_is_flipped_then_refused_or_what_it_says_is_the_same(name: str):
    whole = read(name)
    original = blob.parse(whole)
    opened = unlock_with_key(original, key("machine")).key
    expected = open_digests(original, opened)
    machine = key("machine")
    sealed = {box.sealed_key for box in original.lockboxes}
    harmless = 0
    for bit in range(8 * len(whole)):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        try:
            found = blob.parse(bytes(altered))
            if not {box.sealed_key for box in found.lockboxes} <= sealed:
                # Opening each would take minutes; one in a hundred is tried.
                if bit % 101:
                    continue
                opened = unlock_with_key(found, machine).key
            assert open_digests(found, opened) == expected
            harmless += 1
        except EsmError:
            continue
    # Comments, fingerprints, padding, and the encrypted files, which are read later.
    assert harmless


def located(initrd: bytes) -> Located:
    async def take(position: int, size: int) -> bytes:
        return initrd[position : position + size]

    nothing = Range(0, 0)
    tree = BootTree(nothing, nothing, Range(0, len(initrd)), b"", None)
    return run(locate(take, tree))


def test_initrd_when_svm_tool_added_the_blob_then_both_are_found():
    initrd = read("svm-tool.initrd")
    found = located(initrd)
    assert found.blob == read("svm-tool.blob")
    assert initrd[found.initrd.start :] == read("initrd")
    for size in range(0, found.place.size, 8):
        with pytest.raises(EsmError):
            located(initrd[:size])


def test_blob_when_svm_tool_made_it_then_its_trees_are_read_to_the_last_node():
    tree = fdt.parse(read("svm-tool.blob"))
    nested = fdt.parse(tree.node("/file").raw("files-fdt"))
    assert [node.name for node in tree.root.children] == ["lockboxes", "digest", "file"]
    assert nested.node("/files/rootd").text("algorithm") == "AES256-GCM"


# -- what a guest says of itself ----------------------------------------------------------------


@pytest.mark.parametrize("firmware", ["slof", "vof"])
def test_tree_when_linux_made_it_then_what_is_to_be_measured_is_found(firmware: str):
    data = read(f"{firmware}.dtb")
    tree = fdt.parse(data)
    assert int.from_bytes(data[20:24], "big") == 16
    found = read_boot_tree(tree)
    assert found.bootargs == b"console=hvc0 panic=0"
    assert found.rtas_text.size == 20
    assert found.rtas.start == found.rtas_text.start == 0x1FFFF000
    assert found.initrd.start % 0x10000 == 0
    # Linux reserves what it needs of them.
    reserved = [range(start, start + size) for start, size in tree.reservations]
    assert any(found.rtas.start in place for place in reserved)
    assert any(found.initrd.start in place for place in reserved)
    assert tree.node("/memory@0").raw("reg")[:8] == bytes(8)
    assert fdt.parse(tree.build()) == tree


@pytest.mark.parametrize("firmware", ["slof", "vof"])
def test_tree_when_it_is_cut_anywhere_then_refused(firmware: str):
    data = read(f"{firmware}.dtb")
    for size in range(0, len(data), 41):
        with pytest.raises(fdt.FdtError):
            fdt.parse(data[:size])
