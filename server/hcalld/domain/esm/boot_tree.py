# SPDX-License-Identifier: Apache-2.0
"""What a guest's device tree says of what is to be measured.

Source: open-power/ultravisor, ``svm/svm-esm.c`` and ``svm/svm-rtas.c``. Nothing the tree
says is trusted: a range that is wrong has a wrong digest. The tree itself has none, so what
Linux 7.2 would take from it to execute is refused (``rtas.c``, ``opal.c``,
``epapr_paravirt.c``): firmware elsewhere than where it was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final

from hcalld.domain.esm.digests import RTAS_TEXT
from hcalld.domain.esm.errors import EsmError
from hcallproto.payloads.fdt import Fdt, FdtError, Node

CODE: Final = ("opal-base-address", "opal-entry-address", "hcall-instructions")
"""Properties that name or hold code; of a machine with OPAL, and of a guest under KVM."""
MAX_BOOTARGS: Final = 65536

Read = Callable[[int, int], Awaitable[bytes]]
"""Gives so many bytes of a guest's memory at an address, or raises GuestMemoryError."""


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a guest's memory."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size

    def __str__(self) -> str:
        return f"0x{self.start:x} to 0x{self.end:x}"


@dataclasses.dataclass(frozen=True, slots=True)
class BootTree:
    """Where what is to be measured is, by the guest's own account."""

    rtas: Range
    """All of RTAS."""
    rtas_text: Range
    """What of it is measured."""
    initrd: Range
    """With a blob before it, unless ``blob`` says that it is elsewhere."""
    bootargs: bytes
    """Without the NUL."""
    blob: Range | None
    """Where a boot wrapper put the blob."""
    swapped_blob: Range | None = None
    """The same, if the wrapper told it in little-endian order.

    Linux' wrapper (``arch/powerpc/boot/main.c``, prep_esm_blob) tells it in its own.
    """


def read_boot_tree(tree: Fdt) -> BootTree:
    """Find in a device tree what is to be measured.

    Raises:
        EsmError: something is missing or cannot be.
    """
    try:
        _check_code(tree.root)
        chosen = tree.node("/chosen")
        return BootTree(
            *_rtas(tree.node("/rtas")),
            _range(chosen, "linux,initrd-start", "linux,initrd-end"),
            _bootargs(chosen),
            *_blobs(chosen),
        )
    except FdtError as error:
        raise EsmError(f"device tree: {error}") from None


def _check_code(node: Node) -> None:
    for name in CODE:
        if name in node.properties:
            raise EsmError(
                f"device tree: {node.name or '/'} has {name}, which Linux would execute and "
                "nobody measures"
            )
    for child in node.children:
        _check_code(child)


def _rtas(node: Node) -> tuple[Range, Range]:
    rtas = Range(node.u32("linux,rtas-base"), node.u32("rtas-size"))
    # VOF does not say, but installs the same RTAS as SLOF.
    size = node.u32("slof,rtas-size") if "slof,rtas-size" in node.properties else len(RTAS_TEXT)
    if "linux,rtas-entry" in node.properties and node.u32("linux,rtas-entry") != rtas.start:
        raise EsmError(
            f"device tree: RTAS is entered at 0x{node.u32('linux,rtas-entry'):x}, expected where "
            f"it is measured, 0x{rtas.start:x}"
        )
    if size > rtas.size:
        raise EsmError(f"device tree: RTAS has {rtas.size} bytes, but {size} of text")
    return rtas, Range(rtas.start, size)


def _range(node: Node, first: str, last: str) -> Range:
    start, end = node.number(first), node.number(last)
    if end <= start:
        raise EsmError(f"device tree: {last} is 0x{end:x}, not above {first}, 0x{start:x}")
    return Range(start, end - start)


def _blobs(chosen: Node) -> tuple[Range | None, Range | None]:
    first, last = "linux,esm-blob-start", "linux,esm-blob-end"
    if first not in chosen.properties:
        return None, None
    ends = chosen.raw(first), chosen.raw(last)
    if {len(value) for value in ends} != {4}:
        return _range(chosen, first, last), None
    start, end = (int.from_bytes(value, "little") for value in ends)
    swapped = Range(start, end - start) if start < end else None
    try:
        return _range(chosen, first, last), swapped
    except EsmError:
        if swapped is None:
            raise
        return swapped, None


def _bootargs(chosen: Node) -> bytes:
    value = chosen.raw("bootargs")
    if len(value) > MAX_BOOTARGS:
        raise EsmError(f"device tree: bootargs of {len(value)} bytes, at most {MAX_BOOTARGS}")
    if value[-1:] != b"\0":
        raise EsmError("device tree: bootargs do not end with a NUL")
    return value[:-1]
