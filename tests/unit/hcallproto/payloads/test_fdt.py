# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from hcallproto.payloads import fdt
from hcallproto.payloads.fdt import HEADER, HEADER_SIZE, MAX_DEPTH, RESERVATION, Fdt, FdtError, Node


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def blob(
    body: bytes,
    names: bytes = b"",
    *,
    reserved: bytes = bytes(16),
    version: int = 17,
    compatible: int = 16,
    **changes: Any,
) -> bytes:
    """A tree with any structure block."""
    head_size = HEADER_SIZE
    at = head_size + len(reserved)
    fields = {
        "magic": fdt.MAGIC,
        "total_size": at + len(body) + len(names),
        "structure": at,
        "strings": at + len(body),
        "reservations": head_size,
        "version": version,
        "compatible_version": compatible,
        "boot_cpuid": 0,
        "strings_size": len(names),
        "structure_size": len(body),
    } | changes
    return words(*fields.values()) + reserved + body + names


ROOT = words(1, 0)
EMPTY = ROOT + words(2, 9)


def a_tree() -> Fdt:
    tree = Fdt(boot_cpuid=3, reservations=[(0x1000, 0x2000), (1 << 63, 5)])
    tree.root.properties["compatible"] = fdt.string("ibm,esm")
    chosen = tree.root.add(
        "chosen", {"bootargs": fdt.string("svm=1"), "empty": b"", "compatible": b""}
    )
    chosen.properties["start"] = (1 << 40).to_bytes(8, "big")
    tree.root.add("memory@0").add("deep,er").properties["args"] = fdt.cell(7)
    return tree


# -- both ways ----------------------------------------------------------------------------------


def test_build_when_parsed_then_the_same_tree():
    built = a_tree().build()
    assert fdt.parse(built) == a_tree()
    assert fdt.parse(built + b"behind it") == a_tree()


def test_build_when_a_name_ends_another_then_it_is_there_once():
    # "args" is the end of "bootargs".
    assert b"\0args\0" not in a_tree().build()


def test_header_when_the_schema_reads_it_then_it_agrees():
    built = a_tree().build()
    shown = HEADER.parse(built)
    assert HEADER.sizeof() == HEADER_SIZE
    head = fdt.parse_head(built)
    assert (shown.total_size, shown.structure, shown.strings) == (
        head.total_size,
        head.structure,
        head.strings,
    )
    assert shown.structure + shown.structure_size == head.structure_end
    assert shown.boot_cpuid == head.boot_cpuid == 3
    first = RESERVATION.parse(built[shown.reservations :])
    assert (first.address, first.size) == (0x1000, 0x2000)


def test_parse_when_version_16_then_the_structure_has_no_size():
    # As Linux makes it: the header's last field is not filled in.
    assert fdt.parse(blob(EMPTY, version=16, structure_size=0)) == Fdt()
    assert fdt.parse(blob(EMPTY, version=18, compatible=17)) == Fdt()


def test_parse_when_there_are_nops_then_they_do_not_matter():
    structure = words(4, 4) + ROOT + words(4, 3, 0, 0, 4, 2, 4, 9)
    assert fdt.parse(blob(structure, b"p\0")).root == Node("", {"p": b""})


# -- values -------------------------------------------------------------------------------------


def test_nodes_when_looked_up_then_by_path():
    tree = a_tree()
    assert tree.node("/") is tree.root
    assert tree.node("/memory@0/deep,er").u32("args") == 7
    assert tree.find("/memory") is None
    assert tree.find("/no/such") is None
    with pytest.raises(FdtError, match="no node /chosen/none"):
        tree.node("/chosen/none")


def test_values_when_read_then_as_what_they_are():
    chosen = a_tree().node("/chosen")
    assert chosen.text("bootargs") == "svm=1"
    assert chosen.number("start") == 1 << 40
    assert Node("", {"a": fdt.cell(9)}).number("a") == 9
    assert chosen.raw("empty") == b""


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (Node.u32, b"12345678"),
        (Node.number, b"12345"),
        (Node.text, b"no end"),
        (Node.text, b"two\0strings\0"),
        (Node.text, b""),
        (Node.text, b"\xff\0"),
    ],
)
def test_values_when_they_are_something_else_then_refused(
    read: Callable[[Node, str], object], value: bytes
):
    with pytest.raises(FdtError, match="property p of node n"):
        read(Node("n", {"p": value}), "p")
    with pytest.raises(FdtError, match="node / has no property p"):
        read(Node(), "p")


# -- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ä", "x" * 256])
def test_build_when_a_name_cannot_be_written_then_refused(name: str):
    tree = Fdt()
    tree.root.add(name)
    with pytest.raises(FdtError, match="node name"):
        tree.build()
    with pytest.raises(FdtError, match="property name"):
        Fdt(Node("", {name: b""})).build()


def test_build_when_the_tree_is_no_tree_then_refused():
    with pytest.raises(FdtError, match="root is called 'x'"):
        Fdt(Node("x")).build()
    twice = Fdt()
    twice.root.add("a").add("b")
    twice.root.children[0].add("b")
    with pytest.raises(FdtError, match="node /a: b is there twice"):
        twice.build()
    circle = Node("a")
    circle.children.append(circle)
    with pytest.raises(FdtError, match="deeper than"):
        Fdt(Node("", {}, [circle])).build()


