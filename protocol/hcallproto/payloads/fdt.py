# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees: a guest's, an ESM blob, and those inside one.

Source: Devicetree Specification v0.4, chapter 5. Read are versions 16, which Linux makes
when it leaves Open Firmware (``prom_init.c``), and 17; written is 17, laid out as dtc does.

Whoever wrote a tree may be an enemy. A tree has no references, so none can form a cycle;
everything else is bounded: each token moves on by four bytes or more, names and depth have
limits, and no size is believed before it was compared with what there is. What two readers
could take for two different trees is refused: a name twice in a node, a property behind a
node's first child, which libfdt does not see, and on the way to a node that is looked for, a
second one that libfdt could take for it. What is refused is told with its place.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Final

from construct import Const, Int32ub, Int64ub, Struct

MAGIC: Final = 0xD00DFEED
VERSION: Final = 17
COMPATIBLE_VERSION: Final = 16
"""Oldest version that is read; what is written can be read as this one."""

MAX_SIZE: Final = 1 << 20
"""Greatest tree unless the reader says otherwise; the firmware's own limit."""
MAX_DEPTH: Final = 32
"""Nodes above each other, the root included."""
MAX_NAME: Final = 255
"""Bytes of a node's or a property's name. The specification has 31 without the unit
address, which nobody keeps to."""
MAX_RESERVATIONS: Final = 1024

HEADER = Struct(
    "magic" / Const(MAGIC, Int32ub),
    "total_size" / Int32ub * "bytes of all, with this header",
    "structure" / Int32ub * "where the structure block is",
    "strings" / Int32ub * "where the strings block is",
    "reservations" / Int32ub * "where the memory reservation block is",
    "version" / Int32ub * "17",
    "compatible_version" / Int32ub * "oldest version that a reader may take it for: 16",
    "boot_cpuid" / Int32ub * "the CPU that runs it",
    "strings_size" / Int32ub * "bytes of the strings block",
    "structure_size" / Int32ub * "bytes of the structure block; from version 17 on",
)
"""Devicetree Specification v0.4, 5.2."""

RESERVATION = Struct(
    "address" / Int64ub * "of memory that is not to be used",
    "size" / Int64ub * "0, with the address 0, ends the list",
)
"""Devicetree Specification v0.4, 5.3.2."""

HEADER_SIZE: Final = 40
_HEADER = struct.Struct(">10I")
_HEADER_16: Final = 36
_RESERVATION = struct.Struct(">QQ")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_TWO = struct.Struct(">II")

BEGIN_NODE: Final = 1
END_NODE: Final = 2
PROPERTY: Final = 3
NOP: Final = 4
END: Final = 9


class FdtError(ValueError):
    """Not a device tree that can be taken; the text says why and where."""


