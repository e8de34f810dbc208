# SPDX-License-Identifier: Apache-2.0
"""``hcalld`` as a process that a test talks to."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO

from tests.e2e.patience import patience


@contextlib.contextmanager
def running(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """A process with its input and output; it does not outlive the test, whatever goes wrong."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hcalld", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    watchdog = threading.Timer(patience(60), process.kill)
    watchdog.start()
    try:
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield process, process.stdin, process.stdout
    finally:
        watchdog.cancel()
