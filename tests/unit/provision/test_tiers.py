# SPDX-License-Identifier: Apache-2.0
"""The check that every tier ran: in pure form, and in a real run of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.provision import tiers
from tests.provision.tiers import TierCheck, reason_of, tier_of

ROOT = Path(__file__).resolve().parents[3]


def result(
    nodeid: str, when: str = "call", outcome: str = "passed", marks: str = "", **more: object
):
    return SimpleNamespace(
        nodeid=nodeid,
        when=when,
        outcome=outcome,
        skipped=outcome == "skipped",
        keywords=dict.fromkeys(marks.split(), 1),
        **more,
    )


@pytest.mark.parametrize(
    ("nodeid", "tier"),
    [
        ("tests/unit/hcalld/test_a.py::test_b", "unit"),
        ("tests/kernel/test_a.py::test_b[x::y/z]", "kernel"),
        ("tests/test_a.py::test_b", "none"),
    ],
)
def test_tier_of_when_id_is_given_then_it_is_the_folder(nodeid: str, tier: str):
    assert tier_of(nodeid) == tier


def test_problems_when_every_tier_ran_then_there_are_none():
    check = TierCheck(["unit", "kernel"])
    for nodeid in ("tests/unit/test_a.py::test", "tests/kernel/test_a.py::test"):
        for when in ("setup", "call", "teardown"):
            check.pytest_runtest_logreport(result(nodeid, when))
    assert check.problems() == []
    assert check.ran == {"unit": 1, "kernel": 1}


def test_problems_when_a_tier_did_not_run_then_it_is_named():
    check = TierCheck(["unit", "kernel"])
    check.pytest_runtest_logreport(result("tests/unit/test_a.py::test"))
    check.pytest_runtest_logreport(result("tests/kernel/test_a.py::test", "setup"))
    (problem,) = check.problems()
    assert "tier kernel: no test of tests/kernel or so marked ran" in problem


def test_problems_when_a_marker_is_a_tier_then_it_counts_beside_the_folder():
    check = TierCheck(["integration", "qemu"])
    plain, marked = "tests/integration/test_a.py::test", "tests/integration/test_b.py::test"
    check.pytest_runtest_logreport(result(plain))
    (problem,) = check.problems()
    assert "tier qemu" in problem
    check.pytest_runtest_logreport(result(marked, marks="qemu soak"))
    assert check.problems() == []
    assert check.ran == {"integration": 2, "qemu": 1}


def test_problems_when_a_test_was_skipped_then_it_is_named_with_its_reason():
    check = TierCheck([])
    longrepr = ("tests/unit/test_a.py", 3, "Skipped: no swtpm")
    check.pytest_runtest_logreport(
        result("tests/unit/test_a.py::test", "setup", "skipped", longrepr=longrepr)
    )
    (problem,) = check.problems()
    assert "tests/unit/test_a.py::test was skipped (Skipped: no swtpm)" in problem


def test_problems_when_the_machine_cannot_run_a_tier_then_there_are_none():
    check = TierCheck(["unit", "kvm"], {"kvm": "no usable /dev/kvm"})
    check.pytest_runtest_logreport(result("tests/unit/test_a.py::test"))
    assert check.problems() == []


def test_unable_when_a_tier_has_a_reason_then_only_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiers, "UNABLE", {"kvm": lambda: "none here", "other": lambda: None})
    assert tiers.unable() == {"kvm": "none here"}


def test_problems_when_a_failure_was_expected_then_the_test_ran():
    check = TierCheck(["unit"])
    check.pytest_runtest_logreport(
        result("tests/unit/test_a.py::test", "call", "skipped", wasxfail="known", longrepr="")
    )
    assert check.problems() == []


def test_reason_of_when_pytest_gives_text_then_it_is_the_reason():
    assert reason_of("because") == "because"


def run_pytest(folder: Path, *words: str, plugin: str = tiers.__name__) -> tuple[int, list[str]]:
    """Runs pytest on a tree of its own with the plugin; gives exit status and lines."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", plugin),
            *(f"--rootdir={folder}", f"{folder}/tests", *words),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [line for line in done.stdout.splitlines() if line.strip()]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    for tier in ("unit", "kernel"):
        (tmp_path / "tests" / tier).mkdir(parents=True)
    (tmp_path / "tests/unit/test_a.py").write_text("def test_a(): pass\n")
    return tmp_path


def test_run_when_a_tier_did_not_run_then_it_fails_and_the_closing_line_stays_last(project: Path):
    status, lines = run_pytest(project, "--tiers=unit,kernel")
    assert status == 1
    assert "unit: 1 ran" in lines
    assert "kernel: 0 ran" in lines
    assert any(line.startswith("FAILED tier kernel") for line in lines)
    assert "1 passed in" in lines[-1]


def test_run_when_every_tier_ran_then_it_passes(project: Path):
    (project / "tests/kernel/test_k.py").write_text("def test_k(): pass\n")
    status, lines = run_pytest(project, "--tiers=unit,kernel")
    assert status == 0
    assert "2 passed in" in lines[-1]


def test_run_when_no_tier_is_named_then_nothing_is_checked(project: Path):
    status, lines = run_pytest(project)
    assert status == 0
    assert not any("ran" in line.split() for line in lines)


UNABLE_PLUGIN = """
from tests.provision import tiers
from tests.provision.tiers import *
tiers.UNABLE = {"kernel": lambda: "no usable /dev/kvm on this machine (there is none)"}
"""


def test_run_when_the_machine_cannot_run_a_tier_then_it_says_why_and_passes(project: Path):
    (project / "cannot.py").write_text(UNABLE_PLUGIN)
    status, lines = run_pytest(project, "--tiers=unit,kernel", plugin="cannot")
    assert status == 0
    assert "kernel: not run: no usable /dev/kvm on this machine (there is none)" in lines
    assert "1 passed in" in lines[-1]
