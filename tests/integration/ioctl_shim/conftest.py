# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of ``ioctl_shim``: its library and its client, made in a second."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from tests.conftest import ROOT, Require
from tests.e2e.daemon import Daemon
from tests.e2e.lab import Lab, lab
from tests.e2e.sevprogram import SevProgram
from tests.sev_platform import VECTORS

from hcalld.config import UNNAMED_PLATFORM

__all__ = ["SevShim", "lab", "shim"]


class Built(NamedTuple):
    """What ``make`` has made."""

    library: Path
    client: Path


Build = Callable[..., Built]


@pytest.fixture(scope="session")
def build(require: Require, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds ``ioctl_shim`` elsewhere than in the tree, once for all of pytest's processes."""
    require("gcc")
    require("make")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def make(name: str, *words: str) -> Built:
        """Makes one of this name; any warning is a failure."""
        folder = base / f"ioctl_shim-{name}"
        command = ["make", "-C", str(ROOT / "ioctl_shim"), f"BUILD={folder}", *words]
        with (base / f"ioctl_shim-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        return Built(folder / "libhcalld-sev.so", folder / "sev-client")

    return make


@pytest.fixture(scope="session")
def built(build: Build) -> Built:
    return build("plain")


@pytest.fixture(scope="session")
def sanitized(build: Build) -> Built:
    """With AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build("addresses", "SANITIZE=1", "CFLAGS=-O1 -g")


@pytest.fixture(scope="session")
def threaded(build: Build) -> Built:
    """With ThreadSanitizer."""
    return build("threads", "SANITIZE=thread", "CFLAGS=-O1 -g")


_SANITIZED: Final = {
    "ASAN_OPTIONS": "verify_asan_link_order=0:exitcode=99:detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "exitcode=99",
}
"""What a sanitized program is started with: any finding ends it."""


class SevShim:
    """Daemons with platforms, and programs that use them through the library."""

    def __init__(self, lab: Lab, built: Built, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self.built = built
        self._stack = stack
        self._names = (f"client{number or ''}" for number in itertools.count())
        self._daemons = itertools.count()

    def daemon(self, profile: str = "", *options: str) -> Path:
        """Starts a daemon whose default platform has this profile; gives its socket."""
        return self.serve(profile, *options).socket

    def serve(self, profile: str = "", *options: str) -> Daemon:
        """The same, and gives the daemon."""
        name = f"daemon{next(self._daemons) or ''}"
        folder = self.lab.artifacts / f"{name}.profiles"
        folder.mkdir()
        text = f'[sev]\nroot = "{VECTORS / "root-2048.pem"}"\n{profile}\n'
        (folder / f"{UNNAMED_PLATFORM}.toml").write_text(text)
        return self.lab.daemon("--profile-dir", str(folder), *options, name=name)

    def program(self, socket: Path | None, **options: Any) -> SevProgram:
        """Starts a program."""
        log = self.lab.artifacts / f"{next(self._names)}.log"
        options.setdefault("program", self.built.client)
        options.setdefault("library", self.built.library)
        program = SevProgram(socket=socket, log=log, **options)
        return self._stack.enter_context(program)

    def sanitized(self, socket: Path, built: Built) -> SevProgram:
        """Starts a program that any finding of its sanitizers ends."""
        return self.program(socket, program=built.client, library=built.library, environ=_SANITIZED)


@pytest.fixture
def shim(lab: Lab, built: Built) -> Iterator[SevShim]:
    with contextlib.ExitStack() as stack:
        yield SevShim(lab, built, stack)
