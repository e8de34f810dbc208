# SPDX-License-Identifier: Apache-2.0
"""The Debian packages that each verb needs, and installing what is missing.

Nothing is installed that is not named first. Root installs directly, everybody else by sudo; with
neither, the error gives the command to have run by whoever can. Only installing is done as root.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Final

from . import kvm
from .cache import default_root
from .errors import ProvisionError
from .progress import Condense, duration, output, run, say

PACKAGES: Final[dict[str, tuple[str, ...]]] = {
    "venv": ("ca-certificates", "python3-venv"),
    "fetch": ("ca-certificates", "debian-archive-keyring", "xz-utils"),
    "qemu": (
        "bison",
        "flex",
        "gcc",
        "ipxe-qemu",
        "libc6-dev",
        "libfdt-dev",
        "libglib2.0-dev",
        "libgnutls28-dev",
        "libpixman-1-dev",
        "make",
        "ninja-build",
        "patch",
        "pkg-config",
        "python3-venv",
        "qemu-system-data",
        "seabios",
        "zlib1g-dev",
    ),
    "qemu-src": ("git", "perl"),
    "kernel-own": (
        "bc",
        "bison",
        "flex",
        "gcc",
        "gcc-powerpc64le-linux-gnu",
        "libc6-dev",
        "libelf-dev",
        "libssl-dev",
        "make",
    ),
    "selftests": (
        "bison",
        "flex",
        "gcc",
        "gcc-powerpc64le-linux-gnu",
        "libc6-dev",
        "libc6-dev-ppc64el-cross",
        "make",
        "rsync",
        "xz-utils",
    ),
    "selftest": ("openssl", "swtpm"),
    "stub": ("gcc-powerpc64le-linux-gnu", "make"),
    "sev": ("gcc", "libc6-dev", "make"),
    "kernel-x86": ("zstd",),
    "bench": ("gcc", "libc6-dev", "strace", "swtpm"),
    "ci": ("make",),
    "demo": ("openssl", "swtpm"),
    "demo-kvm": ("qemu-system-x86",),
    # What tests compare with: programs that this project did not write.
    "tests": (
        "binutils-powerpc64le-linux-gnu",
        "chromium",
        "chromium-driver",
        "cpio",
        "device-tree-compiler",
        "efitools",
        "gcc",
        "git",
        "libc6-dev",
        "libvirt-clients-qemu",
        "netcat-openbsd",
        "openssl",
        "ovmf",
        "patch",
        # libvirt-clients-qemu forgets these two.
        "python3-cryptography",
        "python3-lxml",
        "qemu-system-x86",
        "sbsigntool",
        "strace",
        "swtpm",
        "tpm2-tools",
        "tshark",
        "zstd",
    ),
    "tests-kvm": ("libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-qemu"),
}
"""What is needed, by purpose. Programs of Debian's essential packages are not listed."""

NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "venv": ("venv",),
    "qemu": ("fetch", "qemu"),
    "qemu-asan": ("fetch", "qemu"),
    "qemu-qtest": ("fetch", "qemu"),
    "qemu-src": ("fetch", "qemu-src"),
    "kernel-debian": ("fetch",),
    "kernel-debian-sid": ("fetch",),
    "kernel-debian-64k": ("fetch",),
    "kernel-own": ("fetch", "kernel-own"),
    "kernel-own-64k": ("fetch", "kernel-own"),
    "kernel-x86": ("fetch", "kernel-x86"),
    "initramfs": ("fetch",),
    "initramfs-tools": ("fetch",),
    "initramfs-tpm": ("fetch",),
    "initramfs-selftests": ("fetch", "selftests"),
    "selftest": ("selftest",),
    "stub": ("stub",),
    "sev": ("sev",),
    "sev-library": ("sev",),
    "sev-firmware": ("sev",),
    "bench": ("bench",),
    "ci": ("ci",),
    "demo": ("demo", "demo-kvm", "sev"),
    "tests": ("tests", "tests-kvm"),
}
"""The purposes that serve each verb."""

UNABLE: Final[dict[str, Callable[[], str | None]]] = {
    "demo-kvm": kvm.why_not,
    "tests-kvm": kvm.why_not,
}
"""Who says why a purpose is none on this machine."""

