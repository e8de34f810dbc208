# SPDX-License-Identifier: Apache-2.0
"""The kernel's own selftests, built from its source, and the initramfs that runs them.

The source is Debian's, or a tree that ``HCALLD_KERNEL_SRC`` names. Only the folders that the
selftests are made from are read, and they are copied first: a developer's tree stays as it is.
Not here: what runs them, which is ``hcalld guest run``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from hcalld.guest.cpio import Node, Symlink, archive, tree

from . import initramfs, pins, selftest_packages
from .cache import Cache
from .errors import ProvisionError
from .fetch import fetch, fetch_all
from .kernels import CROSS_COMPILE, source_tarball, unpack
from .machine import processors
from .progress import Word, duration, kbuild_steps, run, say

COLLECTIONS: Final = ("kexec", "powerpc", "tpm2")

SOURCES: Final = (
    "Kbuild",
    "Kconfig",
    "Makefile",
    "arch/powerpc",
    "arch/x86/entry",
    "arch/x86/include",
    "include",
    "scripts",
    "tools/arch",
    "tools/build",
    "tools/include",
    "tools/lib",
    "tools/scripts",
    "tools/testing/selftests",
    "usr",
)
"""Of a kernel's source, what the selftests are made from: with the headers that it exports."""

PLACE: Final = "/kselftest"
"""Where the guest has them."""

BUILD_STEPS: Final = 270
BUILD_CORE_S: Final = 120
"""For the progress and the estimate only."""

RECIPE: Final = "1"
GUEST_RECIPE: Final = "2"
"""Each counts up when its steps below change what they make from the same inputs: the selftests,
and the archive with them."""

SRC_VARIABLE: Final = "HCALLD_KERNEL_SRC"


