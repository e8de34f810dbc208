# SPDX-License-Identifier: Apache-2.0
"""Finds secrets in what a program wrote, in any dress that programs give to bytes.

A secret is found by any 8 bytes of it in a row: raw, hexadecimal (with separators or
without), base64, as a Python or C or JSON literal, as a list of numbers, percent-encoded,
or each byte a character of UTF-8 or UTF-16.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

PIECE: Final = 8

_HEX: Final = re.compile(rb"[0-9A-Fa-f]{16,}")
_SPACED_HEX: Final = re.compile(rb"(?:0x)?[0-9A-Fa-f]{2}(?:[ :,.\-]{1,2}(?:0x)?[0-9A-Fa-f]{2}){7,}")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]{11,}")
_NUMBERS: Final = re.compile(rb"\d{1,3}(?:[,;] ?\d{1,3}){7,}")
_ESCAPE: Final = re.compile(
    rb"\\x([0-9A-Fa-f]{2})|\\u00([0-9A-Fa-f]{2})|%([0-9A-Fa-f]{2})|\\([0-7]{3})|\\(.)"
)
_SHORT: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"0": b"\0", b"b": b"\b", b"f": b"\f"}


def _raw(data: bytes) -> Iterator[bytes]:
    yield data


def _utf16(data: bytes) -> Iterator[bytes]:
    yield data[0::2]
    yield data[1::2]


def _utf8(data: bytes) -> Iterator[bytes]:
    """Each byte a character, as when bytes were decoded as latin-1 and written."""
    yield re.sub(
        rb"[\xc2\xc3][\x80-\xbf]",
        lambda match: bytes((((match[0][0] & 3) << 6) | (match[0][1] & 0x3F),)),
        data,
    )


def _hex(data: bytes) -> Iterator[bytes]:
    runs = _HEX.findall(data)
    runs += [re.sub(rb"0x|[^0-9A-Fa-f]", b"", run) for run in _SPACED_HEX.findall(data)]
    for run in runs:
        for start in (0, 1):
            part = run[start:]
            yield bytes.fromhex(part[: len(part) & ~1].decode())


def _base64(data: bytes) -> Iterator[bytes]:
    data = data.translate(bytes.maketrans(b"-_", b"+/"))  # the alphabet for URLs
    # Lines may be folded, those in JSON too.
    for text in {data, data.replace(b"\n", b""), data.replace(b"\\n", b"")}:
        for run in _BASE64.findall(text):
            for start in range(4):
                part = run[start:]
                yield base64.b64decode(part[: len(part) & ~3])


def _literals(data: bytes) -> Iterator[bytes]:
    def plain(match: re.Match[bytes]) -> bytes:
        for group in (1, 2, 3):
            if match[group]:
                return bytes.fromhex(match[group].decode())
        if match[4]:
            return bytes((int(match[4], 8) & 0xFF,))
        return _SHORT.get(match[5], match[5])

    once = _ESCAPE.sub(plain, data)
    yield once
    yield _ESCAPE.sub(plain, once)  # a literal in a JSON string


def _numbers(data: bytes) -> Iterator[bytes]:
    for run in _NUMBERS.findall(data):
        yield bytes(int(number) & 0xFF for number in re.findall(rb"\d+", run))


DRESSES: Final[Mapping[str, Callable[[bytes], Iterable[bytes]]]] = {
    "raw": _raw,
    "UTF-16": _utf16,
    "UTF-8": _utf8,
    "hexadecimal": _hex,
    "base64": _base64,
    "literal": _literals,
    "numbers": _numbers,
}


@dataclasses.dataclass(frozen=True)
class Leak:
    """A secret that was found."""

    secret: str
    where: str
    dress: str
    offset: int
    """In what the dress was taken off."""

    def __str__(self) -> str:
        return f"{self.where}: 8 bytes or more of {self.secret}, {self.dress}, at {self.offset}"


class Secrets:
    """Known secrets by name."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}

    def add(self, name: str, secret: bytes) -> bytes:
        """Plants one; gives it back."""
        assert len(secret) >= PIECE, f"{name} has {len(secret)} bytes: too few to be found"
        assert len(set(secret)) > PIECE // 2, f"{name} might be found by chance"
        for start in range(len(secret) - PIECE + 1):
            self._names.setdefault(secret[start : start + PIECE], name)
        return secret

    @property
    def names(self) -> set[str]:
        """All that can be found."""
        return set(self._names.values())

    def find(self, data: bytes, where: str) -> list[Leak]:
        """Every secret in some bytes, once for each dress."""
        leaks: dict[tuple[str, str], Leak] = {}
        for dress, take_off in DRESSES.items():
            for plain in take_off(data):
                if plain == data and dress != "raw":
                    continue
                last = len(plain) - PIECE
                pieces = {plain[start : start + PIECE] for start in range(last + 1)}
                for offset, piece in sorted(
                    (plain.index(piece), piece) for piece in pieces & self._names.keys()
                ):
                    name = self._names[piece]
                    leaks.setdefault((name, dress), Leak(name, where, dress, offset))
        return list(leaks.values())

    def find_in(self, folder: Path) -> list[Leak]:
        """Every secret in every file of a folder, names of files included."""
        leaks = []
        for path in sorted(folder.rglob("*")):
            where = str(path.relative_to(folder))
            leaks += self.find(where.encode("utf-8", "surrogateescape"), f"name of {where}")
            if path.is_file():
                leaks += self.find(path.read_bytes(), where)
        return leaks
