# SPDX-License-Identifier: Apache-2.0
"""``hcalld replay``: how it is used, and how it ends."""

from __future__ import annotations

import gzip
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from tests.e2e.daemon import Daemon
from tests.e2e.fakeshim import FakeShim, connect
from tests.e2e.fakeshim import hello as shim_hello
from tests.e2e.patience import patience
from tests.unit.hcalld.replay.peers import GET, Capture, call, greeted, reply, written
from tests.vectors.test_captures import path_of

from hcalld.cli.replay import command
from hcallproto.abi.families import uv
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f

ONE = call(GET, 1, vcpu=0, buffer=0x1000, buffer_size=64)


@pytest.fixture
def short_dir() -> Iterator[pathlib.Path]:
    """For sockets."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="replay-"))
    yield path
    shutil.rmtree(path)


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(command, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def wait_until_listening(process: subprocess.Popen[str]) -> None:
    """The socket's file is there before somebody listens."""
    assert process.stdout is not None
    assert process.stdout.readline().startswith("waiting for a guest at ")


def kept(folder: pathlib.Path, capture: Capture) -> pathlib.Path:
    path = folder / "capture.pcapng"
    path.write_bytes(capture.data)
    return path


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("guest", "--pace", "slow"), "'slow' is no pace"),
        (("guest", "--pace", "-1"), "'-1' is no pace"),
        (("guest", "--pace", "nan"), "'nan' is no pace"),
        (("guest", "--ignore", "timestamps"), "'timestamps' is no field"),
        (("guest", "--instance", "12"), "expected 32 hexadecimal digits"),
        (("guest", "--deadline", "0"), "0.0 is not in the range"),
        (("guest", "--uuid", "7"), "'7' is not a valid UUID"),
        (("machine", "--unknown", "H_NOTHING"), "no return code is called 'H_NOTHING'"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], text: str, tmp_path: pathlib.Path) -> None:
    path = kept(tmp_path, greeted())
    status, _, error = run(*words, "--socket-path", tmp_path / "socket", path)
    assert status == 2
    assert text in error


