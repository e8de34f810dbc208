# SPDX-License-Identifier: Apache-2.0
"""A TPM 2.0 in software: swtpm, as Debian has it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.patience import wait_until


class Swtpm:
    """One TPM; its state outlives the process, as a real one's does.

    Args:
        program: swtpm.
        folder: Where its state is.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._port = 0

    @property
    def tcti(self) -> str:
        """How tpm2-tools reach it."""
        return f"swtpm:host=127.0.0.1,port={self._port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Runs it from power-on to power-off; gives its TCTI."""
        self._folder.mkdir(exist_ok=True)
        self._port = _two_free_ports()
        process = subprocess.Popen(
            [
                *(str(self._program), "socket", "--tpm2", "--flags", "not-need-init,startup-clear"),
                *("--tpmstate", f"dir={self._folder}"),
                *("--server", f"type=tcp,bindaddr=127.0.0.1,port={self._port}"),
                *("--ctrl", f"type=tcp,bindaddr=127.0.0.1,port={self._port + 1}"),
            ],
            stdin=subprocess.DEVNULL,
        )
        try:
            wait_until(self._answers, "swtpm's first answer")
            yield self.tcti
        finally:
            process.terminate()
            process.wait()

    def _answers(self) -> bool:
        done = subprocess.run(
            ["tpm2_getcap", "-T", self.tcti, "-Q", "properties-fixed"],
            capture_output=True,
            check=False,
        )
        return done.returncode == 0


def _two_free_ports() -> int:
    """The first of two ports in a row: swtpm's control channel is at the next."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 1))
                return port
