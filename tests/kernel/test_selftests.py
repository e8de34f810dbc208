# SPDX-License-Identifier: Apache-2.0
"""``hcalld guest``: the kernel's selftests and ours, as a kernel developer runs them.

A few of them; ``make selftest`` runs all.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import pytest
from tests.conftest import ROOT
from tests.e2e.daemon import COMMAND
from tests.e2e.patience import patience, wait_until

if TYPE_CHECKING:
    from tests.conftest import Require

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

TESTS: Final = ROOT / "guest_stub" / "linux" / "selftests"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def guest_words(require: Require, artifacts: Path) -> list[str | Path]:
    """Options of ``hcalld guest`` for our kernel."""
    return [
        *("--qemu", require("qemu"), "--kernel", require("kernel-own")),
        *("--initramfs", require("initramfs-selftests"), "--output", artifacts / "runs"),
    ]


@pytest.fixture
def run(guest_words: list[str | Path]) -> Run:
    """Runs ``hcalld guest run`` to its end."""

    def _run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "guest", "run", *map(str, (*guest_words, *words))]
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=patience(500),
        )

    return _run


def suites(folder: Path, text: str) -> Path:
    """A folder with one suite, and nothing else."""
    (folder / "tests" / "suites").mkdir(parents=True)
    (folder / "tests" / "suites" / "short.toml").write_text(
        f'name = "short"\nabout = "a few"\n{text}'
    )
    return folder / "tests"


SHORT: Final = """\
tpm = true
[[test]]
name = "tpm2:test_async.sh"
[[test]]
name = "powerpc/vphn:test-vphn"
[[test]]
name = "powerpc/papr_vpd:papr_vpd"
result = "{}"
why = "no such device"
"""


def test_a_few_of_the_kernels_selftests(run: Run, artifacts: Path, require: Require) -> None:
    require("swtpm")
    tests = suites(artifacts, SHORT.format("skip"))
    done = run("--tests", tests, "--junit", artifacts / "junit.xml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: 3 tests in 1 boots ended as expected" in done.stdout
    (suite,) = ElementTree.parse(artifacts / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "0", "1")
    folder = artifacts / "runs" / "short"
    assert "# test_async (tpm2_tests.AsyncTest.test_async) ... ok" in (
        folder / "console.log"
    ).read_text("utf-8", "replace")
    assert "guest connected" in (folder / "daemon.log").read_text()
    assert "H_PKS_GET_CONFIG" in (folder / "daemon.trace").read_text()
    assert "-device spapr-hcall-proxy" in (folder / "qemu.log").read_text()


def test_a_result_that_changes_fails(run: Run, artifacts: Path) -> None:
    """For the better too: the list is to be true."""
    tests = suites(artifacts, SHORT.replace("tpm = true\n", "").format("fail"))
    done = run("--tests", tests)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "powerpc/papr_vpd:papr_vpd: expected fail, was skip" in done.stdout
    # Without a TPM the kernel's own test skips.
    assert "tpm2:test_async.sh: expected pass, was skip" in done.stdout
    assert "FAILED: 2 of 3 tests changed, 0 of 1 boots went wrong" in done.stdout


@pytest.mark.parametrize("suite", ["keystore", "secure"])
def test_our_own_selftests(suite: str, run: Run, require: Require) -> None:
    require("swtpm")
    program = require("stub") / "esmb-get-file"
    done = run("--tests", TESTS, "--suite", suite, "--file", f"/bin/esmb-get-file={program}")
    assert done.returncode == 0, done.stdout + done.stderr


def script(folder: Path, text: str) -> Path:
    path = folder / "script.sh"
    path.write_text(f"#!/bin/sh\n{text}")
    return path


def test_a_script_of_the_users(run: Run, artifacts: Path) -> None:
    text = "echo KTAP version 1; echo 1..2; echo ok 1 one; echo ok 2 two; cat /given\n"
    (artifacts / "given").write_text("what was given\n")
    words = ("--file", f"/given={artifacts / 'given'}")
    done = run("--script", script(artifacts, text), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "what was given" in (artifacts / "runs/script/console.log").read_text()


def test_a_script_whose_part_fails(run: Run, artifacts: Path) -> None:
    text = "echo KTAP version 1; echo 1..2; echo ok 1 one; echo not ok 2 two; exit 1\n"
    done = run("--script", script(artifacts, text))
    assert done.returncode == 1
    assert "script:run: its part two was fail" in done.stdout


def test_a_panic_ends_it_at_once(run: Run, artifacts: Path) -> None:
    start = time.monotonic()
    done = run("--script", script(artifacts, "echo c > /proc/sysrq-trigger\nsleep 3000\n"))
    assert time.monotonic() - start < patience(400)
    assert done.returncode == 1
    assert re.search(r"script: the guest printed '.*(?:panic|NULL pointer|Oops|sysrq)", done.stdout)
    assert "script:run: expected pass, was cut off" in done.stdout


def test_a_kernel_that_never_comes_up(run: Run, artifacts: Path) -> None:
    """It waits for a root device for ever, and prints the last that it said."""
    text = script(artifacts, "true\n")
    done = run(
        "--script", text, "--append", "rdinit=/none root=/dev/vda rootwait", "--boot-seconds", "30"
    )
    assert done.returncode == 1
    assert "the kernel has not come to its first process within 30 s; the console ends with" in (
        done.stdout
    )
    assert "Waiting for root device" in done.stdout


def test_tests_that_never_end(run: Run, artifacts: Path) -> None:
    done = run("--script", script(artifacts, "echo begun; sleep 3000\n"), "--seconds", "10")
    assert done.returncode == 1
    assert "the tests have not ended within 10 s; script: run was running" in done.stdout


def test_an_initramfs_that_is_too_large(run: Run, artifacts: Path) -> None:
    big = artifacts / "big"
    with big.open("wb") as file:
        file.truncate(400 << 20)
    words = ("--script", script(artifacts, "true\n"), "--file", f"/big={big}")
    done = run(*words, "--memory-mib", "512")
    assert done.returncode == 1
    assert "are loaded below 512 MiB" in done.stderr or "the guest has 512" in done.stderr
    assert not (artifacts / "runs/script/console.log").exists()


def test_a_qemu_without_the_device(run: Run, artifacts: Path, require: Require) -> None:
    stock = artifacts / "qemu"
    stock.write_text("#!/bin/sh\necho \"'spapr-hcall-proxy' is not a valid device\" >&2; exit 1\n")
    stock.chmod(0o755)
    done = run("--script", script(artifacts, "true\n"), "--qemu", stock)
    assert done.returncode == 1
    assert "QEMU ended with 1 before the guest's script did" in done.stdout
    assert "'spapr-hcall-proxy' is not a valid device" in done.stdout


def test_ended_by_a_signal_it_leaves_no_process(
    guest_words: list[str | Path], artifacts: Path
) -> None:
    words = [*guest_words, "--script", script(artifacts, "echo begun; sleep 3000\n")]
    process = subprocess.Popen(
        [*COMMAND, "guest", "run", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    console = artifacts / "runs/script/console.log"
    try:
        # What a test prints is on the console at once: it may be the last before a crash.
        wait_until(lambda: console.exists() and b"# begun" in console.read_bytes(), "it", 180)
        assert len(users_of(artifacts)) >= 3
    finally:
        process.terminate()
        error = process.communicate(timeout=patience(60))[1]
    assert "ended by SIGTERM" in error
    assert process.returncode == 1
    assert users_of(artifacts) == []


def users_of(folder: Path) -> list[str]:
    """Programs that have a folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if os.fsencode(folder) in words:
                found.append(words.replace(b"\0", b" ").decode())
    return found


def test_a_shell(guest_words: list[str | Path], artifacts: Path) -> None:
    """On a terminal, as people have it; Ctrl-A x ends it, and nothing is left."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "guest", "shell", *map(str, guest_words)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        expect(master, b"~ # ")
        os.write(master, b"echo $((6 * 7))two; cat /sys/firmware/plpks/config/version\n")
        expect(master, b"\n42two\n3\n")
        os.write(master, b"\x01x")
        assert process.wait(patience(60)) == 0
    finally:
        # Killed, it would leave its guest behind.
        process.terminate()
        process.wait()
        os.close(master)
    assert "42two" in (artifacts / "runs/shell/console.log").read_text("utf-8", "replace")


def expect(terminal: int, wanted: bytes, seconds: float = 180) -> None:
    """Reads a terminal until it has shown something."""
    shown = b""
    end = time.monotonic() + patience(seconds)
    while wanted not in shown:
        left = end - time.monotonic()
        assert left > 0, shown[-2000:]
        if select.select([terminal], [], [], left)[0]:
            # The guest's terminal and this one both add a carriage return to a line's end.
            shown += os.read(terminal, 4096).replace(b"\r", b"")
