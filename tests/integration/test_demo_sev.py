# SPDX-License-Identifier: Apache-2.0
"""The demonstration's act of SEV, as far as it goes on every machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.conftest import ROOT, Require
from tests.demo import sev
from tests.demo.stage import DemoError, Stage
from tests.provision import kvm

pytestmark = [pytest.mark.timeout(300)]


def check_story(said: str) -> None:
    """What the act is there to show, QEMU left out."""
    assert re.search(r"^  ARK .*\(the trusted root\)$", said, re.MULTILINE)
    assert "\n  the measurement is that of the wanted launch\n" in said
    assert re.search(rf"grep -a -o {sev.SECRET} memory.bin\n  {sev.SECRET}\n", said)
    assert re.search(r"^  sev-1 cpu0 #\d+ KVM_SEV_LAUNCH_SECRET\(.*SUCCESS", said, re.MULTILINE)
    refusal = said.partition("That guest gets no secret")[2]
    assert "hcalld: the measurement is not that of the wanted launch, so no secret" in refusal
    # Nothing that is shown has it: neither trace nor owner.
    assert not [line for line in said.splitlines() if sev.SECRET in line and "KVM_" in line]


def test_the_sev_act_shows_a_secret_and_a_refusal_without_kvm(
    require: Require,
    socket_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    require("gcc")
    build = socket_dir / "build"
    subprocess.run(
        ["make", "-C", str(ROOT / "guest_stub" / "x86"), f"BUILD={build}"],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("HCALLD_SEV_FIRMWARE", str(build / "firmware.bin"))
    monkeypatch.setattr(kvm, "why_not", lambda: "no usable /dev/kvm on this machine (no)")
    stage = socket_dir / "stage"
    stage.mkdir()
    sev.act(Stage(stage))
    said = capsys.readouterr().out
    check_story(said)
    assert "not shown: no usable /dev/kvm on this machine (no)" in said
    assert "serial port" not in said


def test_a_command_beside_the_others_that_fails_ends_the_act(
    socket_dir: Path, capsys: pytest.CaptureFixture[str]
):
    stage = Stage(socket_dir)
    begun = []
    with (
        pytest.raises(DemoError, match="ended with 3, expected 0"),
        stage.beside("sh -c 'echo no; exit 3'", waits_for="file"),
    ):
        begun.append(True)
    assert not begun
    assert "  no\n" in capsys.readouterr().out


def test_a_command_beside_the_others_that_is_quick_has_done_its_part(socket_dir: Path):
    begun = []
    with Stage(socket_dir).beside("sh -c 'echo x > file'", waits_for="file"):
        begun.append(True)
    assert begun
