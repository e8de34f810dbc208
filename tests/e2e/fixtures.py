# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests; imported by the conftest of each of their folders."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["folder", "run_dir"]


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory for sockets: their paths have at most 107 bytes, so it is a short one."""
    path = Path(tempfile.mkdtemp(prefix="hcalld-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
