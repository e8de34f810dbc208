# SPDX-License-Identifier: Apache-2.0
"""What QEMU is told for a guest. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

FIRMWARE_DIR: Final = "/usr/share/qemu"
"""Debian's qemu-system-data has slof.bin and vof.bin here."""

_QUIET: Final = "cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"
"""TCG does not have these mitigations, and would warn."""

RECONNECT_MS: Final = 50

Firmware = Literal["slof", "vof"]
Memory = Literal["private", "shared"]

LINUX_FAILURES: Final = (
    r"Kernel panic - not syncing",
    r"Oops:",
    r"BUG: ",
    r"kernel BUG at",
    r"Call Trace:",
    r"Unable to handle kernel",
    r"rcu: INFO: rcu_\w+ (?:self-)?detected stall",
    r"watchdog: .*(?:lockup|stuck)",
    r"WARNING: CPU: ",
)
"""What Linux prints when something is wrong with it."""


def socket_chardev(path: Path, *, reconnect_ms: int | None = RECONNECT_MS) -> str:
    """The chardev for a daemon that listens on a unix socket."""
    reconnect = "" if reconnect_ms is None else f",reconnect-ms={reconnect_ms}"
    return f"socket,id=hc,path={escape(str(path))}{reconnect}"


def tpm_arguments(control: Path) -> tuple[str, ...]:
    """PAPR's virtual TPM, with a swtpm behind it.

    Args:
        control: The unix socket of swtpm's control channel, by which it gets its data channel.
    """
    return (
        *("-chardev", f"socket,id=tpm-control,path={escape(str(control))}"),
        *("-tpmdev", "emulator,id=tpm0,chardev=tpm-control"),
        *("-device", "tpm-spapr,tpmdev=tpm0"),
    )


def terminal_arguments(log: Path) -> tuple[str, ...]:
    """The console on the terminal, with the monitor behind Ctrl-A c, and Ctrl-A x that ends it."""
    return (
        *("-chardev", f"stdio,id=terminal,mux=on,signal=off,logfile={escape(str(log))}"),
        *("-serial", "chardev:terminal", "-mon", "chardev=terminal"),
    )


def escape(value: str) -> str:
    """A value in an option of QEMU's, where a comma is doubled."""
    return value.replace(",", ",,")


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
    failures: Sequence[str] = ()
    """Patterns on the console that end it at once."""
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
