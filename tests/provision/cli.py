# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``python3 tests/provision``.

Each installs what it needs, makes one thing, and prints its path, alone, on standard output. The
verb ``run`` makes several and starts a command with their paths in the variables of
:data:`VARIABLES`; it is how the Makefile starts the tests.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from . import checkpatch, initramfs, kernels, pins, qemu, selftests, system, venvs
from .cache import Cache, default_root
from .errors import ProvisionError
from .machine import processors
from .progress import duration, say

Make = Callable[[Cache, Mapping[str, str]], Path]

ROOT: Final = Path(__file__).resolve().parents[2]

MAKERS: Final[dict[str, Make]] = {
    "qemu": qemu.program,
    "qemu-asan": lambda cache, environ: qemu.program(cache, environ, is_asan=True),
    "kernel-debian": kernels.debian,
    "kernel-debian-sid": kernels.debian_sid,
    "kernel-debian-64k": kernels.debian_64k,
    "kernel-own": kernels.own,
    "kernel-own-64k": kernels.own_64k,
    "initramfs": initramfs.base,
    "initramfs-tools": initramfs.tools,
    "initramfs-tpm": initramfs.tpm,
    "initramfs-selftests": selftests.guest,
    "kernel-x86": kernels.x86,
    "stub": lambda _cache, _environ: ROOT / "guest_stub" / "build",
    "sev-library": lambda _cache, _environ: ROOT / "ioctl_shim" / "build" / "libhcalld-sev.so",
    "sev-firmware": lambda _cache, _environ: ROOT / "guest_stub/x86/build/firmware.bin",
}
"""What can be made, in the order in which it is made; but see IN_TREE."""

IN_TREE: Final = ("stub", "sev-library", "sev-firmware")
"""What Makefiles of its own build: only its place is told."""

VARIABLES: Final[dict[str, str]] = {
    "qemu": "HCALLD_QEMU",
    "qemu-asan": "HCALLD_QEMU",
    "kernel-debian": "HCALLD_KERNEL_DEBIAN",
    "kernel-debian-sid": "HCALLD_KERNEL_DEBIAN_SID",
    "kernel-debian-64k": "HCALLD_KERNEL_DEBIAN_64K",
    "kernel-own": "HCALLD_KERNEL_OWN",
    "kernel-own-64k": "HCALLD_KERNEL_OWN_64K",
    "initramfs": "HCALLD_INITRAMFS",
    "initramfs-tools": "HCALLD_INITRAMFS_TOOLS",
    "initramfs-tpm": "HCALLD_INITRAMFS_TPM",
    "initramfs-selftests": "HCALLD_INITRAMFS_SELFTESTS",
    "kernel-x86": "HCALLD_KERNEL_X86",
    "stub": "HCALLD_STUB_DIR",
    "sev-library": "HCALLD_SEV_LIBRARY",
    "sev-firmware": "HCALLD_SEV_FIRMWARE",
}
"""The variables that tell the tests where things are."""

ALL: Final = tuple(name for name in MAKERS if name not in ("qemu-asan", *IN_TREE))

DOWNLOAD_MB: Final = {
    "qemu": 60,
    "kernel-debian": 85,
    "kernel-debian-sid": 12,
    "kernel-debian-64k": 12,
    "kernel-own": 170,
    "kernel-own-64k": 0,
    "kernel-x86": 46,
    "initramfs": 5,
    "initramfs-tools": 4,
    "initramfs-tpm": 11,
    "initramfs-selftests": 180,
}
"""Rough sizes of what is downloaded for each, indexes included."""

