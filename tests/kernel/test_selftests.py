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
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from xml.etree import ElementTree

import pytest
from tests.conftest import ROOT
from tests.e2e.daemon import COMMAND, run_hcalld
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
    assert f"consoles, logs and captures are in {artifacts / 'runs'}\n" in done.stdout
    (suite,) = ElementTree.parse(artifacts / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "0", "1")
    folder = artifacts / "runs" / "short"
    assert "# test_async (tpm2_tests.AsyncTest.test_async) ... ok" in (
        folder / "console.log"
    ).read_text("utf-8", "replace")
    assert "guest connected" in (folder / "daemon.log").read_text()
    assert "H_PKS_GET_CONFIG" in (folder / "daemon.trace").read_text()
    assert "-device spapr-hcall-proxy" in (folder / "qemu.log").read_text()
    decoded = run_hcalld("decode", str(folder / "capture.pcapng"), "--call", "H_PKS_GET_CONFIG")
    assert decoded.returncode == 0, decoded.stderr
    assert " = H_SUCCESS " in decoded.stdout


def test_a_result_that_changes_fails(run: Run, artifacts: Path) -> None:
    """For the better too: the list is to be true."""
    tests = suites(artifacts, SHORT.replace("tpm = true\n", "").format("fail"))
    done = run("--tests", tests)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "powerpc/papr_vpd:papr_vpd: expected fail, was skip" in done.stdout
    # Without a TPM the kernel's own test skips.
    assert "tpm2:test_async.sh: expected pass, was skip" in done.stdout
    assert "FAILED: 2 of 3 tests changed, 0 of 1 boots went wrong" in done.stdout
    # What it says of them is what the same kernel does the next time.
    differences = artifacts / "runs" / "differences.toml"
    assert f"'hcalld guest run --differences {differences}' expects them" in done.stdout
    again = run("--tests", tests, "--differences", differences, "--output", artifacts / "again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert not (artifacts / "again" / "differences.toml").exists()


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


def test_a_daemon_that_ends_ends_it(guest_words: list[str | Path], artifacts: Path) -> None:
    """At once: the guest would wait for an answer until its time is over."""
    words = [*guest_words, "--script", script(artifacts, "echo begun; sleep 3000\n")]
    with started(artifacts, words) as process:
        (daemon,) = [pid for pid, line in users_of(artifacts).items() if " serve " in line]
        os.kill(daemon, signal.SIGKILL)
        output = process.communicate(timeout=patience(60))[0]
    assert process.returncode == 1
    assert "the daemon ended with -9" in output
    assert "script:run: expected pass, was cut off" in output
    assert users_of(artifacts) == {}


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
    with started(artifacts, words) as process:
        assert len(users_of(artifacts)) >= 3
        process.terminate()
        error = process.communicate(timeout=patience(60))[1]
    assert "ended by SIGTERM" in error
    assert process.returncode == 1
    assert users_of(artifacts) == {}


@contextlib.contextmanager
def started(folder: Path, words: Sequence[str | Path]) -> Iterator[subprocess.Popen[str]]:
    """``hcalld guest run`` with a script that has begun and does not end by itself."""
    process = subprocess.Popen(
        [*COMMAND, "guest", "run", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    console = folder / "runs/script/console.log"
    try:
        # What a test prints is on the console at once: it may be the last before a crash.
        wait_until(lambda: console.exists() and b"# begun" in console.read_bytes(), "it", 180)
        yield process
    finally:
        # Killed, it would leave its guest behind.
        process.terminate()
        process.communicate(timeout=patience(60))


def users_of(folder: Path) -> dict[int, str]:
    """Programs that have a folder on their command line, by process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if os.fsencode(folder) in words:
                found[int(path.parent.name)] = words.replace(b"\0", b" ").decode()
    return found


# -- a shell, on a terminal as people have it ------------------------------------------------------


@pytest.fixture
def shell(guest_words: list[str | Path]) -> Iterator[Callable[..., Terminal]]:
    """Starts ``hcalld guest shell`` on a terminal; its prompt is there then."""
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> Terminal:
            return stack.enter_context(Terminal([*map(str, guest_words), *words]))

        yield start


class Terminal:
    """A terminal with ``hcalld guest shell`` on it.

    Args:
        words: Its options.
    """

    def __init__(self, words: list[str]) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave
        self.settings = termios.tcgetattr(slave)
        command = [*COMMAND, "guest", "shell", *words]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )

    def __enter__(self) -> Self:
        self.expect("~ # ")
        return self

    def __exit__(self, *_: object) -> None:
        # Killed, it would leave its guest behind.
        self.process.terminate()
        self.process.wait(patience(60))
        os.close(self._slave)
        os.close(self._master)

    def type(self, text: str) -> None:
        """Types something."""
        os.write(self._master, text.encode())

    def expect(self, wanted: str) -> None:
        """Reads until the terminal has shown something."""
        shown = ""
        end = time.monotonic() + patience(180)
        while wanted not in shown:
            left = end - time.monotonic()
            assert left > 0, shown[-2000:]
            assert self.process.poll() is None, shown[-2000:]
            if select.select([self._master], [], [], min(left, 1))[0]:
                # The guest's terminal and this one both add a carriage return to a line's end.
                shown += os.read(self._master, 4096).decode("utf-8", "replace").replace("\r", "")

    def must_have_ended(self, folder: Path) -> None:
        """Waits until it has ended well; nothing is left, and the terminal is as it was."""
        assert self.process.wait(patience(60)) == 0
        assert users_of(folder) == {}
        assert termios.tcgetattr(self._slave) == self.settings


def test_a_shell_that_ctrl_a_x_ends(shell: Callable[..., Terminal], artifacts: Path) -> None:
    terminal = shell()
    terminal.type("echo $((6 * 7))two; cat /sys/firmware/plpks/config/version\n")
    terminal.expect("\n42two\n3\n")
    terminal.type("\x01x")
    terminal.must_have_ended(artifacts)
    assert "42two" in (artifacts / "runs/shell/console.log").read_text("utf-8", "replace")


def test_a_shell_in_a_secure_vm_that_poweroff_ends(
    shell: Callable[..., Terminal], artifacts: Path, require: Require
) -> None:
    require("swtpm")
    terminal = shell("--secure", "--memory-mib", "512")
    terminal.type("echo secure $(cat /sys/devices/system/cpu/svm)\n")
    terminal.expect("\nsecure 1\n")
    terminal.type("poweroff -f\n")
    terminal.must_have_ended(artifacts)
    assert " UV_ESM(" in (artifacts / "runs/shell/daemon.trace").read_text()
