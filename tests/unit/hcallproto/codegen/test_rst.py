# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from hcallproto.codegen.errors import CodegenError
from hcallproto.codegen.rst import LINE_WIDTH, code, fill, table

BLOCKS = {"layout A": lambda: "new a", "call H_B": lambda: "new b"}
TEXT = """\
Prose.

.. layout A

old

lines

.. end layout

More prose.

.. call H_B

.. end call

The end.
"""
FILLED = """\
Prose.

.. layout A

new a

.. end layout

More prose.

.. call H_B

new b

.. end call

The end.
"""


def test_table_is_aligned():
    assert table(("Offset", "Field"), [("0", "``magic``"), ("112", "x")]) == (
        "======  =========\n"
        "Offset  Field\n"
        "======  =========\n"
        "0       ``magic``\n"
        "112     x\n"
        "======  ========="
    )


def test_table_wraps_the_last_column_only():
    made = table(("Name", "Meaning"), [("a" * 30, "word " * 40), ("b", "")])
    lines = made.splitlines()
    assert max(map(len, lines)) <= LINE_WIDTH
    assert lines[3].startswith("a" * 30 + "  word word")
    assert lines[4].startswith(" " * 32 + "word")
    assert lines[-2] == "b"


def test_code():
    assert code("r3") == "``r3``"


def test_fill_replaces_blocks_and_nothing_else():
    assert fill("f.rst", TEXT, BLOCKS) == FILLED


def test_fill_is_idempotent():
    assert fill("f.rst", FILLED, BLOCKS) == FILLED


def test_fill_leaves_other_comments_and_directives():
    text = FILLED + "\n.. layout of the house\n.. note:: layout A\n   .. layout A\n"
    assert fill("f.rst", text, BLOCKS) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"f\.rst: missing; write its prose, with blocks `\.\. layout A`, `\.\. call H_B`"),
        ("", r"has no block `\.\. layout A`, `\.\. call H_B`"),
        (FILLED.replace("H_B", "H_C"), r"nothing is generated for the marker `\.\. call H_C`"),
        (FILLED + FILLED, r"marker `\.\. layout A` is there twice"),
        (TEXT.replace(".. end call", ""), r"`\.\. call H_B` has no `\.\. end call` after it"),
        (TEXT.replace(".. end layout", ""), r"`\.\. layout A` has no `\.\. end layout`"),
        (
            ".. layout A\n\n.. call H_B\n\n.. end call\n\n.. end layout\n",
            r"`\.\. layout A` has no `\.\. end layout`",
        ),
    ],
)
def test_fill_refuses(text: str | None, message: str):
    with pytest.raises(CodegenError, match=message):
        fill("f.rst", text, BLOCKS)
