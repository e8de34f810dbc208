# SPDX-License-Identifier: Apache-2.0
"""A master key under a passphrase, and the places that passphrases come from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.secret import Secret
from hcalld.crypto import passphrase as passphrases
from hcalld.crypto.passphrase import ScryptParameters, key_check
from hcalld.stores.keys.credential import DIRECTORY_VARIABLE
from hcalld.stores.keys.passphrase import (
    MAX_PASSPHRASE_SIZE,
    PassphraseFrom,
    PassphraseKeySource,
    from_credential,
    from_fd,
    from_file,
)

KEY = Secret(bytes(range(32)))
FAST = 10
"""The least that is taken: keys in these tests need not be strong."""


@pytest.fixture(autouse=True)
def _cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrases, "LOG_N", FAST)


def typed(text: bytes) -> PassphraseFrom:
    return PassphraseFrom(lambda _is_new: text, "typed passphrase")


def source(text: bytes = b"correct horse") -> PassphraseKeySource:
    return PassphraseKeySource(typed(text))


def test_there_is_no_key_before_one_is_kept():
    assert source().load({}) is None


def test_a_key_comes_back_with_its_passphrase_only():
    kept = source().keep(KEY)

    assert source().load(kept) == KEY
    with pytest.raises(StoreError, match="wrong passphrase") as raised:
        source(b"incorrect horse").load(kept)
    assert "horse" not in str(raised.value)


def test_a_passphrase_that_is_tried_again_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    """Such as a wrong one, for each of many partitions."""
    kept = source().keep(KEY)
    wrong = source(b"incorrect horse")
    count = 0
    derive = ScryptParameters.derive

    def counted(self: ScryptParameters, passphrase: Secret) -> Secret:
        nonlocal count
        count += 1
        return derive(self, passphrase)

    monkeypatch.setattr(ScryptParameters, "derive", counted)
    for _ in range(3):
        with pytest.raises(StoreError, match="wrong passphrase"):
            wrong.load(kept)
    assert count == 1
    keys = source()
    assert keys.load(keys.keep(KEY)) == KEY
    assert count == 2
    assert keys._tried is None, "no key outlives its use"


def test_what_is_kept_is_no_key_and_differs_each_time():
    one, other = source().keep(KEY), source().keep(KEY)

    assert one["sealed"] != other["sealed"]
    assert KEY.reveal().hex() not in repr(one)
    assert "horse" not in repr(one)


def test_the_key_is_scrypts_as_others_compute_it():
    """OpenSSL's scrypt, through hashlib, as the witness."""
    parameters = ScryptParameters(log_n=FAST, salt=bytes(16))
    expected = hashlib.scrypt(b"correct horse", salt=bytes(16), n=1 << FAST, r=8, p=1, dklen=32)
    assert parameters.derive(Secret(b"correct horse")) == Secret(expected)


def change(kept: Any, field: str, value: object) -> dict[str, object]:
    changed = {**kept, "scrypt": dict(kept["scrypt"])}
    if field in changed["scrypt"]:
        changed["scrypt"][field] = value
    else:
        changed[field] = value
    return changed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sealed", "AAAA"),
        ("sealed", "!"),
        ("check", ""),
        ("salt", "AAAA"),
        ("log_n", 9),
        ("log_n", 21),
        ("log_n", "10"),
        ("r", 0),
        ("r", 33),
        ("p", 17),
        ("more", 1),
    ],
)
def test_what_is_kept_is_held_to_its_bounds(field: str, value: object):
    kept = change(source().keep(KEY), field, value)

    with pytest.raises(StoreError, match="damaged"):
        source().load(kept)


def test_parameters_cannot_take_all_memory():
    kept = change(change(source().keep(KEY), "log_n", 20), "r", 32)

    with pytest.raises(StoreError, match="1024 MiB"):
        source().load(kept)


def test_a_damaged_seal_is_not_called_a_wrong_passphrase():
    kept = source().keep(KEY)
    other = source().keep(KEY)

    with pytest.raises(StoreError, match="passphrase is right, but"):
        source().load({**kept, "sealed": other["sealed"]})


def test_checks_of_different_keys_differ():
    assert key_check(KEY) != key_check(Secret(bytes(32)))
    assert len(key_check(KEY)) == 16


