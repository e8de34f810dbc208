# SPDX-License-Identifier: Apache-2.0
"""Every structure, frame type and transition of the protocol is in a table."""

from __future__ import annotations

import enum
import inspect

import construct
import pytest

from hcallproto.codegen.wire_tables import BLOCKS, bounds, transitions, types
from hcallproto.conn import states
from hcallproto.wire import schema


def test_every_fixed_structure_has_a_block():
    structures = {
        name
        for name, value in vars(schema).items()
        if isinstance(value, construct.Struct) and not name.startswith("_")
    }
    assert {f"layout {name}" for name in structures} <= set(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_a_table(name: str):
    assert BLOCKS[name]().count("\n==") >= 2


def test_every_field_is_documented_or_reserved():
    for name, value in vars(schema).items():
        if isinstance(value, construct.Struct) and not name.startswith("_"):
            for field in value.subcons:
                assert field.docs or field.name == "reserved", f"{name}.{field.name}"


def test_every_enumeration_is_shown_or_spelled_out():
    # The rest is spelled out where its field is described.
    spelled_out = {"FrameType", "BufferKind", "Direction", "Disposition", "Effect", "Feature"}
    spelled_out |= {"PageState"}
    enums = {
        name
        for name, value in vars(schema).items()
        if inspect.isclass(value)
        and issubclass(value, enum.IntEnum | enum.IntFlag)
        and value.__module__ == schema.__name__
    }
    shown = {name for name in enums if f"layout {name}" in BLOCKS}
    assert shown | spelled_out == enums


def test_types_tell_the_sender():
    lines = types().splitlines()
    assert any(line.split() == ["9", "CALL", "shim"] for line in lines)
    assert any(line.split() == ["10", "REPLY", "daemon"] for line in lines)
    assert len(lines) == len(schema.FrameType) + 4


def test_bounds_have_units():
    text = bounds()
    assert "128 KiB  ``MIN_MAX_FRAME``" in text
    assert "16 MiB   ``MAX_MAX_FRAME``" in text
    assert "64       ``MAX_SEGMENTS``" in text
    assert "4096     ``MAX_VCPUS``" in text
    assert "63       ``MAX_DT_STRING_SIZE``" in text


def test_every_bound_is_in_the_table():
    names = {
        name
        for name in vars(schema)
        if name.startswith(("MAX_", "MIN_", "DEFAULT_")) and name.isupper()
    }
    for name in names:
        assert f"``{name}``" in bounds()


def parse_transitions(text: str) -> set[tuple[str, str, str]]:
    found: set[tuple[str, str, str]] = set()
    before = after = ""
    for line in text.splitlines():
        words = line.replace(",", " ").split()
        if not words or line.startswith(("=", "State", "Of ")):
            continue
        if not line.startswith(" "):
            before, after, *words = words
        found |= {(before, after, frame) for frame in words}
    return found


def test_transitions_are_complete():
    expected = {
        (before.name, after.name, frame.name)
        for transitions_of in (states.CONNECTION, states.CALL)
        for (before, frame), after in transitions_of.items()
    }
    assert parse_transitions(transitions()) == expected
