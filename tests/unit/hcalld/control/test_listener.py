# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of the control socket, against clients of every kind."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import pytest
import trio
import trio.testing
from tests.unit.hcalld.control.conftest import Client, Control, Logs

from hcalld.control import listener as listener_module
from hcalld.control.listener import Refusal
from hcalld.control.messages import (
    BY_NAME,
    MAX_REQUEST_SIZE,
    PROTOCOL,
    GuestList,
    Kind,
    ListGuests,
    PagedOut,
    PageOut,
    Pef,
)
from hcalld.core.errors import StoreError
from hcalld.runtime import transport

GUESTS = b'{"command":"guests"}\n'
BIG = 4 << 20


class Commands:
    """Stands in for the daemon's."""

    def __init__(self) -> None:
        self.asked: list[PageOut] = []
        self.cancelled = trio.Event()
        self.waiting = trio.Event()
        self.go_on = trio.Event()
        self.name = "x"

    async def guests(self, request: ListGuests) -> GuestList:
        return GuestList(guests=[])

    async def page_out(self, request: PageOut) -> PagedOut:
        self.asked.append(request)
        match request.partition:
            case "refused":
                raise Refusal(Kind.NOT_SECURE, "it is not secure")
            case "store":
                raise StoreError("the store is damaged")
            case "bug":
                raise ZeroDivisionError("a secret detail")
            case "unsendable":
                self.name = "\ud800"
            case "big":
                self.name = "x" * BIG
            case "wait":
                self.waiting.set()
                try:
                    await self.go_on.wait()
                except trio.Cancelled:
                    self.cancelled.set()
                    raise
        return PagedOut(partition=self.name, wanted=0, went=0, pef=Pef(state="normal"))

    @property
    def functions(self) -> dict[Any, Any]:
        return {ListGuests: self.guests, PageOut: self.page_out}


@pytest.fixture
def commands(control: Control) -> Commands:
    """The commands of a control socket that is there."""
    commands = Commands()
    control.start(commands.functions)
    return commands


async def is_served(control: Control) -> None:
    """Another client gets its reply."""
    client = await control.client()
    assert (await client.ask(command="guests"))["reply"] == "guests"
    await client.close()


# -- the protocol -----------------------------------------------------------------------------


async def test_client_when_it_connects_then_it_is_greeted(control: Control, commands: Commands):
    greeting = await control.new().line()
    assert greeting is not None
    assert set(greeting) == {"reply", "protocol", "version", "pid", "commands"}
    assert greeting["protocol"] == PROTOCOL
    assert greeting["pid"] == os.getpid()
    assert greeting["commands"] == sorted(BY_NAME)


async def test_client_when_it_asks_then_each_request_gets_one_reply(
    control: Control, commands: Commands
):
    client = await control.client()
    for pages in range(1, 4):
        reply = await client.ask(command="page-out", partition="a", pages=pages)
        assert reply["reply"] == "paged-out"
        assert reply["pef"]["state"] == "normal"
    assert [request.pages for request in commands.asked] == [1, 2, 3]


async def test_client_when_it_sends_many_requests_at_once_then_replies_come_in_order(
    control: Control, commands: Commands
):
    client = await control.client()
    lines = [
        json.dumps({"command": "page-out", "partition": "a", "pages": n}).encode() + b"\n"
        for n in range(1, 101)
    ]
    await client.send(b"".join(lines))
    for _ in lines:
        reply = await client.line()
        assert reply is not None
        assert reply["reply"] == "paged-out"
    assert [request.pages for request in commands.asked] == list(range(1, 101))


async def test_client_when_a_line_comes_in_pieces_then_it_is_one_request(
    control: Control, commands: Commands
):
    client = await control.client()
    for byte in GUESTS:
        await client.send(bytes((byte,)))
        await trio.testing.wait_all_tasks_blocked()
    reply = await client.line()
    assert reply == {"reply": "guests", "guests": []}


async def test_client_when_it_has_only_stopped_asking_then_it_gets_its_reply(
    control: Control, commands: Commands
):
    """As ``nc -N`` and ``socat`` do."""
    client = await control.client()
    await client.send(b'{"command":"page-out","partition":"wait"}\n')
    await commands.waiting.wait()
    client.sock.shutdown(socket.SHUT_WR)
    await trio.testing.wait_all_tasks_blocked()
    commands.go_on.set()
    reply = await client.line()
    assert reply is not None
    assert reply["reply"] == "paged-out"
    assert await client.line() is None


