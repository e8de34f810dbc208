# SPDX-License-Identifier: Apache-2.0
"""The checked-in files are what the table says, and ``--check`` tells when they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import hcallproto
from hcallproto.codegen import __main__ as codegen
from hcallproto.codegen.outputs import OUTPUTS, Output

ROOT = Path(hcallproto.__file__).parents[2]

outputs = pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output.path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path in ("pyproject.toml", *(output.path for output in OUTPUTS)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


@outputs
def test_checked_in_file_is_up_to_date(output: Output):
    text = (ROOT / output.path).read_text("utf-8")
    assert output.generate(text) == text, f"{output.path} is stale, run `make generate`"


@outputs
def test_generation_is_idempotent(output: Output):
    once = output.generate((ROOT / output.path).read_text("utf-8"))
    assert output.generate(once) == once


@outputs
def test_generated_text_is_tidy(output: Output):
    text = output.generate((ROOT / output.path).read_text("utf-8"))
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_check_of_an_up_to_date_tree_succeeds(tree: Path, capsys: pytest.CaptureFixture[str]):
    assert codegen.main(["--check", "--root", str(tree)]) == 0
    assert capsys.readouterr().out == ""


def test_check_names_what_is_stale_and_writes_nothing(
    tree: Path, capsys: pytest.CaptureFixture[str]
):
    header = tree / "guest_stub/include/hcall_numbers.h"
    header.unlink()
    page = tree / "docs/hcalls/tpm.rst"
    page.write_text(page.read_text().replace("120 s, then", "12 s, then"))
    before = page.read_text()
    assert codegen.main(["--check", "--root", str(tree)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "guest_stub/include/hcall_numbers.h: stale, run `make generate`",
        "docs/hcalls/tpm.rst: stale, run `make generate`",
    ]
    assert not header.exists()
    assert page.read_text() == before


def test_writing_mends_what_is_stale(tree: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(tree / "guest_stub")
    wire = tree / "docs/wire.rst"
    prose = "Prose stays.\n"
    wire.write_text(wire.read_text().replace("0x48434c50", "0x00000000") + prose)
    assert codegen.main(["--root", str(tree)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "guest_stub/include/hcall_numbers.h: written",
        "docs/wire.rst: written",
    ]
    assert wire.read_text() == (ROOT / "docs/wire.rst").read_text() + prose
    assert codegen.main(["--check", "--root", str(tree)]) == 0


def test_missing_page_is_refused(tree: Path, capsys: pytest.CaptureFixture[str]):
    (tree / "docs/hcalls/svm.rst").unlink()
    assert codegen.main(["--root", str(tree)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hcallproto.codegen: docs/hcalls/svm.rst: missing; write its prose")


def test_inconsistent_table_is_refused(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(codegen, "problems", lambda: ["H_X: doc is empty"])
    assert codegen.main(["--root", str(tree)]) == 1
    assert capsys.readouterr().err == "The table of calls is inconsistent:\n  H_X: doc is empty\n"


def test_another_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        codegen.main(["--check", "--root", str(tmp_path)])
    assert stopped.value.code == 2
    assert "is no source tree of hcalld" in capsys.readouterr().err
