# SPDX-License-Identifier: Apache-2.0
"""When a virtual environment is made, updated and left alone."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest
from tests.provision import venvs
from tests.provision.errors import ProvisionError


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Takes note of what would be done instead of doing it."""
    done: list[str] = []

    def create(directory: Path, **_options: object) -> None:
        directory.mkdir(parents=True)
        done.append("create")

    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(venvs, "run", lambda _what, words, **_more: done.append(words[-1]))
    return done


def make(directory: Path, **inputs: str) -> None:
    venvs.make(
        directory, inputs=inputs, packages=["meson"], what="tools", log=directory.parent / "log"
    )


def test_make_when_it_is_not_there_then_it_is_made_once(tmp_path: Path, steps: list[str]):
    make(tmp_path / "venv", pyproject="1")
    make(tmp_path / "venv", pyproject="1")
    assert steps == ["create", "meson"]


def test_make_when_inputs_change_then_it_is_brought_up_to_date(tmp_path: Path, steps: list[str]):
    make(tmp_path / "venv", pyproject="1")
    make(tmp_path / "venv", pyproject="2")
    assert steps == ["create", "meson", "meson"]


def test_make_when_python_changes_then_it_is_made_anew(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
):
    make(tmp_path / "venv", pyproject="1")
    (tmp_path / "venv/old").write_text("")
    monkeypatch.setattr(sys, "version", "4.0")
    make(tmp_path / "venv", pyproject="1")
    assert steps == ["create", "meson", "create", "meson"]
    assert not (tmp_path / "venv/old").exists()


def test_make_when_installing_failed_then_the_next_run_starts_anew(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_words: object, **_more: object) -> None:
        raise ProvisionError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(venvs, "run", fail)
        with pytest.raises(ProvisionError, match="no network"):
            make(tmp_path / "venv", pyproject="1")
    make(tmp_path / "venv", pyproject="1")
    assert steps == ["create", "create", "meson"]


def test_make_when_python_cannot_make_any_then_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def create(_directory: Path, **_options: object) -> None:
        raise ModuleNotFoundError("No module named 'ensurepip'")

    monkeypatch.setattr(venv, "create", create)
    with pytest.raises(ProvisionError, match="install the package python3-venv"):
        make(tmp_path / "venv", pyproject="1")
