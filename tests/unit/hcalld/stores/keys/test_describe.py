# SPDX-License-Identifier: Apache-2.0
"""How a user says where a key is."""

from __future__ import annotations

import pathlib

import pytest

from hcalld.core.errors import ConfigError
from hcalld.stores.keys import FileKeySource
from hcalld.stores.keys.describe import key_source, passphrase_from


@pytest.mark.parametrize(
    ("text", "kind", "description"),
    [
        ("file:/etc/hcalld.key", "file", "key file /etc/hcalld.key"),
        ("file:C:/x", "file", "key file C:/x"),
        ("credential:hcalld", "credential", "credential hcalld"),
        ("passphrase:", "passphrase", "passphrase"),
        ("passphrase-file:/p", "passphrase", "passphrase file /p"),
        ("passphrase-credential:p", "passphrase", "passphrase in credential p"),
        ("passphrase-fd:3", "passphrase", "passphrase on file descriptor 3"),
        ("tpm:", "tpm", "TPM"),
        ("tpm:device:/dev/tpmrm0", "tpm", "TPM device:/dev/tpmrm0"),
        ("tpm:swtpm:host=127.0.0.1,port=2321#sha256:0,7", "tpm", "TPM swtpm:host=127.0.0.1"),
    ],
)
def test_descriptions_are_understood(text: str, kind: str, description: str):
    source = key_source(text)

    assert source.kind == kind
    assert source.description.startswith(description)


@pytest.mark.parametrize(
    "text", ["", "file", "file:", "credential:", "tpm", "key:/x", "/x", "FILE:/x"]
)
def test_what_is_none_is_refused_with_all_kinds(text: str):
    with pytest.raises(ConfigError, match="expected file:PATH, credential:NAME, tpm:"):
        key_source(text)


@pytest.mark.parametrize(
    "text",
    ["passphrase:hunter22", "passphrase-fd:hunter22", "passphrase-hunter22:", "passphrase-fd:"],
)
def test_a_passphrase_typed_here_is_not_repeated(text: str):
    with pytest.raises(ConfigError, match="never an argument") as raised:
        key_source(text)
    assert "hunter22" not in str(raised.value)


@pytest.mark.parametrize("pcrs", ["7", "sha256", "sha256:", "sha256:x", "sha256:1,", "a b:1"])
def test_bad_registers_are_refused(pcrs: str):
    with pytest.raises(ConfigError, match="such as sha256:0,7"):
        key_source(f"tpm:#{pcrs}")


def test_other_kinds_are_no_passphrase():
    assert passphrase_from("file:/x") is None
    assert passphrase_from("passphrase") is None
    assert isinstance(key_source("file:x"), FileKeySource)
    assert key_source("file:x").path == pathlib.Path("x")  # type: ignore[attr-defined]
