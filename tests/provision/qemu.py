# SPDX-License-Identifier: Apache-2.0
"""QEMU with our patch series, from Debian's source or from a tree of the user's.

Two things are kept: for every set of inputs the program, as an entry of the cache; and for every
base and set of options a work directory with the source and its build tree, which the next change
of the series is built in within seconds (:mod:`.series`).

The base is Debian's tarball because it can be had, verified, wherever Debian's packages can. It
leaves out the firmware images, which the package ``qemu-system-data`` has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import pins, series
from .cache import Cache, digest_of, sha256_of
from .errors import ProvisionError
from .fetch import fetch
from .machine import platform_tag, processors
from .progress import Word, duration, ninja_steps, output, run, say
from .venvs import meson_python

ROOT: Final = Path(__file__).resolve().parents[2]
PATCHES: Final = ROOT / "qemu_patches" / "v10.0"
SERIES_RELEASE: Final = "10.0"
"""Release that :data:`PATCHES` is made for."""

FIRMWARE: Final = (
    Path("/usr/share/qemu"),
    Path("/usr/share/seabios"),
    Path("/usr/lib/ipxe/qemu"),
)
"""Where Debian's packages have slof.bin and vof.bin, the ROMs of display and of network cards."""

TARGET: Final = "ppc64-softmmu"
PROGRAM: Final = "qemu-system-ppc64"

OPTIONS: Final = (
    f"--target-list={TARGET}",
    "--without-default-features",
    "--enable-tcg",
    "--enable-fdt=system",
    "--enable-tpm",
    "--enable-plugins",
    # For chardevs with TLS.
    "--enable-gnutls",
    "--disable-docs",
    # Debian's tarball has no images to install, and meson fails looking for them.
    "--disable-install-blobs",
    # A pseries machine does not start without slof.bin, in a qtest either. So nobody needs -L.
    f"--firmwarepath={':'.join(map(str, FIRMWARE))}",
)
ASAN_OPTIONS: Final = ("--enable-asan",)

BUILD_CORE_S: Final = 375
"""Processor seconds that a first build takes, for the estimate only."""

ASAN_FACTOR: Final = 2
"""How much longer it takes with AddressSanitizer, for the estimate only."""

QTEST_FOLDER: Final = "tests/qtest/"
QTEST_SUFFIX: Final = "-test.c"

LEFT_OUT_OF_TREES: Final = frozenset({".git", "__pycache__", ".cache"})
"""Folders of a user's tree that no build needs. Build trees are known by their build.ninja."""


@dataclass(frozen=True, slots=True)
class Base:
    """What the series is put on.

    Attributes:
        label: What it is, for people.
        identity: Names the work directory: the same for all states of a user's tree.
        digest: Digest of its content; of a tree it is known only once it is copied.
        tarball: The file to unpack, or nothing.
        tree: The user's tree to copy, or nothing.
        is_exact: Whether it is the very release that the series is made for.
    """

    label: str
    identity: str
    digest: str
    tarball: Path | None
    tree: Path | None
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Work:
    """A work directory: the pristine source, the patched tree, the build tree."""

    root: Path

    @property
    def pristine(self) -> Path:
        """The source as it came."""
        return self.root / "pristine"

    @property
    def tree(self) -> Path:
        """The source that is built."""
        return self.root / "tree"

    @property
    def build(self) -> Path:
        """Where it is built."""
        return self.root / "build"


def find_base(cache: Cache, environ: Mapping[str, str]) -> Base:
    """Says what is built: ``QEMU_SRC``, a tree or tarball, else Debian's source.

    Raises:
        ProvisionError: ``QEMU_SRC`` is neither a QEMU tree nor a file.
    """
    named = environ.get("QEMU_SRC")
    if not named:
        fetched = fetch(cache, pins.QEMU, environ=environ)
        return Base(
            label=f"QEMU {fetched.version} of Debian {pins.QEMU.suite}",
            identity=fetched.sha256,
            digest=fetched.sha256,
            tarball=fetched.path,
            tree=None,
            is_exact=fetched.is_pinned,
        )
    path = Path(named).resolve()
    if path.is_file():
        digest = sha256_of(path)
        return Base(f"QEMU from {path}", digest, digest, path, None, is_exact=False)
    if not (path / "configure").is_file() or not (path / "VERSION").is_file():
        raise ProvisionError(
            f"QEMU_SRC is {named!r}; expected a QEMU source tree, with its files configure and "
            "VERSION, or a tarball of one"
        )
    return Base(f"QEMU from {path}", str(path), "", None, path, is_exact=False)


def options(*, is_asan: bool) -> tuple[str, ...]:
    """Gives configure's options."""
    return OPTIONS + (ASAN_OPTIONS if is_asan else ())


def work_of(cache: Cache, base: Base, *, is_asan: bool) -> Work:
    """Says where a base is built."""
    key = digest_of(
        {
            "base": base.identity,
            "options": " ".join(options(is_asan=is_asan)),
            "platform": platform_tag(),
        }
    )
    return Work(cache.root / "work" / f"qemu-{'asan-' if is_asan else ''}{key}")


