# SPDX-License-Identifier: Apache-2.0
"""Tables of the fields of a construct schema, and of an enumeration."""

from __future__ import annotations

import enum
from typing import Any

import construct

from hcallproto.codegen.rst import code, table


def layout(subcon: construct.Construct[Any, Any]) -> str:
    """Offset, size, type, name and meaning of each field of a structure."""
    rows: list[tuple[str, ...]] = []
    offset: int | None = 0
    assert isinstance(subcon, construct.Struct)
    for field in subcon.subcons:
        size = _fixed_size(field)
        rows.append(
            (
                "varies" if offset is None else str(offset),
                "varies" if size is None else str(size),
                _type(field),
                code(field.name or ""),
                field.docs or "zero",
            )
        )
        offset = None if offset is None or size is None else offset + size
    return table(("Offset", "Size", "Type", "Field", "Meaning"), rows)


def _fixed_size(field: Any) -> int | None:
    try:
        return int(field.sizeof())
    except construct.SizeofError:
        return None


def _type(field: Any) -> str:
    """``u16``, ``i64``, ``u64[13]`` or ``bytes``."""
    while isinstance(field, construct.Renamed | construct.Const):
        field = field.subcon
    if isinstance(field, construct.Array):
        return f"{_type(field.subcon)}[{field.count}]"
    if isinstance(field, construct.FormatField):
        sign = "i" if field.fmtstr[-1].islower() else "u"
        return f"{sign}{8 * field.sizeof()}"
    return "bytes"


def enum_table(values: type[enum.IntEnum]) -> str:
    """Value and name."""
    return table(("Value", "Name"), [(str(member.value), member.name) for member in values])
