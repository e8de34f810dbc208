# SPDX-License-Identifier: Apache-2.0
"""A dying daemon leaves no memory behind, and a living one shows none."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.lab import Lab
from tests.e2e.patience import patience


@pytest.fixture
def cores() -> Iterator[None]:
    """Core dumps of processes that begin here have no limit, if that is ours to say."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    yield
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, before)


def pid_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def core_limit(daemon: Daemon) -> list[str]:
    text = Path(f"/proc/{pid_of(daemon)}/limits").read_text("ascii")
    (line,) = (line for line in text.splitlines() if line.startswith("Max core file size"))
    return line.split()[4:6]


def has_dumped(daemon: Daemon) -> bool:
    """Kills it as a bug would; says whether the kernel dumped core, wherever to."""
    pid = pid_of(daemon)
    os.kill(pid, signal.SIGSEGV)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGSEGV
    assert daemon.process is not None
    daemon.process.returncode = -signal.SIGSEGV
    return os.WCOREDUMP(status)


def in_folder(daemon: Daemon, folder: Path) -> Daemon:
    """Has it run where a core file may be written and is thrown away after the test."""
    folder.mkdir(exist_ok=True)
    env = shutil.which("env")
    assert env is not None
    daemon.command = (env, f"--chdir={folder}", *daemon.command)
    return daemon


def test_no_core_is_dumped(lab: Lab, cores: None) -> None:
    folder = lab.artifacts / "cwd"
    daemon = in_folder(lab.daemon(is_started=False), folder)
    daemon.start()
    assert core_limit(daemon) == ["0", "0"]
    assert not has_dumped(daemon)
    assert os.listdir(folder) == []


def test_a_daemon_that_may_dump_core_does_as_any_program_here(lab: Lab, cores: None) -> None:
    """The control: the machine dumps core where it is not forbidden."""
    folder = lab.artifacts / "cwd"
    daemon = in_folder(lab.daemon("--allow-core-dumps", is_started=False), folder)
    daemon.start()
    assert core_limit(daemon) != ["0", "0"]
    assert has_dumped(daemon) == dumps_core(folder)


def dumps_core(folder: Path) -> bool:
    """Says whether a program that is killed there dumps core."""
    process = subprocess.Popen([sys.executable, "-c", KILL_ITSELF], cwd=folder)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGSEGV
    assert os.WTERMSIG(status) == signal.SIGSEGV
    return os.WCOREDUMP(status)


KILL_ITSELF = "import os; os.kill(os.getpid(), 11)"


def without_ptrace(*words: str) -> tuple[str, ...]:
    """Root without the right to look into every process; others never have it."""
    if os.geteuid() != 0:
        return words
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv is in Debian's util-linux"
    return (setpriv, "--bounding-set=-sys_ptrace", *words)


READ_MEMORY = "import sys; open(f'/proc/{sys.argv[1]}/mem', 'rb')"


@pytest.mark.parametrize("is_allowed", [False, True])
def test_memory_is_closed_to_the_daemons_own_user(lab: Lab, is_allowed: bool) -> None:
    daemon = lab.daemon("--memory", *["--allow-core-dumps"] * is_allowed, is_started=False)
    daemon.command = without_ptrace(*daemon.command)
    daemon.start()
    done = subprocess.run(
        without_ptrace(sys.executable, "-c", READ_MEMORY, str(pid_of(daemon))),
        capture_output=True,
        text=True,
        timeout=patience(30),
        check=False,
    )
    assert (done.returncode == 0) == is_allowed, done.stderr
    assert ("PermissionError" in done.stderr) != is_allowed
