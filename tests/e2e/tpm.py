# SPDX-License-Identifier: Apache-2.0
"""TPMs for guests, and tpm2-tools to look into them."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT
from tests.e2e.patience import patience, wait_until

_STARTED = ("--tpm2", "--flags", "not-need-init,startup-clear")


@contextlib.contextmanager
def listening_swtpm(
    program: Path, state: Path, run_dir: Path, *, key: bytes | None = None
) -> Iterator[Path]:
    """A swtpm that listens on a unix socket; gives its path.

    Args:
        program: swtpm.
        state: the directory of its state.
        run_dir: a directory with a short path.
        key: what the state is encrypted with.
    """
    state.mkdir(parents=True, exist_ok=True)
    path = run_dir / "swtpm.sock"
    options = ["--tpmstate", f"dir={state}", "--server", f"type=unixio,path={path}"]
    options += ["--ctrl", f"type=unixio,path={run_dir / 'swtpm.ctrl'}"]
    if key is not None:
        (run_dir / "swtpm.key").write_bytes(key)
        options += ["--key", f"file={run_dir / 'swtpm.key'},mode=aes-256-cbc,format=binary"]
    process = subprocess.Popen(
        [str(program), "socket", *_STARTED, *options],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(path.exists, "swtpm's socket")
        yield path
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def pty_swtpm(program: Path, state: Path) -> Iterator[Path]:
    """A swtpm at the other end of a pty; gives the pty's path."""
    state.mkdir(parents=True, exist_ok=True)
    master, slave = os.openpty()
    tty.setraw(slave)
    process = subprocess.Popen(
        [
            *(str(program), "chardev", *_STARTED, "--fd", str(master)),
            *("--tpmstate", f"dir={state}"),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[master],
    )
    os.close(master)
    try:
        yield Path(os.ttyname(slave))
    finally:
        process.terminate()
        process.wait()
        os.close(slave)


class Tools:
    """tpm2-tools over a way to a TPM.

    Args:
        way: ``socket PATH`` of a swtpm, or ``daemon PATH NAME``: as a guest's kernel would,
            by H_TPM_COMM.
    """

    def __init__(self, *way: str | Path) -> None:
        words = (sys.executable, "-m", "tests.e2e.tpm_relay", *map(str, way))
        self._tcti = f"cmd:{shlex.join(words)}"

    def run(self, program: str, *words: str | Path, stdin: bytes = b"") -> bytes:
        """Runs one to its end; gives its output.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        done = subprocess.run(
            [program, "-T", self._tcti, *map(str, words)],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=patience(60),
            cwd=ROOT,
            env={**os.environ, "TSS2_LOG": "all+ERROR"},
        )
        assert done.returncode == 0, (program, words, done.stderr.decode("utf-8", "replace"))
        return done.stdout

    def pcr(self, number: int) -> bytes:
        """A register of the SHA-256 bank."""
        text = self.run("tpm2_pcrread", f"sha256:{number}").decode()
        return bytes.fromhex(text.split("0x")[-1].strip())
