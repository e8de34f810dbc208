# SPDX-License-Identifier: Apache-2.0
"""The build tools that Debian 12 lacks, and facts of the machine that builds depend on."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import venv
from pathlib import Path

from .cache import Cache, digest_of
from .errors import ProvisionError
from .progress import Word, run, say

MESON_PACKAGES = ("meson>=1.5,<2", "pycotap>=1.3")
"""What QEMU's configure wants to find with its Python. Debian 12 has meson 1.0."""

COMPLETE = ".complete"


def processors() -> int:
    """Gives the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def platform_tag() -> str:
    """Names the distribution release and the processor, whose libraries a binary is bound to."""
    release = platform.freedesktop_os_release()
    return f"{release.get('ID', 'unknown')}-{release.get('VERSION_ID', '')}-{platform.machine()}"


def meson_python(cache: Cache) -> Path:
    """Gives a Python that has meson, in a virtual environment in the cache.

    Raises:
        ProvisionError: The environment could not be made.
    """
    inputs = {"packages": " ".join(MESON_PACKAGES), "python": sys.version, "base": sys.base_prefix}
    cache.make_directories()
    # An environment holds its own path in its scripts, so it is made in place; the mark at its end
    # says that it is whole.
    directory = cache.root / "tools" / digest_of(inputs)
    python = directory / "bin" / "python3"
    if not (directory / COMPLETE).is_file():
        with cache.lock("tools"):
            if not (directory / COMPLETE).is_file():
                shutil.rmtree(directory, ignore_errors=True)
                say("making a virtual environment with meson, for QEMU's build")
                make_venv(directory, cache.root / "logs" / "meson.log")
    return python


def make_venv(directory: Path, log: Path) -> None:
    """Makes the environment and installs meson into it."""
    try:
        venv.create(directory, with_pip=True, symlinks=True)
    except (OSError, ModuleNotFoundError) as error:
        raise ProvisionError(
            f"{sys.executable} could not make a virtual environment ({error}); install the "
            "package python3-venv"
        ) from error
    pip: list[Word] = [
        directory / "bin/python3",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
    ]
    run("installing meson", [*pip, *MESON_PACKAGES], log=log)
    (directory / COMPLETE).touch()
