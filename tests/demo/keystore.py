# SPDX-License-Identifier: Apache-2.0
"""A bare-metal guest, then a stock Debian kernel, get a keystore."""

from __future__ import annotations

import re

from tests.demo.stage import DemoError, Stage, show, terminal, title, tool
from tests.e2e.console import LINUX_FAILURES
from tests.e2e.daemon import Daemon
from tests.e2e.machine import Guest, Machine, socket_chardev
from tests.provision import initramfs

PARTITION = "lpar7"
STUB_TESTS = "dt pks"
SED_KEY = b"0123456789abcdefghijklm"
"""23 bytes: an unusual length, which the kernel shows in /proc/keys."""

KERNEL_LINES = re.compile(r"plpks|^EXIT|opal-boot-pin")


def show_trace(daemon: Daemon, first: int = 0) -> None:
    """Prints the trace's lines from ``first`` on."""
    show("\n".join(daemon.trace_lines()[first:]))


def run_stub(daemon: Daemon, stage: Stage) -> None:
    """The guest stub writes, reads and removes objects, and checks every answer."""
    title("The bare-metal guest stub calls the keystore (big-endian, -smp 4)")
    guest = Guest(
        qemu=tool("HCALLD_QEMU"),
        kernel=tool("HCALLD_STUB_DIR") / "stub-be.elf",
        append=STUB_TESTS,
        chardev=socket_chardev(daemon.socket),
        name="stub",
    )
    with Machine(guest, stage.folder, name="stub") as machine:
        report = machine.report()
        report.must_pass()
    checks = sum(len(test.checks) for test in report.tests)
    terminal.print(f"  ok: {len(report.tests)} tests, {checks} checks")


def run_debian(daemon: Daemon, stage: Stage) -> None:
    """An unmodified Debian kernel, with a busybox and nothing of ours.

    Raises:
        DemoError: It has no keystore, or not what is in it.
    """
    title("A stock Debian kernel boots")
    overlay = initramfs.overlay({"/run.sh": b"#!/bin/sh\ngrep opal /proc/keys\n"})
    initrd = stage.folder / "initrd"
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
    with Machine(guest, stage.folder, name="debian") as machine:
        machine.wait(120)
        text = machine.console.text.replace("\r", "")
    lines = text.splitlines()
    show(next(line for line in lines if "Linux version" in line)[:100])
    show("\n".join(filter(KERNEL_LINES.search, lines)), style="green")
    for wanted in ("Platform KeyStore initialized successfully", f"pin: {len(SED_KEY)}"):
        if wanted not in text:
            raise DemoError(f"the kernel did not print {wanted!r}")


def act(stage: Stage) -> None:
    """Runs all steps."""
    with Daemon(stage.folder, stage.folder) as daemon:
        run_stub(daemon, stage)
        seen = len(daemon.trace_lines())
        terminal.print(f"  {seen} hypercalls answered; the last of them:")
        show_trace(daemon, max(0, seen - 5))
        title("The boot PIN of a self-encrypting drive is put there, 23 bytes, as by an installer")
        (stage.folder / "pin.bin").write_bytes(SED_KEY)
        stage.run(f"hcalld state put --partition {PARTITION} --sed-key pin.bin")
        run_debian(daemon, stage)
        title("Every hypercall of the Debian kernel, as hcalld answered it")
        show_trace(daemon, seen)
    title("What is in its store now")
    stage.run(f"hcalld state list {PARTITION}")
