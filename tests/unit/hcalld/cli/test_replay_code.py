# SPDX-License-Identifier: Apache-2.0
"""``hcalld replay code``: how it ends."""

from __future__ import annotations

import gzip
import pathlib

import pytest
from click.testing import CliRunner, Result
from tests.vectors.test_captures import path_of

from hcalld.cli.replay import command
from hcalld.cli.replay.options import Reporter
from hcalld.replay.differences import Difference

DATA = gzip.decompress(path_of("debian").read_bytes())


def run(data: bytes, tmp_path: pathlib.Path) -> Result:
    path = tmp_path / "capture.pcapng"
    path.write_bytes(data)
    return CliRunner().invoke(command, ["code", str(path)])


def test_code_when_all_is_as_it_was_then_the_status_is_0(tmp_path: pathlib.Path) -> None:
    done = run(DATA, tmp_path)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("no differences, ")


def test_code_when_the_file_is_cut_off_then_the_status_is_2(tmp_path: pathlib.Path) -> None:
    done = run(DATA[:-30], tmp_path)
    assert "bytes into a block; all before it was read" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("no differences, ")
    assert done.exit_code == 2


def test_code_when_only_its_end_is_missing_then_the_rest_counts(tmp_path: pathlib.Path) -> None:
    """So does a daemon leave it that is killed."""
    whole = DATA
    while b"the capture was ended" in whole or b"stop" in whole:
        size = int.from_bytes(whole[-4:], "little")
        whole = whole[:-size]
    done = run(whole, tmp_path)
    assert "its end is missing" in done.stdout
    assert done.exit_code == 0, done.output


def test_reporter_when_a_capture_steers_terminals_then_it_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = Reporter(as_json=False)
    reporter.difference("lpar7\x1b[2J", Difference("connection", "end", "\x1b[1m", "\x9b1m"))
    reporter.note("left out: \x1b]0;slow")
    assert capsys.readouterr().out.splitlines() == [
        "lpar7\\u001b[2J connection: end: \\u009b1m, expected \\u001b[1m",
        "left out: \\u001b]0;slow",
    ]
