# SPDX-License-Identifier: Apache-2.0
"""Where things are when nobody says where."""

from __future__ import annotations

import pathlib

import pytest

from hcalld.cli import paths


def test_state_dir_when_xdg_says_where_then_it_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere/state")
    assert paths.state_dir() == pathlib.Path("/somewhere/state/hcalld")


def test_state_dir_when_nothing_says_where_then_it_is_in_the_users_home(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert paths.state_dir() == pathlib.Path("/home/somebody/.local/state/hcalld")


def test_socket_path_when_there_is_a_runtime_directory_then_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert paths.socket_path() == pathlib.Path("/run/user/1000/hcalld.sock")


@pytest.mark.parametrize("value", [None, ""])
def test_socket_path_when_there_is_none_then_it_is_with_the_state(
    monkeypatch: pytest.MonkeyPatch, value: str | None
):
    if value is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere/state")
    assert paths.socket_path() == pathlib.Path("/somewhere/state/hcalld/hcalld.sock")
