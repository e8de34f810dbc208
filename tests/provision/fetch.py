# SPDX-License-Identifier: Apache-2.0
"""Gives the file that a pin names, from the cache or from Debian's archive.

The rules, in this order:

1. The pinned file in the cache is taken without asking the network.
2. The archive has the pinned version: it is downloaded, and its digest must be the pinned one.
3. The archive has moved on: the newest version of the same series is taken, which apt verified,
   and every run says so. The choice is kept for this pin, so that a second run asks nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from .aptside import AptSide, newest_first
from .cache import Cache, digest_of, sha256_of
from .deb822 import IndexedFile
from .errors import ProvisionError
from .pins import Pin
from .progress import say


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file of Debian's archive, in the cache."""

    path: Path
    package: str
    version: str
    sha256: str
    is_pinned: bool


class Archive(Protocol):
    """What is asked of Debian's archive; :class:`.aptside.AptSide` is the one that there is."""

    def candidates(self, package: str) -> list[IndexedFile]:
        """Gives the versions of a package, newest first."""

    def package_names(self, prefix: str) -> list[str]:
        """Gives the names of the packages that start so."""

    def download(self, package: str, version: str, directory: Path) -> None:
        """Downloads a verified file into a directory."""

    def download_all(self, wanted: Sequence[tuple[str, str]], directory: Path) -> bool:
        """Downloads verified files of packages in their versions, if all are there."""


def pinned_path(cache: Cache, pin: Pin) -> Path:
    """Says where the cache keeps the pinned file."""
    return cache.root / "downloads" / pin.sha256 / pin.file


def apt_lock(pin: Pin) -> str:
    """Names the lock of apt's directory that a pin's suite has."""
    return f"apt-{pin.suite}-{'source' if pin.is_source else 'binary'}"


def keep(downloaded: Path, final: Path) -> None:
    """Moves a verified file to its place in the cache."""
    final.parent.mkdir(parents=True, exist_ok=True)
    downloaded.rename(final)


def check_digest(path: Path, expected: str, *, origin: str) -> None:
    """Compares a file's digest with the expected one.

    Raises:
        ProvisionError: They differ.
    """
    found = sha256_of(path)
    if found != expected:
        raise ProvisionError(
            f"{path.name} has the SHA-256 {found}; expected {expected}, {origin}. Do not use the "
            "file. If the archive really replaced it under the same version, correct "
            "tests/provision/pins.py; else remove it and try again"
        )


