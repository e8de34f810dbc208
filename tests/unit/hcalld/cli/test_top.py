# SPDX-License-Identifier: Apache-2.0
"""``hcalld top``: what it shows, on which terminal, and what it does when the daemon goes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Final

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from tests.unit.hcalld.metrics.test_collector import call_stats, guest_stats, stats

from hcalld.cli import cli
from hcalld.cli.top.differences import last_refusals, rows_of
from hcalld.cli.top.view import view
from hcalld.control.endpoint import Endpoint
from hcalld.control.messages import (
    PROTOCOL,
    CallStats,
    CaptureState,
    Fault,
    Greeting,
    GuestStats,
    Pef,
    RefusalStats,
    ShowStats,
    Stats,
    decode_request,
    encode,
)
from hcalld.core.errors import ConfigError
from hcalld.core.histogram import Histogram
from hcalld.faults.rules import Rule

WAIT_SECONDS: Final = 60


# -- differences --------------------------------------------------------------------------------


def calls(name: str, times_ns: list[int], **codes: int) -> CallStats:
    latency = Histogram()
    for time_ns in times_ns:
        latency.add(time_ns)
    return CallStats(
        call=name,
        codes=codes,
        p50_ns=0,
        p90_ns=0,
        p99_ns=0,
        max_ns=latency.largest,
        total_ns=latency.total,
        latency=latency.pairs(),
    )


def test_rates_when_earlier_numbers_are_known_then_they_are_of_the_time_between():
    before = stats(guest_stats("a", calls("X", [100_000] * 10)), uptime_ns=10**9)
    now = stats(guest_stats("a", calls("X", [100_000] * 10 + [2_000_000] * 5)), uptime_ns=3 * 10**9)
    (row,) = rows_of(now, before)
    assert row.traffic.count == 15
    assert row.traffic.per_second == 2.5
    assert row.traffic.latency.percentile(1) == pytest.approx(2_000_000, rel=1 / 32)
    assert row.calls[0].traffic.per_second == 2.5


def test_rates_when_nothing_is_known_of_earlier_then_there_are_none():
    now = stats(guest_stats("a", calls("X", [100_000, 1])))
    restarted = stats(guest_stats("a", calls("X", [100_000] * 9)), uptime_ns=10**15)
    for before in (None, restarted, now):
        (row,) = rows_of(now, before)
        assert row.traffic.per_second is None
        assert row.traffic.latency.count == 2


def test_rates_when_a_guest_or_call_is_new_then_all_of_it_is_new():
    before = stats(guest_stats("a", calls("X", [1])), uptime_ns=0)
    now = stats(
        guest_stats("a", calls("X", [1]), calls("Y", [1] * 4)),
        guest_stats("b", calls("X", [1] * 6)),
        uptime_ns=2 * 10**9,
    )
    rates = {
        (row.stats.partition, call.stats.call): call.traffic.per_second
        for row in rows_of(now, before)
        for call in row.calls
    }
    assert rates == {("a", "X"): 0, ("a", "Y"): 2, ("b", "X"): 3}


def refusal(time_ns: int, reason: str = "why") -> RefusalStats:
    return RefusalStats(
        time_ns=time_ns, vcpu=3, call="H_PKS_READ_OBJECT", code="H_NOT_FOUND", reason=reason
    )


def with_refusals(guest: GuestStats, *refusals: RefusalStats) -> GuestStats:
    import msgspec

    return msgspec.structs.replace(guest, refusals=list(refusals))


def test_refusals_when_guests_have_some_then_the_newest_of_all_come_first():
    now = stats(
        with_refusals(guest_stats("a"), refusal(1), refusal(4)),
        with_refusals(guest_stats("b"), refusal(2), refusal(3)),
    )
    found = [(partition, one.time_ns) for partition, one in last_refusals(now, 3)]
    assert found == [("a", 4), ("b", 3), ("b", 2)]


# -- what is shown ------------------------------------------------------------------------------


def shown(now: Stats, before: Stats | None = None, note: str = "", rows: int | None = None) -> str:
    console = Console(width=250, no_color=True)
    with console.capture() as capture:
        console.print(view(now, before, note, rows=rows))
    return capture.get()


def row(text: str, *begin: str) -> list[str]:
    """The cells of the row that begins with these."""
    (found,) = [
        cells for line in text.splitlines() if (cells := line.split())[: len(begin)] == [*begin]
    ]
    return found


def test_view_when_there_is_no_guest_then_it_says_so():
    text = shown(stats(uptime_ns=3_725 * 10**9))
    assert "up 1:02:05" in text
    assert "no guest has come yet" in text


def test_view_when_guests_are_there_then_each_has_its_row():
    text = shown(
        stats(
            guest_stats(
                "lpar7", call_stats("H_PKS_READ_OBJECT", H_SUCCESS=4, H_NOT_FOUND=1), state="secure"
            ),
            guest_stats("lpar8", state="none"),
            guest_stats("lpar9"),
        )
    )
    assert row(text, "lpar7", "4") == [
        *(
            "lpar7",
            "4",
            "5",
            "-",
            "39us",
            "88.05s",
            "1",
            "3",
            "100/65536",
            "open",
            "secure",
            "7/2/1",
        )
    ]
    assert row(text, "lpar8")[-2:] == ["normal", "-"]
    assert row(text, "lpar9")[-2:] == ["gone", "-"]
    assert row(text, "lpar7", "H_PKS_READ_OBJECT")[-4:] == ["H_SUCCESS", "4,", "H_NOT_FOUND", "1"]


def test_view_when_the_terminal_is_narrow_then_what_is_shown_is_whole():
    calls_ = call_stats("H_PKS_CONFIRM_OBJECT_FLUSHED", H_SUCCESS=123456)
    now = stats(guest_stats("lpar7", calls_, state="secure"))
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(view(now, None, is_narrow=True))
    text = capture.get()
    assert row(text, "lpar7", "5")[-3:] == ["100/65536", "secure", "7/2/1"]
    assert row(text, "lpar7", "H_PKS_CONFIRM_OBJECT_FLUSHED")[2:5] == ["5", "-", "39us"]


def test_view_when_calls_came_lately_then_the_busiest_are_first():
    before = stats(guest_stats("a", calls("BUSY", []), calls("IDLE", [1] * 99)), uptime_ns=0)
    now = stats(guest_stats("a", calls("BUSY", [1] * 5), calls("IDLE", [1] * 99)), uptime_ns=10**9)
    text = shown(now, before)
    assert text.index("BUSY") < text.index("IDLE")
    assert row(text, "a", "BUSY")[3] == "5.0"
    assert row(text, "a", "IDLE")[3:7] == ["0.0", "-", "-", "-"]


def test_view_when_there_is_no_room_then_it_says_how_much_is_left_out():
    now = stats(guest_stats("a", *(calls(f"C{number}", [1]) for number in range(9))))
    text = shown(now, rows=5)
    assert "and 4 calls more" in text
    assert len(re.findall(r"\bC\d\b", text)) == 5


def test_view_when_something_was_refused_then_it_says_why():
    text = shown(stats(with_refusals(guest_stats("a"), refusal(0, "no object has this label"))))
    assert "H_NOT_FOUND  no object has this label" in text


def test_view_when_rules_are_in_force_then_they_are_told():
    rule = Rule(call="H_PKS_GET_CONFIG", returns="H_BUSY")
    text = shown(
        stats(guest_stats("a"), faults=[Fault(number=3, rule=rule, matched=9, met=4, spent=False)])
    )
    assert rule.describe() in text
    assert row(text, "3")[-2:] == ["9", "4"]


def test_view_when_a_capture_drops_frames_then_that_is_told():
    text = shown(stats(capture=CaptureState(path="/x/y", frames=9, dropped=2)))
    assert "capture /x/y: 9 frames, 2 DROPPED" in text


@pytest.mark.parametrize("name", ["[red]lpar7[/red]", "\x1b[2Jlpar7", "a\nlpar7"])
def test_view_when_a_name_is_hostile_then_it_is_shown_and_not_obeyed(name: str):
    hostile = with_refusals(guest_stats(name, calls(name, [1]), state="none"), refusal(1, name))
    text = shown(stats(hostile), note=name)
    assert "\x1b[2J" not in text
    assert not any(line.startswith("lpar7") for line in text.splitlines())
    if "red" in name:
        assert name in text


def test_view_when_a_guest_cannot_be_told_of_then_its_state_is_not_known():
    import msgspec

    guest = guest_stats("a", state="none")
    assert guest.guest is not None
    broken = msgspec.structs.replace(guest.guest, pef=Pef(state="none"), problem="damaged")
    text = shown(stats(msgspec.structs.replace(guest, guest=broken)))
    assert row(text, "a")[-2:] == ["?", "-"]


# -- the command --------------------------------------------------------------------------------


class FakeDaemon:
    """A control socket that tells made-up numbers."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.asked = 0
        self._endpoint: Endpoint | None = None
        self._clients: list[socket.socket] = []

    def start(self) -> None:
        self._endpoint = Endpoint(self.path)
        threading.Thread(target=self._accept, args=(self._endpoint.socket,), daemon=True).start()

    def stop(self) -> None:
        if self._endpoint is not None:
            self._endpoint.socket.shutdown(socket.SHUT_RDWR)
            self._endpoint.close()
            self._endpoint = None
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, client.makefile("rb") as lines:
            client.sendall(
                encode(Greeting(protocol=PROTOCOL, version="0", pid=1, commands=["stats"]))
            )
            for line in lines:
                assert decode_request(line.rstrip(b"\n")) == ShowStats()
                self.asked += 1
                client.sendall(encode(self.numbers()))

    def numbers(self) -> Stats:
        done = calls("H_PKS_GET_CONFIG", [60_000] * (100 * self.asked), H_SUCCESS=100 * self.asked)
        return stats(guest_stats("lpar7", done, state="none"), uptime_ns=self.asked * 10**9)


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "control")
    daemon.start()
    yield daemon
    daemon.stop()


