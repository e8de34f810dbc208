# SPDX-License-Identifier: Apache-2.0
"""What tests/conftest.py promises, seen from outside: runs of pytest that have it as a plugin."""

from __future__ import annotations

import fcntl
import os
import re

import pytest
from tests.provision import tiers

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.qemu
def test_tool(require):
    assert require("qemu").name == "the-qemu"

def test_program(require):
    require("no-such-program-anywhere")

@pytest.mark.soak
def test_soak():
    pass

@pytest.mark.bench
def test_bench():
    pass

def test_keeps(artifacts):
    (artifacts / "log").write_text("kept")
    raise AssertionError("fails")

def test_removes(artifacts):
    (artifacts / "deep").mkdir()
    (artifacts / "deep" / "log").write_text("gone")

@pytest.fixture
def breaks_late():
    yield
    raise RuntimeError("while tearing down")

def test_late(artifacts, breaks_late):
    (artifacts / "log").write_text("kept")

def test_socket(socket_dir):
    assert len(str(socket_dir)) < 60
    assert socket_dir.is_dir()
"""


class Run:
    """A run of pytest inside this one, in a directory of its own."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = pytester.path
        self._pytester = pytester
        self._monkeypatch = monkeypatch

    def __call__(self, *words: str, **variables: str) -> tuple[int, str]:
        with self._monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("HCALLD_")]:
                patch.delenv(name)
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setenv("HCALLD_ARTIFACTS", str(self.folder / "artifacts"))
            done = self._pytester.runpytest_inprocess(
                *("-p", "tests.conftest", "-p", "no:trio", "-p", "no:cacheprovider", "-rA"), *words
            )
        return int(done.ret), done.stdout.str()

    def artifacts(self) -> set[str]:
        folder = self.folder / "artifacts"
        return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    pytester.makepyfile(test_it=TESTS)
    pytester.makeini("[pytest]\nmarkers =\n qemu\n kvm\n soak\n bench\n")
    return Run(pytester, monkeypatch)


def last_line(output: str) -> str:
    return output.rstrip().splitlines()[-1].strip("= ")


def test_run_when_nothing_is_required_then_what_lacks_is_skipped_and_soak_left_out(run: Run):
    code, output = run("-k", "tool or program or soak or bench")
    assert code == 0, output
    assert "no qemu: HCALLD_QEMU is not set; `make test` makes qemu ready" in output
    assert "no no-such-program-anywhere: the program no-such-program-anywhere is not" in output
    assert last_line(output).startswith("2 skipped, 6 deselected")


def test_run_when_a_tier_is_required_then_what_lacks_fails_and_tiers_are_judged(run: Run):
    code, output = run("-k", "tool or program", HCALLD_REQUIRE="qemu,kernel")
    assert code == 1
    assert "qemu is required: HCALLD_QEMU is not set" in output
    assert "no-such-program-anywhere is required" in output
    assert "FAILED tier kernel: no test of tests/kernel or so marked ran" in output
    assert "tier qemu" not in output
    assert last_line(output).startswith("2 failed")


def test_run_when_all_that_is_required_ran_then_it_succeeds(run: Run):
    tool = run.folder / "the-qemu"
    tool.touch()
    code, output = run("-k", "tool", HCALLD_QEMU=str(tool), HCALLD_REQUIRE="qemu")
    assert code == 0, output
    assert last_line(output).startswith("1 passed")


def test_run_when_something_is_skipped_though_a_tier_is_required_then_it_fails(run: Run):
    (run.folder / "test_it.py").write_text(
        "import pytest\n@pytest.mark.qemu\ndef test_it(): pass\n"
        "def test_other(): pytest.skip('too lazy')\n"
    )
    code, output = run(HCALLD_REQUIRE="qemu")
    assert code == 1
    assert re.search(r"FAILED .*test_other was skipped \(Skipped: too lazy\)", output)
    assert last_line(output).startswith("1 passed, 1 skipped")


@pytest.mark.parametrize(
    ("expression", "ran"), [("soak or bench", 2), ("not soak and not qemu", 0)]
)
def test_run_when_markers_are_asked_for_then_only_those_run_on_demand(
    run: Run, expression: str, ran: int
):
    code, output = run("-m", expression, "-k", "soak or bench", HCALLD_REQUIRE="kernel")
    if ran:
        assert code == 0, output
        assert last_line(output).startswith(f"{ran} passed")
    else:
        assert last_line(output).startswith("8 deselected")
        assert "FAILED tier kernel" in output


@pytest.mark.parametrize(
    ("why", "closing"), [("no /dev/kvm", "1 passed, 1 deselected"), (None, "2 passed")]
)
def test_run_when_the_machine_cannot_run_a_tier_then_it_is_left_out_and_why_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, why: str | None, closing: str
):
    monkeypatch.setattr(tiers, "UNABLE", {"kvm": lambda: why})
    (run.folder / "test_it.py").write_text(
        "import pytest\n@pytest.mark.kvm\ndef test_it(): pass\n"
        "@pytest.mark.qemu\ndef test_other(): pass\n"
    )
    code, output = run(HCALLD_REQUIRE="qemu,kvm")
    assert code == 0, output
    # In the head, and in the summary.
    assert output.count("\nkvm: not run: no /dev/kvm\n") == (2 if why else 0)
    assert ("\nkvm: 1 ran\n" in output) == (why is None)
    assert last_line(output).startswith(closing)


def test_artifacts_when_a_test_fails_anywhere_then_they_are_kept_and_named(run: Run):
    code, output = run("-k", "not soak", HCALLD_QEMU="/nowhere/the-qemu", HCALLD_REQUIRE="qemu")
    assert code == 1
    assert "HCALLD_QEMU names /nowhere/the-qemu, which is not there; run `make qemu`" in output
    kept = {"test_it.py-test_keeps", "test_it.py-test_late"}
    assert run.artifacts() == kept
    for name in kept:
        assert f"artifacts/{name}\n" in output
        assert (run.folder / "artifacts" / name / "log").read_text() == "kept"


def test_artifacts_when_another_run_uses_the_folder_then_it_is_left_alone(run: Run):
    """Once, two runs at the same time removed each other's logs."""
    taken = run.folder / "artifacts" / "test_it.py-test_removes"
    (taken / "log").mkdir(parents=True)
    stale = run.folder / "artifacts" / f"{taken.name}~2" / "stale"
    stale.mkdir(parents=True)
    lock = os.open(taken, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = run("-k", "removes", HCALLD_KEEP="1")
    finally:
        os.close(lock)
    assert code == 0, output
    assert run.artifacts() == {taken.name, f"{taken.name}~2"}
    assert (taken / "log").is_dir()
    assert [path.name for path in stale.parent.iterdir()] == ["deep"]