def fetch(
    cache: Cache,
    pin: Pin,
    *,
    archive: Archive | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Fetched:
    """Gives the pinned file, or what stands in for it.

    Raises:
        ProvisionError: It could not be had, or it is not the file that was pinned.
    """
    pinned = pinned_path(cache, pin)
    if pinned.is_file():
        return Fetched(pinned, pin.package, pin.version, pin.sha256, is_pinned=True)
    cache.make_directories()
    with cache.lock(f"fetch-{pin.package}"):
        if pinned.is_file():
            return Fetched(pinned, pin.package, pin.version, pin.sha256, is_pinned=True)
        stand_in = recall(cache, pin)
        if stand_in is None:
            archive = archive or AptSide(
                cache.root / "apt",
                pin.suite,
                is_source=pin.is_source,
                architecture=pin.architecture,
                environ=environ,
            )
            # The index lies in a directory that all files of one suite share.
            with cache.lock(apt_lock(pin)):
                stand_in = from_archive(cache, pin, archive)
    if not stand_in.is_pinned:
        say(
            f"{pin.package} {pin.version}, which is pinned, has left Debian {pin.suite}; taking "
            f"{stand_in.package} {stand_in.version} with SHA-256 {stand_in.sha256} instead"
        )
    return stand_in


def fetch_all(
    cache: Cache,
    pins: Iterable[Pin],
    *,
    archive: Archive | None = None,
    environ: Mapping[str, str] = os.environ,
) -> dict[Pin, Fetched]:
    """Gives the packages of many pins, all of one suite, in hardly more time than one of them.

    Raises:
        ProvisionError: One could not be had, or is not the file that was pinned.
    """
    pins = tuple(pins)
    if archive is None:
        archive = AptSide(cache.root / "apt", pins[0].suite, is_source=False, environ=environ)
    lacking = [pin for pin in pins if not pinned_path(cache, pin).is_file()]
    lacking = [pin for pin in lacking if recall(cache, pin) is None]
    if len(lacking) > 1:
        fetch_together(cache, lacking, archive)
    return {pin: fetch(cache, pin, archive=archive, environ=environ) for pin in pins}


def fetch_together(cache: Cache, pins: Sequence[Pin], archive: Archive) -> None:
    """Puts the pinned files of a suite into the cache, if it still has all of them."""
    cache.make_directories()
    with cache.lock(apt_lock(pins[0])), cache.scratch() as directory:
        if not archive.download_all([(pin.package, pin.version) for pin in pins], directory):
            return
        for pin in pins:
            downloaded = directory / pin.file
            if downloaded.is_file() and sha256_of(downloaded) == pin.sha256:
                keep(downloaded, pinned_path(cache, pin))


def from_archive(cache: Cache, pin: Pin, archive: Archive) -> Fetched:
    """Downloads the pinned file or its stand-in."""
    package, file = choose(pin, archive)
    is_pinned = (package, file.version) == (pin.package, pin.version)
    with cache.scratch() as directory:
        archive.download(package, file.version, directory)
        downloaded = directory / file.name
        if not downloaded.is_file():
            # apt-get download escapes the colon of an epoch, the index does not.
            there = [path for path in directory.iterdir() if path.is_file()]
            if len(there) != 1:
                raise ProvisionError(
                    f"apt downloaded {sorted(path.name for path in there)}; expected {file.name}"
                )
            downloaded = there[0]
        if is_pinned:
            check_digest(downloaded, pin.sha256, origin="pinned in tests/provision/pins.py")
        check_digest(downloaded, file.sha256, origin="as the signed index says")
        name = pin.file if is_pinned else downloaded.name
        final = cache.root / "downloads" / file.sha256 / name
        keep(downloaded, final)
    fetched = Fetched(final, package, file.version, file.sha256, is_pinned)
    if not is_pinned:
        remember(cache, pin, fetched)
    return fetched


def choose(pin: Pin, archive: Archive) -> tuple[str, IndexedFile]:
    """Finds the pinned version in the archive, else the newest that may stand in for it."""
    for file in archive.candidates(pin.package):
        if file.version == pin.version:
            return pin.package, file
    names = [pin.package]
    if pin.family:
        prefix = re.split(r"[\\\[(.]", pin.family)[0]
        names = [name for name in archive.package_names(prefix) if re.fullmatch(pin.family, name)]
    owner = {
        file: name
        for name in sorted(names)
        for file in archive.candidates(name)
        if file.version.startswith(pin.series)
    }
    if not owner:
        raise ProvisionError(
            f"Debian {pin.suite} has neither {pin.package} {pin.version} nor another version that "
            f"starts with {pin.series or 'anything'!r}; expected one. Refresh "
            "tests/provision/pins.py"
        )
    newest = newest_first(list(owner))[0]
    return owner[newest], newest


def note_path(cache: Cache, pin: Pin) -> Path:
    """Says where the choice of a stand-in for a pin is kept."""
    inputs = {name: str(value) for name, value in asdict(pin).items()}
    return cache.root / "stand-ins" / f"{digest_of(inputs)}.json"


def remember(cache: Cache, pin: Pin, fetched: Fetched) -> None:
    """Keeps the choice of a stand-in."""
    path = note_path(cache, pin)
    path.parent.mkdir(exist_ok=True)
    note = {
        "file": fetched.path.name,
        "package": fetched.package,
        "version": fetched.version,
        "sha256": fetched.sha256,
    }
    path.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def recall(cache: Cache, pin: Pin) -> Fetched | None:
    """Gives the stand-in that an earlier run chose, if its file is still there."""
    try:
        note = json.loads(note_path(cache, pin).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    path = cache.root / "downloads" / note["sha256"] / note["file"]
    if not path.is_file():
        return None
    return Fetched(path, note["package"], note["version"], note["sha256"], is_pinned=False)
