# SPDX-License-Identifier: Apache-2.0
"""Tables of the fields of a construct schema, and of an enumeration."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any

import construct

from hcallproto.codegen.rst import code, table


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field of a structure; ``offset`` and ``size`` are None where they vary."""

    offset: int | None
    size: int | None
    type: str
    """``u16``, ``i64``, ``u64[13]`` or ``bytes``."""
    name: str
    docs: str


def fields_of(subcon: construct.Construct[Any, Any]) -> Iterator[Field]:
    """The fields of a structure, in order."""
    offset: int | None = 0
    assert isinstance(subcon, construct.Struct)
    for field in subcon.subcons:
        size = _fixed_size(field)
        yield Field(offset, size, _type(field), field.name or "", field.docs or "zero")
        offset = None if offset is None or size is None else offset + size


def layout(subcon: construct.Construct[Any, Any]) -> str:
    """Offset, size, type, name and meaning of each field of a structure."""
    return table(
        ("Offset", "Size", "Type", "Field", "Meaning"),
        [
            (
                "varies" if field.offset is None else str(field.offset),
                "varies" if field.size is None else str(field.size),
                field.type,
                code(field.name),
                field.docs,
            )
            for field in fields_of(subcon)
        ],
    )


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
