# SPDX-License-Identifier: Apache-2.0
"""``hcalld decode``: what a capture's calls look like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.hcallproto.capture.sample import read_of_db

from hcalld.cli.decode import command
from hcalld.core.errors import HcalldError


def run(*words: str, data: bytes | None = None) -> Result:
    return CliRunner().invoke(
        command, [*words, "-"], input=read_of_db().data if data is None else data
    )


def test_decode_prints_a_line_for_each_call():
    done = run()
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("18:25:06.000006 lpar8 cpu3 #1 H_PKS_READ_OBJECT(")
    assert 'label="db\\0"' in first
    assert first.endswith("= H_NOT_FOUND 2us -- no object has this label")
    assert "= H_SUCCESS size=4 policy=" in second


def test_decode_prints_json():
    first, second = map(json.loads, run("--json").stdout.splitlines())
    assert (first["guest"], first["code"], first["fate"]) == ("lpar8", "H_NOT_FOUND", "answered")
    assert (second["call"], second["args"]["label"]["text"]) == ("H_PKS_READ_OBJECT", '"db\\0"')
    assert second["time_ns"] == 1_795_285_506_000_004_000


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--guest", "lpar7"), 1),
        (("--call", "read"), 2),
        (("--call", "H_PKS_WRITE_OBJECT"), 0),
        (("--return", "H_NOT_FOUND"), 1),
        (("--since", "2026-11-21T18:25:06.000008"), 2),
        (("--since", "2026-11-21T18:25:06.000009+00:00"), 1),
        (("--until", "2026-11-21T18:25:06.000005"), 1),
    ],
)
def test_decode_chooses(words: tuple[str, ...], count: int):
    assert len(run(*words).stdout.splitlines()) == count


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--call", "nonsense"), "no call has 'nonsense' in its name"),
        (("--return", "nonsense"), "no return code is called 'nonsense'"),
        (("--since", "nonsense"), "'nonsense' is no time"),
    ],
)
def test_decode_refuses_what_is_not_there(words: tuple[str, ...], why: str):
    done = run(*words)
    assert done.exit_code == 2
    assert why in done.stderr


def test_decode_of_a_damaged_file_prints_what_is_before_and_fails():
    done = run(data=read_of_db().data[:-5])
    assert done.exit_code == 1
    assert "H_NOT_FOUND" in done.stdout
    assert "bytes into a block; all before it was read" in done.stderr


def test_decode_of_no_capture_says_so(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("no capture at all")
    done = CliRunner().invoke(command, [str(path)])
    assert isinstance(done.exception, HcalldError)
    assert f"{path}: at byte 0" in str(done.exception)


def test_decode_tells_of_frames_that_were_dropped():
    from hcallproto.capture import pcapng

    done = run(data=read_of_db().data + pcapng.statistics(0, 0, 9, 5))
    assert "5 frames were dropped" in done.stderr
