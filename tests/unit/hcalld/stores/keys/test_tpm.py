# SPDX-License-Identifier: Apache-2.0
"""A master key sealed in a TPM: swtpm is the TPM, tpm2-tools are the witness."""

from __future__ import annotations

import base64
import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.swtpm import Swtpm

from hcalld.core.errors import BackendUnavailable, StoreError
from hcalld.core.secret import Secret
from hcalld.stores.directory import StateDirectory
from hcalld.stores.keys.note import NOTE_NAME, read_note
from hcalld.stores.keys.tpm import TpmKeySource

KEY = Secret(bytes(range(32)))
Require = Callable[[str], pathlib.Path]


@pytest.fixture
def swtpm(require: Require, tmp_path: pathlib.Path) -> Swtpm:
    require("tpm2_unseal")
    return Swtpm(require("swtpm"), tmp_path / "tpm")


@pytest.fixture
def tcti(swtpm: Swtpm) -> Iterator[str]:
    with swtpm.running() as tcti:
        yield tcti


def test_there_is_no_key_before_one_is_kept():
    assert TpmKeySource().load({}) is None


@pytest.mark.parametrize("pcrs", ["", "sha256:0,7"])
def test_a_key_comes_back_after_the_tpm_was_off(swtpm: Swtpm, pcrs: str):
    with swtpm.running() as tcti:
        kept = TpmKeySource(tcti, pcrs).keep(KEY)
    with swtpm.running() as tcti:
        assert TpmKeySource(tcti).load(kept) == KEY
    assert set(kept) == {"public", "private", "pcrs"}


def test_the_blobs_are_sealed(tcti: str):
    kept: Any = TpmKeySource(tcti).keep(KEY)

    for name in ("public", "private"):
        blob = base64.b64decode(kept[name])
        assert KEY.reveal()[:8] not in blob


def test_the_tpms_own_programs_open_what_is_in_the_note(tcti: str, tmp_path: pathlib.Path):
    path = tmp_path / "state"
    store = StateDirectory(path, TpmKeySource(tcti)).open("guest")
    store.close()
    note = read_note(path / NOTE_NAME)
    assert note is not None
    for name in ("public", "private"):
        (tmp_path / name).write_bytes(base64.b64decode(str(note.kept[name])))

    def tpm2(command: str) -> bytes:
        words = f"tpm2_{command} -T {tcti}".split()
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
        subprocess.run(["tpm2_flushcontext", "-T", tcti, "-t"], check=True)
        return done.stdout

    tpm2("createprimary -Q -C o -G ecc -c parent")
    tpm2("load -Q -C parent -u public -r private -c sealed")
    key = Secret(tpm2("unseal -c sealed"))
    (tmp_path / "key").write_bytes(b"hcalld-key-v1 " + key.reveal().hex().encode() + b"\n")
    (tmp_path / "key").chmod(0o600)
    # The same key as a file opens the store.
    (path / NOTE_NAME).unlink()
    (tmp_path / "key").rename(path / "key")
    StateDirectory(path).open("guest", create=False).close()


def test_changed_registers_keep_it_shut(tcti: str):
    kept = TpmKeySource(tcti, "sha256:16").keep(KEY)
    free = TpmKeySource(tcti).keep(KEY)
    digest = "sha256=" + "11" * 32
    subprocess.run(["tpm2_pcrextend", "-T", tcti, f"16:{digest}"], check=True)

    with pytest.raises(StoreError, match="PCRs are not as they were"):
        TpmKeySource(tcti).load(kept)
    assert TpmKeySource(tcti).load(free) == KEY
    # Nor does leaving the policy out help: the object has no other authorization.
    with pytest.raises(StoreError):
        TpmKeySource(tcti).load({**kept, "pcrs": ""})


def test_another_tpm_does_not_open_it(require: Require, tcti: str, tmp_path: pathlib.Path):
    kept = TpmKeySource(tcti).keep(KEY)
    second = Swtpm(require("swtpm"), tmp_path / "other")
    with second.running() as other, pytest.raises(StoreError, match="another TPM sealed it"):
        TpmKeySource(other).load(kept)


def test_a_cleared_tpm_does_not_open_it(tcti: str):
    kept = TpmKeySource(tcti).keep(KEY)
    subprocess.run(["tpm2_clear", "-T", tcti], check=True)

    with pytest.raises(StoreError, match="or this one was cleared"):
        TpmKeySource(tcti).load(kept)


def test_a_tpm_without_resource_manager_does_not_fill_up(tcti: str):
    source = TpmKeySource(tcti)
    kept = source.keep(KEY)
    for _ in range(5):
        assert source.load(kept) == KEY


@pytest.mark.parametrize(
    "changed",
    [
        {"public": ""},
        {"private": "!"},
        {"private": base64.b64encode(bytes(5000)).decode()},
        {"pcrs": "-x"},
        {"pcrs": 7},
        {"more": 1},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_what_is_kept_is_held_to_its_bounds(changed: dict[str, object]):
    kept = {"public": "AAAA", "private": "AAAA", "pcrs": "", **changed}

    with pytest.raises(StoreError, match="damaged"):
        TpmKeySource("swtpm:port=1").load(kept)


def test_blobs_that_are_none_are_refused(tcti: str):
    with pytest.raises(StoreError, match="tpm2_load"):
        TpmKeySource(tcti).load({"public": "AAAA", "private": "AAAA", "pcrs": ""})


def test_a_tpm_that_is_not_there_is_named(require: Require, tmp_path: pathlib.Path):
    require("tpm2_unseal")
    source = TpmKeySource(f"device:{tmp_path}/tpm0")

    with pytest.raises(
        StoreError, match=rf"TPM device:{tmp_path}/tpm0: tpm2_createprimary: .*TCTI"
    ):
        source.keep(KEY)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))

    with pytest.raises(BackendUnavailable, match="install tpm2-tools"):
        TpmKeySource().keep(KEY)


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    program = tmp_path / "tpm2_createprimary"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("hcalld.stores.keys.tpm.TIMEOUT_S", 0.2)

    with pytest.raises(BackendUnavailable, match="did not end"):
        TpmKeySource().keep(KEY)


def test_the_key_is_in_no_argument_and_no_file(tcti: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    run = subprocess.run

    def record(words: list[str], **options: Any) -> Any:
        done = run(words, **options)
        seen.extend(words)
        seen.extend(f"{name}={value}" for name, value in options["env"].items())
        for word in words:
            path = pathlib.Path(word)
            if path.is_absolute() and path.is_file():
                seen.append(path.read_bytes().hex())
        return done

    monkeypatch.setattr(subprocess, "run", record)
    source = TpmKeySource(tcti)
    assert source.load(source.keep(KEY)) == KEY
    text = "\n".join(seen)
    assert "tpm2_unseal" in text
    for part in (KEY.reveal()[:8].hex(), KEY.reveal()[-8:].hex()):
        assert part not in text
