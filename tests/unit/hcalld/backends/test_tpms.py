# SPDX-License-Identifier: Apache-2.0
"""Which TPM a partition gets."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from hcalld.backends.external import TpmDevice, TpmSocket
from hcalld.backends.swtpm import Swtpm
from hcalld.backends.tpms import Tpms, swtpm_key
from hcalld.config import TpmChoice
from hcalld.core.errors import ConfigError
from hcalld.stores.directory import StateDirectory

Require = Callable[[str], pathlib.Path]


def test_none():
    assert Tpms(None).open(TpmChoice(), "lpar7", "lpar7.toml") is None


@pytest.mark.parametrize(("backend", "kind"), [("socket", TpmSocket), ("device", TpmDevice)])
def test_one_of_others(backend: str, kind: type[object]):
    choice = TpmChoice(backend=backend, path="/run/tpm", timeout_ms=1500)  # type: ignore[arg-type]
    tpm = Tpms(None, wait_us=7).open(choice, "lpar7", "lpar7.toml")
    assert isinstance(tpm, TpmSocket | TpmDevice)
    assert type(tpm) is kind
    assert tpm.description == f"TPM {backend} /run/tpm"
    assert (tpm._timeout_s, tpm._wait_us) == (1.5, 7)


def test_swtpm_in_the_partitions_folder(tmp_path: pathlib.Path, require: Require):
    require("swtpm")
    directory = StateDirectory(tmp_path)
    tpms = Tpms(directory)
    tpm = tpms.open(TpmChoice(backend="swtpm"), "lpar/7", "lpar7.toml")
    assert isinstance(tpm, Swtpm)
    assert tpm._folder == tmp_path / "partitions" / "lpar%2F7" / "swtpm"
    assert tpm._key == swtpm_key(directory, "lpar/7")
    assert tpm._key != swtpm_key(directory, "lpar7")
    assert swtpm_key(StateDirectory(tmp_path), "lpar/7") == tpm._key
    tpms.close()


def test_swtpm_without_a_state_directory(require: Require):
    require("swtpm")
    tpms = Tpms(None)
    choice = TpmChoice(backend="swtpm")
    first, again, other = (tpms.open(choice, name, "") for name in ("a", "a", "b"))
    assert isinstance(first, Swtpm)
    assert isinstance(again, Swtpm)
    assert isinstance(other, Swtpm)
    assert (first._folder, first._key) == (again._folder, again._key)
    assert other._folder != first._folder
    assert other._key != first._key
    assert first._folder.parent.is_dir()
    tpms.close()
    assert not first._folder.parent.exists()


@pytest.mark.parametrize("program", ["no-such-swtpm", "/nowhere/swtpm"])
def test_a_program_that_is_not_there(program: str):
    choice = TpmChoice(backend="swtpm", program=program)
    with pytest.raises(ConfigError, match=f"lpar7.toml: .* {program} is not there; install swtpm"):
        Tpms(None).open(choice, "lpar7", "lpar7.toml")