def test_depth_when_greatest_then_taken_both_ways():
    tree = Fdt()
    node = tree.root
    for _ in range(MAX_DEPTH - 1):
        node = node.add("n")
    assert fdt.parse(tree.build()) == tree
    node.add("n")
    with pytest.raises(FdtError, match="deeper"):
        tree.build()


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(len(a_tree().build())))
def test_parse_when_truncated_then_refused(size: int):
    with pytest.raises(FdtError):
        fdt.parse(a_tree().build()[:size])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"magic": 0xEDFE0DD0}, "magic 0xedfe0dd0"),
        ({"version": 15}, "version 15"),
        ({"version": 18, "compatible_version": 18}, "version 18"),
        ({"version": 16, "compatible_version": 17}, "version 16"),
        ({"total_size": 39}, "total size 39"),
        ({"total_size": 1 << 31}, "total size"),
        ({"total_size": 1 << 19}, "total size .* but there are"),
        ({"reservations": 8}, "reservation block"),
        ({"reservations": 44}, "expected a multiple of 8"),
        ({"reservations": 0xFFFFFFF8}, "reservation block"),
        ({"structure": 54}, "expected a multiple of 4"),
        ({"structure": 0xFFFFFFFC, "structure_size": 8}, "structure block"),
        ({"structure_size": 0xFFFFFFFF}, "structure block"),
        ({"strings_size": 0xFFFFFFFF}, "strings block"),
        ({"strings": 4}, "strings block"),
        ({"structure_size": 0}, "within something"),
    ],
)
def test_header_when_it_is_wrong_then_refused(changes: dict[str, Any], why: str):
    with pytest.raises(FdtError, match=why):
        fdt.parse(blob(EMPTY, **changes))


def test_limit_when_the_reader_says_less_then_a_tree_is_too_large():
    built = a_tree().build()
    fdt.parse(built, len(built))
    with pytest.raises(FdtError, match="total size"):
        fdt.parse(built, len(built) - 1)


def test_reservations_when_they_do_not_end_then_refused():
    with pytest.raises(FdtError, match="do not end"):
        fdt.parse(words(*struct.unpack(">10I", blob(EMPTY)[:40])) + b"\1" * (len(EMPTY) + 16))
    many = words(0, 1, 0, 1) * (fdt.MAX_RESERVATIONS + 1) + bytes(16)
    with pytest.raises(FdtError, match="more than 1024 reservations"):
        fdt.parse(blob(EMPTY, reserved=many))
    most = many[16:]
    assert len(fdt.parse(blob(EMPTY, reserved=most)).reservations) == 1024


def test_reservations_when_one_has_no_size_then_refused():
    # dtc, libfdt and Linux end the list there, the specification does not.
    with pytest.raises(FdtError, match="reservation at 40 has size 0"):
        fdt.parse(blob(EMPTY, reserved=words(0, 1, 0, 0) + bytes(16)))
    with pytest.raises(FdtError, match="reservation has size 0"):
        Fdt(reservations=[(1, 1), (1, 0)]).build()


NAME = b"ab\0\0"


@pytest.mark.parametrize(
    ("structure", "why"),
    [
        (words(2, 9), "does not begin with a node"),
        (words(1) + NAME + words(2, 9), "root is called 'ab'"),
        (ROOT + words(1, 0, 2, 2, 9), "has no name"),
        (ROOT + words(1) + b"a/b\0" + words(2, 2, 9), "is not a name"),
        (ROOT + words(1) + b"a\xffb\0" + words(2, 2, 9), "is not a name"),
        (ROOT + words(1) + b"a" * 300, "does not end within 256"),
        (ROOT + words(1) + b"abcd", "does not end within 4"),
        (ROOT + (words(1) + NAME + words(2)) * 2 + words(2, 9), "two nodes ab"),
        (ROOT + (words(1) + NAME) * MAX_DEPTH, "deeper than"),
        (ROOT + words(1) + NAME + words(2, 3, 0, 0, 2, 9), "behind a child"),
        (ROOT + words(3, 0, 0, 3, 0, 0, 2, 9), "has property p twice"),
        (ROOT + words(3, 0xFFFFFFFF, 0, 2, 9), "has 4294967295 bytes, but only"),
        (ROOT + words(3, 0, 7, 2, 9), "no property name at 7"),
        (ROOT + words(3, 0, 0xFFFFFFFF, 2, 9), "no property name at"),
        (ROOT + words(3, 0, 1, 2, 9), "is not a property name"),
        (ROOT + words(5, 2, 9), "token 0x5"),
        (ROOT + words(9), "token 0x9"),
        (EMPTY[:-4] + words(2), "token 0x2 behind the root"),
        (EMPTY[:-4], "within something"),
        (ROOT + words(3, 4), "within something"),
    ],
)
def test_structure_when_it_is_wrong_then_refused(structure: bytes, why: str):
    with pytest.raises(FdtError, match=why):
        fdt.parse(blob(structure, b"p\0"))


def test_parse_when_properties_share_a_long_string_then_it_is_not_searched_again():
    # Quadratic otherwise: many properties, each with a name that is looked for through much.
    count = 80_000
    structure = ROOT + words(3, 0, 0) * count
    with pytest.raises(FdtError, match="no property name"):
        fdt.parse(blob(structure, b"x" * 60_000), 2 << 20)
