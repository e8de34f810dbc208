# SPDX-License-Identifier: Apache-2.0
"""Options that the commands share: what is booted, by which QEMU, and where its files go."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import shutil
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hcalld.cli.bundle import bundle
from hcalld.core.errors import ConfigError, HcalldError

if TYPE_CHECKING:
    from hcalld.guest.run import Setup

file_type = click.Path(path_type=pathlib.Path, exists=True, dir_okay=False, resolve_path=True)
folder_type = click.Path(path_type=pathlib.Path, exists=True, file_okay=False, resolve_path=True)

_T = TypeVar("_T")

_OPTIONS = (
    click.option(
        "--kernel",
        type=file_type,
        envvar="HCALLD_KERNEL_OWN",
        help="The vmlinux to boot, or a zImage: ppc64le, for pseries.",
    ),
    click.option(
        "--initramfs",
        type=file_type,
        envvar="HCALLD_INITRAMFS_SELFTESTS",
        help="The guest's userland, with the kernel's selftests: 'make guest' makes one.",
    ),
    click.option(
        "--qemu",
        envvar="HCALLD_QEMU",
        default="qemu-system-ppc64",
        show_default=True,
        help="A QEMU with the device spapr-hcall-proxy.",
    ),
    click.option(
        "--output",
        "-o",
        type=click.Path(path_type=pathlib.Path, resolve_path=True),
        help="Where each boot has its folder (default: guest-runs/DATE-TIME).",
    ),
    click.option(
        "--firmware", type=click.Choice(["vof", "slof"]), default="vof", show_default=True
    ),
    click.option("--memory-mib", type=click.IntRange(64), help="The guest's memory."),
    click.option("--smp", type=click.IntRange(1, 64), help="The guest's processors."),
    click.option("--append", default="", metavar="WORDS", help="More of the command line."),
    click.option(
        "--file",
        "pairs",
        multiple=True,
        metavar="PATH=FILE",
        help="A file for the guest; more than once for more.",
    ),
    click.option(
        "--serve-option",
        "serve_options",
        multiple=True,
        metavar="WORD",
        help="A word more for 'hcalld serve'; more than once for more.",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the options say, before it is looked at."""

    kernel: pathlib.Path | None
    initramfs: pathlib.Path | None
    qemu: str
    output: pathlib.Path | None
    pairs: tuple[str, ...]
    rest: dict[str, Any]
    """Fields of ``Setup`` as they are."""

    def setup(self, **more: Any) -> Setup:
        """Looks at all of it; gives what ``hcalld.guest.run`` takes.

        Args:
            more: Other fields of it.

        Raises:
            ConfigError: Something is not there, or is not what it must be.
        """
        from hcalld.guest import kernel
        from hcalld.guest.run import Setup

        if self.kernel is None:
            raise ConfigError(
                "no kernel is given; name a vmlinux by --kernel or HCALLD_KERNEL_OWN ('make "
                "guest' builds one and prints its path, 'make selftest' finds it by itself)"
            )
        if self.initramfs is None:
            raise ConfigError(
                "no initramfs is given; name one by --initramfs or HCALLD_INITRAMFS_SELFTESTS "
                "('make guest' makes one and prints its path, 'make selftest' finds it by itself)"
            )
        if shutil.which(self.qemu) is None:
            raise ConfigError(
                f"--qemu {self.qemu}: there is no such program; 'make qemu' builds one with the "
                "device and prints its path"
            )
        files = dict(map(_file, self.pairs)) | more.pop("files", {})
        return Setup(
            kernel=kernel.looked_at(self.kernel),
            initramfs=self.initramfs,
            qemu=self.qemu,
            output=self.output or _new_folder(),
            files=files,
            **self.rest,
            **more,
        )


def _chosen(
    kernel: pathlib.Path | None,
    initramfs: pathlib.Path | None,
    qemu: str,
    output: pathlib.Path | None,
    firmware: str,
    memory_mib: int | None,
    smp: int | None,
    append: str,
    pairs: tuple[str, ...],
    serve_options: tuple[str, ...],
) -> Chosen:
    rest = {
        "firmware": firmware,
        "memory_mib": memory_mib,
        "smp": smp,
        "append": append,
        "daemon_options": serve_options,
    }
    return Chosen(
        kernel=kernel, initramfs=initramfs, qemu=qemu, output=output, pairs=pairs, rest=rest
    )


setup_options = bundle("chosen", _chosen, _OPTIONS)
"""All of these; the command gets them as ``chosen``."""


def _new_folder() -> pathlib.Path:
    return pathlib.Path("guest-runs", datetime.datetime.now().strftime("%Y%m%d-%H%M%S")).absolute()


def _file(pair: str) -> tuple[str, Any]:
    from hcalld.guest.cpio import File

    path, _, name = pair.partition("=")
    if not path.startswith("/") or not name:
        raise click.UsageError(f"--file {pair}: expected PATH=FILE, PATH as the guest has it")
    file = pathlib.Path(name)
    try:
        mode = 0o755 if file.stat().st_mode & 0o111 else 0o644
        return path, File(file.read_bytes(), mode)
    except OSError as error:
        raise ConfigError(f"--file {pair}: {error.strerror}") from None


def run_trio(work: Callable[[], Awaitable[_T]]) -> _T:
    """Runs work in an event loop that ends when this program is asked to.

    Raises:
        HcalldError: The first error of those that it ended with.
    """
    import trio

    from hcalld.guest.processes import ended_by_signal

    done: list[_T] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(ended_by_signal)
            done.append(await work())
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        known = group.subgroup(HcalldError)
        if known is None:
            raise
        raise _first(known) from group
    return done[0]


def _first(group: BaseExceptionGroup[HcalldError]) -> HcalldError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HcalldError)
    return error
