# SPDX-License-Identifier: Apache-2.0
"""``hcalld replay code``: how it ends."""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from tests.unit.hcalld.replay.peers import hello
from tests.unit.hcallproto.capture.sample import Capture
from tests.vectors.test_captures import events, path_of

from hcalld.captures.events import Event
from hcalld.cli.replay import command
from hcalld.cli.replay.options import Reporter, Wanted
from hcalld.replay.differences import Difference
from hcallproto.capture import entries as e
from hcallproto.capture.records import Dropped, Start
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

DATA = gzip.decompress(path_of("debian").read_bytes())


def run(data: bytes, tmp_path: pathlib.Path, *options: str) -> Result:
    path = tmp_path / "capture.pcapng"
    path.write_bytes(data)
    return CliRunner().invoke(command, ["code", *options, str(path)])


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


class Changed:
    """A capture's events that are others now."""

    problems = remarks = ()
    says_asked = True

    def __init__(self, found: list[Event]) -> None:
        self._found = found

    def undecoded(self) -> list[Event]:
        """See Events."""
        return self._found


def without_state(found: list[Event]) -> list[Event]:
    """And another guest's connection, of which all is there."""
    lacking = [one._replace(guest="other", connection=99) for one in found]
    return found + [one for one in lacking if not isinstance(one.what, e.State)]


def in_the_middle(found: list[Event]) -> int:
    calls = [n for n, one in enumerate(found) if isinstance(one.what, f.Call)]
    return calls[len(calls) // 2]


def without_frames(found: list[Event]) -> list[Event]:
    place = in_the_middle(found)
    return [*found[:place], found[0]._replace(what=e.Lost(0, 2, 0)), *found[place:]]


def without_the_last_frames(found: list[Event]) -> list[Event]:
    """Nobody knows whether calls are among them."""
    place = in_the_middle(found)
    return [*found[:place], found[0]._replace(what=Dropped(frames=2))]


def without_an_answer_at_the_end(found: list[Event]) -> list[Event]:
    return found[: in_the_middle(found) + 1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without_state, "the capture has no state that the connection began with"),
        (without_frames, "0 of what happened are missing in the capture"),
        (without_the_last_frames, "2 frames and 0 answers are missing in the capture"),
        (without_an_answer_at_the_end, ""),
    ],
)
def test_code_when_something_is_missing_in_front_of_the_end_then_the_status_is_1(
    change: Callable[[list[Event]], list[Event]],
    why: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = Changed(change(list(events("debian", is_open=True))))
    monkeypatch.setattr(Wanted, "events", lambda _: changed)
    done = run(DATA, tmp_path, "--secrets", "passphrase:")
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("no differences, ")
    assert " 0 compared" not in lines[-1]
    found = [line for line in lines if line.startswith("not everything was compared: ")]
    assert [line.partition(": ")[2].startswith(why) for line in found] == [True] * bool(why)
    assert done.exit_code == bool(why), done.output


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("70000", "the profile that the capture tells of guest 'lpar7': "),
        ("'64'", "the profile that the capture tells of guest 'lpar7': "),
        ("-" * 100_000 + "1", "no calls in the capture"),
        ("{{}: 1}", "no calls in the capture"),
    ],
)
def test_code_when_a_profile_is_none_then_it_is_refused_in_words(
    value: str, text: str, tmp_path: pathlib.Path
) -> None:
    capture = Capture()
    capture.guest("lpar7", has_start=False)
    start = Start(program="hcalld 0", partition="lpar7", profile={"keystore_kbytes": value})
    capture.record(start)
    capture.frame(hello())
    features = s.Feature(0)
    capture.frame(f.Welcome(s.VERSION, 1 << 20, features, f.Announcement(), 0))
    done = run(capture.data, tmp_path)
    assert done.exit_code == 2, done.output
    assert text in done.stderr
