# SPDX-License-Identifier: Apache-2.0
"""A QEMU with a guest, its console and its monitor."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from tests.e2e import ktap
from tests.e2e.console import STUB_FAILURES, Console
from tests.e2e.patience import patience
from tests.e2e.qmp import Qmp

from hcalld.guest import machine as guest_machine
from hcalld.guest.machine import FIRMWARE_DIR, Firmware, Memory, socket_chardev

__all__ = [
    "FIRMWARE_DIR",
    "ByteOrder",
    "Firmware",
    "Guest",
    "Machine",
    "MachineError",
    "Memory",
    "Startable",
    "socket_chardev",
]

ByteOrder = Literal["le", "be"]


class MachineError(AssertionError):
    """QEMU did not do what it must."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Guest(guest_machine.Guest):
    """What to start; a guest stub if it says no other patterns of failure."""

    failures: Sequence[str] = STUB_FAILURES


class Startable(Protocol):
    """What a machine starts: a guest of any architecture."""

    @property
    def qemu(self) -> Path:
        """The program."""
        ...

    @property
    def smp(self) -> int:
        """How many processors it has."""
        ...

    @property
    def failures(self) -> Sequence[str]:
        """Patterns on the console that end every wait."""
        ...

    def arguments(self) -> list[str]:
        """Its command line, the monitor and the console left out."""
        ...


class Machine:
    """A running QEMU.

    Args:
        guest: What it runs.
        folder: Where its console and log are kept.
        environ: More variables of its environment.
    """

    def __init__(
        self,
        guest: Startable,
        folder: Path,
        *,
        name: str = "qemu",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.guest = guest
        self.log = folder / f"{name}.log"
        self._qmp: Qmp | None = None
        self._is_ended = False
        self._monitor, inner = socket.socketpair()
        reading, writing = os.pipe()
        typing, keyboard = os.pipe()
        self._keyboard = open(keyboard, "wb", buffering=0)  # noqa: SIM115
        command = [str(guest.qemu), *guest.arguments()]
        command += ["-chardev", f"socket,id=monitor,fd={inner.fileno()}"]
        command += ["-mon", "chardev=monitor,mode=control", "-serial", "stdio"]
        try:
            with self.log.open("ab") as log:
                log.write((" ".join(command) + "\n").encode())
                log.flush()
                self.process = subprocess.Popen(
                    command,
                    stdin=typing,
                    stdout=writing,
                    stderr=log,
                    pass_fds=[inner.fileno()],
                    env={**os.environ, **(environ or {})},
                )
        except OSError:
            os.close(reading)
            self._keyboard.close()
            self._monitor.close()
            raise
        finally:
            os.close(writing)
            os.close(typing)
            inner.close()
        log_name = "console.log" if name == "qemu" else f"{name}.console.log"
        self.console = Console(reading, folder / log_name, guest.failures)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def qmp(self) -> Qmp:
        """The monitor; QEMU answers once it has made its devices."""
        if self._qmp is None:
            self._qmp = Qmp(self._monitor)
        return self._qmp

    @property
    def is_alive(self) -> bool:
        """True while QEMU runs."""
        return self.process.poll() is None

    def enter(self, line: str) -> None:
        """Types a line at the guest's console; a script gets it by ``read``."""
        self._keyboard.write(line.encode() + b"\n")

    def wait(self, seconds: float = 60) -> int:
        """Waits until QEMU ends; gives its exit status.

        Raises:
            ConsoleError: The guest printed a pattern of failure.
            MachineError: QEMU does not end.
        """
        self.console.expect_end(seconds)
        try:
            return self.process.wait(patience(20))
        except subprocess.TimeoutExpired:
            raise MachineError("QEMU has closed its console and does not end") from None

    def report(self, seconds: float = 60) -> ktap.Report:
        """Waits until the guest stub has ended; gives what it reported."""
        status = self.wait(seconds)
        report = ktap.parse(self.console.text)
        if report.status == 0 and status != 0:
            raise MachineError(f"QEMU ended with {status}: {self.log_text()}")
        return report

    def log_text(self) -> str:
        """Gives what QEMU printed beside the console, its command line first."""
        return self.log.read_text("utf-8", "replace")

    def messages(self) -> str:
        """Gives what QEMU printed, without the command line."""
        return self.log_text().partition("\n")[2]

    def must_not_have_crashed(self) -> None:
        """Checks that no signal has ended QEMU, and no sanitizer has spoken.

        Raises:
            MachineError: One has.
        """
        status = self.process.poll()
        # Our own SIGTERM may come before QEMU knows what to do with one.
        expected = -signal.SIGTERM if self._is_ended else 0
        if status is not None and status < 0 and status != expected:
            raise MachineError(f"signal {-status} ended QEMU: {self.log_text()}")
        for sign in ("AddressSanitizer", "LeakSanitizer", "runtime error:", "Assertion"):
            if sign in self.messages():
                raise MachineError(f"QEMU's log has {sign!r}: {self.log_text()}")

    def close(self) -> None:
        """Ends QEMU if it runs, as a user would, else with force."""
        if self.is_alive:
            self._is_ended = True
            self.process.terminate()
            try:
                self.process.wait(patience(15))
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(patience(15))
                raise MachineError(f"SIGTERM did not end QEMU: {self.log_text()}") from None
        if self._qmp is not None:
            self._qmp.close()
        with contextlib.suppress(OSError):
            self._monitor.close()
        self._keyboard.close()
        self.console.close()
        self.must_not_have_crashed()
