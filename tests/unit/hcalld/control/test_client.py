# SPDX-License-Identifier: Apache-2.0
"""The client of the control socket, against daemons of every kind."""

from __future__ import annotations

import json
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from hcalld.control import client as client_module
from hcalld.control.client import ControlClient, ControlFailure, ask
from hcalld.control.endpoint import Endpoint
from hcalld.control.messages import PROTOCOL, GuestList, Kind, ListGuests, PageOut
from hcalld.core.errors import ConfigError

GREETING = {
    "reply": "greeting",
    "protocol": PROTOCOL,
    "version": "9.9",
    "pid": 1,
    "commands": ["guests"],
}
Serve = Callable[[socket.socket], None]


def line(**members: object) -> bytes:
    return json.dumps(members).encode() + b"\n"


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Iterator[Callable[[Serve], pathlib.Path]]:
    """Starts something that listens; gives where."""
    endpoint = Endpoint(tmp_path / "control")
    threads: list[threading.Thread] = []

    def start(serve: Serve) -> pathlib.Path:
        def run() -> None:
            sock, _ = endpoint.socket.accept()
            with sock:
                sock.settimeout(20)
                try:
                    serve(sock)
                except OSError:
                    return  # the client has had enough

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return endpoint.path

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    endpoint.close()


Daemon = Callable[[Serve], pathlib.Path]


def says(*parts: bytes) -> Serve:
    """A daemon that says something whatever it is asked, and ends."""

    def serve(sock: socket.socket) -> None:
        for number, part in enumerate(parts):
            if number:
                sock.recv(1 << 16)
            sock.sendall(part)

    return serve


def error_of(daemon: Daemon, *parts: bytes) -> str:
    with pytest.raises(ConfigError) as raised:
        ask(daemon(says(*parts)), ListGuests())
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_client_when_a_newer_daemon_says_more_then_it_is_understood(daemon: Daemon):
    greeting = line(**GREETING, mood="good")
    reply = line(reply="guests", guests=[], weather={"is": ["fine"]})
    assert ask(daemon(says(greeting, reply)), ListGuests()) == GuestList(guests=[])


def test_client_when_a_reply_comes_in_pieces_then_it_is_whole(daemon: Daemon):
    def serve(sock: socket.socket) -> None:
        for byte in line(**GREETING):
            sock.sendall(bytes((byte,)))
        sock.recv(1 << 16)
        for byte in line(reply="guests", guests=[]):
            sock.sendall(bytes((byte,)))

    assert ask(daemon(serve), ListGuests()).guests == []


def test_client_when_it_asks_twice_then_both_are_answered(daemon: Daemon):
    reply = line(reply="guests", guests=[])
    with ControlClient(daemon(says(line(**GREETING), reply, reply))) as client:
        assert client.greeting.version == "9.9"
        for _ in range(2):
            assert client.ask(ListGuests()).guests == []


def test_client_when_the_daemon_refuses_then_its_words_are_told(daemon: Daemon):
    failure = line(reply="failure", kind="not-secure", message="it is a normal VM")
    with pytest.raises(ControlFailure, match="it is a normal VM") as raised:
        ask(daemon(says(line(**GREETING), failure)), ListGuests())
    assert raised.value.kind is Kind.NOT_SECURE


def test_client_when_it_is_turned_away_then_it_is_told_why(daemon: Daemon):
    failure = line(reply="failure", kind="too-many-clients", message="try again later")
    with pytest.raises(ControlFailure, match="try again later"):
        ask(daemon(says(failure)), ListGuests())


def test_client_when_the_protocol_is_another_then_it_asks_nothing(daemon: Daemon):
    told = error_of(daemon, line(**{**GREETING, "protocol": PROTOCOL + 1}))
    assert f"(hcalld 9.9) speaks version {PROTOCOL + 1}" in told


def test_client_when_the_daemon_lacks_the_command_then_it_says_so(daemon: Daemon):
    with pytest.raises(ConfigError, match=r"has no command 'page-out'; it has: guests"):
        ask(daemon(says(line(**GREETING))), PageOut(partition="a"))


@pytest.mark.parametrize(
    "greeting",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"{}\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"reply": "greeting", "x": ' + b"[" * 100_000 + b"\n",
        line(reply="guests", guests=[]),
        line(**{**GREETING, "protocol": "1"}),
        line(reply="failure", kind="new kind", message="x"),
    ],
)
def test_client_when_what_answers_is_no_daemon_then_it_says_so(daemon: Daemon, greeting: bytes):
    assert "what answers is no control socket of hcalld" in error_of(daemon, greeting)


@pytest.mark.parametrize("parts", [(b"",), (b'{"reply":',), (line(**GREETING), b"")])
def test_client_when_the_daemon_ends_then_it_says_so(daemon: Daemon, parts: tuple[bytes, ...]):
    assert "the daemon has ended the connection; see its log" in error_of(daemon, *parts)


def test_client_when_no_answer_comes_then_it_gives_up(daemon: Daemon):
    def serve(sock: socket.socket) -> None:
        sock.sendall(line(**GREETING))
        sock.recv(1 << 16)
        sock.recv(1)

    with pytest.raises(ConfigError, match="does not answer"):
        ask(daemon(serve), ListGuests(), seconds=0.05)


def test_client_when_a_reply_does_not_end_then_it_gives_up(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "MAX_REPLY_SIZE", 1 << 20)

    def serve(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"x" * (1 << 16))

    with pytest.raises(ConfigError, match="a reply of more than"):
        ask(daemon(serve), ListGuests())
