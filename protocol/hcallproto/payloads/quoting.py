# SPDX-License-Identifier: Apache-2.0
"""Guest bytes as text for logs and terminals, which a guest must not be able to steer."""

from __future__ import annotations

from typing import Final

_QUOTED: Final = tuple(
    {0: "\\0", 0x22: '\\"', 0x5C: "\\\\"}.get(
        byte, chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
    )
    for byte in range(256)
)


def quote(data: bytes) -> str:
    r"""Bytes as quoted printable ASCII: ``"db\0\x1b"``."""
    return f'"{"".join(_QUOTED[byte] for byte in data)}"'


def printable(text: str) -> str:
    r"""Text on one line: control characters and other unprintable ones as ``\u001b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