# -- what goes wrong in a command -------------------------------------------------------------


@pytest.mark.parametrize(
    ("partition", "kind", "message"),
    [
        ("refused", "not-secure", "it is not secure"),
        ("store", "failed", "the store is damaged"),
        ("bug", "internal", "internal error, see hcalld's log"),
        ("unsendable", "internal", "internal error, see hcalld's log"),
    ],
)
async def test_command_when_it_fails_then_that_is_its_reply_and_the_next_is_answered(
    control: Control, commands: Commands, logs: Logs, partition: str, kind: str, message: str
):
    client = await control.client()
    reply = await client.ask(command="page-out", partition=partition)
    assert reply == {"reply": "failure", "kind": kind, "message": message}
    assert (await client.ask(command="guests"))["reply"] == "guests"
    bugs = [entry for entry in logs if entry["event"] == "bug in a control command"]
    assert bool(bugs) is (kind == "internal")


async def test_command_when_its_client_is_gone_then_it_is_cancelled(
    control: Control, commands: Commands
):
    client = await control.client()
    await client.send(b'{"command":"page-out","partition":"wait"}\n')
    await commands.waiting.wait()
    await client.close()
    with trio.fail_after(20):
        await commands.cancelled.wait()
    await control.until(0)


async def test_command_when_its_client_asks_on_then_it_is_not_cancelled(
    control: Control, commands: Commands
):
    client = await control.client()
    await client.send(b'{"command":"page-out","partition":"wait"}\n' + GUESTS)
    await commands.waiting.wait()
    await is_served(control)
    commands.go_on.set()
    replies = [await client.line() for _ in range(2)]
    assert [reply and reply["reply"] for reply in replies] == ["paged-out", "guests"]
    assert not commands.cancelled.is_set()


# -- what is no request -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"\n", "malformed"),
        (b"garbage\n", "malformed"),
        (b"\x00\xff\xfe\n", "malformed"),
        (b"GET / HTTP/1.1\r\n", "malformed"),
        (b'{"command":"page-out","partition":7}\n', "malformed"),
        (b'{"command":"reboot"}\n', "unknown-command"),
        (b"[" * (MAX_REQUEST_SIZE - 1) + b"\n", "malformed"),
    ],
)
async def test_line_when_it_is_no_request_then_the_next_one_is_answered(
    control: Control, commands: Commands, line: bytes, kind: str
):
    client = await control.client()
    await client.send(line)
    reply = await client.line()
    assert reply is not None
    assert (reply["reply"], reply["kind"]) == ("failure", kind)
    assert (await client.ask(command="guests"))["reply"] == "guests"


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("size", [MAX_REQUEST_SIZE, 50 * MAX_REQUEST_SIZE])
async def test_line_when_it_is_too_long_then_the_client_is_told_and_ended(
    control: Control, commands: Commands, size: int, end: bytes
):
    client = await control.client()
    try:
        with trio.fail_after(20):
            await client.send(b'"' + b"a" * (size - 1) + end)
    except trio.BrokenResourceError:
        assert size > MAX_REQUEST_SIZE
    reply = await client.line()
    assert reply is not None
    assert reply["kind"] == "too-long"
    assert str(MAX_REQUEST_SIZE) in reply["message"]
    assert await client.line() is None
    await control.until(0)


async def test_line_when_it_is_as_long_as_may_be_then_it_is_read(
    control: Control, commands: Commands
):
    client = await control.client()
    await client.send(GUESTS.rstrip().ljust(MAX_REQUEST_SIZE - 1) + b"\n")
    reply = await client.line()
    assert reply is not None
    assert reply["reply"] == "guests"


@pytest.mark.parametrize("line", [b"", GUESTS[:-1], b"garbage"])
async def test_client_when_it_ends_within_a_line_then_nothing_is_carried_out(
    control: Control, commands: Commands, line: bytes
):
    client = await control.client()
    await client.send(line)
    client.sock.shutdown(socket.SHUT_WR)
    assert await client.line() is None
    await control.until(0)


async def test_client_when_it_passes_descriptors_then_none_stays_open(
    control: Control, commands: Commands
):
    client = await control.client()
    before = len(os.listdir("/proc/self/fd"))
    reading, writing = os.pipe()
    socket.send_fds(client.sock, [GUESTS], [writing] * 100)
    os.close(writing)
    reply = await client.line()
    assert reply is not None
    # End of file: nobody else has the other end.
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert len(os.listdir("/proc/self/fd")) == before


