# SPDX-License-Identifier: Apache-2.0
"""The userland of the test guests: busybox, and a first process that runs a test's script.

A second archive has keyctl and kexec as well, with the C library that they are linked with, and a
third one tpm2-tools with all of theirs.

A test makes its guest by appending: ``base.read_bytes() + overlay({"/run.sh": script})``. The guest
prints ``EXIT: STATUS=n`` with the script's exit status and powers off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hcalld.guest.cpio import CharacterDevice, Directory, File, Node, Symlink, archive

from . import pins, tpm2_tools
from .cache import Cache, sha256_of
from .errors import ProvisionError
from .fetch import Fetched, fetch, fetch_all
from .kernels import unpack

__all__ = [
    "CharacterDevice",
    "Directory",
    "File",
    "Node",
    "Symlink",
    "base",
    "overlay",
    "tools",
    "tpm",
]

INIT = Path(__file__).with_name("init.sh")

RECIPE = "1"
"""Counts up when :func:`contents` changes what it makes from the same inputs."""

BUSYBOX_PLACES = ("usr/bin/busybox", "bin/busybox")
"""Where the package has it: since Debian 13 below /usr."""


def overlay(files: Mapping[str, bytes | Node]) -> bytes:
    """Gives an archive to append to the common one.

    Args:
        files: Absolute paths in the guest and what is there; plain bytes are an executable file.
            What the common archive has under the same path is replaced.
    """
    return archive(files)


def base(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the common archive.

    Returns:
        Path of an uncompressed cpio archive.
    """
    package = fetch(cache, pins.BUSYBOX, environ=environ)

    def make(directory: Path) -> None:
        with cache.scratch() as unpacked:
            unpack(package.path, unpacked)
            busybox = next(
                (unpacked / place for place in BUSYBOX_PLACES if (unpacked / place).is_file()), None
            )
            if busybox is None:
                raise ProvisionError(
                    f"{package.path.name} holds none of {', '.join(BUSYBOX_PLACES)}; expected one"
                )
            image = archive(contents(busybox.read_bytes(), INIT.read_bytes()))
            (directory / "initramfs.cpio").write_bytes(image)

    inputs = {"busybox": package.sha256, "init": sha256_of(INIT), "recipe": RECIPE}
    return cache.entry("initramfs", inputs, make) / "initramfs.cpio"


LIBRARIES: Final = "usr/lib/powerpc64le-linux-gnu"

TOOLS: Final[dict[pins.Pin, dict[str, str]]] = {
    pins.KEYUTILS: {"/bin/keyctl": "usr/bin/keyctl"},
    pins.LIBKEYUTILS: {"/lib/libkeyutils.so.1": f"{LIBRARIES}/libkeyutils.so.1"},
    pins.KEXEC_TOOLS: {"/bin/kexec": "usr/sbin/kexec"},
    pins.LIBC: {
        "/lib/libc.so.6": f"{LIBRARIES}/libc.so.6",
        # The name that programs have their loader under, by the ELF V2 ABI.
        "/lib64/ld64.so.2": f"{LIBRARIES}/ld64.so.2",
    },
}
"""Where the second archive has what of which package."""


def tools(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the archive of tests that need more than busybox.

    Returns:
        Path of an uncompressed cpio archive that begins with the common one.
    """
    return extended(cache, "initramfs-tools", base(cache, environ), TOOLS, environ)


TPM2_TOOLS: Final[dict[pins.Pin, dict[str, str]]] = {
    tpm2_tools.PROGRAM: {f"/bin/{name}": "usr/bin/tpm2" for name in tpm2_tools.COMMANDS},
    **{
        pin: {f"/lib/{name}": f"{LIBRARIES}/{name}" for name in names}
        for pin, names in tpm2_tools.LIBRARIES.items()
    },
}
"""The same of the third archive."""


def tpm(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the archive of tests that use tpm2-tools in a guest.

    Returns:
        Path of an uncompressed cpio archive that begins with the second one.
    """
    return extended(cache, "initramfs-tpm", tools(cache, environ), TPM2_TOOLS, environ)


def extended(
    cache: Cache,
    kind: str,
    common: Path,
    places: dict[pins.Pin, dict[str, str]],
    environ: Mapping[str, str],
) -> Path:
    """Gives an archive with files of packages behind what another one has."""
    packages = fetch_all(cache, places, environ=environ)

    def make(directory: Path) -> None:
        nodes: dict[str, bytes | Node] = {}
        for pin, files in places.items():
            with cache.scratch() as unpacked:
                unpack(packages[pin].path, unpacked)
                nodes |= placed(packages[pin], files, unpacked)
        image = common.read_bytes() + archive(nodes)
        (directory / "initramfs.cpio").write_bytes(image)

    inputs = {pin.package: packages[pin].sha256 for pin in places}
    inputs |= {"common": common.parent.name, "recipe": RECIPE, "places": str(places.values())}
    return cache.entry(kind, inputs, make) / "initramfs.cpio"


def placed(package: Fetched, files: dict[str, str], unpacked: Path) -> dict[str, bytes | Node]:
    """Gives what a package has for the guest; of a file with several names the rest are links."""
    nodes: dict[str, bytes | Node] = {}
    first: dict[str, str] = {}
    for path, place in files.items():
        if not (unpacked / place).is_file():
            raise ProvisionError(
                f"{package.path.name} has no file {place}, from which {path} "
                "is made; look where the package has it now, and correct the table that names it"
            )
        if place in first:
            nodes[path] = Symlink(first[place])
        else:
            first[place] = path
            nodes[path] = File((unpacked / place).read_bytes())
    return nodes


def contents(busybox: bytes, init: bytes) -> dict[str, bytes | Node]:
    """Lists what is in the common archive."""
    return {
        "/init": File(init),
        "/bin/busybox": File(busybox),
        # Before devtmpfs is there the kernel opens the console for the first process from here.
        "/dev/console": CharacterDevice(5, 1),
        "/dev/null": CharacterDevice(1, 3, mode=0o666),
        "/etc": Directory(),
        "/tmp": Directory(mode=0o1777),
        # Kernels without devtmpfs' own directories, and scripts, expect these.
        "/proc": Directory(),
        "/sys": Directory(),
        "/run": Directory(),
        "/sbin": Symlink("bin"),
        "/usr/bin": Symlink("../bin"),
        "/usr/sbin": Symlink("../bin"),
    }
