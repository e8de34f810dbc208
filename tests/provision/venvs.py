# SPDX-License-Identifier: Apache-2.0
"""Virtual environments: the project's own, in the tree, and one with meson, in the cache.

An environment holds its own path in its scripts, so it cannot be made elsewhere and renamed. A mark
written at the end, with the digest of what it was made from, says that it is whole and current.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .cache import Cache, digest_of
from .errors import ProvisionError
from .progress import Word, run, say

MESON_PACKAGES: Final = ("meson>=1.5,<2", "pycotap>=1.3")
"""What QEMU's configure wants to find with its Python. Debian 12 has meson 1.0."""

ROOT: Final = Path(__file__).resolve().parents[2]
PROJECT: Final = ROOT / ".venv"
PROJECT_SECONDS: Final = 60
"""How long the project's environment takes to be made, for the estimate only."""

MARK: Final = ".provisioned"


def project(cache: Cache) -> Path:
    """Gives the project's environment, in the tree, with the project and all it is tested with.

    It is brought up to date when ``pyproject.toml`` changes, and made anew when Python does.

    Returns:
        Path of the environment.
    """
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    cache.make_directories()
    with cache.lock(f"venv-{digest_of({'tree': str(ROOT)})}"):
        make(
            PROJECT,
            inputs={"pyproject": metadata},
            packages=["--editable", f"{ROOT}[dev]"],
            what="the project's virtual environment .venv, about a minute",
            log=cache.root / "logs" / "venv.log",
        )
    return PROJECT


def meson_python(cache: Cache) -> Path:
    """Gives a Python that has meson.

    Returns:
        Path of the program.
    """
    inputs = {"packages": " ".join(MESON_PACKAGES), "python": sys.version, "base": sys.base_prefix}
    cache.make_directories()
    directory = cache.root / "tools" / digest_of(inputs)
    with cache.lock("tools"):
        make(
            directory,
            inputs=inputs,
            packages=MESON_PACKAGES,
            what="a virtual environment with meson, for QEMU's build",
            log=cache.root / "logs" / "meson.log",
        )
    return directory / "bin" / "python3"


def make(
    directory: Path,
    *,
    inputs: dict[str, str],
    packages: Sequence[str],
    what: str,
    log: Path,
) -> None:
    """Makes an environment current, if it is not.

    Args:
        directory: Where it is or will be.
        inputs: What its content depends on, beside the Python that makes it.
        packages: Words for ``pip install``.
        what: What it is, for people.
        log: File that gets pip's output.

    Raises:
        ProvisionError: It could not be made.
    """
    python = f"{sys.version} {sys.base_prefix}"
    mark = directory / MARK
    current = digest_of({**inputs, "python": python, "at": str(directory)})
    known, _, known_python = (mark.read_text("utf-8") if mark.is_file() else "").partition("\n")
    if known == current:
        return
    say(f"installing {what}")
    if known_python != python:
        shutil.rmtree(directory, ignore_errors=True)
        try:
            venv.create(directory, with_pip=True, symlinks=True)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            raise ProvisionError(
                f"{sys.executable} could not make a virtual environment ({error}); install the "
                "package python3-venv"
            ) from error
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    pip: list[Word] = [directory / "bin/python3", "-m", "pip", "install"]
    pip += ["--disable-pip-version-check", "--upgrade", "--upgrade-strategy", "only-if-needed"]
    run(f"installing {what}", [*pip, *packages], log=log)
    mark.write_text(f"{current}\n{python}", encoding="utf-8")