INSTALL_S: Final = 2.0
"""Seconds that installing one package with what it brings takes, for the estimate only."""


def needed(verbs: Iterable[str]) -> list[str]:
    """Names the packages that these verbs need on this machine."""
    purposes = {purpose for verb in verbs for purpose in NEEDS[verb]}
    unable = {purpose for purpose, why_not in UNABLE.items() if why_not() is not None}
    return sorted({package for purpose in purposes - unable for package in PACKAGES[purpose]})


def parse_installed(text: str) -> set[str]:
    """Reads the names of installed packages from dpkg-query's status lines."""
    return {
        name
        for name, status in (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
        if status == "install ok installed"
    }


def installed() -> set[str]:
    """Names the installed packages, and those that an installed one provides.

    Raises:
        ProvisionError: This is no Debian system.
    """
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        raise ProvisionError(
            "this machine has no dpkg and apt-get; expected Debian 12 or 13. Elsewhere, see "
            "README.md on using a QEMU and kernels of your own"
        )
    return parse_installed(
        output(["dpkg-query", "--show", "--showformat", "${Package}\t${Status}\n"])
    )


def missing(packages: Iterable[str]) -> list[str]:
    """Names those of the packages that are not installed."""
    there = installed()
    if has_venv():
        there.add("python3-venv")
    return sorted(set(packages) - there)


def has_venv() -> bool:
    """Says whether this Python can make virtual environments; one not Debian's can by itself."""
    return importlib.util.find_spec("ensurepip") is not None


def apt_steps() -> Condense:
    """Counts the packages that are set up, of those that apt-get said it would install."""
    total = "?"
    count = 0

    def condense(line: str) -> str | None:
        nonlocal total, count
        if found := re.search(r"(\d+) newly installed", line):
            total = found[1]
        if not line.startswith("Setting up "):
            return None
        count += 1
        return f"{count} of {total} set up"

    return condense


def as_root() -> list[str]:
    """Gives the words that come before a command which only root may run.

    Raises:
        ProvisionError: This user is not root and has no sudo.
    """
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        raise ProvisionError("this user is not root and there is no sudo")
    if (
        not sys.stdin.isatty()
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode
    ):
        raise ProvisionError("this user is not root and sudo wants a password, with no terminal")
    return ["sudo"]


def ensure(verbs: Iterable[str]) -> None:
    """Installs whatever these verbs need and this machine lacks.

    Raises:
        ProvisionError: It could not be installed.
    """
    verbs = list(verbs)
    lacking = missing(needed(verbs))
    if not lacking:
        return
    words = ["apt-get", "install", "--yes", "--no-install-recommends", *lacking]
    by_hand = shlex.join(words)
    if os.environ.get("HCALLD_APT") == "no":
        raise ProvisionError(
            f"packages are missing ({', '.join(lacking)}), and HCALLD_APT=no forbids installing; "
            f"run as root: {by_hand}"
        )
    try:
        prefix = as_root()
    except ProvisionError as error:
        raise ProvisionError(
            f"packages are missing ({', '.join(lacking)}), and {error}; have root run: {by_hand}"
        ) from error
    say(
        f"installing {len(lacking)} Debian packages and what they depend on, about "
        f"{duration(20 + INSTALL_S * len(lacking))}: {' '.join(lacking)}"
    )
    # env, because sudo drops variables; the lock's timeout, because a fresh machine often updates
    # itself when it is first used.
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o"]
    apt += ["DPkg::Lock::Timeout=300"]
    log = default_root(os.environ) / "logs" / "apt.log"
    try:
        run("apt-get update", [*apt, "--quiet", "update"], log=log)
    except ProvisionError:
        say(f"apt-get update failed for some sources (see {log}); going on with what is there")
    install = [*apt, "--quiet", "-o", "Dpkg::Use-Pty=0", *words[1:]]
    run("installing packages", install, log=log, condense=apt_steps())
    still = missing(lacking)
    if still:
        raise ProvisionError(
            f"packages are missing ({', '.join(still)}) after apt-get said it had installed them; "
            f"run as root: {by_hand}"
        )