# -- slow, dead and many ---------------------------------------------------------------------


def bounded(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes patience short."""
    monkeypatch.setattr(listener_module, name, 0.05)


async def test_client_when_it_never_reads_then_others_are_served_and_it_is_ended(
    control: Control, commands: Commands, monkeypatch: pytest.MonkeyPatch
):
    client = await control.client()
    await client.send(b'{"command":"page-out","partition":"big"}\n')
    await trio.testing.wait_all_tasks_blocked()
    assert commands.asked
    await is_served(control)
    await control.until(1)
    bounded(monkeypatch, "READ_SECONDS")
    slow = await control.client()
    await slow.send(b'{"command":"page-out","partition":"big"}\n')
    await control.until(1)
    await is_served(control)


async def test_client_when_it_asks_and_never_reads_then_it_is_not_read_from(
    control: Control, commands: Commands
):
    """What it asked for must not pile up in the daemon."""
    client = control.new()
    with trio.move_on_after(1):
        while True:
            await client.send(GUESTS * 100)
    await is_served(control)


async def test_client_when_it_says_nothing_then_it_is_ended(
    control: Control, commands: Commands, monkeypatch: pytest.MonkeyPatch
):
    bounded(monkeypatch, "IDLE_SECONDS")
    client = await control.client()
    assert await client.line() is None
    half = await control.client()
    await half.send(b'{"command":')
    assert await half.line() is None
    await control.until(0)


async def test_client_when_it_drips_then_its_time_is_up_all_the_same(
    control: Control, commands: Commands, monkeypatch: pytest.MonkeyPatch
):
    bounded(monkeypatch, "IDLE_SECONDS")
    client = await control.client()
    with trio.fail_after(20):
        try:
            while True:
                await client.send(b" ")
                await trio.sleep(0.01)
        except trio.BrokenResourceError:
            pass
    await control.until(0)


async def test_clients_when_there_are_a_hundred_then_the_bound_holds_and_places_are_given_back(
    control: Control,
):
    commands = Commands()
    control.start(commands.functions, max_clients=8)
    clients = [control.new() for _ in range(100)]
    first = [await client.line() for client in clients]
    kinds = [line and line.get("kind", line["reply"]) for line in first]
    assert kinds.count("greeting") == 8
    assert kinds.count("too-many-clients") == 92
    assert "at most 8" in next(line["message"] for line in first if line and "message" in line)
    for client in clients:
        await client.close()
    await control.until(0)
    await is_served(control)


async def test_clients_when_a_hundred_come_one_after_the_other_then_each_is_answered(
    control: Control, commands: Commands
):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        await is_served(control)
    await control.until(0)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_clients_when_they_vanish_at_once_then_nothing_is_left(
    control: Control, commands: Commands
):
    for _ in range(50):
        await control.new().close()
    await control.until(0)
    await is_served(control)


async def test_guests_when_clients_ask_all_the_time_then_they_get_their_turns(
    control: Control, commands: Commands
):
    """Between any two requests of one client every other task runs."""
    turns = 0

    async def guest() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    client = await control.client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest)
        await client.send(GUESTS * 200)
        for _ in range(200):
            await client.line()
        nursery.cancel_scope.cancel()
    assert turns >= 200


# -- who ---------------------------------------------------------------------------------------


async def test_client_when_its_uid_is_not_allowed_then_it_is_told_and_ended(
    control: Control, logs: Logs
):
    control.start(Commands().functions, uids={os.geteuid() + 1})
    client: Client = control.new()
    reply = await client.line()
    assert reply is not None
    assert reply["kind"] == "not-allowed"
    assert f"uid {os.geteuid()} may not" in reply["message"]
    assert await client.line() is None
    assert any(entry["event"] == "control client refused" for entry in logs)


async def test_listener_when_descriptors_run_out_then_it_goes_on(
    control: Control, commands: Commands, monkeypatch: pytest.MonkeyPatch, logs: Logs
):
    monkeypatch.setattr(transport, "ACCEPT_AGAIN_SECONDS", 0)
    real, fail = socket.socket.accept, [True]

    def accept(sock: socket.socket) -> Any:
        if fail:
            fail.pop()
            raise OSError(24, "Too many open files")
        return real(sock)

    monkeypatch.setattr(socket.socket, "accept", accept)
    await is_served(control)
    assert not fail
    assert any(entry["event"] == "cannot accept on the control socket" for entry in logs)
