# SPDX-License-Identifier: Apache-2.0
"""The Makefile and what CI runs, without running it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.provision import cli

ROOT = Path(__file__).resolve().parents[3]

TARGETS = (
    *("help", "demo", "test", "venv", "qemu", "guest", "stub", "generate", "check", "unit"),
    *(
        "check-series",
        "itest",
        "ktest",
        "kvmtest",
        "qtest",
        "sev",
        "soak",
        "bench",
        "test-asan",
        "dist",
        "clean",
        "selftest",
    ),
)


def make(*words: str) -> str:
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", *words],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_when_shown_then_every_target_is_listed_once():
    rows = [line.split() for line in make("help").splitlines()]
    names = [row[1] for row in rows]
    assert len(names) == len(set(names))
    assert set(TARGETS) <= set(names)
    assert make() == make("help")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            "demo",
            "--with qemu,kernel-debian,initramfs,stub -- .venv/bin/python -m tests.demo keystore",
        ),
        ("demo", "--with qemu,kernel-own,initramfs,stub -- .venv/bin/python -m tests.demo secure"),
        ("demo", "--with sev-library,sev-firmware -- .venv/bin/python -m tests.demo sev"),
        ("test", "HCALLD_REQUIRE=qemu,kernel,kvm "),
        ("test", "--tiers=unit,property,vectors,integration,qemu,kernel,kvm "),
        ("itest", "HCALLD_REQUIRE=qemu "),
        ("ktest", "HCALLD_REQUIRE=qemu,kernel "),
        ("kvmtest", "--with kernel-x86,sev-library,sev-firmware -- env HCALLD_REQUIRE=kvm "),
        ("kvmtest", "--tiers=kvm "),
        ("test-asan", "--with qemu-asan,stub "),
        ("selftest", "hcalld guest run --tests guest_stub/linux/selftests"),
        ("selftest", "--with qemu,kernel-own,initramfs-selftests,stub "),
        ("soak", "-m soak"),
        ("bench", "-m bench"),
    ],
)
def test_target_when_only_shown_then_it_would_run_what_it_says(target: str, expected: str):
    assert expected in make("--dry-run", target)


def test_selftest_when_a_kernel_and_a_tree_are_named_then_they_are_used_wherever_they_are():
    text = make("--dry-run", "selftest", "KERNEL=vmlinux", "SRC=../linux")
    named = f"HCALLD_KERNEL_OWN={ROOT}/vmlinux HCALLD_KERNEL_SRC={ROOT.parent}/linux python3"
    assert text.count(named) == 2
    assert "HCALLD_KERNEL" not in make("--dry-run", "selftest")


def test_test_when_only_shown_then_pytest_comes_last():
    lines = make("--dry-run", "test").splitlines()
    assert "-m pytest" in lines[-1]
    everything = ",".join([*cli.ALL, *cli.IN_TREE])
    assert f"--with {everything} " in lines[-1]


def test_ci_when_read_then_it_runs_what_people_run():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")
    subprocess.run(["bash", "-n", script], check=True)
