# SPDX-License-Identifier: Apache-2.0
"""What the daemon's start costs, against a Python that loads the two libraries it needs.

Both are processor time of a process: what else the machine does meanwhile is not counted.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from tests.bench.results import Results

pytestmark = pytest.mark.bench

ROUNDS = 15
GOAL = 2.0
IMPORTS = "import trio, cryptography.hazmat.primitives.ciphers.aead"
FLOOR = f"{IMPORTS}; print('ready', flush=True); input()"


def _cpu_ms(words: list[str], ready: str) -> float:
    """Processor time of a process until it says that it is ready."""
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        assert any(ready in line for line in process.stdout), f"{words} has ended before {ready!r}"
        spent = pathlib.Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]
        process.terminate()
    return int(spent) / 1e6


def test_start_of_the_daemon(results: Results, socket_dir: pathlib.Path) -> None:
    serve = [sys.executable, "-m", "hcalld", "serve", "--socket-path", f"{socket_dir}/s"]
    serve += ["--state-dir", f"{socket_dir}/state"]
    floors, starts = [], []
    for _ in range(ROUNDS):
        floors.append(_cpu_ms([sys.executable, "-c", FLOOR], "ready"))
        starts.append(_cpu_ms(serve, "control socket"))
    # The quickest: caches of the processor, which others empty, only ever add.
    results.ratio(
        "processor time of hcalld serve until it listens / Python with trio and cryptography",
        min(starts),
        min(floors),
        GOAL,
    )