@pytest.mark.parametrize("side", ["guest", "machine"])
@pytest.mark.parametrize("data", [b"", b"GIF89a" * 100, greeted().data[:300]])
def test_no_capture_is_exit_status_2(side: str, data: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "capture.pcapng"
    path.write_bytes(data)
    status, _, error = run(side, "--socket-path", tmp_path / "socket", path)
    assert status == 2
    assert str(path) in error


def test_nobody_listening_is_exit_status_2(tmp_path: pathlib.Path) -> None:
    path = kept(tmp_path, greeted(ONE, reply(ONE)))
    status, said, error = run("guest", "--socket-path", tmp_path / "socket", path)
    assert status == 2
    assert said == ""
    assert "cannot connect" in error
    assert "hcalld serve" in error


def test_a_secure_vm_is_refused_before_a_guest_boots(tmp_path: pathlib.Path) -> None:
    esm = call(uv.ESM, 1, vcpu=0)
    secure = f.Reply(0, 0, 1, 0, context=2, msr=1 << 22, msr_mask=1 << 22)
    path = kept(tmp_path, greeted(ONE, reply(ONE), esm, secure))
    status, said, error = run("machine", "--socket-path", tmp_path / "socket", path)
    assert status == 2
    assert "became a secure VM" in error
    assert "waiting" not in said


def test_a_live_daemon_answers_as_captured(tmp_path: pathlib.Path, short_dir: pathlib.Path) -> None:
    path = tmp_path / "made.pcapng"
    made, again = tmp_path / "made", tmp_path / "again"
    made.mkdir()
    again.mkdir()
    with Daemon(made, short_dir, ["--memory", "--capture", str(path)], name="made") as daemon:
        shim = FakeShim(connect(daemon.socket))
        shim.negotiate(shim_hello("lpar7"))
        assert shim.call(GET.number, 0x1000, 520).status == 0
        assert shim.call(GET.number, 0x1000, 3).status == H.P2
        shim.close()
    with Daemon(again, short_dir, ["--memory"], name="again") as daemon:
        words = ("guest", "--socket-path", daemon.socket)
        status, said, _ = run(*words, path)
        assert (status, said.splitlines()[-1]) == (
            0,
            "no differences, 2 calls, 0 different by nature, 0 values passed on",
        )
        status, said, _ = run(*words, "--json", "--name", "lpar8", path)
        summary = json.loads(said.splitlines()[-1])
        assert (status, summary["kind"], summary["calls"]) == (0, "summary", 2)
        capture = greeted(ONE, reply(ONE, H.STATE, (), written(0x1000, bytes(64))))
        status, said, _ = run(
            "guest", "--socket-path", daemon.socket, "--json", "--stop", kept(tmp_path, capture)
        )
        told = [json.loads(line) for line in said.splitlines()]
        assert status == 1
        assert told[0]["kind"] == "difference"
        assert [one["kind"] for one in told].count("difference") == 1


def without_end(data: bytes) -> bytes:
    """As a daemon that is killed leaves it: whole blocks, and no end of the connection."""
    while b'"kind":"stop"' in data:
        data = data[: -int.from_bytes(data[-4:], "little")]
    return data


MISSING = "connection 0 of guest 'lpar7': its end is missing: the capture was cut off"


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_capture_of_a_killed_daemon_is_played_to_a_daemon_and_to_the_code(
    tmp_path: pathlib.Path, short_dir: pathlib.Path, is_answered: bool
) -> None:
    path = tmp_path / "made.pcapng"
    made, again = tmp_path / "made", tmp_path / "again"
    made.mkdir()
    again.mkdir()
    with (
        Daemon(made, short_dir, ["--memory", "--capture", str(path)], name="made") as daemon,
        FakeShim(connect(daemon.socket)) as shim,
    ):
        shim.negotiate(shim_hello("lpar7"))
        for _ in range(2):
            assert shim.call(GET.number, 0x1000, 520).status == 0
    cut = without_end(path.read_bytes())
    if not is_answered:
        cut = cut[: -int.from_bytes(cut[-4:], "little")]
    with Daemon(again, short_dir, ["--memory"], name="again") as daemon:
        for words in (("code",), ("guest", "--socket-path", daemon.socket)):
            path.write_bytes(cut)
            status, said, error = run(*words, path)
            assert MISSING in said, words
            assert (status, error) == (0, ""), said
            path.write_bytes(cut[:-5])
            status, said, error = run(*words, path)
            assert "bytes into a block; all before it was read" in said + error
            assert status == 2, words
            assert said.splitlines()[-1].startswith("no differences, ")


def test_what_a_capture_of_version_1_does_not_say_is_told(tmp_path: pathlib.Path) -> None:
    path, note = path_of("debian"), "the capture is of version 1"
    # It did not write it.
    assert b'"version":' not in gzip.decompress(path.read_bytes())[:1000]
    passphrase = tmp_path / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_bytes((path.parent / "passphrase").read_bytes())
    status, said, _ = run("code", "--secrets", f"passphrase-file:{passphrase}", path)
    assert status == 0
    assert said.count(note) == 1
    # Nothing is compared that it could have said.
    status, said, _ = run("code", path)
    assert (status, note in said) == (0, False)


@pytest.mark.parametrize(("cut", "status"), [(0, 0), (5, 2)])
def test_a_capture_of_a_killed_daemon_is_played_to_a_guest(
    tmp_path: pathlib.Path, short_dir: pathlib.Path, cut: int, status: int
) -> None:
    capture = greeted(ONE, reply(ONE), reply(ONE), has_end=False)
    path = tmp_path / "capture.pcapng"
    path.write_bytes(capture.data[: len(capture.data) - cut])
    where = short_dir / "socket"
    words = ["replay", "machine", "--ignore", f"{GET.name}.call", "--socket-path", str(where)]
    with subprocess.Popen(
        [sys.executable, "-m", "hcalld", *words, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until_listening(process)
        with FakeShim(connect(where)) as shim:
            shim.negotiate(shim_hello())
            assert shim.call(GET.number, 0x2000, 64).status == 0
            # It is looked for up to the end.
            assert shim.call(GET.number, 0x2000, 64).status == H.FUNCTION
        said, error = process.communicate(timeout=patience(20))
    assert MISSING in said
    assert ("bytes into a block" in error) == bool(cut)
    assert process.returncode == status


def test_a_guest_is_answered_as_captured(tmp_path: pathlib.Path, short_dir: pathlib.Path) -> None:
    data = bytes(range(44))
    path = kept(tmp_path, greeted(ONE, reply(ONE, 0, (), written(0x1000, data))))
    where = short_dir / "socket"
    words = ["replay", "machine", "--socket-path", str(where), "-"]
    with (
        path.open("rb") as file,
        subprocess.Popen(
            [sys.executable, "-m", "hcalld", *words],
            stdin=file,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        wait_until_listening(process)
        with FakeShim(connect(where)) as shim:
            shim.negotiate(shim_hello())
            assert shim.call(GET.number, 0x2000, 64).status == 0
            assert shim.ram[0x2000:0x202C] == data
            assert shim.call(GET.number, 0x2000, 64).status == H.FUNCTION
        said, _ = process.communicate(timeout=patience(20))
    assert process.returncode == 1
    assert said.splitlines()[-1] == "1 difference, 1 answered, 1 not in the capture, 0 passed over"


def test_it_stays_for_the_next_guest(tmp_path: pathlib.Path, short_dir: pathlib.Path) -> None:
    path = kept(tmp_path, greeted(ONE, reply(ONE)))
    where = short_dir / "socket"
    words = ["replay", "machine", "--stay", "--socket-path", str(where), str(path)]
    with subprocess.Popen(
        [sys.executable, "-m", "hcalld", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until_listening(process)
        for status in (0, H.FUNCTION):
            with FakeShim(connect(where)) as shim:
                shim.negotiate(shim_hello())
                assert shim.call(GET.number, 0x2000, 64).status == status
        process.send_signal(2)
        said, _ = process.communicate(timeout=patience(20))
    assert process.returncode == 1
    assert said.count("the connection has ended") >= 1
    assert not where.exists()


def test_ctrl_c_while_a_guest_is_there_ends_it_with_the_figures(
    tmp_path: pathlib.Path, short_dir: pathlib.Path
) -> None:
    path = kept(tmp_path, greeted(ONE, reply(ONE)))
    where = short_dir / "socket"
    words = ["replay", "machine", "--stay", "--socket-path", str(where), str(path)]
    with subprocess.Popen(
        [sys.executable, "-m", "hcalld", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until_listening(process)
        with FakeShim(connect(where)) as shim:
            shim.negotiate(shim_hello())
            assert shim.call(GET.number, 0x2000, 64).status == 0
            process.send_signal(2)
            said, complaints = process.communicate(timeout=patience(20))
    assert complaints == ""
    assert "no differences, 1 answered, " in said.splitlines()[-1]
    assert process.returncode == 0
