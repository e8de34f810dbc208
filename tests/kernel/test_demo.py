# SPDX-License-Identifier: Apache-2.0
"""``make demo``: each act ends well and shows what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.patience import patience

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {
    "qemu": "HCALLD_QEMU",
    "stub": "HCALLD_STUB_DIR",
    "kernel-debian": "HCALLD_KERNEL_DEBIAN",
    "kernel-own": "HCALLD_KERNEL_OWN",
    "initramfs": "HCALLD_INITRAMFS",
}

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(require: Callable[[str], Path], artifacts: Path, socket_dir: Path) -> Run:
    """Runs the demonstration as make does; what it printed is kept if it fails."""

    def _run(*acts: str, **changed: str) -> subprocess.CompletedProcess[str]:
        environ = dict(os.environ)
        for name, variable in VARIABLES.items():
            environ[variable] = str(require(name))
        with (artifacts / "output").open("w+", encoding="utf-8") as output:
            done = subprocess.run(
                [sys.executable, "-m", "tests.demo", *acts],
                cwd=ROOT,
                env={**environ, "TMPDIR": str(socket_dir), **changed},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=patience(400),
                check=False,
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read())

    return _run


def test_the_keystore_act_shows_a_stock_kernel_with_its_keystore(run: Run):
    done = run("keystore")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^  ok: [1-9]\d+ tests, \d{4} checks$", done.stdout, re.MULTILINE)
    assert "plpks: POWER LPAR Platform KeyStore initialized successfully" in done.stdout
    assert re.search(r"^  lpar7 cpu\d #1 H_PKS_GET_CONFIG\(", done.stdout, re.MULTILINE)


def test_the_secure_act_shows_a_secret_a_disk_and_a_refusal(run: Run):
    done = run("secure")
    assert done.returncode == 0, done.stdout
    said = done.stdout
    assert [line[-1] for line in said.splitlines() if "devices/system/cpu/svm is" in line] == [
        *("1", "1")
    ]
    assert "esmb-get-file rootd: correct-horse-battery-staple" in said
    assert "\n  written-by-a-secure-VM\n" in said
    counts = re.findall(r"^  \$ grep -c .*\n  (\d+)$", said, re.MULTILINE)
    assert int(counts[0]) > 0
    assert counts[1:] == ["0"]
    seen = re.search(r"pages that are not zeros: (\d+) of ", said)
    shared = re.search(r"pages that the guest has shared: (\d+), by \d+ calls", said)
    assert seen
    assert shared
    assert 0 < int(seen[1]) <= int(shared[1])
    assert "Linux, by way of QEMU: Switch to secure mode failed." in said
    assert re.search(r"guest does not become secure .*initrd: .* not what the blob was made", said)


def test_an_act_that_cannot_be_played_says_why(run: Run):
    done = run("secure", HCALLD_KERNEL_OWN="")
    assert done.returncode == 1
    why, kept = done.stdout.splitlines()[-2:]
    assert why == "demo: HCALLD_KERNEL_OWN is not set; run it by 'make demo'"
    folder = Path(kept.removeprefix("Logs are kept in "))
    assert folder.is_dir()


def test_an_unknown_act_is_refused(run: Run):
    done = run("keystor")
    assert done.returncode == 2
    assert "no act keystor; expected keystore, secure, sev" in done.stdout
