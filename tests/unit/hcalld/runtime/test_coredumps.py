# SPDX-License-Identifier: Apache-2.0
"""Each of the two ways that forbid core dumps, alone and in a process of its own."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

BEGIN = """
import ctypes, os, resource, sys
from hcalld.core.errors import HcalldError
from hcalld.runtime import coredumps
class Libc:
    def __init__(self, *args, **kwargs): pass
    def prctl(self, *args): return int(sys.argv[1] == "refused")
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
if sys.argv[1] == "dumpable":
    resource.setrlimit = lambda *args: None
if sys.argv[1] in ("limit", "refused"):
    ctypes.CDLL = Libc
    ctypes.get_errno = lambda: 22
try:
    if sys.argv[1] != "neither":
        coredumps.forbid()
except HcalldError as error:
    sys.exit(str(error))
os.kill(os.getpid(), 11)
"""


def run(way: str, folder: pathlib.Path) -> int:
    """The status with which a process ends that was killed as by a bug."""
    process = subprocess.Popen([sys.executable, "-c", BEGIN, way], cwd=folder)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = 0
    return status


@pytest.mark.parametrize("way", ["both", "limit", "dumpable"])
def test_a_process_that_dies_leaves_no_core(way: str, tmp_path: pathlib.Path):
    status = run(way, tmp_path)

    assert os.WTERMSIG(status) == signal.SIGSEGV
    assert not os.WCOREDUMP(status)
    assert os.listdir(tmp_path) == []


def test_the_control_dies_of_the_same(tmp_path: pathlib.Path):
    """Whether it leaves a core is the machine's business; test_core_dumps.py compares."""
    assert os.WTERMSIG(run("neither", tmp_path)) == signal.SIGSEGV


def test_a_kernel_that_refuses_is_an_error(tmp_path: pathlib.Path):
    done = subprocess.run(
        [sys.executable, "-c", BEGIN, "refused"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "core dumps cannot be switched off (Invalid argument)" in done.stderr
    assert "--allow-core-dumps" in done.stderr
