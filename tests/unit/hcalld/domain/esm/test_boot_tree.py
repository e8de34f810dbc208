# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from tests.esm import CMDLINE, INITRD_BASE, RTAS_BASE, RTAS_SIZE, boot_tree

from hcalld.domain.esm.boot_tree import Range, read_boot_tree
from hcalld.domain.esm.errors import EsmError
from hcallproto.payloads import fdt


def test_tree_when_slof_made_it_then_everything_is_found():
    found = read_boot_tree(boot_tree(0x1000))
    assert found.rtas == Range(RTAS_BASE, RTAS_SIZE)
    assert found.rtas_text == Range(RTAS_BASE, 20)
    assert found.initrd == Range(INITRD_BASE, 0x1000)
    assert found.initrd.end == INITRD_BASE + 0x1000
    assert str(found.initrd) == "0x200000 to 0x201000"
    assert found.bootargs == CMDLINE.encode()
    assert found.blob is None


def test_tree_when_vof_made_it_then_the_text_has_its_usual_size():
    tree = boot_tree(0x1000)
    del tree.node("/rtas").properties["slof,rtas-size"]
    tree.node("/chosen").properties["linux,initrd-start"] = fdt.cell(INITRD_BASE)
    tree.node("/chosen").properties["linux,initrd-end"] = fdt.cell(INITRD_BASE + 0x1000)
    assert read_boot_tree(tree) == read_boot_tree(boot_tree(0x1000))


def test_tree_when_rtas_is_entered_where_it_is_then_taken():
    tree = boot_tree(0x1000)
    tree.node("/rtas").properties["linux,rtas-entry"] = fdt.cell(RTAS_BASE)
    assert read_boot_tree(tree) == read_boot_tree(boot_tree(0x1000))


def test_tree_when_a_wrapper_names_the_blob_then_it_is_there():
    tree = boot_tree(0x1000)
    chosen = tree.node("/chosen")
    chosen.properties["linux,esm-blob-start"] = fdt.cell(0x5000)
    with pytest.raises(EsmError, match="no property linux,esm-blob-end"):
        read_boot_tree(tree)
    chosen.properties["linux,esm-blob-end"] = (0x6000).to_bytes(8, "big")
    assert read_boot_tree(tree).blob == Range(0x5000, 0x1000)


@pytest.mark.parametrize(
    ("start", "end", "blob", "swapped"),
    [
        # As Linux' wrapper of a little-endian kernel tells 0x2126000 to 0x21267cd.
        (0x00601202, 0xCD671202, Range(0x601202, 0xCD070000), Range(0x2126000, 0x7CD)),
        (0x00601202, 0x00101202, Range(0, 0), None),
        (0x5000, 0x6000, Range(0x5000, 0x1000), Range(0x500000, 0x100000)),
        (0x50FF, 0x6000, Range(0x50FF, 0xF01), None),
    ],
)
def test_tree_when_a_wrapper_may_be_little_endian_then_either_order_is_told(
    start: int, end: int, blob: Range, swapped: Range | None
):
    tree = boot_tree(0x1000)
    chosen = tree.node("/chosen")
    chosen.properties["linux,esm-blob-start"] = fdt.cell(start)
    chosen.properties["linux,esm-blob-end"] = fdt.cell(end)
    if not blob.size:
        with pytest.raises(EsmError, match="linux,esm-blob-end is 0x101202, not above"):
            read_boot_tree(tree)
        return
    found = read_boot_tree(tree)
    assert (found.blob, found.swapped_blob) == (blob, swapped)


def test_tree_when_only_little_endian_makes_sense_then_it_is_that():
    tree = boot_tree(0x1000)
    chosen = tree.node("/chosen")
    chosen.properties["linux,esm-blob-start"] = (0x21260FF).to_bytes(4, "little")
    chosen.properties["linux,esm-blob-end"] = (0x2126800).to_bytes(4, "little")
    found = read_boot_tree(tree)
    assert (found.blob, found.swapped_blob) == (Range(0x21260FF, 0x701), None)


@pytest.mark.parametrize(
    ("path", "name", "value", "why"),
    [
        ("/rtas", "linux,rtas-base", None, "no property linux,rtas-base"),
        ("/rtas", "rtas-size", bytes(8), "8 bytes, expected 4"),
        ("/rtas", "linux,rtas-entry", fdt.cell(RTAS_BASE + 4), "RTAS is entered at 0x1f0004"),
        ("/rtas", "linux,rtas-entry", bytes(8), "8 bytes, expected 4"),
        ("/chosen", "opal-base-address", bytes(8), "chosen has opal-base-address"),
        ("/", "opal-entry-address", bytes(8), "/ has opal-entry-address"),
        ("/rtas", "hcall-instructions", bytes(16), "rtas has hcall-instructions"),
        ("/rtas", "slof,rtas-size", fdt.cell(RTAS_SIZE + 1), "RTAS has 4096 bytes, but 4097"),
        ("/chosen", "linux,initrd-start", None, "no property linux,initrd-start"),
        ("/chosen", "linux,initrd-start", b"abc", "3 bytes, expected 4 or 8"),
        ("/chosen", "linux,initrd-end", fdt.cell(INITRD_BASE), "not above linux,initrd-start"),
        ("/chosen", "linux,initrd-end", fdt.cell(0), "not above"),
        ("/chosen", "bootargs", None, "no property bootargs"),
        ("/chosen", "bootargs", b"", "do not end with a NUL"),
        ("/chosen", "bootargs", b"svm=1", "do not end with a NUL"),
        ("/chosen", "bootargs", bytes(65537), "65537 bytes, at most 65536"),
    ],
)
def test_tree_when_something_is_wrong_then_refused(
    path: str, name: str, value: bytes | None, why: str
):
    tree = boot_tree(0x1000)
    if value is None:
        del tree.node(path).properties[name]
    else:
        tree.node(path).properties[name] = value
    with pytest.raises(EsmError, match=f"device tree: .*{why}"):
        read_boot_tree(tree)


@pytest.mark.parametrize("name", ["rtas", "chosen"])
def test_tree_when_a_node_is_missing_then_refused(name: str):
    tree = boot_tree(0x1000)
    tree.root.children = [node for node in tree.root.children if node.name != name]
    with pytest.raises(EsmError, match=f"no node /{name}"):
        read_boot_tree(tree)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", ["rtas", "chosen"])
def test_tree_when_linux_could_take_another_node_then_refused(name: str, is_first: bool):
    # libfdt gives the first of them for /chosen: a command line that nobody measured.
    tree = boot_tree(0x1000)
    other = fdt.Node(f"{name}@0", {"bootargs": b"init=/bin/sh\0"})
    tree.root.children.insert(0 if is_first else len(tree.root.children), other)
    with pytest.raises(EsmError, match=f"can be taken for {name}"):
        read_boot_tree(fdt.parse(tree.build()))
    other.name = f"{name}s@0"
    read_boot_tree(fdt.parse(tree.build()))