def run(daemon: FakeDaemon, *words: str) -> Result:
    return CliRunner().invoke(cli, ["top", "--control", str(daemon.path), *words])


def test_top_when_it_is_asked_once_then_it_prints_the_totals(daemon: FakeDaemon):
    done = run(daemon, "--once")
    assert done.exit_code == 0
    assert row(done.stdout, "lpar7", "H_PKS_GET_CONFIG")[:4] == [
        "lpar7",
        "H_PKS_GET_CONFIG",
        "100",
        "-",
    ]
    assert "\x1b" not in done.stdout
    assert daemon.asked == 1


def test_top_when_json_is_asked_for_then_it_is_what_the_daemon_said(daemon: FakeDaemon):
    done = run(daemon, "--once", "--json")
    (guest,) = json.loads(done.stdout)["guests"]
    assert guest["calls"][0]["codes"] == {"H_SUCCESS": 100}


@pytest.mark.parametrize("words", [(), ("--once",)])
def test_top_when_there_is_no_daemon_then_it_fails(tmp_path: pathlib.Path, words: tuple[str, ...]):
    done = run(FakeDaemon(tmp_path / "nothing"), *words)
    assert isinstance(done.exception, ConfigError)
    assert "no daemon answers" in str(done.exception)


class Terminal:
    """``hcalld top`` on a terminal."""

    def __init__(self, daemon: FakeDaemon, term: str, *words: str) -> None:
        self.fd, other = pty.openpty()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hcalld", "top", "--control", daemon.path),
                *("--interval", "0.1", *words),
            ],
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, "TERM": term, "LINES": "40", "COLUMNS": "200"},
            start_new_session=True,
        )
        os.close(other)
        self.text = ""
        self._timer = threading.Timer(WAIT_SECONDS, self.process.kill)
        self._timer.start()

    def until(self, pattern: str) -> None:
        while not re.search(pattern, self.text):
            try:
                chunk = os.read(self.fd, 1 << 16)
            except OSError:  # it has ended
                chunk = b""
            assert chunk, self.text
            self.text += chunk.decode()

    def press(self, key: str) -> None:
        os.write(self.fd, key.encode())

    def close(self) -> int:
        threading.Thread(target=self._drain, daemon=True).start()
        status = self.process.wait(WAIT_SECONDS)
        self._timer.cancel()
        return status

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self.fd, 1 << 16):
                pass


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_top_when_the_daemon_goes_and_comes_then_it_says_so_and_goes_on(
    daemon: FakeDaemon, term: str
):
    terminal = Terminal(daemon, term)
    terminal.until(r"H_PKS_GET_CONFIG +\d+ +100 ")
    daemon.stop()
    terminal.until("the daemon is gone; trying again")
    terminal.text = ""
    daemon.start()
    terminal.until(r"H_PKS_GET_CONFIG +\d+ +100 ")
    assert ("\x1b[" in terminal.text) == (term == "xterm")
    terminal.press("x")
    terminal.press("q")
    assert terminal.close() == 0


def test_top_when_it_is_interrupted_then_it_ends_well(daemon: FakeDaemon):
    terminal = Terminal(daemon, "xterm")
    terminal.until("H_PKS_GET_CONFIG")
    terminal.process.send_signal(2)
    assert terminal.close() == 0


def test_top_when_json_goes_on_then_each_line_is_one_answer(daemon: FakeDaemon):
    terminal = Terminal(daemon, "xterm", "--json")
    terminal.until(r"(?s)\}\r?\n.*\}\r?\n")
    first, second, *_ = terminal.text.splitlines()
    assert json.loads(first)["uptime_ns"] < json.loads(second)["uptime_ns"]
    terminal.press("q")
    assert terminal.close() == 0
