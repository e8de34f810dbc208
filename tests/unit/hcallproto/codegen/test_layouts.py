# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import enum

from construct import (
    Array,
    Bytes,
    Const,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int64sb,
    Int64ub,
    Padding,
    Prefixed,
    Struct,
)

from hcallproto.codegen.layouts import enum_table, layout


class Fruit(enum.IntEnum):
    PEAR = 1
    QUINCE = 7


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if not line.startswith("=")]


def test_layout_counts_offsets():
    subcon = Struct(
        "magic" / Const(7, Int16ub) * "seven",
        "status" / Int64sb * "code",
        "gpr" / Array(3, Int64ub) * "registers",
        "uuid" / Bytes(16),
        "pad" / Padding(2),
        "last" / Int8ub,
    )
    assert cells(layout(subcon)) == [
        ["Offset", "Size", "Type", "Field", "Meaning"],
        ["0", "2", "u16", "``magic``", "seven"],
        ["2", "8", "i64", "``status``", "code"],
        ["10", "24", "u64[3]", "``gpr``", "registers"],
        ["34", "16", "bytes", "``uuid``", "zero"],
        ["50", "2", "bytes", "``pad``", "zero"],
        ["52", "1", "u8", "``last``", "zero"],
    ]


def test_layout_says_where_sizes_vary():
    subcon = Struct("head" / Int8ub, "tail" / Prefixed(Int16ub, GreedyBytes), "more" / Int8ub)
    assert [row[:3] for row in cells(layout(subcon))[1:]] == [
        ["0", "1", "u8"],
        ["1", "varies", "bytes"],
        ["varies", "1", "u8"],
    ]


def test_enum_table():
    assert cells(enum_table(Fruit)) == [["Value", "Name"], ["1", "PEAR"], ["7", "QUINCE"]]
