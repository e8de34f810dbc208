# SPDX-License-Identifier: Apache-2.0
"""Guest bytes as text for logs and terminals, which a guest must not be able to steer."""

from __future__ import annotations

from typing import Final

_ESCAPES: Final = {
    **{byte: f"\\x{byte:02x}" for byte in (*range(0x20), *range(0x7F, 0x100))},
    0: "\\0",
    ord('"'): '\\"',
    ord("\\"): "\\\\",
}


def quote(data: bytes) -> str:
    r"""Bytes as quoted printable ASCII: ``"db\0\x1b"``."""
    return f'"{data.decode("latin-1").translate(_ESCAPES)}"'


def printable(text: str) -> str:
    r"""Text on one line: control characters and other unprintable ones as ``\u001b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
