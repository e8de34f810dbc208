# SPDX-License-Identifier: Apache-2.0
"""``hcalld report``: where the page goes, and what is said of a bad file."""

from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.hcallproto.capture.sample import read_of_db

from hcalld.cli import cli
from hcalld.core.errors import ConfigError, HcalldError


def run(*words: str | Path, data: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, words)], input=data)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "boot.pcapng"
    path.write_bytes(read_of_db().data)
    return path


def test_report_when_no_page_is_named_then_it_is_beside_the_capture(capture: Path):
    done = run(capture)
    assert (done.exit_code, done.output) == (0, "")
    page = capture.with_name("boot.html")
    assert "H_PKS_READ_OBJECT" in page.read_text("utf-8")
    assert "<title>boot.pcapng: hypercalls</title>" in page.read_text("utf-8")
    assert stat.S_IMODE(page.stat().st_mode) & 0o200
    assert sorted(path.name for path in capture.parent.iterdir()) == ["boot.html", "boot.pcapng"]


def test_report_when_a_page_is_named_then_it_is_there(capture: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text("an older one")
    assert run(capture, "-o", page).exit_code == 0
    assert "H_NOT_FOUND" in page.read_text("utf-8")


def test_report_when_it_is_piped_then_both_ends_are_pipes(tmp_path: Path):
    done = run("-", "-o", "-", data=gzip.compress(read_of_db().data))
    assert done.exit_code == 0
    assert done.stdout.startswith("<!DOCTYPE html>")
    assert "<title>standard input: hypercalls</title>" in done.stdout


def test_report_when_a_pipe_has_no_name_then_the_page_must_have_one():
    done = run("-", data=b"")
    assert done.exit_code == 2
    assert "give -o FILE" in done.output


@pytest.mark.parametrize("words", [(), ("-o", "boot.html"), ("-o", "link")])
def test_report_when_the_page_would_be_the_capture_then_it_is_refused(
    words: tuple[str, ...], capture: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(capture.parent)
    path = capture.rename("boot.html")
    Path("link").symlink_to(path)
    before = path.read_bytes()
    done = run("boot.html", *words)
    assert done.exit_code == 2
    assert "would take the capture's place: give -o FILE" in done.output
    assert path.read_bytes() == before


def test_report_when_a_pipe_has_a_path_then_the_page_must_have_one_too(tmp_path: Path):
    reading, writing = os.pipe()
    os.close(writing)
    done = run(f"/dev/fd/{reading}")
    os.close(reading)
    assert done.exit_code == 2
    assert "give -o FILE" in done.output


def test_report_when_the_file_is_damaged_then_the_page_says_so_and_it_fails(capture: Path):
    capture.write_bytes(capture.read_bytes()[:-5])
    done = run(capture)
    assert done.exit_code == 1
    assert "all before it was read" in done.stderr
    page = capture.with_name("boot.html").read_text("utf-8")
    assert "all before it was read" in page
    assert "H_NOT_FOUND" in page


def test_report_when_it_is_no_capture_then_no_page_is_made(capture: Path):
    capture.write_text("no capture at all")
    done = run(capture)
    assert isinstance(done.exception, HcalldError)
    assert str(capture) in str(done.exception)
    assert not capture.with_name("boot.html").exists()


def test_report_when_the_page_cannot_be_written_then_it_says_where(capture: Path):
    done = run(capture, "-o", "/nonexistent/page.html")
    assert isinstance(done.exception, ConfigError)
    assert "/nonexistent/page.html: the page cannot be written" in str(done.exception)


def test_report_when_the_page_is_a_device_then_it_goes_there(capture: Path):
    assert run(capture, "-o", "/dev/null").exit_code == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
