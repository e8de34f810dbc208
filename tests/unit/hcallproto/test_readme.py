# SPDX-License-Identifier: Apache-2.0
"""The examples of ``protocol/README.md`` do what they show."""

from __future__ import annotations

import doctest
from pathlib import Path

import hcallproto

README = Path(hcallproto.__file__).parents[1] / "README.md"


def test_examples():
    results = doctest.testfile(str(README), module_relative=False)
    assert results.attempted >= 5
    assert results.failed == 0


def test_files_that_it_names_exist():
    text = README.read_text("utf-8")
    for line in text.splitlines():
        if line.startswith("| `hcallproto/"):
            for name in line.split("|")[1].split("`")[1::2]:
                path = README.parent / name
                beside = README.parent / "hcallproto/abi" / name
                assert path.exists() or beside.exists() or "*" in name, name