def guest(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the archive of guests that run selftests.

    Returns:
        Path of an uncompressed cpio archive that begins with that of ``initramfs-tools``.
    """
    installed = built(cache, environ)
    common = initramfs.tools(cache, environ)
    named = [*selftest_packages.FILES, *selftest_packages.MODULES]
    packages = fetch_all(cache, named, environ=environ)

    def make(directory: Path) -> None:
        nodes: dict[str, bytes | Node] = tree(installed, PLACE)
        for pin, files in selftest_packages.FILES.items():
            with cache.scratch() as unpacked:
                unpack(packages[pin].path, unpacked)
                nodes |= initramfs.placed(packages[pin], files, unpacked)
        for pin in selftest_packages.MODULES:
            with cache.scratch() as unpacked:
                unpack(packages[pin].path, unpacked)
                nodes |= modules(unpacked / selftest_packages.MODULES_PLACE)
        # busybox' shell takes its own programs before those in PATH, whose options tests use.
        nodes["/bin/sh"] = Symlink("bash")
        (directory / "initramfs.cpio").write_bytes(common.read_bytes() + archive(nodes))

    inputs = {pin.package: packages[pin].sha256 for pin in named}
    inputs |= {"common": common.parent.name, "installed": installed.parent.name}
    inputs |= {"recipe": GUEST_RECIPE, "places": str(selftest_packages.FILES.values())}
    inputs |= {"left_out": str(selftest_packages.LEFT_OUT)}
    return cache.entry("initramfs-selftests", inputs, make) / "initramfs.cpio"


def modules(directory: Path) -> dict[str, bytes | Node]:
    """Gives Python's modules, without those that are left out."""
    place = f"/{selftest_packages.MODULES_PLACE}"
    return {
        path: node
        for path, node in tree(directory, place).items()
        if path.removeprefix(f"{place}/").partition("/")[0].removesuffix(".py")
        not in selftest_packages.LEFT_OUT
    }


def built(cache: Cache, environ: Mapping[str, str] = os.environ) -> Path:
    """Gives the selftests as ``make install`` of theirs lays them out.

    Returns:
        The directory with ``run_kselftest.sh`` and a folder for each collection.
    """
    inputs = {"recipe": RECIPE, "collections": " ".join(COLLECTIONS), "compiler": CROSS_COMPILE}
    named = environ.get(SRC_VARIABLE)
    if named:
        theirs = checked_tree(named)
        inputs["tree"] = digest_of_tree(theirs)
        return cache.entry("selftests", inputs, lambda made: build_tree(cache, theirs, made)) / (
            "installed"
        )
    source = fetch(cache, pins.KERNEL_SOURCE, environ=environ)
    inputs["source"] = source.sha256

    def make(directory: Path) -> None:
        with cache.scratch() as scratch:
            log = fresh_log(cache)
            linux = scratch / "linux"
            linux.mkdir()
            with source_tarball(source, scratch) as tarball:
                top = tarball.name.removesuffix(".tar.xz")
                say("unpacking the parts of the kernel's source that selftests are made from")
                members = [f"{top}/{name}" for name in SOURCES]
                words: list[Word] = ["tar", "-xJf", tarball, "-C", linux, "--strip-components=1"]
                run("unpacking the kernel's source", [*words, *members], log=log)
            build(linux, directory, log)

    return cache.entry("selftests", inputs, make) / "installed"


def fresh_log(cache: Cache) -> Path:
    """Gives the build's log, empty."""
    log = cache.root / "logs" / "selftests.log"
    log.unlink(missing_ok=True)
    return log


def checked_tree(named: str) -> Path:
    """Gives a developer's tree.

    Raises:
        ProvisionError: It is none of the kernel's.
    """
    path = Path(named)
    lacking = [name for name in SOURCES if not (path / name).exists()]
    if not path.is_absolute() or lacking:
        raise ProvisionError(
            f"{SRC_VARIABLE} is {named!r}, where {', '.join(lacking) or 'nothing'} is missing; "
            "expected the absolute path of a Linux source tree"
        )
    return path


def sources_of(linux: Path) -> Iterator[Path]:
    """Names the files of a tree that count, relative to it; what a build has left is passed over.

    A developer's tree may hold objects and programs for another machine, which make(1) would
    take for finished.
    """
    for name in SOURCES:
        start = linux / name
        paths = sorted(start.rglob("*")) if start.is_dir() else [start]
        for path in paths:
            if path.is_symlink() or (path.is_file() and not is_product(path)):
                yield path.relative_to(linux)


def is_product(path: Path) -> bool:
    """Whether a file was made by a build: an ELF file, or one of kbuild's own."""
    if path.suffix in (".o", ".a", ".cmd", ".d"):
        return True
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def digest_of_tree(linux: Path) -> str:
    """Gives a digest of all files that count, with their names."""
    digest = hashlib.sha256()
    for name in sources_of(linux):
        path = linux / name
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        else:
            content = hashlib.sha256(path.read_bytes()).digest()
        digest.update(os.fsencode(name) + b"\0" + content + b"\0")
    return digest.hexdigest()


def build_tree(cache: Cache, theirs: Path, directory: Path) -> None:
    """Builds from a copy of a developer's tree."""
    with cache.scratch() as scratch:
        for name in sources_of(theirs):
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(theirs / name, target, follow_symlinks=False)
        build(scratch, directory, fresh_log(cache))


def build(linux: Path, directory: Path, log: Path) -> None:
    """Builds and installs the collections.

    One test that does not compile with a compiler of Debian's is left out by ``-k``, and missed
    by the list of what is expected; kselftest's own makefiles end with success all the same.
    """
    jobs = processors()
    say(
        f"building the kernel's selftests {', '.join(COLLECTIONS)}: about "
        f"{duration(BUILD_CORE_S / jobs)} with {jobs} processors"
    )
    make: list[Word] = ["make", f"CROSS_COMPILE={CROSS_COMPILE}", f"-j{jobs}"]
    run("the kernel's headers", [*make, "-C", linux, "ARCH=powerpc", "headers"], log=log)
    tests = linux / "tools" / "testing" / "selftests"
    installed = directory / "installed"
    # By the environment, not the command line: powerpc's Makefile turns uname(1)'s name of the
    # architecture, which kexec's wants, into the kernel's.
    words: list[Word] = [*make, "-C", tests, f"TARGETS={' '.join(COLLECTIONS)}"]
    words += [f"INSTALL_PATH={installed}", "-k", "install"]
    env = {"ARCH": "ppc64le"}
    run("the kernel's selftests", words, log=log, env=env, condense=kbuild_steps(BUILD_STEPS))
    lacking = lacking_collections(installed / "kselftest-list.txt")
    if lacking:
        raise ProvisionError(
            f"the kernel's selftests were built, and their list has none of {', '.join(lacking)}; "
            f"expected tests of each. The log is {log}"
        )


def lacking_collections(tests: Path) -> list[str]:
    """Names the collections that no test of a list of kselftest's is of."""
    lines = tests.read_text("utf-8").splitlines() if tests.is_file() else []
    there = {line.partition(":")[0].partition("/")[0] for line in lines}
    return [name for name in COLLECTIONS if name not in there]
