# SPDX-License-Identifier: Apache-2.0
"""Daemons that are started in milliseconds, and kill themselves at a boundary that is told.

A boundary is a place between two effects on the world: before and after everything that a
handler asks for, each statement of a transaction, its commit, each sync, a reply's way to
the socket. They are counted from the first call that a daemon receives, or from its start;
at number N the process gets SIGKILL, from itself.

This program reads requests from stdin, a line of JSON each, and forks: the children are
the program as it is, but for the boundaries. ``Nursery`` is the other side.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.patience import patience

NEVER = 0
"""No boundary: count only."""

ALIVE = 1000
"""No exit status: the process has not ended."""

_PRELOADED = (
    "hcalld.app",
    "hcalld.cli.serve",
    "hcalld.runtime.calls",
    "hcalld.runtime.driver",
    "hcalld.runtime.outbox",
    "hcalld.runtime.server",
    "hcalld.stores.directory",
    "hcalld.stores.sqlite",
)


class Boundaries:
    """Counts boundaries once it is armed; dies at the chosen one.

    Args:
        at: its number, from 1; or NEVER.
        log: gets the name of each boundary, a line each.
    """

    def __init__(self, at: int, log: Path) -> None:
        self._at = at
        self._count = 0
        self._is_armed = False
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def arm(self) -> None:
        self._is_armed = True

    def is_next(self, name: str) -> bool:
        """Count a boundary; True if it is the chosen one."""
        if not self._is_armed:
            return False
        self._count += 1
        os.write(self._log, name.encode() + b"\n")
        return self._count == self._at

    def reach(self, name: str) -> None:
        """Count a boundary, and die if it is the chosen one."""
        if self.is_next(name):
            die()

    def around(self, owner: Any, attribute: str, name: Callable[..., str]) -> None:
        """Make one boundary before a function, and one after it."""
        function = getattr(owner, attribute)

        def bounded(*arguments: Any, **more: Any) -> Any:
            what = name(*arguments)
            self.reach(f"before {what}")
            result = function(*arguments, **more)
            self.reach(f"after {what}")
            return result

        setattr(owner, attribute, bounded)


def die() -> None:
    """Ends the process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class _BoundedConnection:
    """Passes everything on; each statement has a boundary before and after it."""

    def __init__(self, db: sqlite3.Connection, boundaries: Boundaries) -> None:
        self._db = db
        self._boundaries = boundaries

    def execute(self, sql: str, *arguments: Any) -> Any:
        what = " ".join(sql.split()[:4])
        self._boundaries.reach(f"before {what}")
        result = self._db.execute(sql, *arguments)
        self._boundaries.reach(f"after {what}")
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def install(boundaries: Boundaries) -> None:
    """Puts the boundaries into the program."""
    from hcalld.runtime.calls import Calls
    from hcalld.runtime.driver import Execution
    from hcalld.runtime.outbox import Outbox
    from hcalld.runtime.transport import SocketTransport
    from hcalld.stores import sqlite

    answer, send = Calls.answer, SocketTransport.try_send
    write = sqlite.SqliteStore._write

    def bounded_answer(self: Calls, frame: Any) -> None:
        boundaries.arm()
        boundaries.reach("before the call")
        answer(self, frame)
        boundaries.reach("after the call")

    def bounded_write(self: sqlite.SqliteStore, rows: Any) -> None:
        boundaries.reach("before the commit")
        # The statements go through whatever _use() gives.
        db = self._use()
        self._db = _BoundedConnection(db, boundaries)  # type: ignore[assignment]
        try:
            write(self, rows)
        finally:
            self._db = db
        boundaries.reach("after the commit")

    def bounded_send(self: SocketTransport, data: bytes) -> int:
        boundaries.reach("before sending")
        if boundaries.is_next("half sent"):
            send(self, data[: len(data) // 2])
            die()
        sent = send(self, data)
        boundaries.reach("after sending")
        return sent

    setattr(Calls, "answer", bounded_answer)  # noqa: B010
    setattr(sqlite.SqliteStore, "_write", bounded_write)  # noqa: B010
    setattr(SocketTransport, "try_send", bounded_send)  # noqa: B010
    boundaries.around(Execution, "_perform_now", lambda _self, effect: type(effect).__name__)
    boundaries.around(Outbox, "queue", lambda _self, frame, *_: f"queueing {type(frame).__name__}")
    for name in ("fsync", "fdatasync", "pwrite"):
        boundaries.around(os, name, lambda *_, what=name: what)


# -- the program ----------------------------------------------------------------------------


def _become(request: dict[str, Any]) -> None:
    """Be a daemon."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    if request["boundaries"]:
        boundaries = Boundaries(request["at"], Path(request["boundaries"]))
        install(boundaries)
        if request.get("from_start"):
            boundaries.arm()
    from hcalld.__main__ import main

    sys.argv = ["hcalld", *request["arguments"]]
    main()


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        _become(request)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Fork as often as asked, and tell how children ended."""
    for name in _PRELOADED:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else ALIVE
        else:
            answer = _fork(request)
        print(answer, flush=True)


# -- the other side -----------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Child:
    """One daemon."""

    pid: int
    nursery: Nursery

    def wait(self) -> int:
        """Its exit status, negative for a signal.

        Raises:
            TimeoutError: it goes on living.
        """
        end = time.monotonic() + patience(20)
        while (status := self.nursery.ask({"wait": self.pid})) == ALIVE:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError("the daemon lives on")
            time.sleep(0.001)
        return status

    def kill(self) -> None:
        """Ends it as ``kill -9`` does."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


class Nursery:
    """Starts daemons by forking, which takes a fraction of what starting Python does."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.crashing_hcalld"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._read() != "ready":
            raise AssertionError("the nursery did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, request: dict[str, Any]) -> int:
        """Send a request, and give its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        boundaries: Path | None = None,
        at: int = NEVER,
        from_start: bool = False,
    ) -> Child:
        """Start ``hcalld`` with these arguments.

        Args:
            arguments: the words after the program's name.
            log: takes what it prints.
            boundaries: takes the names of boundaries; None: there are none.
            at: at which it dies.
            from_start: count them from its start, and not from its first call.
        """
        request = {
            "arguments": list(arguments),
            "log": str(log),
            "boundaries": "" if boundaries is None else str(boundaries),
            "at": at,
            "from_start": from_start,
        }
        return Child(self.ask(request), self)


if __name__ == "__main__":
    serve()
