# SPDX-License-Identifier: Apache-2.0
"""The finder of secrets finds them: a search that cannot fail shows nothing."""

from __future__ import annotations

import base64
import json
import pathlib
import random
import urllib.parse
from collections.abc import Callable

import pytest
from tests.e2e.leaks import PIECE, Secrets

SECRET = random.Random(1).randbytes(40)
TEXT = b"correct horse battery staple"


def secrets() -> Secrets:
    found = Secrets()
    found.add("bytes", SECRET)
    found.add("text", TEXT)
    return found


DRESSED: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda secret: secret,
    "hex": lambda secret: secret.hex().encode(),
    "HEX": lambda secret: secret.hex().upper().encode(),
    "spaced hex": lambda secret: secret.hex(" ").encode(),
    "hex with colons": lambda secret: secret.hex(":").encode(),
    "C array": lambda secret: ", ".join(f"0x{byte:02x}" for byte in secret).encode(),
    "base64": base64.b64encode,
    "base64 for URLs": base64.urlsafe_b64encode,
    "base64 with a head": lambda secret: base64.b64encode(b"x" + secret),
    "base64 with a longer head": lambda secret: base64.b64encode(b"xy" + secret),
    "repr": lambda secret: repr(secret).encode(),
    "repr in JSON": lambda secret: json.dumps(repr(secret)).encode(),
    "JSON": lambda secret: json.dumps(secret.decode("latin-1")).encode(),
    "list": lambda secret: repr(list(secret)).encode(),
    "percent": lambda secret: urllib.parse.quote(secret).encode(),
    "UTF-8": lambda secret: secret.decode("latin-1").encode("utf-8"),
    "UTF-16 LE": lambda secret: secret.decode("latin-1").encode("utf-16-le"),
    "UTF-16 BE": lambda secret: secret.decode("latin-1").encode("utf-16-be"),
}


@pytest.mark.parametrize("dress", DRESSED)
@pytest.mark.parametrize("secret", [SECRET, TEXT], ids=["bytes", "text"])
def test_every_dress_is_seen_through_wherever_it_is(dress: str, secret: bytes):
    for head in (b"", b"x", b"key=", b"\xff" * 5):
        assert secrets().find(head + DRESSED[dress](secret) + b"\n", "here"), head


@pytest.mark.parametrize("dress", DRESSED)
def test_a_piece_is_enough_from_anywhere(dress: str):
    for start in range(len(SECRET) - 12):
        piece = SECRET[start : start + 12]  # base64 hides two bytes at its edges
        assert secrets().find(b"." + DRESSED[dress](piece) + b".", "here"), start


def test_eight_bytes_are_enough_and_seven_are_none():
    for start in range(len(SECRET) - PIECE + 1):
        assert secrets().find(b"." + SECRET[start : start + PIECE] + b".", "here")
    assert not secrets().find(b"." + SECRET[: PIECE - 1] + b"." + SECRET[PIECE:14], "here")


def test_nothing_is_found_where_nothing_is():
    noise = random.Random(2).randbytes(50_000)
    for dress in DRESSED.values():
        assert secrets().find(dress(noise[:5000]), "here") == []
    assert secrets().find(noise, "here") == []


def test_a_leak_says_what_and_where(tmp_path: pathlib.Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "log").write_bytes(b"password: " + SECRET.hex().encode())
    (tmp_path / TEXT.decode()).touch()
    found = {str(leak) for leak in secrets().find_in(tmp_path)}

    assert "sub/log: 8 bytes or more of bytes, hexadecimal, at 0" in found
    assert any(leak.startswith("name of correct horse") for leak in found)


@pytest.mark.parametrize("secret", [b"short", bytes(32)])
def test_what_cannot_be_found_is_not_planted(secret: bytes):
    with pytest.raises(AssertionError):
        Secrets().add("it", secret)
