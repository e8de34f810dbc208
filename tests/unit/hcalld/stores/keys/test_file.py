# SPDX-License-Identifier: Apache-2.0
"""The master key's file."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest

from hcalld.core.errors import StoreError
from hcalld.core.secret import Secret
from hcalld.stores.keys import FileKeySource

KEY = Secret(bytes(range(32)))


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "key"


def test_there_is_no_key_before_one_is_made(path: pathlib.Path):
    assert FileKeySource(path).load({}) is None
    assert not path.exists()


def test_a_key_is_made_once_and_comes_back(path: pathlib.Path):
    FileKeySource(path).keep(KEY)

    assert FileKeySource(path).load({}) == KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["key"]
    assert path.read_bytes() == b"hcalld-key-v1 " + KEY.reveal().hex().encode() + b"\n"


def test_a_key_that_another_process_made_first_wins(path: pathlib.Path):
    FileKeySource(path).keep(KEY)
    FileKeySource(path).keep(Secret(bytes(32)))

    assert FileKeySource(path).load({}) == KEY


def test_a_forgotten_key_is_gone(path: pathlib.Path):
    FileKeySource(path).keep(KEY)

    assert FileKeySource(path).forget() == ""
    assert FileKeySource(path).load({}) is None
    assert FileKeySource(path).forget() == "", "it may be gone already"


def test_a_leftover_of_a_death_is_no_obstacle(path: pathlib.Path):
    path.with_name(f"key.{os.getpid()}.new").write_bytes(b"half")

    FileKeySource(path).keep(KEY)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666])
def test_a_key_that_others_may_use_is_refused(path: pathlib.Path, mode: int):
    FileKeySource(path).keep(KEY)
    path.chmod(mode)

    with pytest.raises(StoreError, match="chmod 0600"):
        FileKeySource(path).load({})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hcalld-key-v1 ",
        b"hcalld-key-v1 " + b"0" * 63 + b"\n",
        b"hcalld-key-v1 " + b"0" * 65 + b"\n",
        b"hcalld-key-v1 " + b"0" * 64,
        b"hcalld-key-v2 " + b"0" * 64 + b"\n",
        b"hcalld-key-v1 " + b"g" * 64 + b"\n",
        b"hcalld-key-v1 " + b"\xff" * 64 + b"\n",
        b"hcalld-key-v1 " + b"0 " * 32 + b"\n",
        b"hcalld-key-v1 " + b"0" * 64 + b"\n\n",
        bytes(100_000),
    ],
)
def test_a_damaged_key_is_refused_and_kept(path: pathlib.Path, content: bytes):
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(StoreError, match="restore it from a backup") as raised:
        FileKeySource(path).load({})
    assert "0000" not in str(raised.value)
    FileKeySource(path).keep(KEY)
    assert path.read_bytes() == content


def test_a_symbolic_link_or_a_directory_is_no_key(path: pathlib.Path, tmp_path: pathlib.Path):
    target = tmp_path / "target"
    FileKeySource(target).keep(KEY)
    path.symlink_to(target)
    with pytest.raises(StoreError, match="cannot read the key file"):
        FileKeySource(path).load({})
    path.unlink()
    path.mkdir(mode=0o700)
    with pytest.raises(StoreError, match="not a regular file"):
        FileKeySource(path).load({})
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(StoreError, match="not a regular file"):
        FileKeySource(path).load({})


def test_a_key_cannot_be_made_where_nothing_can(tmp_path: pathlib.Path):
    source = FileKeySource(tmp_path / "missing" / "key")

    with pytest.raises(StoreError, match="cannot create the key file"):
        source.keep(KEY)
    assert source.description == f"key file {tmp_path}/missing/key"
