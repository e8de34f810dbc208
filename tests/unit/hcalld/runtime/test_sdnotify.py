# SPDX-License-Identifier: Apache-2.0
"""Readiness for systemd, held against a socket that receives as systemd's does."""

from __future__ import annotations

import os
import pathlib
import socket
import uuid

import pytest

from hcalld.runtime import sdnotify


def test_notify_when_there_is_no_manager_then_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    sdnotify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    sdnotify.notify("READY=1")


def test_notify_when_the_manager_listens_at_a_path_then_it_gets_the_state(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(path))
        sdnotify.notify("READY=1")
        manager.settimeout(5)
        assert manager.recv(100) == b"READY=1"


def test_notify_when_the_manager_listens_in_the_abstract_namespace_then_it_gets_the_state(
    monkeypatch: pytest.MonkeyPatch,
):
    name = f"hcalld-test-{uuid.uuid4()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        sdnotify.notify("READY=1")
        manager.settimeout(5)
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["/nonexistent/notify", "/" + "x" * 200, "vsock:2:9999"])
def test_notify_when_the_manager_is_gone_then_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, address: str
):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    sdnotify.notify("READY=1")
