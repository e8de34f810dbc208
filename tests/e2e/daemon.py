# SPDX-License-Identifier: Apache-2.0
"""``hcalld serve`` as a process, started and ended as often as a test wants."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.patience import patience

from hcalld.control.endpoint import NAME as CONTROL_NAME

COMMAND = (sys.executable, "-m", "hcalld")
"""The program, as installed for the interpreter that runs the tests."""


class DaemonError(AssertionError):
    """The daemon did not do what it must."""


class Daemon:
    """One daemon with a state directory, a socket, a trace and a log of its own.

    As a context manager it runs inside; at the end its log is searched for bugs.

    Args:
        folder: Where its log, trace and state are kept.
        run_dir: A directory with a short path, for sockets.
        options: More options of ``hcalld serve``.
        socket_path: False: it listens only where ``options`` say.
    """

    def __init__(
        self,
        folder: Path,
        run_dir: Path,
        options: Sequence[str] = (),
        *,
        name: str = "daemon",
        socket_path: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.log = folder / f"{name}.log"
        self.trace = folder / f"{name}.trace"
        self.state_dir = folder / f"{name}.state"
        self.socket = run_dir / f"{name}.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._run_dir = run_dir
        self.command: Sequence[str] = COMMAND
        self.environ = dict(environ or {})
        self.options = list(options)
        if socket_path:
            self.options += ["--socket-path", str(self.socket)]
        if "--memory" not in self.options:
            self.options += ["--state-dir", str(self.state_dir)]
        self.options += ["--trace", str(self.trace)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if kind is None:
            self.must_be_sound()

    def start(self, pass_fds: Sequence[int] = ()) -> None:
        """Starts it, and waits until it says that it is ready.

        Raises:
            DaemonError: It ended instead, or said nothing.
        """
        notify = self._run_dir / f"notify-{self.starts}"
        self.starts += 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, self.log.open("ab") as log:
            sock.bind(str(notify))
            self.process = subprocess.Popen(
                [*self.command, "serve", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                env={**os.environ, "NOTIFY_SOCKET": str(notify), **self.environ},
            )
            sock.settimeout(0.05)
            for _ in range(int(patience(30) / 0.05)):
                try:
                    message = sock.recv(256)
                except TimeoutError:
                    if self.process.poll() is not None:
                        raise DaemonError(
                            f"the daemon ended with {self.process.returncode}: {self.log_text()}"
                        ) from None
                    continue
                if message == b"READY=1":
                    break
            else:
                self.kill()
                raise DaemonError(f"the daemon is not ready in time: {self.log_text()}")
        notify.unlink()

    @property
    def is_alive(self) -> bool:
        """True while it runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Ends it as ``kill -9`` does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(patience(10))

    def terminate(self) -> int:
        """Ends it as a service manager does; gives the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(patience(15))
        except subprocess.TimeoutExpired:
            self.kill()
            raise DaemonError(f"SIGTERM did not end the daemon: {self.log_text()}") from None

    def close(self) -> None:
        """Ends it if it runs."""
        if self.is_alive:
            self.terminate()

    def log_text(self) -> str:
        """Gives the log so far."""
        return self.log.read_text("utf-8") if self.log.exists() else ""

    def trace_lines(self) -> list[str]:
        """Gives the trace so far; a line cut off by a kill is left out."""
        if not self.trace.exists():
            return []
        text = self.trace.read_text("utf-8", "replace")
        return text[: text.rfind("\n") + 1].splitlines()

    def must_be_sound(self) -> None:
        """Checks that the log tells of no bug.

        Raises:
            DaemonError: It does.
        """
        log = self.log_text()
        for sign in ("Traceback (most recent call last)", "bug in a handler"):
            if sign in log:
                at = log.index(sign)
                raise DaemonError(f"the daemon's log says: {log[max(0, at - 300) : at + 3000]}")


def copy_state(state_dir: Path, to: Path) -> None:
    """Copies a state directory, which may have a daemon's control socket in it."""
    shutil.copytree(state_dir, to, ignore=shutil.ignore_patterns(CONTROL_NAME))


def run_hcalld(
    *words: str,
    stdin: str | None = None,
    environ: Mapping[str, str] | None = None,
    seconds: float = 100,
) -> subprocess.CompletedProcess[str]:
    """Runs a command of hcalld to its end; one that takes longer has hung."""
    return subprocess.run(
        [*COMMAND, *words],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=patience(seconds),
        check=False,
        env={**os.environ, **(environ or {})},
    )
