# SPDX-License-Identifier: Apache-2.0
"""reStructuredText: tables that read well as plain text, and blocks in written files.

A generated block stands between two comments::

    .. layout HEADER

    (generated)

    .. end layout

What is outside is written by hand and never touched.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

from hcallproto.codegen.errors import CodegenError

LINE_WIDTH = 100

Blocks = Mapping[str, Callable[[], str]]
"""Marker (``layout HEADER``) to what stands in the block."""


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A simple table; only the last column is wrapped, no first cell may be empty."""
    lines = [headers, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers) - 1)]
    last = max(20, LINE_WIDTH - sum(widths) - 2 * len(widths))
    wrapped = [_wrap_last(line, last) for line in lines]
    widths.append(max(len(line[-1]) for part in wrapped for line in part))
    rule = "  ".join("=" * width for width in widths)
    head, *body = ("\n".join(_pad(line, widths) for line in part) for part in wrapped)
    return "\n".join((rule, head, rule, *body, rule))


def _wrap_last(line: Sequence[str], width: int) -> list[list[str]]:
    *first, text = line
    pieces = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    return [[*first, pieces[0]], *([*([""] * len(first)), piece] for piece in pieces[1:])]


def _pad(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def code(text: str) -> str:
    """An inline literal."""
    return f"``{text}``"


_MARKER = re.compile(
    r"^\.\. (?P<kind>layout|calls|call|codes) ?(?P<name>[A-Za-z0-9_]*)$", re.MULTILINE
)


def fill(path: str, text: str | None, blocks: Blocks) -> str:
    """Replace what stands in the generated blocks of a text.

    Raises:
        CodegenError: the file is missing, a marker is unknown, repeated or not ended, or
            a block that must be there is not.
    """
    if text is None:
        raise CodegenError(f"{path}: missing; write its prose, with blocks {_names(blocks)}")
    out: list[str] = []
    seen: set[str] = set()
    position = 0
    while marker := _MARKER.search(text, position):
        name = f"{marker['kind']} {marker['name']}".strip()
        if name not in blocks:
            raise CodegenError(f"{path}: nothing is generated for the marker `.. {name}`")
        if name in seen:
            raise CodegenError(f"{path}: the marker `.. {name}` is there twice")
        seen.add(name)
        end = f"\n.. end {marker['kind']}\n"
        stop = text.find(end, marker.end())
        following = _MARKER.search(text, marker.end())
        if stop < 0 or (following is not None and following.start() < stop):
            raise CodegenError(f"{path}: `.. {name}` has no `{end.strip()}` after it")
        out += (text[position : marker.end()], "\n\n", blocks[name](), "\n", end)
        position = stop + len(end)
    missing = [name for name in blocks if name not in seen]
    if missing:
        raise CodegenError(f"{path}: has no block {_names(missing)}")
    return "".join((*out, text[position:]))


def _names(names: Sequence[str] | Blocks) -> str:
    return ", ".join(f"`.. {name}`" for name in names)
