# SPDX-License-Identifier: Apache-2.0
"""The examples of ``protocol/README.md`` do what they show."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import hcallproto

README = Path(hcallproto.__file__).parents[1] / "README.md"
TEXT = README.read_text("utf-8")


def test_examples():
    # doctest takes a closing fence for output.
    text = re.sub(r"^```.*$", "", TEXT, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, README.name, str(README), 0)
    report: list[str] = []
    results = doctest.DocTestRunner().run(test, out=report.append)
    assert results.attempted >= 5
    assert results.failed == 0, "".join(report)


def test_files_that_it_names_exist():
    rows = [line for line in TEXT.splitlines() if line.startswith("| `hcallproto/")]
    assert len(rows) >= 10
    for row in rows:
        for name in row.split("|")[1].split("`")[1::2]:
            folders = (README.parent, README.parent / "hcallproto/abi")
            assert any(list(folder.glob(name)) for folder in folders), name
