# SPDX-License-Identifier: Apache-2.0
"""Runs a suite: a daemon, a TPM if it wants one, QEMU, and somebody who reads the console.

All that a boot leaves is in its folder: ``console.log``, ``qemu.log``, ``daemon.log``,
``daemon.trace``, ``capture.pcapng``, the partition's ``state``, the ``initrd``, and the
``command`` that QEMU was started by.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import shlex
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from hcalld.core.errors import ConfigError
from hcalld.guest import boot, ktap, processes, secure
from hcalld.guest.console import Reading
from hcalld.guest.cpio import Node, archive, tree
from hcalld.guest.kernel import Kernel
from hcalld.guest.machine import (
    LINUX_FAILURES,
    Firmware,
    Guest,
    socket_chardev,
    terminal_arguments,
    tpm_arguments,
)
from hcalld.guest.plan import Suite
from hcalld.guest.processes import GuestError
from hcalld.guest.verdict import Verdict, judge
from hcallproto.payloads.quoting import printable

PARTITION: Final = "default"
"""The partition of a guest without a name."""

AFTER_FAILURE_S: Final = 3
"""A register dump or a list of calls follows a failure, and is wanted in the console's log."""

UPDATES: Final = "/secvar"
"""Where the guest has signed updates."""

_SILENT: Final = (
    "is it a kernel for pseries, with CONFIG_HVC_CONSOLE? tests/provision/guest-kernel.config is "
    "a configuration that all suites run with"
)

DAEMON_PROBLEMS: Final = (
    "Traceback (most recent call last)",
    "bug in a handler",
    # A QEMU of another version: the guest runs on without its calls, or hangs in one.
    "protocol breach",
)
"""What the daemon's log must not have."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What all boots of a run have in common."""

    kernel: Kernel
    initramfs: Path
    output: Path
    qemu: str = "qemu-system-ppc64"
    tests: Path | None = None
    """Collections beside those that the archive has."""
    firmware: Firmware = "vof"
    memory_mib: int | None = None
    """None: as the suite says."""
    smp: int | None = None
    boot_s: float = 180
    """From QEMU's start to the guest's first process."""
    append: str = ""
    daemon_options: tuple[str, ...] = ()
    files: Mapping[str, bytes | Node] = dataclasses.field(default_factory=dict)
    on_result: Callable[[ktap.Result], None] = lambda _result: None


