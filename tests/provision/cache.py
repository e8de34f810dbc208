# SPDX-License-Identifier: Apache-2.0
"""One directory outside the tree for whatever takes long to fetch or to build.

An entry lies at ``ROOT/KIND/DIGEST``, where the digest is that of everything the entry was made
from. It is made in a temporary directory beside it and renamed when complete, so that what is there
is whole. A lock held for the whole making keeps two runs from making the same thing, or from
sharing a build tree.

Not here: what an entry holds, and how it is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .errors import ProvisionError
from .progress import say

DIGEST_LENGTH = 20
"""Hexadecimal digits of a digest in a path: enough to never meet by chance."""

KEEP_ENTRIES = 4
KEEP_SECONDS = 24 * 3600
"""An entry goes when so many newer ones are there and nobody asked for it for so long."""

INPUTS_FILE = "inputs.json"


def default_root(environ: Mapping[str, str]) -> Path:
    """Gives the cache directory: ``HCALLD_CACHE``, else the user's cache directory.

    Raises:
        ProvisionError: It is not absolute, or is no path to build in.
    """
    named = environ.get("HCALLD_CACHE")
    # The XDG base directory specification has relative paths ignored.
    base = environ.get("XDG_CACHE_HOME", "")
    users = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "hcalld"
    root = Path(named) if named else users
    if not root.is_absolute():
        raise ProvisionError(
            f"HCALLD_CACHE is {named!r}; expected an absolute path, because the commands that use "
            "it run in different directories"
        )
    # make(1) takes both for separators; the kernel refuses to be built below such a path.
    if re.search(r"[\s:]", str(root)):
        raise ProvisionError(
            f"the cache directory {str(root)!r} has a space or a colon in its path, which kernels "
            "cannot be built below; set HCALLD_CACHE to one without"
        )
    return root


def digest_of(inputs: Mapping[str, str]) -> str:
    """Gives the digest of a set of named inputs, in whatever order they were given."""
    canonical = json.dumps(dict(inputs), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LENGTH]


def sha256_of(path: Path) -> str:
    """Gives the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """The cache directory and its rules."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make_directories(self) -> None:
        """Makes the directory.

        Raises:
            ProvisionError: It cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProvisionError(
                f"the cache directory {self.root} cannot be made ({error.strerror}); set "
                "HCALLD_CACHE to a directory that can be written"
            ) from error
        if not os.access(self.root, os.W_OK):
            raise ProvisionError(
                f"the cache directory {self.root} cannot be written; set HCALLD_CACHE to one that "
                "can be"
            )

    def path(self, kind: str, inputs: Mapping[str, str]) -> Path:
        """Says where the entry made from these inputs lies, whether or not it is there."""
        return self.root / kind / digest_of(inputs)

    def has(self, kind: str, inputs: Mapping[str, str]) -> bool:
        """Says whether the entry is there."""
        return self.path(kind, inputs).is_dir()

    def entry(self, kind: str, inputs: Mapping[str, str], make: Callable[[Path], None]) -> Path:
        """Gives the entry made from these inputs, making it when it is not there.

        Args:
            kind: What it is, a name fit for a directory.
            inputs: All that its content depends on.
            make: Fills the empty directory that it is given.

        Returns:
            The entry's directory.
        """
        self.make_directories()
        final = self.path(kind, inputs)
        if not final.is_dir():
            with self.lock(f"{kind}-{final.name}"):
                if not final.is_dir():
                    self._make(final, inputs, make)
        # The time of last use, by which old entries are found.
        os.utime(final)
        return final

    def _make(self, final: Path, inputs: Mapping[str, str], make: Callable[[Path], None]) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        with self.scratch(near=final.parent) as directory:
            make(directory)
            (directory / INPUTS_FILE).write_text(
                json.dumps(dict(inputs), indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
            directory.rename(final)
        self.prune(final.parent)

    @contextlib.contextmanager
    def scratch(self, near: Path | None = None) -> Iterator[Path]:
        """Gives a temporary directory on the cache's file system, removed at the end."""
        parent = near or self.root
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
        try:
            directory.chmod(0o755)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Holds a lock that other runs respect, and says so when it has to wait."""
        self.make_directories()
        locks = self.root / "locks"
        locks.mkdir(exist_ok=True)
        with (locks / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another run that holds the lock {name}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def prune(self, directory: Path) -> None:
        """Removes what is not lately used: all but the newest entries, and what a kill left."""
        found = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        entries = [path for path in found if not path.name.startswith(".")]
        left_over = [path for path in found if path.name.startswith(".making-")]
        for path in entries[KEEP_ENTRIES:] + left_over:
            if time.time() - path.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
