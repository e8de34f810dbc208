# SPDX-License-Identifier: Apache-2.0
"""The names of a capture's files: what is there already stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hcalld.observe.files import CaptureFiles


def make(files: CaptureFiles) -> str:
    path = files.next_path()
    path.write_text("new")
    files.begun(path)
    return path.name


def names(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_one_file_has_the_name_that_was_asked_for(tmp_path: Path):
    files = CaptureFiles(tmp_path / "a.pcapng", is_ring=False, keep=None)
    assert make(files) == "a.pcapng"
    assert files.put_aside is None


def test_what_has_the_name_is_renamed(tmp_path: Path):
    (tmp_path / "a.pcapng").write_text("old")
    (tmp_path / "a.1.pcapng").write_text("older")
    files = CaptureFiles(tmp_path / "a.pcapng", is_ring=False, keep=None)
    make(files)
    assert files.put_aside == tmp_path / "a.2.pcapng"
    assert names(tmp_path) == {"a.pcapng": "new", "a.1.pcapng": "older", "a.2.pcapng": "old"}


def test_an_empty_file_and_a_pipe_are_written_to(tmp_path: Path):
    (tmp_path / "a.pcapng").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("a.pcapng", "pipe"):
        files = CaptureFiles(tmp_path / name, is_ring=False, keep=None)
        assert files.next_path() == tmp_path / name
        assert files.put_aside is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pcapng", "pipe"]


@pytest.mark.parametrize("earlier", [[], ["a_00001.pcapng", "a_00007.pcapng"]])
def test_numbers_go_on_from_those_that_are_there(tmp_path: Path, earlier: list[str]):
    for name in (*earlier, "a_1.pcapng", "b_00009.pcapng", "a_00009.txt", "a_00009.pcapng.gz"):
        (tmp_path / name).write_text("old")
    files = CaptureFiles(tmp_path / "a.pcapng", is_ring=True, keep=None)
    first = 8 if earlier else 1
    assert [make(files), make(files)] == [f"a_{first:05}.pcapng", f"a_{first + 1:05}.pcapng"]
    assert [path.name for path in files.paths][: len(earlier)] == earlier
    assert names(tmp_path)["b_00009.pcapng"] == "old"


def test_the_oldest_go_those_of_earlier_captures_first(tmp_path: Path):
    for number in (3, 4, 5):
        (tmp_path / f"a_{number:05}.pcapng").write_text("old")
    files = CaptureFiles(tmp_path / "a.pcapng", is_ring=True, keep=2)
    make(files)
    assert sorted(names(tmp_path)) == ["a_00005.pcapng", "a_00006.pcapng"]
    make(files)
    assert sorted(names(tmp_path)) == ["a_00006.pcapng", "a_00007.pcapng"]
