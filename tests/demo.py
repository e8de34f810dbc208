#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a bare-metal guest, then a stock Debian kernel, get a keystore.

Everything is real: QEMU with the patch series, the daemon as users run it, guests that
know nothing of either. ``make`` has built and fetched what is needed; this runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console as Terminal
from tests.e2e.console import LINUX_FAILURES
from tests.e2e.daemon import COMMAND, Daemon
from tests.e2e.machine import Guest, Machine, socket_chardev

PARTITION = "lpar7"
SED_KEY = b"0123456789abcdefghijklm"
"""23 bytes: an unusual length, which the kernel shows in /proc/keys."""

KERNEL_LINES = re.compile(r"plpks|^EXIT|opal-boot-pin")

terminal = Terminal(highlight=False, soft_wrap=True, markup=False)


def title(text: str) -> None:
    """Announce the next step."""
    terminal.print(f"\n== {text}", style="bold")


def tool(name: str) -> Path:
    """A path that make has put into the environment."""
    value = os.environ.get(name)
    if not value:
        sys.exit(f"demo: {name} is not set; run it by 'make demo'")
    return Path(value)


def show_trace(daemon: Daemon, first: int = 0) -> int:
    """Print the trace's lines from ``first`` on; returns how many there are."""
    lines = daemon.trace_lines()
    for line in lines[first:]:
        terminal.print(f"  {line}")
    return len(lines)


def run_stub(daemon: Daemon, folder: Path) -> None:
    """The guest stub writes, reads and removes objects, and checks every answer."""
    title("The bare-metal guest stub calls the keystore (big-endian, -smp 4)")
    guest = Guest(
        qemu=tool("HCALLD_QEMU"),
        kernel=tool("HCALLD_STUB_DIR") / "stub-be.elf",
        chardev=socket_chardev(daemon.socket),
        name="stub",
    )
    with Machine(guest, folder, name="stub") as machine:
        report = machine.report()
        report.must_pass()
    for test in report.tests:
        terminal.print(f"  ok {test.name} ({len(test.checks)} checks)")


def seed(daemon: Daemon) -> None:
    """Put the PIN of a self-encrypting drive into the partition, as an installer would."""
    title("hcalld state put: seed the boot PIN of a self-encrypting drive, 23 bytes")
    subprocess.run(
        [
            *(*COMMAND, "state", "put", "--state-dir", str(daemon.state_dir)),
            *("--partition", PARTITION, "--sed-key", "-"),
        ],
        input=SED_KEY,
        check=True,
    )


def run_debian(daemon: Daemon, folder: Path) -> None:
    """An unmodified Debian kernel, with a busybox and nothing of ours."""
    from tests.provision import initramfs

    title("A stock Debian kernel boots")
    overlay = initramfs.overlay({"/run.sh": b"#!/bin/sh\ngrep opal /proc/keys\n"})
    initrd = folder / "initrd"
    initrd.write_bytes(tool("HCALLD_INITRAMFS").read_bytes() + overlay)
    guest = Guest(
        qemu=tool("HCALLD_QEMU"),
        kernel=tool("HCALLD_KERNEL_DEBIAN"),
        initrd=initrd,
        append="console=hvc0",
        memory_mib=1024,
        chardev=socket_chardev(daemon.socket),
        name=PARTITION,
        failures=LINUX_FAILURES,
    )
    with Machine(guest, folder, name="debian") as machine:
        machine.wait(120)
        text = machine.console.text.replace("\r", "")
    lines = text.splitlines()
    terminal.print(f"  {next(line for line in lines if 'Linux version' in line)[:100]}")
    for line in lines:
        if KERNEL_LINES.search(line):
            terminal.print(f"  {line}", style="green")
    for wanted in ("Platform KeyStore initialized successfully", f"pin: {len(SED_KEY)}"):
        if wanted not in text:
            sys.exit(f"demo: the kernel did not print {wanted!r}; see {folder}")


def main() -> None:
    """Run all steps."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hcalld-demo-") as name:
        folder = Path(name)
        with Daemon(folder, folder) as daemon:
            run_stub(daemon, folder)
            seen = len(daemon.trace_lines())
            terminal.print(f"  {seen} hypercalls answered; the last of them:")
            show_trace(daemon, max(0, seen - 5))
            seed(daemon)
            run_debian(daemon, folder)
            title("Every hypercall of the Debian kernel, as hcalld answered it")
            show_trace(daemon, seen)
        title(f"hcalld state list {PARTITION}: what is in its store now")
        subprocess.run(
            [
                *(*COMMAND, "state", "list", "--state-dir", str(daemon.state_dir)),
                PARTITION,
            ],
            check=True,
        )
    terminal.print(f"\nDone in {time.monotonic() - started:.0f} s. Next: README.md, 'make help'.")


if __name__ == "__main__":
    main()
