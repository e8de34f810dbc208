# SPDX-License-Identifier: Apache-2.0
"""Running the long commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.provision import progress
from tests.provision.errors import ProvisionError


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_run_when_command_succeeds_then_its_output_is_in_the_log(tmp_path: Path):
    progress.run("step", script("print('hello')"), log=tmp_path / "logs/log")
    progress.run("step", script("print('again')"), log=tmp_path / "logs/log")
    lines = (tmp_path / "logs/log").read_text().splitlines()
    assert [line for line in lines if not line.startswith("+ ")] == ["hello", "again"]


def test_run_when_command_fails_then_the_end_of_its_log_is_shown(tmp_path: Path):
    text = "import sys\nfor n in range(100): print('line', n)\nsys.exit(3)"
    with pytest.raises(ProvisionError) as caught:
        progress.run("building", script(text), log=tmp_path / "log")
    assert str(caught.value).startswith("building: ")
    assert "exit status 3" in str(caught.value)
    assert str(tmp_path / "log") in str(caught.value)
    assert str(caught.value).endswith("    line 99")
    assert "line 10\n" not in str(caught.value)


def test_run_when_command_is_killed_then_the_signal_is_told(tmp_path: Path):
    text = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ProvisionError, match="ended with signal 9"):
        progress.run("building", script(text), log=tmp_path / "log")


def test_run_when_program_is_not_there_then_it_says_what_brings_it(tmp_path: Path):
    with pytest.raises(ProvisionError, match="provision system"):
        progress.run("building", ["no-such-program"], log=tmp_path / "log")


def test_run_when_the_search_path_cannot_be_read_then_a_lacking_program_is_told_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def denied(*_words: object, **_more: object) -> None:
        raise PermissionError(13, "Permission denied", "no-such-program")

    monkeypatch.setattr(subprocess, "Popen", denied)
    with pytest.raises(ProvisionError, match="'no-such-program' is not there"):
        progress.run("building", ["no-such-program"], log=tmp_path / "log")


def test_run_when_steps_are_printed_then_they_are_condensed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "TICK_S", 0)
    text = "print('[1/3] Compiling')\nprint('warning')\nprint('[3/3] Linking')"
    progress.run("QEMU", script(text), log=tmp_path / "log", condense=progress.ninja_steps)
    said = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["QEMU: 1 of 3 steps", "QEMU: 3 of 3 steps"]


def test_run_when_output_is_no_text_then_it_is_kept_as_well_as_can_be(tmp_path: Path):
    text = "import sys; sys.stdout.buffer.write(b'\\xff\\n')"
    progress.run("step", script(text), log=tmp_path / "log")
    assert "\ufffd" in (tmp_path / "log").read_text()


def test_kbuild_steps_when_more_come_than_expected_then_the_total_follows():
    condense = progress.kbuild_steps(2)
    lines = ["  CC      a.o", "make: nothing", "  AS      b.o", "  LD      c.o"]
    assert [condense(line) for line in lines] == [
        "1 of about 2 steps",
        None,
        "2 of about 2 steps",
        "3 of about 3 steps",
    ]


def test_run_when_variables_would_change_a_build_then_the_command_does_not_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CFLAGS", "-O0")
    monkeypatch.setenv("MAKEFLAGS", "-j8 --jobserver-auth=3,4")
    monkeypatch.setenv("KEPT", "kept")
    text = "import os; print({n: os.environ.get(n) for n in ('CFLAGS', 'MAKEFLAGS', 'KEPT', 'A')})"
    progress.run("step", script(text), log=tmp_path / "log", env={"A": "b"})
    expected = {"CFLAGS": None, "MAKEFLAGS": None, "KEPT": "kept", "A": "b"}
    assert (tmp_path / "log").read_text().splitlines()[-1] == str(expected)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1 s"), (89, "89 s"), (91, "2 min"), (600, "10 min")]
)
def test_duration_when_given_then_it_is_in_words(seconds: float, text: str):
    assert progress.duration(seconds) == text


def test_output_when_command_fails_then_what_it_said_is_told():
    with pytest.raises(ProvisionError, match=re.compile("exit status 1: oh no$")):
        progress.output(script("import sys; sys.exit('oh no')"))


def test_output_when_program_is_not_there_then_it_is_told():
    with pytest.raises(ProvisionError, match="'no-such-program' is not there"):
        progress.output(["no-such-program"])
