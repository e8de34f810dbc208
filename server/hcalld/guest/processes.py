# SPDX-License-Identifier: Apache-2.0
"""The programs of a run: each is ended with it, and has its output in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket as sockets
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from hcalld.core.errors import BackendUnavailable, ConfigError, HcalldError

HCALLD: Final = (sys.executable, "-m", "hcalld")
"""This program, whichever name it was started by."""

CAPTURE: Final = "capture.pcapng"

START_S: Final = 60
END_S: Final = 20
TAIL: Final = 3000
"""Bytes of a log that are shown."""


class GuestError(HcalldError):
    """A run cannot go on."""


def tail_of(log: Path, size: int = TAIL) -> str:
    """The end of a log."""
    try:
        return log.read_bytes()[-size:].decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


@contextlib.asynccontextmanager
async def program(
    command: Sequence[str],
    log: Path,
    *,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[trio.Process]:
    """Runs a program inside the context; at its end the program is asked to end, then made to.

    Args:
        command: The program and its arguments.
        log: Gets what it prints, the command first.
        stdin: As for subprocess; None: this program's own.
        stdout: Where its output goes instead of the log.
        environ: More variables.

    Raises:
        BackendUnavailable: It cannot be started.
    """
    with log.open("ab") as sink:
        sink.write((" ".join(command) + "\n").encode())
        sink.flush()
        try:
            process = await trio.lowlevel.open_process(
                list(command),
                stdin=stdin,
                stdout=sink if stdout is None else stdout,
                stderr=sink,
                env={**os.environ, **(environ or {})},
            )
        except OSError as error:
            raise BackendUnavailable(
                f"{command[0]} cannot be started: {error.strerror}; expected a program of that name"
            ) from None
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await end(process)


async def end(process: trio.Process) -> None:
    """Ends a program if it runs, by SIGTERM, else with force."""
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(END_S):
            await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()


@dataclasses.dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that is ready."""

    socket: Path
    log: Path
    process: trio.Process

    async def watch(self) -> None:
        """Waits until it ends, which it must not before the guest does.

        Raises:
            GuestError: It did.
        """
        status = await self.process.wait()
        raise GuestError(f"the daemon ended with {status}: {tail_of(self.log)}")


@contextlib.asynccontextmanager
async def daemon(folder: Path, run_dir: Path, options: Sequence[str]) -> AsyncIterator[Daemon]:
    """Runs ``hcalld serve`` with a log, a trace and a capture in a folder.

    Raises:
        GuestError: It ended instead of getting ready.
    """
    path, log = run_dir / "hcalld.sock", folder / "daemon.log"
    words = [*HCALLD, "serve", "--socket-path", str(path), "--state-dir", str(folder / "state")]
    words += ["--trace", str(folder / "daemon.trace"), "--capture", str(folder / CAPTURE)]
    words += options
    notify = trio.socket.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM)
    with notify:
        await notify.bind(str(run_dir / "notify"))
        environ = {"NOTIFY_SOCKET": str(run_dir / "notify")}
        async with program(words, log, environ=environ) as process:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_end, process, nursery.cancel_scope)
                with trio.move_on_after(START_S) as deadline:
                    await notify.recv(256)
                if deadline.cancelled_caught:
                    raise GuestError(f"the daemon is not ready within {START_S} s: {tail_of(log)}")
                nursery.cancel_scope.cancel()
            if process.poll() is not None:
                raise GuestError(f"the daemon ended with {process.returncode}: {tail_of(log)}")
            yield Daemon(path, log, process)


async def _until_end(process: trio.Process, scope: trio.CancelScope) -> None:
    await process.wait()
    scope.cancel()


@contextlib.asynccontextmanager
async def swtpm(folder: Path, run_dir: Path, name: str = "swtpm") -> AsyncIterator[Path]:
    """Runs a TPM for QEMU; gives the socket of its control channel."""
    state = folder / "tpm"
    state.mkdir()
    control = run_dir / "tpm.ctrl"
    words = [name, "socket", "--tpm2", "--tpmstate", f"dir={state}"]
    words += ["--ctrl", f"type=unixio,path={control}"]
    async with program(words, folder / "swtpm.log") as process:
        with trio.move_on_after(START_S):
            # Nothing tells of a socket's being there but its being there.
            while not control.exists() and process.poll() is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
        if not control.exists():
            raise GuestError(f"{name} does not listen: {tail_of(folder / 'swtpm.log')}")
        yield control


async def hcalld(*words: str | Path) -> None:
    """Runs a command of this program to its end.

    Raises:
        GuestError: It failed.
    """
    done = await trio.run_process(
        [*HCALLD, *map(str, words)], capture_stdout=True, capture_stderr=True, check=False
    )
    if done.returncode != 0:
        raise GuestError(f"hcalld {words[0]} {words[1]}: {done.stderr.decode(errors='replace')}")


async def ended_by_signal(task_status: trio.TaskStatus[None]) -> None:
    """Ends the run as Ctrl-C does when this program is asked to end.

    Args:
        task_status: Told when a signal can come.

    Raises:
        GuestError: It was.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            raise GuestError(f"ended by {signal.Signals(number).name}")


@contextlib.asynccontextmanager
async def terminal_kept() -> AsyncIterator[None]:
    """Leaves this program's terminal as it was: a QEMU that is killed leaves it without echo."""
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        yield
        return
    was = termios.tcgetattr(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, was)


def must_have(name: str, what: str) -> None:
    """Checks that a program is there.

    Raises:
        ConfigError: It is not.
    """
    if shutil.which(name) is None:
        raise ConfigError(f"the program {name} is not there, which {what}; install its package")
