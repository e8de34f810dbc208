# SPDX-License-Identifier: Apache-2.0
"""Credentials of a systemd service."""

from __future__ import annotations

import os
import pathlib

import pytest

from hcalld.core.errors import ConfigError, StoreError
from hcalld.core.secret import Secret
from hcalld.stores.keys.credential import DIRECTORY_VARIABLE, CredentialKeySource
from hcalld.stores.keys.source import key_text

KEY = Secret(bytes(range(32)))


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv(DIRECTORY_VARIABLE, os.fspath(tmp_path))
    return tmp_path


@pytest.mark.parametrize("content", [KEY.reveal(), key_text(KEY)])
def test_bytes_or_the_text_of_a_key_file_are_a_key(folder: pathlib.Path, content: bytes):
    (folder / "hcalld").write_bytes(content)
    (folder / "hcalld").chmod(0o440)  # as systemd shows it, with an access control list

    assert CredentialKeySource("hcalld").load({}) == KEY
    assert CredentialKeySource("hcalld").keep(KEY) == {}
    assert "hcalld" in CredentialKeySource("hcalld").forget()


@pytest.mark.parametrize(
    "content", [b"", bytes(31), bytes(33), bytes(64), key_text(KEY)[:-1], key_text(KEY) + b"\n"]
)
def test_what_is_no_key_is_refused(folder: pathlib.Path, content: bytes):
    (folder / "hcalld").write_bytes(content)

    with pytest.raises(StoreError, match="is no key; expected 32 bytes"):
        CredentialKeySource("hcalld").load({})


def test_another_key_cannot_be_put_there(folder: pathlib.Path):
    (folder / "hcalld").write_bytes(bytes(32))

    with pytest.raises(StoreError, match="systemd-creds encrypt --name=hcalld"):
        CredentialKeySource("hcalld").keep(KEY)


def test_a_missing_credential_says_what_the_service_needs(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError, match="LoadCredentialEncrypted=hcalld"):
        CredentialKeySource("hcalld").load({})
    (folder / "hcalld").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        CredentialKeySource("hcalld").load({})
    monkeypatch.delenv(DIRECTORY_VARIABLE)
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY is not set"):
        CredentialKeySource("hcalld").load({})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd"])
def test_a_credential_is_a_name_and_no_path(folder: pathlib.Path, name: str):
    with pytest.raises(ConfigError, match="plain file name"):
        CredentialKeySource(name).load({})