# -- where they come from ---------------------------------------------------------------------


def test_a_line_end_is_no_part_of_it():
    for text in (b"correct horse", b"correct horse\n", b"correct horse\r\n"):
        assert typed(text).get() == Secret(b"correct horse")
    assert typed(b"correct horse\n\n").get() == Secret(b"correct horse\n")


@pytest.mark.parametrize(
    ("text", "is_new", "word"),
    [
        (b"", False, "empty"),
        (b"\n", False, "empty"),
        (b"x" * (MAX_PASSPHRASE_SIZE + 2), False, "too long"),
        (b"1234567", True, "too short"),
    ],
)
def test_a_passphrase_of_a_wrong_size_is_refused(text: bytes, is_new: bool, word: str):
    with pytest.raises(ConfigError, match=word):
        typed(text).get(is_new=is_new)


def test_it_is_read_once_and_forgotten_when_it_has_served():
    count = 0

    def read(_is_new: bool) -> bytes:
        nonlocal count
        count += 1
        return b"correct horse"

    place = PassphraseFrom(read, "counted")
    keys = PassphraseKeySource(place)
    kept = keys.keep(KEY)
    assert keys.load(kept) == KEY
    assert count == 1
    assert place._value is None


def test_a_file_must_be_its_owners(tmp_path: pathlib.Path):
    path = tmp_path / "passphrase"
    with pytest.raises(ConfigError, match=r"no such passphrase file$"):
        from_file(path).get()
    with pytest.raises(ConfigError, match=rf"umask 077; .* > {re.escape(str(path))}"):
        from_file(path).get(is_new=True)
    path.write_bytes(b"correct horse\n")
    path.chmod(0o640)
    with pytest.raises(StoreError, match="chmod 0600"):
        from_file(path).get()
    path.chmod(0o600)
    assert from_file(path).get() == Secret(b"correct horse")


def test_a_credential_gives_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(DIRECTORY_VARIABLE, os.fspath(tmp_path))
    (tmp_path / "pass").write_bytes(b"correct horse")

    assert from_credential("pass").get() == Secret(b"correct horse")


def test_a_descriptor_gives_all_that_comes():
    reading, writing = os.pipe()
    os.write(writing, b"correct ")
    os.write(writing, b"horse\n")
    os.close(writing)
    assert from_fd(reading).get() == Secret(b"correct horse")
    os.close(reading)
    with pytest.raises(ConfigError, match="inherits"):
        from_fd(reading).get()


@pytest.mark.parametrize(
    ("lines", "is_new", "word"),
    [
        (b"correct horse\n", False, ""),
        (b"correct horse\ncorrect horse\n", True, ""),
        (b"correct horse\nincorrect horse\n", True, "twice"),
    ],
)
def test_a_terminal_is_asked(lines: bytes, is_new: bool, word: str):
    """In a process of its own, with a terminal of its own."""
    terminal, other_end = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", ASK, str(int(is_new))],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        start_new_session=True,
    )
    os.close(other_end)
    shown = b""
    for line in lines.splitlines(keepends=True):
        while not shown.endswith(b": "):  # then echo is off
            shown += os.read(terminal, 1)
        os.write(terminal, line)
        shown += os.read(terminal, 1)
    with contextlib.suppress(OSError):  # Linux's way to say that the child is gone
        while part := os.read(terminal, 100):
            shown += part
    child.wait()
    os.close(terminal)
    assert b"Passphrase: " in shown
    assert (word or hashlib.sha256(b"correct horse").hexdigest()).encode() in shown
    assert b"horse" not in shown


ASK = """
import hashlib, os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # a session's first terminal is its own
from hcalld.core.errors import HcalldError
from hcalld.stores.keys.passphrase import from_prompt
try:
    value = from_prompt("passphrase").get(is_new=sys.argv[1] == "1")
    print(hashlib.sha256(value.reveal()).hexdigest())
except HcalldError as error:
    print(error)
"""


def test_without_a_terminal_nobody_is_asked():
    done = subprocess.run(
        [sys.executable, "-c", ASK.replace("os.close(os.open(os.ttyname(0), os.O_RDWR))", ""), "0"],
        input="correct horse\n",
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
    )
    assert "no terminal to ask for the passphrase; use passphrase-file:PATH" in done.stdout
