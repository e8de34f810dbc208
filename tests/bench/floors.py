# SPDX-License-Identifier: Apache-2.0
"""What is measured: round trips of one frame through several servers."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """Round trip times in nanoseconds."""

    minimum: int
    p50: int
    p99: int

    def __str__(self) -> str:
        minimum, p50, p99 = (ns / 1000 for ns in (self.minimum, self.p50, self.p99))
        return f"p50 {p50:.1f} us (min {minimum:.1f}, p99 {p99:.1f})"


class Pinger:
    """The compiled ``pinger.c``."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.path = directory / "pinger"
        subprocess.run(
            ["cc", "-O2", "-Wall", "-Wextra", "-o", self.path, HERE / "pinger.c"], check=True
        )

    def ping(self, sock: socket.socket, frame: bytes, count: int, pause_us: int = 0) -> Times:
        """Send ``frame`` ``count`` times over a socket and time the answers."""
        (times,) = self.ping_in_turn(sock, (frame,), count, pause_us)
        return times

    def ping_in_turn(
        self, sock: socket.socket, frames: Sequence[bytes], count: int, pause_us: int = 0
    ) -> list[Times]:
        """The same with several frames, one after the other, again and again."""
        done = subprocess.run(
            [self.path, "ping", str(sock.fileno()), str(count), str(pause_us)],
            input=b"".join(frames),
            stdout=subprocess.PIPE,
            pass_fds=[sock.fileno()],
            check=True,
            timeout=120,
        )
        return [Times(*map(int, line.split())) for line in done.stdout.splitlines()]

    @contextlib.contextmanager
    def c_echo(self) -> Iterator[socket.socket]:
        """A socket to an echo server in C."""
        with _server(lambda fd: [str(self.path), "echo", str(fd)]) as sock:
            yield sock

    @contextlib.contextmanager
    def trio_echo(self) -> Iterator[socket.socket]:
        """A socket to an echo server in trio."""
        with _server(lambda fd: [sys.executable, str(HERE / "trio_echo.py"), str(fd)]) as sock:
            yield sock


@contextlib.contextmanager
def _server(command: Callable[[int], list[str]]) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        process = subprocess.Popen(command(theirs.fileno()), pass_fds=[theirs.fileno()])
        theirs.close()
        try:
            yield ours
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(timeout=10)


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process, in KiB."""

    resident: int
    private: int


def memory_of(pid: int) -> Memory:
    """Resident and private memory of a process."""
    values = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0])
    return Memory(values["Rss"], values["Private_Clean"] + values["Private_Dirty"])


@contextlib.contextmanager
def daemon(
    directory: pathlib.Path, *more: str
) -> Iterator[tuple[subprocess.Popen[bytes], pathlib.Path]]:
    """A daemon of its own, and its socket."""
    path = directory / "hc.sock"
    with tempfile.TemporaryDirectory(dir=directory) as state:
        notify = directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(notify))
            ready.settimeout(30)
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "hcalld", "serve", "--socket-path", str(path)),
                    *("--state-dir", state, "--log-level", "warning", *more),
                    "--allow-core-dumps",  # smaps_rollup is closed otherwise, but to root
                ],
                env={"NOTIFY_SOCKET": str(notify), "PATH": "/usr/bin:/bin"},
            )
            try:
                ready.recv(64)
                yield process, path
            finally:
                process.terminate()
                process.wait(timeout=10)
                notify.unlink()