@dataclasses.dataclass(slots=True)
class Booted:
    """What came of one boot."""

    name: str
    folder: Path
    seconds: float = 0
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether it went on to its end, and every test ended as expected."""
        return not self.errors and not any(verdict.is_changed for verdict in self.verdicts)


async def run_suite(setup: Setup, suite: Suite) -> Booted:
    """Boots a guest, has it run a suite, and judges what it said.

    Raises:
        HcalldError: It could not be started.
    """
    _must_suit(setup, suite)
    folder = make_folder(setup.output / suite.name)
    booted = Booted(suite.name, folder)
    start = trio.current_time()
    reading = Reading(LINUX_FAILURES)
    async with _made(setup, suite, folder) as (guest, daemon):
        await _run(setup, suite, guest, daemon, reading, booted)
    report = reading.finish()
    booted.seconds = trio.current_time() - start
    booted.verdicts = judge(suite.test, report)
    booted.errors += _errors(report, reading)
    booted.errors += problems_in(folder / "daemon.log")
    return booted


async def run_shell(setup: Setup, suite: Suite) -> int:
    """Boots a guest with its console on this terminal; gives QEMU's exit status.

    Raises:
        HcalldError: It could not be started.
    """
    _must_suit(setup, suite)
    folder = make_folder(setup.output / "shell")
    log = folder / "qemu.log"
    async with _made(setup, suite, folder, is_shell=True) as (guest, daemon):
        words = [*guest.arguments(), *terminal_arguments(folder / "console.log")]
        # None: this terminal. What QEMU says of itself goes to its log all the same.
        async with (
            processes.terminal_kept(),
            processes.program([setup.qemu, *words], log, stdin=None, stdout=1) as process,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(daemon.watch)
            status: int = await process.wait()
            nursery.cancel_scope.cancel()
    if status != 0:
        raise GuestError(f"QEMU ended with {status}: {printable_lines(log)}")
    return status


def _must_suit(setup: Setup, suite: Suite) -> None:
    """Checks that a kernel can be what a suite wants.

    Raises:
        ConfigError: It cannot.
    """
    if suite.secure and setup.kernel.is_zimage:
        raise ConfigError(
            f"the kernel {setup.kernel.path} is a zImage, and a secure VM's blob is made for what "
            "is in it; give the vmlinux that it was made of"
        )


def make_folder(path: Path) -> Path:
    """Makes a boot's folder.

    Raises:
        ConfigError: It is there, or cannot be made.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(
            f"{path} is there; expected a new folder, so that no run's files are mixed with "
            "another's. Name another by --output"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from None
    return path


@contextlib.asynccontextmanager
async def _made(
    setup: Setup, suite: Suite, folder: Path, *, is_shell: bool = False
) -> AsyncIterator[tuple[Guest, processes.Daemon]]:
    """Everything around QEMU: files, a TPM, a daemon. Gives what QEMU starts, and the daemon."""
    with tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as short:
        # A unix socket's path has at most 107 bytes.
        run_dir = Path(short)
        memory = setup.memory_mib or suite.memory_mib
        cmdline = " ".join(filter(None, ("console=hvc0", suite.append, setup.append)))
        if is_shell:
            cmdline += " hcalld.shell"
        if suite.secure:
            cmdline += " svm=1 swiotlb=force"
        profiles = folder / "profiles"
        profiles.mkdir()
        profile = suite.profile
        if suite.secure and not profile:
            profile = secure.profile_for(setup.kernel.page_shift)
        (profiles / f"{PARTITION}.toml").write_text(profile, "utf-8")
        files = dict(setup.files)
        if suite.updates:
            await processes.hcalld("secvar", "defaults", folder / "updates")
            files |= tree(folder / "updates", UPDATES)
        initrd = folder / "initrd"
        initrd.write_bytes(setup.initramfs.read_bytes())
        with initrd.open("ab") as file:
            if is_shell:
                file.write(archive(files) if files else b"")
            else:
                file.write(boot.additions(suite, setup.tests, setup.kernel.path, files))
        boot.must_fit(setup.kernel, initrd, memory)
        if suite.secure:
            initrd = await secure.prepared(folder, PARTITION, setup.kernel.path, initrd, cmdline)
        async with contextlib.AsyncExitStack() as stack:
            extra: tuple[str, ...] = ()
            if suite.tpm:
                extra = tpm_arguments(
                    await stack.enter_async_context(processes.swtpm(folder, run_dir))
                )
            options = ("--profile-dir", str(profiles), *setup.daemon_options)
            daemon = await stack.enter_async_context(processes.daemon(folder, run_dir, options))
            guest = Guest(
                qemu=Path(setup.qemu),
                kernel=setup.kernel.path,
                initrd=initrd,
                append=cmdline,
                firmware=setup.firmware,
                smp=setup.smp or suite.smp,
                memory_mib=memory,
                chardev=socket_chardev(daemon.socket),
                extra=extra,
            )
            yield guest, daemon


async def _run(
    setup: Setup,
    suite: Suite,
    guest: Guest,
    daemon: processes.Daemon,
    reading: Reading,
    booted: Booted,
) -> None:
    """Runs QEMU until the guest ends, fails, or has had its time."""
    words = [setup.qemu, *guest.arguments(), "-serial", "stdio"]
    (booted.folder / "command").write_text(shlex.join(words) + "\n", "utf-8")
    log = booted.folder / "qemu.log"
    async with processes.program(words, log, stdout=subprocess.PIPE) as process:
        lost = ""
        with trio.CancelScope(deadline=trio.current_time() + setup.boot_s) as scope:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(daemon.watch)
                    await _read(process, setup, suite, reading, booted.folder, scope)
                    await process.wait()
                    nursery.cancel_scope.cancel()
            except* GuestError as group:
                # The guest would wait for its next call's answer until its time is over.
                lost = str(group.exceptions[0])
        if reading.failure is not None:
            booted.errors.append(f"the guest printed {printable(reading.failure)!r}")
        elif lost:
            booted.errors.append(lost)
        elif scope.cancelled_caught:
            booted.errors.append(_too_late(setup, suite, reading))
        elif reading.status is None:
            booted.errors.append(
                f"QEMU ended with {process.returncode} before the guest's script did; its log ends "
                f"with\n{printable_lines(log)}"
            )


async def _read(
    process: trio.Process,
    setup: Setup,
    suite: Suite,
    reading: Reading,
    folder: Path,
    scope: trio.CancelScope,
) -> None:
    """Reads the console to its end, and moves the deadline as the guest gets on."""
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    was_up = has_failed = False
    with (folder / "console.log").open("ab", buffering=0) as console:
        async for data in process.stdout:
            console.write(data)
            for result in reading.feed(decoder.decode(data)):
                setup.on_result(result)
            if reading.is_up and not was_up:
                was_up = True
                scope.deadline = trio.current_time() + suite.timeout_s
            if reading.failure is not None and not has_failed:
                has_failed = True
                scope.deadline = trio.current_time() + AFTER_FAILURE_S


def _too_late(setup: Setup, suite: Suite, reading: Reading) -> str:
    """Says what a guest had not done when its time was over."""
    if reading.is_up:
        what = f"the tests have not ended within {suite.timeout_s} s"
        if reading.current:
            what += f"; {printable(reading.current)} was running"
    else:
        what = f"the kernel has not come to its first process within {setup.boot_s:g} s"
    lines = [f"    {printable(line)}" for line in reading.tail()]
    if not lines:
        return f"{what}, and has printed nothing: {_SILENT}"
    return f"{what}; the console ends with\n" + "\n".join(lines)


def _errors(report: ktap.Report, reading: Reading) -> Sequence[str]:
    """What is wrong with the tests' output, whatever their results."""
    errors = []
    if reading.status is not None and reading.status != 0:
        errors.append(
            f"the guest's script ended with {reading.status}"
            + (f": the initramfs has no {boot.PLACE}" if reading.status == boot.NO_TESTS else "")
        )
    if report.bail_out is not None:
        errors.append(f"the tests bailed out: {printable(report.bail_out)}")
    if reading.is_up:
        errors += [printable(problem) for problem in report.problems]
    return errors


def problems_in(log: Path) -> list[str]:
    """What a daemon's log tells of itself, with the first line of each kind."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    found = []
    for problem in DAEMON_PROBLEMS:
        line = next((line for line in lines if problem in line), None)
        if line is not None:
            found.append(f"the daemon's log {log} has: {printable(line)[:300]}")
    return found


def printable_lines(log: Path) -> str:
    """The end of a log, for a terminal."""
    return "\n".join(f"    {printable(line)}" for line in processes.tail_of(log).splitlines())
