# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench.floors import Pinger
from tests.bench.results import Results


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    """Takes the figures of all tests; prints them at the end."""
    results = Results()
    yield results
    folder = Path("tests/artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(results.rows, indent=2) + "\n")
    print("\n" + "\n".join(results.lines()))


@pytest.fixture(scope="session")
def pinger(tmp_path_factory: pytest.TempPathFactory) -> Pinger:
    """The compiled client."""
    return Pinger(tmp_path_factory.mktemp("pinger"))
