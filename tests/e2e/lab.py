# SPDX-License-Identifier: Apache-2.0
"""What an end-to-end test starts, in one place that ends all of it."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.e2e.console import LINUX_FAILURES
from tests.e2e.daemon import Daemon
from tests.e2e.fakedaemon import FakeDaemon
from tests.e2e.machine import ByteOrder, Guest, Machine, socket_chardev
from tests.provision import initramfs

LinuxKernel = Literal["debian", "debian-sid", "debian-64k", "own", "own-64k"]
Userland = Literal["initramfs", "initramfs-tools", "initramfs-tpm"]

MEASURED = "measured.jsonl"

PARTITION = "default"
"""The partition of a guest without a name."""


class Lab:
    """Daemons and machines of one test.

    Args:
        require: Gives the path of a tool, or skips the test.
        artifacts: The test's folder, for logs and state.
        socket_dir: A directory with a short path.
    """

    def __init__(
        self,
        require: Callable[[str], Path],
        artifacts: Path,
        socket_dir: Path,
        stack: contextlib.ExitStack,
    ) -> None:
        self.require = require
        self.artifacts = artifacts
        self.socket_dir = socket_dir
        self._stack = stack
        self._initrds = itertools.count()
        self._names = (f"qemu{number}" if number else "qemu" for number in itertools.count())

    def measure(self, **figures: object) -> None:
        """Keeps figures in ``tests/artifacts/measured.jsonl``; no test depends on them."""
        line = {"test": self.artifacts.name, **figures}
        with (self.artifacts.parent / MEASURED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def daemon(
        self, *options: str, name: str = "daemon", is_started: bool = True, **more: Any
    ) -> Daemon:
        """Starts a daemon; at the end its log is searched for bugs."""
        daemon = Daemon(self.artifacts, self.socket_dir, options, name=name, **more)
        self._stack.push(daemon)
        if is_started:
            daemon.start()
        return daemon

    def fake_daemon(self) -> FakeDaemon:
        """Listens in place of a daemon."""
        return self._stack.enter_context(FakeDaemon(self.socket_dir / "fake.sock"))

    def machine(self, guest: Guest) -> Machine:
        """Starts a QEMU."""
        return self._stack.enter_context(Machine(guest, self.artifacts, name=next(self._names)))

    def stub(
        self,
        append: str,
        daemon: Daemon | FakeDaemon | None = None,
        *,
        byte_order: ByteOrder = "le",
        chardev: str | None = None,
        **options: Any,
    ) -> Machine:
        """Starts the guest stub.

        Args:
            append: Tests and their options; see guest_stub/README.md.
            daemon: Where the device connects; None: there is no device, unless ``chardev``.
            byte_order: Of the guest.
            chardev: The device's chardev, if it is not a daemon's unix socket.
            options: Fields of Guest.
        """
        if daemon is not None:
            path = daemon.socket if isinstance(daemon, Daemon) else daemon.path
            chardev = socket_chardev(path)
        guest = Guest(
            qemu=self.require("qemu"),
            kernel=self.require("stub") / f"stub-{byte_order}.elf",
            append=append,
            chardev=chardev,
            **options,
        )
        return self.machine(guest)

    def linux(
        self,
        kernel: LinuxKernel,
        script: str,
        daemon: Daemon | None = None,
        *,
        append: str = "",
        chardev: str | None = None,
        files: Mapping[str, bytes] | None = None,
        userland: Userland = "initramfs",
        failures: Sequence[str] = LINUX_FAILURES,
        **options: Any,
    ) -> Machine:
        """Boots Linux with a busybox.

        Args:
            kernel: ``debian`` and its like are stock ones, ``own`` has what Debian's leave out.
            script: What the first process runs before it powers off.
            daemon: Where the device connects; None: there is no device.
            append: More of the kernel's command line.
            chardev: The device's chardev, if it is not a daemon's unix socket.
            files: More files of the guest.
            userland: ``initramfs-tools`` has keyctl and kexec too, ``initramfs-tpm`` tpm2-tools.
            failures: Patterns that end the test at once.
            options: Fields of Guest.
        """
        if daemon is not None:
            chardev = socket_chardev(daemon.socket)
        contents = {"/run.sh": script.encode(), **(files or {})}
        initrd = self.artifacts / f"initrd-{next(self._initrds)}"
        initrd.write_bytes(self.require(userland).read_bytes() + initramfs.overlay(contents))
        vmlinux = self.require(f"kernel-{kernel}")
        cmdline = f"console=hvc0 {append}".strip()
        return self.linux_of(
            vmlinux, initrd, cmdline, chardev=chardev, failures=failures, **options
        )

    def linux_of(
        self,
        vmlinux: Path,
        initrd: Path,
        cmdline: str,
        daemon: Daemon | None = None,
        *,
        chardev: str | None = None,
        failures: Sequence[str] = LINUX_FAILURES,
        **options: Any,
    ) -> Machine:
        """Boots Linux from files, with the whole of a command line; see ``linux``."""
        guest = Guest(
            qemu=self.require("qemu"),
            kernel=vmlinux,
            initrd=initrd,
            append=cmdline,
            chardev=socket_chardev(daemon.socket) if daemon is not None else chardev,
            failures=failures,
            # Of four processors, two that have nothing to do cost a fifth of a boot.
            **{"memory_mib": 512, "smp": 2, **options},
        )
        return self.machine(guest)


@pytest.fixture
def lab(require: Callable[[str], Path], artifacts: Path, socket_dir: Path) -> Iterator[Lab]:
    """Starts daemons and machines for a test, and ends them."""
    with contextlib.ExitStack() as stack:
        yield Lab(require, artifacts, socket_dir, stack)
