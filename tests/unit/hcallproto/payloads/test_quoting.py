# SPDX-License-Identifier: Apache-2.0
"""Nothing that a guest sends may steer a terminal or end a line."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcallproto.payloads.quoting import printable, quote


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", '""'),
        (b"db", '"db"'),
        (b'a"b\\c', r'"a\"b\\c"'),
        (b"\0\x1b[2J\n\xff", r'"\0\x1b[2J\x0a\xff"'),
    ],
)
def test_quote(data: bytes, text: str):
    assert quote(data) == text


@given(st.binary())
def test_quote_is_printable_ascii(data: bytes):
    assert quote(data).isascii()
    assert quote(data).isprintable()


@given(st.binary().filter(lambda data: b"\0" not in data))
def test_quote_loses_nothing(data: bytes):
    # Without NUL, whose short form could run into a digit, the text is a Python literal.
    assert ast.literal_eval("b" + quote(data)) == data


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("ключ", "ключ"),
        ("a\nb\x1b[0m", r"a\u000ab\u001b[0m"),
        ("right\u202eleft", r"right\u202eleft"),
    ],
)
def test_printable(text: str, shown: str):
    assert printable(text) == shown


@given(st.text())
def test_printable_is_printable(text: str):
    assert printable(text).isprintable()