def entry_inputs(digest: str, patches: list[Path], *, is_asan: bool) -> dict[str, str]:
    """Says what a built program depends on."""
    return {
        "base": digest,
        "series": series.digest_of_series(patches),
        "options": " ".join(options(is_asan=is_asan)),
        "platform": platform_tag(),
    }


def kind(*, is_asan: bool) -> str:
    """Gives the cache's name for the program."""
    return "qemu-asan" if is_asan else "qemu"


def program(cache: Cache, environ: Mapping[str, str], *, is_asan: bool = False) -> Path:
    """Gives the patched QEMU, building it when it is not there.

    Returns:
        Path of qemu-system-ppc64.
    """
    base = find_base(cache, environ)
    patches = series.read_series(PATCHES)
    work = work_of(cache, base, is_asan=is_asan)
    digest = base.digest
    if base.tree is not None:
        with cache.lock(work.root.name):
            lay_pristine(cache, base, work)
            digest = digest_of_tree(work.pristine)

    def make(directory: Path) -> None:
        with prepared(cache, base, work, patches, environ, is_asan=is_asan) as log:
            ninja(work, [PROGRAM], log, "QEMU")
            shutil.copy2(work.build / PROGRAM, directory / PROGRAM)

    inputs = entry_inputs(digest, patches, is_asan=is_asan)
    return cache.entry(kind(is_asan=is_asan), inputs, make) / PROGRAM


@contextmanager
def prepared(
    cache: Cache,
    base: Base,
    work: Work,
    patches: list[Path],
    environ: Mapping[str, str],
    *,
    is_asan: bool,
) -> Iterator[Path]:
    """Holds the work directory with the series applied and configured; gives the log's path."""
    with cache.lock(work.root.name):
        log = cache.root / "logs" / f"{work.root.name}.log"
        log.unlink(missing_ok=True)
        is_first = not (work.build / "build.ninja").is_file()
        if is_first:
            seconds = BUILD_CORE_S * (ASAN_FACTOR if is_asan else 1) / processors()
            say(
                f"building {base.label} with {len(patches)} patches"
                f"{' and AddressSanitizer' if is_asan else ''}: about {duration(seconds)} with "
                f"{processors()} processors"
            )
        else:
            say(f"rebuilding {base.label} with {len(patches)} patches: what changed only")
        lay_pristine(cache, base, work)
        to_apply = not_yet_there(patches, work.pristine)
        if len(to_apply) < len(patches):
            say(f"{base.label} has the files that the series adds, so it is built as it is")
        try:
            changed = series.synchronize(
                cache,
                to_apply,
                pristine=work.pristine,
                tree=work.tree,
                log=log,
                fuzz=0 if base.is_exact else 2,
            )
        except ProvisionError as error:
            if base.is_exact:
                raise
            version = (work.pristine / "VERSION").read_text(encoding="utf-8").strip()
            raise ProvisionError(
                f"{base.label} is version {version}; the series is made for {SERIES_RELEASE}. "
                f"{error}"
            ) from error
        if not is_first:
            say(f"{changed} source files changed since the last build here")
        if is_first:
            configure(cache, work, log, is_asan=is_asan, is_tree=base.tree is not None)
        yield log


def lay_pristine(cache: Cache, base: Base, work: Work) -> None:
    """Puts the base's source into the work directory, where it is not there as it should be."""
    work.root.mkdir(parents=True, exist_ok=True)
    if base.tree is not None:
        work.pristine.mkdir(exist_ok=True)
        work.tree.mkdir(exist_ok=True)
        series.mirror(base.tree, work.pristine, tree=work.tree, leave_out=is_left_out)
        return
    assert base.tarball is not None
    if not work.pristine.is_dir():
        say("unpacking QEMU's source")
        with cache.scratch(near=work.root) as scratch:
            unpack(base.tarball, scratch)
            scratch.rename(work.pristine)
    if not work.tree.is_dir():
        with cache.scratch(near=work.root) as scratch:
            # Hard links: a file is never written in place, only replaced.
            output(["cp", "-al", f"{work.pristine}/.", scratch])
            scratch.rename(work.tree)


def unpack(tarball: Path, directory: Path) -> None:
    """Unpacks a source tarball without its top folder."""
    output(["tar", "-xf", tarball, "-C", directory, "--strip-components=1"])
    if not (directory / "VERSION").is_file() or not (directory / "configure").is_file():
        raise ProvisionError(
            f"{tarball} holds no QEMU source; expected one folder with configure and VERSION"
        )


def is_left_out(path: Path) -> bool:
    """Says whether a part of a user's tree is left out of the copy."""
    return path.name in LEFT_OUT_OF_TREES or (path.is_dir() and (path / "build.ninja").is_file())


def digest_of_tree(tree: Path) -> str:
    """Gives the digest of all names and contents below a folder."""
    return digest_of(
        {
            path.relative_to(tree).as_posix(): sha256_of(path)
            for path in sorted(tree.rglob("*"))
            if path.is_file()
        }
    )


