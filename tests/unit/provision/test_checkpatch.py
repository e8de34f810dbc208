# SPDX-License-Identifier: Apache-2.0
"""The check of the patch series: done once for each series, and again until it passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.provision import checkpatch, qemu
from tests.provision.cache import Cache
from tests.provision.errors import ProvisionError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "v10.0"
    folder.mkdir()
    (folder / "series").write_text("one.patch\n")
    (folder / "one.patch").write_text("first\n")
    base = qemu.Base("QEMU", "source", "digest", tmp_path / "qemu.tar", None, True)
    monkeypatch.setattr(qemu, "PATCHES", folder)
    monkeypatch.setattr(qemu, "find_base", lambda *_: base)
    monkeypatch.setattr(qemu, "source", lambda *_: tmp_path / "qemu")
    return folder


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Passes if a file says so, and keeps count of its runs."""
    path = tmp_path / "refresh.sh"
    path.write_text(
        f'#!/bin/sh\n[ "$*" = "check {tmp_path}/qemu" ] || exit 2\n'
        f'echo ran >>"{tmp_path}/runs"\n[ -e "{tmp_path}/good" ]\n'
    )
    path.chmod(0o755)
    return path


def runs(script: Path) -> int:
    return len((script.parent / "runs").read_text().splitlines())


def test_series_when_it_has_passed_then_it_is_not_checked_again(cache: Cache, script: Path):
    (script.parent / "good").touch()
    assert [checkpatch.check(cache, {}, script) for _ in range(3)] == [1, 1, 1]
    assert runs(script) == 1


def test_series_when_it_fails_then_that_is_said_and_it_is_checked_until_it_passes(
    cache: Cache, script: Path
):
    for _ in range(2):
        with pytest.raises(ProvisionError, match=r"refresh\.sh finds fault .* see above"):
            checkpatch.check(cache, {}, script)
    (script.parent / "good").touch()
    assert checkpatch.check(cache, {}, script) == 1
    assert runs(script) == 3


def test_series_when_a_patch_or_the_script_is_another_then_it_is_checked(
    cache: Cache, script: Path, patches: Path
):
    (script.parent / "good").touch()
    checkpatch.check(cache, {}, script)
    (patches / "one.patch").write_text("second\n")
    checkpatch.check(cache, {}, script)
    assert runs(script) == 2
    script.write_text(script.read_text() + "# stricter\ntrue\n")
    checkpatch.check(cache, {}, script)
    assert runs(script) == 3