@dataclasses.dataclass(slots=True)
class Node:
    """One node. Names are ASCII; values are bytes, read by the methods below."""

    name: str = ""
    properties: dict[str, bytes] = dataclasses.field(default_factory=dict)
    children: list[Node] = dataclasses.field(default_factory=list)

    def child(self, name: str) -> Node | None:
        """The child of this very name, unit address included."""
        return next((node for node in self.children if node.name == name), None)

    def only(self, name: str) -> Node | None:
        """The same, if nobody finds another one by this name.

        Asked for a name without a unit address, libfdt gives the first child that has it,
        with any unit address or none (``fdt_nodename_eq_()``), and so does Linux for
        ``/chosen``. Who wants to know what Linux will see must not see another node.

        Raises:
            FdtError: there are several.
        """
        found = [node for node in self.children if node.name.split("@")[0] == name]
        if len(found) > 1 and "@" not in name:
            raise FdtError(
                f"node {self.name or '/'} has {found[0].name} and {found[1].name}, and either "
                f"can be taken for {name}"
            )
        return self.child(name)

    def add(self, name: str, properties: dict[str, bytes] | None = None) -> Node:
        """Append a child and give it."""
        node = Node(name, dict(properties or {}))
        self.children.append(node)
        return node

    def raw(self, name: str) -> bytes:
        """A property's bytes.

        Raises:
            FdtError: there is none of this name.
        """
        try:
            return self.properties[name]
        except KeyError:
            raise FdtError(f"node {self.name or '/'} has no property {name}") from None

    def sized(self, name: str, size: int) -> bytes:
        """A property's bytes, which must be this many.

        Raises:
            FdtError: it is missing or of another size.
        """
        value = self.raw(name)
        if len(value) != size:
            raise FdtError(
                f"property {name} of node {self.name or '/'} has {len(value)} bytes, "
                f"expected {size}"
            )
        return value

    def u32(self, name: str) -> int:
        """A property of one cell."""
        value: int = _U32.unpack(self.sized(name, 4))[0]
        return value

    def number(self, name: str) -> int:
        """A property of one cell or two: firmware differs in how it gives an address."""
        value = self.raw(name)
        if len(value) not in (4, 8):
            raise FdtError(
                f"property {name} of node {self.name or '/'} has {len(value)} bytes, "
                "expected 4 or 8"
            )
        return int.from_bytes(value, "big")

    def text(self, name: str) -> str:
        """A property that is one string.

        Raises:
            FdtError: it is missing, does not end with its only NUL, or is not UTF-8.
        """
        value = self.raw(name)
        if value[-1:] != b"\0" or b"\0" in value[:-1]:
            raise FdtError(f"property {name} of node {self.name or '/'} is not one string")
        try:
            return value[:-1].decode()
        except UnicodeDecodeError:
            raise FdtError(
                f"property {name} of node {self.name or '/'} is not text in UTF-8"
            ) from None


def string(text: str) -> bytes:
    """A string as a property has it."""
    return text.encode() + b"\0"


def cell(value: int) -> bytes:
    """A number as a property of one cell has it."""
    return _U32.pack(value)


@dataclasses.dataclass(slots=True)
class Fdt:
    """A whole tree."""

    root: Node = dataclasses.field(default_factory=Node)
    reservations: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Memory that is not to be used: (address, size)."""
    boot_cpuid: int = 0

    def node(self, path: str) -> Node:
        """The node at a path such as ``/chosen``.

        Raises:
            FdtError: there is none.
        """
        found = self.find(path)
        if found is None:
            raise FdtError(f"the tree has no node {path}")
        return found

    def find(self, path: str) -> Node | None:
        """The node at a path such as ``/chosen``, or None.

        Raises:
            FdtError: a node on the way is not the only one that libfdt could take.
        """
        node: Node | None = self.root
        for name in path.split("/"):
            if name:
                node = node.only(name) if node is not None else None
        return node

    def build(self) -> bytes:
        """The tree as bytes: header, reservations, structure, strings, without a gap.

        Raises:
            FdtError: a name cannot be written, is there twice, nodes are too deep, or a
                reservation is of nothing.
        """
        writer = _Writer()
        writer.node(self.root, 1, "")
        writer.structure += _U32.pack(END)
        if not all(size for _, size in self.reservations):
            raise FdtError("a reservation has size 0")
        reserved = [_RESERVATION.pack(*entry) for entry in self.reservations]
        reserved.append(bytes(_RESERVATION.size))
        structure = HEADER_SIZE + _RESERVATION.size * len(reserved)
        strings = structure + len(writer.structure)
        header = _HEADER.pack(
            MAGIC,
            strings + len(writer.strings),
            structure,
            strings,
            HEADER_SIZE,
            VERSION,
            COMPATIBLE_VERSION,
            self.boot_cpuid,
            len(writer.strings),
            len(writer.structure),
        )
        return b"".join((header, *reserved, writer.structure, writer.strings))


# -- writing --------------------------------------------------------------------------------


class _Writer:
    """The two blocks as they grow."""

    def __init__(self) -> None:
        self.structure = bytearray()
        self.strings = bytearray()
        self._offsets: dict[bytes, int] = {}

    def node(self, node: Node, depth: int, path: str) -> None:
        name = _name_bytes(node.name, "node", path) if depth > 1 else b""
        where = f"{path}/{node.name}" if depth > 1 else ""
        if depth == 1 and node.name:
            raise FdtError(f"the root is called {node.name!r}, expected no name")
        if depth > MAX_DEPTH:
            raise FdtError(f"node {where}: deeper than {MAX_DEPTH}")
        out = self.structure
        out += _U32.pack(BEGIN_NODE) + name + b"\0"
        out += bytes(-len(out) % 4)
        for key, value in node.properties.items():
            offset = self._string(_name_bytes(key, "property", where))
            out += _U32.pack(PROPERTY) + _TWO.pack(len(value), offset) + value
            out += bytes(-len(out) % 4)
        names: set[str] = set()
        for child in node.children:
            if child.name in names:
                raise FdtError(f"node {where or '/'}: {child.name} is there twice")
            names.add(child.name)
            self.node(child, depth + 1, where)
        out += _U32.pack(END_NODE)

    def _string(self, name: bytes) -> int:
        offset = self._offsets.get(name)
        if offset is None:
            # The tail of a longer name will do, as for dtc.
            offset = self.strings.find(name + b"\0")
            if offset < 0:
                offset = len(self.strings)
                self.strings += name + b"\0"
            self._offsets[name] = offset
        return offset


def _name_bytes(name: str, what: str, where: str) -> bytes:
    if not _is_name(raw := name.encode("utf-8", "replace")):
        raise FdtError(f"{what} name {name!r} in {where or '/'} cannot be written")
    return raw


_PRINTABLE: Final = frozenset(range(0x21, 0x7F)) - {ord("/")}


def _is_name(raw: bytes) -> bool:
    return 0 < len(raw) <= MAX_NAME and _PRINTABLE.issuperset(raw)


# -- reading --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """The header, with everything in it checked against the tree's size."""

    total_size: int
    structure: int
    structure_end: int
    strings: int
    strings_end: int
    reservations: int
    boot_cpuid: int


