# SPDX-License-Identifier: Apache-2.0
"""The guest kernels: Debian's own, and one built here with what Debian's leaves out.

Debian's show that an unmodified kernel is served. They have neither PPC_SECURE_BOOT, nor PPC_SVM,
nor trusted keys, so one is built from Debian's kernel source with ``guest-kernel.config``, a
fragment that ``allnoconfig`` grows from. All are little-endian.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from . import pins
from .cache import Cache, sha256_of
from .errors import ProvisionError
from .fetch import Fetched, fetch
from .machine import processors
from .progress import Word, duration, kbuild_steps, output, run, say

FRAGMENT = Path(__file__).with_name("guest-kernel.config")

CROSS_COMPILE = "powerpc64le-linux-gnu-"

BUILD_STEPS = 1900
"""Steps that the build of our own kernel names, for the progress only."""

BUILD_CORE_S = 570
"""Processor seconds that the build takes, for the estimate only."""

RECIPE = "1"
"""Counts up when the steps below change what they make from the same inputs."""


PLACES: Final = ("boot/vmlinux-*", "usr/lib/modules/*/vmlinuz")
"""Where Debian's package has the kernel, an ELF file in both: that of Linux 7 has it below /usr."""


def debian(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the stock kernel of Debian 13.

    Returns:
        Path of its vmlinux.
    """
    return stock(cache, "kernel-debian", pins.KERNEL_DEBIAN, environ)


def debian_sid(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the newest stock kernel of Debian's.

    Returns:
        Path of its vmlinux.
    """
    return stock(cache, "kernel-debian-sid", pins.KERNEL_DEBIAN_SID, environ)


def debian_64k(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the newest stock kernel of Debian's with pages of 64 KiB.

    Returns:
        Path of its vmlinux.
    """
    return stock(cache, "kernel-debian-64k", pins.KERNEL_DEBIAN_64K, environ)


def stock(cache: Cache, kind: str, pin: pins.Pin, environ: Mapping[str, str]) -> Path:
    """Gives a kernel as Debian ships it."""
    package = fetch(cache, pin, environ=environ)

    def make(directory: Path) -> None:
        with cache.scratch() as unpacked:
            unpack(package.path, unpacked)
            kernels = [path for place in PLACES for path in sorted(unpacked.glob(place))]
            if len(kernels) != 1:
                raise ProvisionError(
                    f"{package.path.name} holds {len(kernels)} files {' or '.join(PLACES)}; "
                    "expected one"
                )
            kernels[0].rename(directory / "vmlinux")
            for config in (unpacked / "boot").glob("config-*"):
                config.rename(directory / "config")

    inputs = {"package": package.sha256, "recipe": RECIPE}
    return cache.entry(kind, inputs, make) / "vmlinux"


def own_inputs(source: Fetched) -> dict[str, str]:
    """Says what our own kernel is made from."""
    return {"source": source.sha256, "fragment": sha256_of(FRAGMENT), "recipe": RECIPE}


def own(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives our own kernel, building it when it is not there.

    Returns:
        Path of its vmlinux.
    """
    source = fetch(cache, pins.KERNEL_SOURCE, environ=environ)
    return (
        cache.entry("kernel-own", own_inputs(source), lambda made: build(cache, source, made))
        / "vmlinux"
    )


def build(cache: Cache, source: Fetched, directory: Path) -> None:
    """Unpacks the source, configures it from the fragment, builds vmlinux."""
    jobs = processors()
    say(
        f"building our own kernel from {source.package} {source.version}: about "
        f"{duration(BUILD_CORE_S / jobs)} with {jobs} processors"
    )
    with cache.scratch() as scratch:
        log = cache.root / "logs" / f"kernel-own-{source.version}.log"
        log.unlink(missing_ok=True)
        tree = scratch / "linux"
        tree.mkdir()
        with source_tarball(source, scratch) as tarball:
            say("unpacking the kernel's source")
            run(
                "unpacking the kernel's source",
                ["tar", "-xJf", tarball, "-C", tree, "--strip-components=1"],
                log=log,
            )
        make: list[Word] = ["make", "-C", tree, "ARCH=powerpc", f"CROSS_COMPILE={CROSS_COMPILE}"]
        # The same input is to give the same kernel, whoever builds it and when.
        env = {
            "KCONFIG_ALLCONFIG": str(FRAGMENT),
            "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
            "KBUILD_BUILD_USER": "hcalld",
            "KBUILD_BUILD_HOST": "provision",
        }
        run("configuring the kernel", [*make, "allnoconfig"], log=log, env=env)
        missing = lost_options(
            FRAGMENT.read_text(encoding="utf-8"), (tree / ".config").read_text(encoding="utf-8")
        )
        if missing:
            raise ProvisionError(
                f"the configuration of {source.package} {source.version} lost "
                f"{', '.join(missing)} of {FRAGMENT.name}; expected all to survive. A dependency "
                "changed: look each up in the kernel's Kconfig files and add what it needs"
            )
        run(
            "our own kernel",
            [*make, f"-j{jobs}", "vmlinux"],
            log=log,
            env=env,
            condense=kbuild_steps(BUILD_STEPS),
        )
        strip: list[Word] = [
            f"{CROSS_COMPILE}strip",
            "-g",
            "-o",
            directory / "vmlinux",
            tree / "vmlinux",
        ]
        run("stripping the kernel", strip, log=log)
        shutil.copy(tree / ".config", directory / "config")
        shutil.copy(tree / "System.map", directory / "System.map")


@contextlib.contextmanager
def source_tarball(source: Fetched, scratch: Path) -> Iterator[Path]:
    """Gives the tarball in a package of the kernel's source, as long as it is wanted.

    Raises:
        ProvisionError: The package does not hold just one.
    """
    unpacked = scratch / "package"
    unpack(source.path, unpacked)
    tarballs = list((unpacked / "usr/src").glob("linux-source-*.tar.xz"))
    if len(tarballs) != 1:
        raise ProvisionError(
            f"{source.path.name} holds {len(tarballs)} files usr/src/linux-source-*.tar.xz; "
            "expected one"
        )
    yield tarballs[0]
    shutil.rmtree(unpacked)


def lost_options(fragment: str, config: str) -> list[str]:
    """Names the options that a fragment asks for and a configuration does not have.

    An option that is asked not to be set is as good as absent.
    """
    there = set(config.splitlines())
    return [
        line.partition("=")[0]
        for line in fragment.splitlines()
        if line.startswith("CONFIG_") and not line.endswith("=n") and line not in there
    ]


def unpack(package: Path, directory: Path) -> None:
    """Unpacks a Debian package without installing it."""
    output(["dpkg", "-x", package, directory])
