# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from tests.unit.hcalld.domain.esm.guest import blob

from hcalld.domain.esm.blob import MAX_FILES, MAX_LOCKBOXES, Blob, parse, parse_files
from hcalld.domain.esm.errors import BlobError
from hcallproto.payloads import fdt
from hcallproto.payloads.fdt import Fdt, Node


def test_blob_when_built_then_it_is_parsed_to_the_same():
    assert parse(blob().build()) == blob()
    assert [box.name for box in blob().lockboxes] == ["origin-lockbox", "lockbox-1", "lockbox-2"]
    assert [box.number for box in blob().lockboxes] == [0, 1, 2]


def test_blob_when_it_has_no_files_and_digests_then_it_is_one():
    bare = Blob(blob().lockboxes, None)
    assert parse(bare.build()) == bare


def test_blob_when_nodes_come_in_another_order_then_the_same():
    tree = fdt.parse(blob().build())
    boxes = tree.node("/lockboxes")
    boxes.children.reverse()
    tree.root.children.reverse()
    assert parse(tree.build()) == blob()


def test_blob_when_truncated_then_refused():
    whole = blob().build()
    for size in range(len(whole)):
        with pytest.raises(BlobError):
            parse(whole[:size])


def test_files_when_truncated_then_refused():
    nested = fdt.parse(blob().build()).node("/file").raw("files-fdt")
    assert parse_files(nested) == blob().files
    for size in range(len(nested)):
        with pytest.raises(BlobError, match="files in the ESM blob"):
            parse_files(nested[:size])


Change = Callable[[Node], object]


def prop(path: str, name: str, value: bytes) -> tuple[str, Change]:
    return path, lambda node: node.properties.__setitem__(name, value)


def without(path: str, name: str) -> tuple[str, Change]:
    return path, lambda node: node.properties.pop(name)


def node(path: str, name: str) -> tuple[str, Change]:
    return path, lambda node: node.add(name)


def rename(path: str, name: str) -> tuple[str, Change]:
    return path, lambda node: setattr(node, "name", name)


def no_children(path: str) -> tuple[str, Change]:
    return path, lambda node: node.children.clear()


BOX = "/lockboxes/lockbox-1"
MARK = f"{BOX}/pubkey-fingerprint"
DIGESTS = "/digest/digests-fdt"


@pytest.mark.parametrize(
    ("path", "change", "why"),
    [
        (*prop("/", "compatible", b"ibm,other\0"), "compatible of / is 'ibm,other'"),
        (*without("/", "compatible"), "no property compatible"),
        (*prop("/", "more", b""), "/ has unknown 'more'"),
        (*node("/", "files"), "/ has unknown 'files'"),
        (*no_children("/"), "/ has no node lockboxes"),
        (*rename("/digest", "x"), "unknown 'x'"),
        (*prop("/lockboxes", "x", b""), "lockboxes has unknown 'x'"),
        (*no_children("/lockboxes"), "no lockbox"),
        (*rename(BOX, "lockbox-0"), "'lockbox-0' is no lockbox's name"),
        (*rename(BOX, "lockbox-01"), "no lockbox's name"),
        (*rename(BOX, "lockbox-x"), "no lockbox's name"),
        (*rename(BOX, "lockbox-9999999999"), "no lockbox's name"),
        (*prop(BOX, "x", b""), "lockbox-1 has unknown 'x'"),
        (*node(BOX, "x"), "lockbox-1 has unknown 'x'"),
        (*without(BOX, "encrypted-symkey"), "no property encrypted-symkey"),
        (*prop(BOX, "encrypted-symkey", b""), "0 bytes, at most 1024"),
        (*prop(BOX, "encrypted-symkey", bytes(1025)), "1025 bytes, at most 1024"),
        (*without(BOX, "untrusted-comment"), "no property untrusted-comment"),
        (*prop(BOX, "untrusted-comment", b"a\nb\0"), "not one line"),
        (*prop(BOX, "untrusted-comment", b"a" * 4097 + b"\0"), "not one line"),
        (*no_children(BOX), "no node pubkey-fingerprint"),
        (*prop(MARK, "algorithm", b"SHA1\0"), "algorithm .* is 'SHA1'"),
        (*prop(MARK, "hash", bytes(31)), "hash .* has 31 bytes, expected 32"),
        (*prop(MARK, "x", b""), "unknown 'x'"),
        (*node("/digest", "x"), "digest has unknown 'x'"),
        (*prop(DIGESTS, "iv", bytes(12)), "iv .* has 12 bytes, expected 16"),
        (*prop(DIGESTS, "mac", bytes(15)), "mac .* has 15 bytes"),
        (*prop(DIGESTS, "algorithm", b"AES128-GCM\0"), "is 'AES128-GCM'"),
        (*without(DIGESTS, "ciphertext"), "no property ciphertext"),
        (*node(DIGESTS, "x"), "digests-fdt has unknown 'x'"),
        (*node("/file", "rootd"), "file has unknown 'rootd'"),
        (*prop("/file", "files-fdt", b""), "files in the ESM blob: 0 bytes"),
    ],
)
def test_blob_when_something_is_wrong_then_refused(path: str, change: Change, why: str):
    tree = fdt.parse(blob().build())
    change(tree.node(path))
    with pytest.raises(BlobError, match=why):
        parse(tree.build())


@pytest.mark.parametrize(
    ("path", "change", "why"),
    [
        (*prop("/", "compatible", b"ibm,esm\0"), "is 'ibm,esm', expected 'ibm,esm-file'"),
        (*node("/", "x"), "/ has unknown 'x'"),
        (*no_children("/"), "no node files"),
        (*prop("/files", "x", b""), "files has unknown 'x'"),
        (*prop("/files/rootd", "ciphertext", bytes(65536)), "65536 bytes, at most 65535"),
    ],
)
def test_files_when_something_is_wrong_then_refused(path: str, change: Change, why: str):
    tree = fdt.parse(fdt.parse(blob().build()).node("/file").raw("files-fdt"))
    change(tree.node(path))
    with pytest.raises(BlobError, match=why):
        parse_files(tree.build())


def test_blob_when_it_has_too_many_lockboxes_or_files_then_refused():
    box = blob().lockboxes[1]
    boxes = tuple(
        dataclasses.replace(box, name=f"lockbox-{number}") for number in range(1, MAX_LOCKBOXES + 2)
    )
    assert len(parse(Blob(boxes[1:], None).build()).lockboxes) == MAX_LOCKBOXES
    with pytest.raises(BlobError, match="65 lockboxes, at most 64"):
        parse(Blob(boxes, None).build())
    sealed = blob().files["rootd"]
    files = {f"f{number}": sealed for number in range(MAX_FILES + 1)}
    with pytest.raises(BlobError, match="65 files, at most 64"):
        parse(Blob(boxes[:1], None, files).build())


def test_blob_when_it_is_some_other_tree_then_refused():
    with pytest.raises(BlobError, match="no property compatible"):
        parse(Fdt().build())
