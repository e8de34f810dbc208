# SPDX-License-Identifier: Apache-2.0
"""From a schema to a struct: every kind of field, and what cannot be one."""

from __future__ import annotations

import struct
from typing import Any

import construct
import pytest

from hcallproto.errors import Breach, RemoteProtocolError
from hcallproto.wire import layout, schema
from hcallproto.wire.layout import Layout

EVERY_KIND = construct.Struct(
    "magic" / construct.Const(0xABCD, construct.Int16ub),
    "a" / construct.Int8ub,
    "reserved" / construct.Const(b"\0\0"),
    "b" / construct.Int64sb,
    "c" / construct.Array(2, construct.Int32ub),
    "inner" / construct.Struct("d" / construct.Bytes(3), "e" / construct.Int16ub),
    "more" / construct.Const(b"\0"),
)
VALUES = (1, -2, 3, 4, b"xyz", 5)
DATA = bytes.fromhex("abcd 01 0000 fffffffffffffffe 00000003 00000004 78797a 0005 00")


def test_layout_when_made_of_every_kind_of_field_then_it_packs_and_unpacks():
    made = Layout("it", EVERY_KIND)
    assert made.size == len(DATA)
    assert made.pack(*VALUES) == DATA
    assert made.unpack_from(DATA) == VALUES
    assert made.unpack_from(b"before" + DATA + b"after", 6) == VALUES
    assert made.unpack_from(bytearray(DATA)) == VALUES


@pytest.mark.parametrize("at", [0, 1, 3, 4, len(DATA) - 1])
def test_unpack_from_when_a_constant_is_wrong_then_it_is_a_breach(at: int):
    data = bytearray(DATA)
    data[at] ^= 1
    with pytest.raises(RemoteProtocolError, match=r"it has .* must stand") as caught:
        Layout("it", EVERY_KIND).unpack_from(data)
    assert caught.value.breach is Breach.LAYOUT


@pytest.mark.parametrize(("offset", "there"), [(1, len(DATA) - 1), (len(DATA), 0), (99, 0)])
def test_unpack_from_when_too_few_bytes_are_there_then_it_is_a_breach(offset: int, there: int):
    with pytest.raises(RemoteProtocolError, match=f"needs {len(DATA)} bytes, {there} are there"):
        Layout("it", EVERY_KIND).unpack_from(DATA, offset)


@pytest.mark.parametrize(
    "values", [(256, *VALUES[1:]), (*VALUES[:5], -1), VALUES[:5], (*VALUES, 0)]
)
def test_pack_when_a_value_does_not_fit_then_it_says_so(values: tuple[Any, ...]):
    with pytest.raises(struct.error):
        Layout("it", EVERY_KIND).pack(*values)


def test_layout_when_there_are_no_constants_then_all_values_are_the_fields():
    made = Layout("it", construct.Struct("a" / construct.Int8ub))
    assert made.unpack_from(b"\7") == (7,)
    assert made.pack(7) == b"\7"


@pytest.mark.parametrize(
    "field",
    [
        construct.Int16ul,
        construct.GreedyBytes,
        construct.Bytes(construct.this.size),
        construct.PascalString(construct.Int16ub, "ascii"),
        construct.Padding(4),
    ],
)
def test_layout_when_a_field_has_no_fixed_big_endian_layout_then_it_is_refused(field: Any):
    with pytest.raises(TypeError, match="it: no fixed layout"):
        Layout("it", construct.Struct("x" / field))


def test_layout_when_a_later_constant_is_not_zero_then_it_is_refused():
    with pytest.raises(TypeError, match="only a leading constant"):
        Layout("it", construct.Struct("a" / construct.Int8ub, construct.Const(b"\1")))


def test_layout_when_its_size_is_not_the_schemas_then_it_is_refused():
    class Liar(construct.Struct):
        def _sizeof(self, context: Any, path: Any) -> int:
            return 99

    with pytest.raises(TypeError, match="layout has 1 bytes, schema 99"):
        Layout("it", Liar("a" / construct.Int8ub))


def test_layouts_when_compared_with_the_schema_then_every_fixed_structure_has_one():
    made = {name for name, value in vars(layout).items() if isinstance(value, Layout)}
    fixed = set()
    for name, value in vars(schema).items():
        if name.isupper() and not name.startswith("_") and isinstance(value, construct.Struct):
            try:
                value.sizeof()
            except construct.SizeofError:
                continue
            fixed.add(name)
    assert made == fixed
    for name in made:
        assert getattr(layout, name).size == getattr(schema, name).sizeof()