CORE_S: Final = {
    "qemu": qemu.BUILD_CORE_S,
    "qemu-asan": qemu.BUILD_CORE_S * qemu.ASAN_FACTOR,
    **kernels.BUILD_CORE_S,
    "initramfs-selftests": selftests.BUILD_CORE_S,
}
"""Processor seconds that each takes to build."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one verb; gives the exit status."""
    arguments = parser().parse_args(words)
    try:
        cache = Cache(default_root(os.environ))
        status: int = arguments.run(arguments, cache, os.environ)
    except ProvisionError as error:
        print(f"provision: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("provision: interrupted; what was complete is kept", file=sys.stderr)
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """Gives the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="python3 tests/provision",
        description="Makes ready what the tests and the demonstration run on.",
        epilog=(
            "HCALLD_CACHE names the cache directory; HCALLD_APT=no forbids installing packages; "
            "QEMU_SRC names a QEMU tree or tarball to build instead of Debian's; HCALLD_QEMU names "
            "a ready program to use as it is; HCALLD_KERNEL_SRC names a Linux tree to build the "
            "selftests from."
        ),
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace, Cache, Mapping[str, str]], int], text: str
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    for name, text in (
        ("qemu", "QEMU with the patch series"),
        ("kernel-debian", "the stock kernel of Debian 13"),
        ("kernel-debian-sid", "Debian's newest stock kernel"),
        ("kernel-debian-64k", "the same with pages of 64 KiB"),
        ("kernel-own", "our own kernel, from Debian's source"),
        ("kernel-own-64k", "the same with pages of 64 KiB, and less in it"),
        ("kernel-x86", "Debian 13's stock kernel for x86-64"),
        ("initramfs", "the userland of the test guests"),
        ("initramfs-tools", "the same with keyctl and kexec"),
        ("initramfs-tpm", "the same with tpm2-tools too"),
        ("initramfs-selftests", "the same with the kernel's selftests and what they need"),
    ):
        added = verb(name, run_one, text)
        added.set_defaults(name=name)
        if name == "qemu":
            added.add_argument("--asan", action="store_true", help="with AddressSanitizer")
    verb("venv", run_venv, "the project's virtual environment, in the tree")
    verb("all", run_all, "all of these, as VARIABLE=path lines")
    added = verb("qemu-src", run_source, "QEMU's pristine source with one commit in git")
    verb("check-series", run_check, "does the patch series apply, and pass QEMU's checkpatch.pl?")
    verb("cache", run_cache, "print the cache directory")
    added = verb("qemu-qtest", run_qtest, "run the qtests that the series adds")
    added.add_argument("--asan", action="store_true", help="with AddressSanitizer")
    added.add_argument("names", nargs="*", help="qtests to run instead, such as boot-serial-test")
    added = verb("system", run_system, "install the Debian packages that these need")
    added.add_argument("names", nargs="+", choices=sorted(system.NEEDS), metavar="NEED")
    added = verb("run", run_command, "make things ready, then run a command that gets their paths")
    added.add_argument(
        "--with", dest="names", required=True, help="comma-separated, of those above"
    )
    added.add_argument("command", nargs="+", help="the command, after --")
    return top


def run_one(arguments: argparse.Namespace, cache: Cache, environ: Mapping[str, str]) -> int:
    """Makes one thing and prints its path."""
    name = "qemu-asan" if getattr(arguments, "asan", False) else arguments.name
    print(make_ready([name], cache, environ)[name])
    return 0


def run_all(_arguments: argparse.Namespace, cache: Cache, environ: Mapping[str, str]) -> int:
    """Makes everything and prints the paths."""
    for name, path in make_ready(ALL, cache, environ).items():
        print(f"{VARIABLES[name]}={path}")
    return 0


def run_venv(_arguments: argparse.Namespace, cache: Cache, _environ: Mapping[str, str]) -> int:
    """Makes the project's environment and prints its path."""
    system.ensure(["venv"])
    print(venvs.project(cache))
    return 0


def run_source(_arguments: argparse.Namespace, cache: Cache, environ: Mapping[str, str]) -> int:
    """Prints the path of QEMU's pristine source."""
    system.ensure(["qemu-src"])
    print(qemu.source(cache, environ))
    return 0


def run_check(_arguments: argparse.Namespace, cache: Cache, environ: Mapping[str, str]) -> int:
    """Checks the patch series."""
    system.ensure(["qemu-src"])
    print(f"{checkpatch.check(cache, environ)} patches apply and pass checkpatch.pl")
    return 0


def run_cache(_arguments: argparse.Namespace, cache: Cache, _environ: Mapping[str, str]) -> int:
    """Prints the cache directory's path."""
    print(cache.root)
    return 0


def run_qtest(arguments: argparse.Namespace, cache: Cache, environ: Mapping[str, str]) -> int:
    """Runs qtests."""
    system.ensure(["qemu-qtest"])
    failed = qemu.run_qtests(cache, environ, arguments.names, is_asan=arguments.asan)
    if failed:
        print(f"provision: error: {failed} qtests failed", file=sys.stderr)
    return 1 if failed else 0


def run_system(arguments: argparse.Namespace, cache: Cache, environ: Mapping[str, str]) -> int:
    """Installs packages, after saying what is to come."""
    announce(arguments.names, cache, environ)
    system.ensure(arguments.names)
    return 0


def run_command(arguments: argparse.Namespace, cache: Cache, environ: Mapping[str, str]) -> int:
    """Makes things ready and becomes the command."""
    names = [name for name in arguments.names.split(",") if name]
    unknown = sorted(set(names) - MAKERS.keys())
    if unknown:
        raise ProvisionError(
            f"--with names {', '.join(unknown)}; expected some of {', '.join(MAKERS)}"
        )
    ready = make_ready(names, cache, environ)
    paths = {VARIABLES[name]: str(path) for name, path in ready.items()}
    sys.stdout.flush()
    try:
        os.execvpe(arguments.command[0], arguments.command, {**environ, **paths})
    except OSError as error:
        raise ProvisionError(f"{arguments.command[0]} cannot be run: {error.strerror}") from error


def make_ready(names: Sequence[str], cache: Cache, environ: Mapping[str, str]) -> dict[str, Path]:
    """Makes things, in the order of :data:`MAKERS`.

    Raises:
        ProvisionError: One of them could not be made.
    """
    given = given_paths(names, environ)
    system.ensure([name for name in names if name not in given])
    return {
        name: given[name] if name in given else make(cache, environ)
        for name, make in MAKERS.items()
        if name in names
    }


def given_paths(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, Path]:
    """Gives the things that the user has named by their variables, to be used as they are.

    Raises:
        ProvisionError: There is nothing at such a path.
    """
    given = {}
    for name in names:
        value = environ.get(VARIABLES[name])
        if not value or name == "qemu-asan":
            continue
        if not Path(value).is_absolute() or not Path(value).exists():
            raise ProvisionError(
                f"{VARIABLES[name]} is {value!r}; expected the absolute path of something that is "
                "there. Correct it, or unset it to have one made"
            )
        given[name] = Path(value)
    return given


def announce(names: Sequence[str], cache: Cache, environ: Mapping[str, str]) -> None:
    """Says what will be downloaded and built, and about how long it takes."""
    to_make = [
        name
        for name in names
        if name in CORE_S or name in DOWNLOAD_MB
        if not any((cache.root / name).glob("[0-9a-f]*")) and VARIABLES[name] not in environ
    ]
    if not to_make:
        return
    seconds = sum(CORE_S.get(name, 5) for name in to_make) / processors()
    megabytes = sum(DOWNLOAD_MB.get(name, 0) for name in to_make)
    say(
        f"to be made once and kept in {cache.root}: {', '.join(to_make)}; about {megabytes} MB to "
        f"download and {duration(seconds + 30)} to build with {processors()} processors "
        f"(QEMU {pins.QEMU.version}, Linux {pins.KERNEL_DEBIAN.version} and "
        f"{pins.KERNEL_SOURCE.version})"
    )
