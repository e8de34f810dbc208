# SPDX-License-Identifier: Apache-2.0
"""A QEMU with a guest, its console and its monitor."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from tests.e2e import ktap
from tests.e2e.console import STUB_FAILURES, Console
from tests.e2e.patience import patience
from tests.e2e.qmp import Qmp

FIRMWARE_DIR: Final = "/usr/share/qemu"
"""Debian's qemu-system-data has slof.bin and vof.bin here."""

_QUIET: Final = "cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"
"""TCG does not have these mitigations, and would warn."""

RECONNECT_MS: Final = 50

ByteOrder = Literal["le", "be"]
Firmware = Literal["slof", "vof"]
Memory = Literal["private", "shared"]


class MachineError(AssertionError):
    """QEMU did not do what it must."""


def socket_chardev(path: Path, *, reconnect_ms: int | None = RECONNECT_MS) -> str:
    """The chardev for a daemon that listens on a unix socket."""
    reconnect = "" if reconnect_ms is None else f",reconnect-ms={reconnect_ms}"
    return f"socket,id=hc,path={path}{reconnect}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Guest:
    """What to start."""

    qemu: Path
    kernel: Path
    append: str = ""
    initrd: Path | None = None
    firmware: Firmware = "vof"
    smp: int = 4
    threads: Literal["multi", "single"] = "multi"
    memory: Memory = "shared"
    memory_mib: int = 256
    chardev: str | None = None
    """None: a machine without the device."""
    device_options: str = ""
    """More properties of the device, such as ``optional=on``."""
    name: str | None = None
    can_reboot: bool = False
    failures: Sequence[str] = STUB_FAILURES
    extra: Sequence[str] = ()

    def arguments(self) -> list[str]:
        """QEMU's command line, the monitor and the console left out."""
        machine = f"pseries,{_QUIET}" + (",x-vof=on" if self.firmware == "vof" else "")
        words: list[str] = []
        if self.memory == "shared":
            words += [
                "-object",
                f"memory-backend-memfd,id=ram,size={self.memory_mib}M,share=on",
            ]
            machine += ",memory-backend=ram"
        words += ["-machine", machine, "-accel", f"tcg,thread={self.threads}"]
        words += ["-L", FIRMWARE_DIR, "-m", f"{self.memory_mib}M", "-smp", str(self.smp)]
        words += ["-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-action", "panic=exit-failure", "-kernel", str(self.kernel)]
        if self.append:
            words += ["-append", self.append]
        if self.initrd is not None:
            words += ["-initrd", str(self.initrd)]
        if not self.can_reboot:
            words += ["-no-reboot"]
        if self.name is not None:
            words += ["-name", self.name]
        words += self.extra
        if self.chardev is not None:
            device = "spapr-hcall-proxy,id=proxy,chardev=hc"
            device += f",{self.device_options}" if self.device_options else ""
            words += ["-chardev", self.chardev, "-device", device]
        return words


class Machine:
    """A running QEMU.

    Args:
        guest: What it runs.
        folder: Where its console and log are kept.
    """

    def __init__(self, guest: Guest, folder: Path, *, name: str = "qemu") -> None:
        self.guest = guest
        self.log = folder / f"{name}.log"
        self._qmp: Qmp | None = None
        self._is_ended = False
        self._monitor, inner = socket.socketpair()
        reading, writing = os.pipe()
        command = [str(guest.qemu), *guest.arguments()]
        command += ["-chardev", f"socket,id=monitor,fd={inner.fileno()}"]
        command += ["-mon", "chardev=monitor,mode=control", "-serial", "stdio"]
        try:
            with self.log.open("ab") as log:
                log.write((" ".join(command) + "\n").encode())
                log.flush()
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=log,
                    pass_fds=[inner.fileno()],
                )
        except OSError:
            os.close(reading)
            self._monitor.close()
            raise
        finally:
            os.close(writing)
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
        self.console.close()
        self.must_not_have_crashed()
