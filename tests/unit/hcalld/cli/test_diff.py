# SPDX-License-Identifier: Apache-2.0
"""``hcalld diff``: two captures."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.unit.hcallproto.capture.sample import Capture, call, read_of_db

from hcalld.captures import bycaller
from hcalld.cli.diff import command
from hcallproto.abi.families import pks
from hcallproto.wire import frames as f


def one_guest(name: str, *statuses: int, vcpu: int = 3) -> bytes:
    capture = Capture()
    capture.guest(name)
    for seq, status in enumerate(statuses, 1):
        capture.frame(call(pks.GET_CONFIG, seq, vcpu=vcpu, buffer_size=seq), name)
        capture.frame(f.Reply(vcpu, 0, seq, status), name, "because")
    return capture.data


def run(folder: Path, left: bytes, right: bytes, *words: str) -> Result:
    paths = folder / "left.pcapng", folder / "right.pcapng"
    for path, data in zip(paths, (left, right), strict=True):
        path.write_bytes(data)
    return CliRunner().invoke(command, [*words, *map(str, paths)])


def test_the_same_captures_do_not_differ(tmp_path: Path):
    done = run(tmp_path, read_of_db().data, read_of_db().data)
    assert (done.exit_code, done.stdout) == (0, "no differences\n")


def test_a_pipe_is_read_once(tmp_path: Path):
    path = tmp_path / "left.pcapng"
    path.write_bytes(read_of_db().data)
    reading, writing = os.pipe()
    os.write(writing, read_of_db().data)
    os.close(writing)
    done = CliRunner().invoke(command, [str(path), f"/dev/fd/{reading}"])
    os.close(reading)
    assert (done.exit_code, done.stdout) == (0, "no differences\n")


def many_cpus(*, count: int, odd: int) -> bytes:
    """Calls by turns; one of one virtual CPU is answered otherwise."""
    capture = Capture()
    capture.guest("a")
    for seq in range(1, 21):
        for vcpu in range(count):
            status = -75 if (vcpu, seq) == (odd, 13) else 0
            capture.frame(call(pks.GET_CONFIG, seq, vcpu=vcpu, buffer_size=seq), "a")
            capture.frame(f.Reply(vcpu, 0, seq, status), "a")
    return capture.data


@pytest.mark.parametrize("waiting", [bycaller.MAX_WAITING_BYTES, 5000])
def test_each_file_is_read_once_however_many_virtual_cpus_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
):
    opened: list[str] = []

    def counted(path: Path, *args: Any) -> Any:
        opened.append(path.name)
        return opened_by(path, *args)

    opened_by = Path.open
    left, right = many_cpus(count=16, odd=99), many_cpus(count=16, odd=5)
    monkeypatch.setattr(bycaller, "MAX_WAITING_BYTES", waiting)
    for path, data in (("left.pcapng", left), ("right.pcapng", right)):
        (tmp_path / path).write_bytes(data)
    monkeypatch.setattr(Path, "open", counted)
    words = [str(tmp_path / "left.pcapng"), str(tmp_path / "right.pcapng")]
    done = CliRunner().invoke(command, words)
    assert opened == ["left.pcapng", "right.pcapng"]
    shown, change, count = done.stdout.splitlines()
    assert " a cpu5 #13 H_PKS_GET_CONFIG(" in shown
    assert change == "    status: H_SUCCESS -> H_STATE"
    assert count == "1 call differs"


def test_too_many_callers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bycaller, "MAX_CALLERS", 3)
    three = many_cpus(count=3, odd=9)
    assert run(tmp_path, three, three).exit_code == 0
    done = run(tmp_path, three, many_cpus(count=4, odd=9))
    assert done.exit_code == 2
    assert "right.pcapng: more than 3 virtual CPUs" in done.stderr


def test_no_room_for_calls_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bycaller, "MAX_WAITING_BYTES", 5000)
    full = io.BufferedRandom(io.FileIO("/dev/full", "r+"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    three = many_cpus(count=3, odd=9)
    done = run(tmp_path, three, three)
    assert done.exit_code == 2
    assert "set TMPDIR" in done.stderr


def test_a_reply_that_differs_is_shown_with_its_call(tmp_path: Path):
    done = run(tmp_path, one_guest("lpar7", 0, 0), one_guest("other", 0, -75))
    assert done.exit_code == 1
    shown, change, count = done.stdout.splitlines()
    assert " lpar7 cpu3 #2 H_PKS_GET_CONFIG(" in shown
    assert change == "    status: H_SUCCESS -> H_STATE"
    assert count == "1 call differs"


def test_calls_of_one_side_alone_are_marked(tmp_path: Path):
    done = run(tmp_path, one_guest("a", 0, 0, 0), one_guest("a", 0))
    assert [line[:2] for line in done.stdout.splitlines()] == ["- ", "- ", "2 "]
    done = run(tmp_path, one_guest("a", 0), one_guest("a", 0, 0), "--first")
    assert [line[:2] for line in done.stdout.splitlines()] == ["+ "]
    assert done.exit_code == 1


def test_fields_may_be_ignored(tmp_path: Path):
    done = run(tmp_path, one_guest("a", 0), one_guest("a", -75), "--ignore", "status")
    assert done.exit_code == 0
    left, right = one_guest("a", 0), one_guest("a", -75)
    for word, status in (
        ("H_PKS_GET_CONFIG.status", 0),
        ("H_PKS_WRAP_OBJECT.status", 1),
        ("buffer_size", 1),
        ("h_pks_get_config.buffer_size", 1),
    ):
        assert run(tmp_path, left, right, "--ignore", word).exit_code == status
    shorter = one_guest("a", -75, -75)
    assert run(tmp_path, one_guest("a", -75), shorter, "--ignore", "buffer_size").exit_code == 1
    done = run(tmp_path, left, right, "--ignore", "nonsense")
    assert done.exit_code == 2
    assert "'nonsense' is no field" in done.stderr


def test_other_vcpus_and_guests_differ(tmp_path: Path):
    done = run(tmp_path, one_guest("a", 0), one_guest("a", 0, vcpu=4))
    assert [line[:2] for line in done.stdout.splitlines()] == ["- ", "+ ", "2 "]
    assert run(tmp_path, read_of_db().data, one_guest("lpar7", 0)).exit_code == 1


@pytest.mark.parametrize("data", [b"no capture", read_of_db().data[:-5]])
def test_what_cannot_be_read_whole_is_not_compared(tmp_path: Path, data: bytes):
    done = run(tmp_path, read_of_db().data, data)
    assert done.exit_code == 2
    assert "right.pcapng: at byte " in done.stderr
