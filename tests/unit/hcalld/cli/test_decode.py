# SPDX-License-Identifier: Apache-2.0
"""``hcalld decode``: what a capture's calls look like."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.hcalld.cli.process import running
from tests.unit.hcallproto.capture.sample import read_of_db

from hcalld.cli import capturefiles
from hcalld.cli.capturefiles import Progress, chunks
from hcalld.cli.decode import command
from hcalld.core.answered import Answered
from hcalld.core.errors import HcalldError
from hcalld.core.outcome import Outcome
from hcalld.observe.trace import Trace
from hcallproto.abi.returns import H
from hcallproto.capture.reading import CaptureReader, exchanges


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
        (("--vcpu", "3"), 2),
        (("--vcpu", "0", "--vcpu", "1"), 0),
        (("--refused",), 1),
        (("--call", "pks"), 2),
        (("--call", "uv"), 0),
        (("--call", "0x434"), 2),
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


def test_decode_of_a_compressed_capture_is_the_same():
    assert run(data=gzip.compress(read_of_db().data)).stdout == run().stdout


def test_decode_of_a_file_whose_times_are_out_of_any_calendar_works():
    data = read_of_db().data.replace(b"\x09\x00\x01\x00\x09", b"\x09\x00\x01\x00\x00")
    done = run(data=data)
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 2)


def test_decode_says_the_same_as_the_trace_of_a_daemon():
    """One renderer: without the time it is the line that ``serve --trace`` writes."""
    stream = io.StringIO()
    (entry, exchange), _ = exchanges(CaptureReader([read_of_db().data]))
    assert exchange.reply is not None
    Trace(stream)(
        Answered(
            partition=entry.guest,
            hcall=exchange.hcall,
            frame=exchange.call,
            outcome=Outcome(H(exchange.reply.status), why=exchange.reason),
            notes=(),
            duration_ns=exchange.end_ns - exchange.start_ns,
            buffers=exchange.buffers,
        )
    )
    first = run().stdout.splitlines()[0]
    assert first.partition(" ")[2] == stream.getvalue().removesuffix("\n")


# -- files that grow ------------------------------------------------------------------------


class Growing(io.BytesIO):
    """A file that another process writes."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__()
        self._pieces = list(pieces)

    def read1(self, size: int | None = -1, /) -> bytes:
        if not self._pieces:
            raise KeyboardInterrupt
        return self._pieces.pop(0)


def test_chunks_when_a_file_is_followed_then_its_end_is_waited_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(capturefiles, "FOLLOW_SECONDS", 0)
    waits: list[None] = []
    file = Growing(b"ab", b"", b"", b"c")
    found = list(chunks(file, is_followed=True, before_wait=lambda: waits.append(None)))
    assert found == [b"ab", b"c"]
    assert len(waits) == 5
    assert list(chunks(Growing(b"ab", b"", b"c"))) == [b"ab"]


@pytest.mark.parametrize("options", [(), ("--follow",)])
def test_decode_of_a_pipe_prints_each_call_as_soon_as_it_is_there(options: tuple[str, ...]):
    data = read_of_db().data
    end = list(CaptureReader([data]))[-1].offset
    with running("decode", *options, "-") as (process, stdin, stdout):
        stdin.write(data[:end])
        stdin.flush()
        assert b"H_NOT_FOUND" in stdout.readline()
        stdin.write(data[end:])
        stdin.flush()
        assert b"H_SUCCESS" in stdout.readline()
        if options:
            process.send_signal(signal.SIGINT)
        else:
            stdin.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_decode_when_nobody_reads_its_output_then_it_ends_without_a_word(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    path.write_bytes(read_of_db().data * 2000)
    with running("decode", str(path)) as (process, _, stdout):
        stdout.readline()
        stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_decode_of_a_directory_says_what_is_wrong(tmp_path: Path):
    done = CliRunner().invoke(command, [str(tmp_path)])
    assert done.exit_code in (1, 2)
    assert "s a directory" in done.stderr + str(done.exception)


def test_progress_is_shown_on_a_terminal_that_shows_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    path = tmp_path / "a.pcapng"
    path.write_bytes(bytes(100))
    monkeypatch.setattr(capturefiles, "PROGRESS_SECONDS", 0)
    for is_terminal in (True, False):
        stderr = Terminal() if is_terminal else io.StringIO()
        monkeypatch.setattr("sys.stderr", stderr)
        monkeypatch.setattr("sys.stdout", io.StringIO())
        with path.open("rb") as file:
            progress = Progress(file, "a.pcapng")
            file.read(25)
            progress.show()
            progress.end()
        shown = "\ra.pcapng: 25 %\x1b[K\r\x1b[K" if is_terminal else ""
        assert stderr.getvalue() == shown
    assert not Progress(io.BytesIO(), "-")._is_wanted


def test_decode_tells_of_guests_that_the_capture_does_not_have():
    done = run("--guest", "lpar9", "--guest", "lpar8")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 1
    assert (
        done.stderr
        == "hcalld: standard input: no calls of a guest 'lpar9'; there are: 'lpar7', 'lpar8'\n"
    )
    assert run("--guest", "lpar8").stderr == ""


def test_decode_when_its_output_is_full_then_it_says_so_in_one_line(tmp_path: Path):
    path = tmp_path / "a.pcapng"
    path.write_bytes(read_of_db().data)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hcalld", "decode", str(path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "hcalld: the output cannot be written: No space left on device; "
        "make room, or write elsewhere\n"
    )