def parse_head(data: bytes, max_size: int = MAX_SIZE) -> Head:
    """Read a header, of which HEADER_SIZE bytes are enough.

    Raises:
        FdtError: no tree, of another version, too large, or its blocks are not inside.
    """
    if len(data) < HEADER_SIZE:
        raise FdtError(f"{len(data)} bytes, expected at least a header of {HEADER_SIZE}")
    (
        magic,
        total,
        structure,
        strings,
        reservations,
        version,
        compatible,
        boot_cpuid,
        strings_size,
        structure_size,
    ) = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FdtError(f"magic 0x{magic:08x}, expected 0x{MAGIC:08x}")
    if version < COMPATIBLE_VERSION or compatible > VERSION or compatible > version:
        raise FdtError(
            f"version {version}, compatible with {compatible}, expected {COMPATIBLE_VERSION} "
            f"or {VERSION}"
        )
    head_size = HEADER_SIZE if version >= VERSION else _HEADER_16
    if not head_size <= total <= max_size:
        raise FdtError(f"total size {total}, expected {head_size} to {max_size}")
    for what, offset, size, align in (
        ("reservation", reservations, _RESERVATION.size, 8),
        ("structure", structure, structure_size if version >= VERSION else 0, 4),
        ("strings", strings, strings_size, 1),
    ):
        if offset < head_size or offset + size > total:
            raise FdtError(
                f"{what} block of {size} bytes at {offset}, expected it between {head_size} "
                f"and {total}"
            )
        if offset % align:
            raise FdtError(f"{what} block at {offset}, expected a multiple of {align}")
    end = structure + structure_size if version >= VERSION else total
    return Head(total, structure, end, strings, strings + strings_size, reservations, boot_cpuid)


def parse(data: bytes, max_size: int = MAX_SIZE) -> Fdt:
    """Read a tree; what comes behind its end is not looked at.

    Raises:
        FdtError: it is malformed.
    """
    head = parse_head(data, max_size)
    if head.total_size > len(data):
        raise FdtError(f"total size {head.total_size}, but there are {len(data)} bytes")
    reservations = list(_reservations(data, head))
    return Fdt(_Reader(data, head).tree(), reservations, head.boot_cpuid)