def not_yet_there(patches: list[Path], pristine: Path) -> list[Path]:
    """Gives the series, or nothing of it when the source already has the files that it adds."""
    added = {
        name for patch in patches for name in series.added_files(patch.read_text(encoding="utf-8"))
    }
    if added and all((pristine / name).is_file() for name in added):
        return []
    return patches


def configure(cache: Cache, work: Work, log: Path, *, is_asan: bool, is_tree: bool) -> None:
    """Configures a new build tree."""
    if work.build.is_dir():
        shutil.rmtree(work.build)
    python = meson_python(cache)
    wanted = [
        option
        for option in options(is_asan=is_asan)
        # A user's tree may well have the images.
        if not (is_tree and option == "--disable-install-blobs" and has_images(work.tree))
    ]
    work.build.mkdir()
    say("configuring QEMU")
    words: list[Word] = [work.tree / "configure", f"--python={python}", *wanted]
    try:
        run("configuring QEMU", words, log=log, cwd=work.build)
    except ProvisionError:
        # A half-configured tree would pass for a configured one.
        (work.build / "build.ninja").unlink(missing_ok=True)
        raise


def has_images(tree: Path) -> bool:
    """Says whether a source tree has the firmware images that its installation copies."""
    return (tree / "pc-bios" / "slof.bin").is_file()


def ninja(work: Work, targets: list[str], log: Path, what: str) -> None:
    """Builds targets in the build tree."""
    run(
        what,
        ["ninja", f"-j{processors()}", *targets],
        log=log,
        cwd=work.build,
        condense=ninja_steps,
    )


def qtest_names(patches: list[Path]) -> list[str]:
    """Names the qtests that a series adds."""
    return sorted(
        name.removeprefix(QTEST_FOLDER).removesuffix(".c")
        for patch in patches
        for name in series.added_files(patch.read_text(encoding="utf-8"))
        if name.startswith(QTEST_FOLDER) and name.endswith(QTEST_SUFFIX)
    )


def run_qtests(
    cache: Cache, environ: Mapping[str, str], names: list[str], *, is_asan: bool = False
) -> int:
    """Builds and runs qtests, with their TAP on standard output.

    Args:
        cache: The cache.
        environ: This process's variables.
        names: Which; none for those that the series adds.
        is_asan: Whether QEMU is built with AddressSanitizer.

    Returns:
        How many of them failed.
    """
    base = find_base(cache, environ)
    patches = series.read_series(PATCHES)
    names = names or qtest_names(patches)
    if not names:
        say("the series adds no qtest, so there is none to run")
        return 0
    work = work_of(cache, base, is_asan=is_asan)
    failed = 0
    with prepared(cache, base, work, patches, environ, is_asan=is_asan) as log:
        link_firmware(work)
        ninja(work, [PROGRAM, *(QTEST_FOLDER + name for name in names)], log, "QEMU and its qtests")
        for name in names:
            say(f"running the qtest {name}")
            failed += run_qtest(work, name)
    return failed


def link_firmware(work: Work) -> None:
    """Lets a program in the build tree find its firmware.

    Run from there, QEMU looks for every absolute path below ``qemu-bundle`` (``util/cutils.c``,
    ``get_relocated_path``); installed elsewhere, it takes the path of configure's option as it is.
    """
    for folder in FIRMWARE:
        link = work.build / "qemu-bundle" / folder.relative_to("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(folder)


def run_qtest(work: Work, name: str) -> bool:
    """Runs one qtest; says whether it failed."""
    env = {
        **os.environ,
        # Without options: libqtest takes the architecture from what follows the last hyphen.
        "QTEST_QEMU_BINARY": str(work.build / PROGRAM),
        "PYTHON": sys.executable,
        "G_TEST_SRCDIR": str(work.tree / "tests/qtest"),
        "G_TEST_BUILDDIR": str(work.build / "tests/qtest"),
    }
    done = subprocess.run(
        [work.build / QTEST_FOLDER / name, "--tap", "-k"], cwd=work.build, env=env, check=False
    )
    return done.returncode != 0


def source(cache: Cache, environ: Mapping[str, str]) -> Path:
    """Gives the pristine source with one commit in git, for working on the series.

    It is the cache's: take a clone to change anything.

    Raises:
        ProvisionError: ``QEMU_SRC`` is a tree, which is at hand already.
    """
    base = find_base(cache, environ)
    if base.tarball is None:
        raise ProvisionError(f"QEMU_SRC is the tree {base.tree}; expected none or a tarball")
    tarball = base.tarball

    def make(directory: Path) -> None:
        tree = directory / "qemu"
        tree.mkdir()
        unpack(tarball, tree)
        who = {"NAME": "base", "EMAIL": "base@localhost", "DATE": "1970-01-01T00:00:00Z"}
        env = {
            **{f"GIT_{role}_{key}": who[key] for role in ("AUTHOR", "COMMITTER") for key in who},
            # Neither the user's hooks nor filters have a say in it: the commit is the same for all.
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        for words in (
            ["init", "-q", "-b", "base"],
            ["add", "-A", "-f"],
            ["commit", "-q", "-m", base.label],
        ):
            output(["git", *words], cwd=tree, env=env)

    return cache.entry("qemu-src", {"base": base.digest}, make) / "qemu"
