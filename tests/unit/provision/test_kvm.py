# SPDX-License-Identifier: Apache-2.0
"""What is said of a machine that can or cannot run x86 guests under KVM."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path

import pytest
from tests.provision import kvm


@pytest.fixture(autouse=True)
def _x86(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_why_not_when_there_is_no_device_then_it_says_so():
    why = kvm.why_not("/nonexistent/kvm")
    assert why == "no usable /nonexistent/kvm on this machine (there is none)"


def test_why_not_when_the_device_is_another_then_it_says_what_failed(tmp_path: Path):
    (tmp_path / "kvm").touch()
    assert "it makes no virtual machine: Inappropriate ioctl" in str(kvm.why_not(f"{tmp_path}/kvm"))
    assert "it cannot be opened: Is a directory" in str(kvm.why_not(str(tmp_path)))


def test_why_not_when_the_processor_is_another_then_the_device_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(platform, "machine", lambda: "ppc64le")
    assert "its processor is ppc64le" in str(kvm.why_not("/nonexistent/other"))


def test_why_not_when_the_api_is_another_then_it_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "old").touch()
    monkeypatch.setattr(fcntl, "ioctl", lambda _file, _number, _argument: 11)
    assert "version 11, and 12 is needed" in str(kvm.why_not(f"{tmp_path}/old"))


def test_why_not_when_the_device_makes_a_machine_then_there_is_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "new").touch()
    made = []

    def ioctl(_file: int, number: int, _argument: int) -> int:
        if number == kvm.KVM_GET_API_VERSION:
            return kvm.API_VERSION
        made.append(os.open("/dev/null", os.O_RDONLY))
        return made[-1]

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert kvm.why_not(f"{tmp_path}/new") is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])