def _reservations(data: bytes, head: Head) -> Iterator[tuple[int, int]]:
    offset = head.reservations
    for _ in range(MAX_RESERVATIONS + 1):
        if offset + _RESERVATION.size > head.total_size:
            raise FdtError(f"the reservations at {head.reservations} do not end")
        address, size = _RESERVATION.unpack_from(data, offset)
        if not size:
            # Ends the list for libfdt and Linux whatever the address is.
            if address:
                raise FdtError(f"the reservation at {offset} has size 0")
            return
        yield address, size
        offset += _RESERVATION.size
    raise FdtError(f"more than {MAX_RESERVATIONS} reservations")


class _Reader:
    """The structure block, read from its begin to its end."""

    def __init__(self, data: bytes, head: Head) -> None:
        self._data = data
        self._head = head
        self._offset = head.structure
        self._names: dict[int, str] = {}

    def tree(self) -> Node:
        """The root."""
        if self._token() != BEGIN_NODE:
            raise FdtError("the structure does not begin with a node")
        if name := self._node_name():
            raise FdtError(f"the root is called {name!r}, expected no name")
        root = Node()
        above: list[tuple[Node, set[str]]] = [(root, set())]
        while above:
            node, names = above[-1]
            place = self._offset
            token = self._token()
            if token == BEGIN_NODE:
                name = self._node_name()
                if not name:
                    raise FdtError(f"the node at {place} has no name")
                if name in names:
                    raise FdtError(f"node {node.name or '/'} has two nodes {name}")
                if len(above) >= MAX_DEPTH:
                    raise FdtError(f"node {name} at {place}: deeper than {MAX_DEPTH}")
                names.add(name)
                child = Node(name)
                node.children.append(child)
                above.append((child, set()))
            elif token == PROPERTY:
                if node.children:
                    raise FdtError(
                        f"a property of {node.name or '/'} at {place} is behind a child node"
                    )
                name, value = self._property()
                if name in node.properties:
                    raise FdtError(f"node {node.name or '/'} has property {name} twice")
                node.properties[name] = value
            elif token == END_NODE:
                above.pop()
            else:
                raise FdtError(f"token 0x{token:x} at {place}, expected one of a node")
        if (token := self._token()) != END:
            raise FdtError(f"token 0x{token:x} behind the root, expected the end")
        return root

    def _token(self) -> int:
        """The next token that is no NOP."""
        while True:
            value = self._u32()
            if value != NOP:
                return value

    def _u32(self) -> int:
        offset = self._offset
        if offset + 4 > self._head.structure_end:
            raise FdtError(f"the structure ends at {self._head.structure_end} within something")
        self._offset = offset + 4
        value: int = _U32.unpack_from(self._data, offset)[0]
        return value

    def _node_name(self) -> str:
        start = self._offset
        limit = min(start + MAX_NAME + 1, self._head.structure_end)
        end = self._data.find(b"\0", start, limit)
        if end < 0:
            raise FdtError(f"the node name at {start} does not end within {limit - start} bytes")
        self._align(end + 1)
        raw = self._data[start:end]
        if raw and not _is_name(raw):
            raise FdtError(f"the node name at {start} is not a name: {raw[:40]!r}")
        return raw.decode("ascii")

    def _property(self) -> tuple[str, bytes]:
        size = self._u32()
        name_offset = self._u32()
        start = self._offset
        if size > self._head.structure_end - start:
            raise FdtError(
                f"the property value at {start} has {size} bytes, but only "
                f"{self._head.structure_end - start} are left"
            )
        self._align(start + size)
        return self._property_name(name_offset), bytes(self._data[start : start + size])

    def _property_name(self, offset: int) -> str:
        name = self._names.get(offset)
        if name is None:
            start = self._head.strings + offset
            limit = min(start + MAX_NAME + 1, self._head.strings_end)
            end = self._data.find(b"\0", start, limit) if start < limit else -1
            if end < 0:
                raise FdtError(f"no property name at {offset} of the strings")
            raw = self._data[start:end]
            if not _is_name(raw):
                raise FdtError(f"the string at {offset} is not a property name: {raw[:40]!r}")
            name = self._names[offset] = raw.decode("ascii")
        return name

    def _align(self, offset: int) -> None:
        self._offset = offset + -offset % 4
