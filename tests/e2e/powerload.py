# SPDX-License-Identifier: Apache-2.0
"""The process that a power cut ends: guests that change keystores and say what they know.

Runs as a process of its own under strace: real servers, sessions and stores, two state
directories' objects on one path as two daemons have, and guests over sockets. Before a
guest makes a change, and when it has its reply, it writes a line to NOTES; strace sees
these writes in one order with those of the store, so a power cut is also a moment in
what guests know::

    python -m tests.e2e.powerload STATE_DIR NOTES PLAN

PLAN is the JSON of ``Plan``. The process ends by itself, or kills itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import socket
import sys
from pathlib import Path

import trio
from tests.unit.hcalld.runtime.shim import Shim, hello

from hcalld.config import Profiles
from hcalld.domain.labels import os_label
from hcalld.runtime.server import Server
from hcalld.runtime.transport import SocketTransport, TransportClosed
from hcalld.stores import group, sqlite
from hcalld.stores.directory import StateDirectory
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

VCPUS = 4
LABELS = 3
PASSWORD = "password"
"""The key of the password in notes."""

_AUTH, _LABEL, _DATA, _PASSWORD = 0x0, 0x1000, 0x10000, 0x2000
_PAGES = 0x20000
"""Each vCPU's share of guest memory."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one process does.

    Attributes:
        seed: of all that is drawn.
        life: makes what is written unique.
        machines: by the partition's name: the instance in hexadecimal, the reset count at
            first, and whether the machine is a new one, so that a run begins.
        steps: changes of each vCPU.
        kill_after: the process kills itself after so many notes; 0: never.
    """

    seed: int
    life: int
    machines: dict[str, tuple[str, int, bool]]
    steps: int = 12
    kill_after: int = 0


def value(tag: str, size: int) -> bytes:
    """The data of an object, from what the note says of it."""
    return (tag.encode() + b"|").ljust(size, b"%") if size >= len(tag) + 1 else tag.encode()


def password(instance: str, reset: int) -> bytes:
    """The password of a run."""
    return hashlib.sha256(f"{instance} {reset}".encode()).digest()


def label(key: str) -> bytes:
    """The label of a key in notes."""
    return os_label(b"cut", key.encode())


class Notes:
    """Says what happens, and ends the process when it is time."""

    def __init__(self, path: Path, kill_after: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._left = kill_after

    def say(self, **what: object) -> None:
        """One line, with one write."""
        os.write(self._fd, json.dumps(what).encode() + b"\n")
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Guest:
    """One machine: its connection, and its vCPUs."""

    def __init__(self, plan: Plan, name: str, servers: list[Server], notes: Notes) -> None:
        self.plan = plan
        self.name = name
        self.rng = random.Random(f"{plan.seed} {plan.life} {name}")
        self.instance, self.reset, self._is_new = plan.machines[name]
        self._servers = servers
        self._notes = notes
        self._connection = 0
        self._waiting: dict[int, tuple[trio.Event, list[f.Reply]]] = {}
        self._exists: dict[str, bool] = {}
        self._op = 0
        self._acked = trio.Event()

    async def run(self) -> None:
        """Calls, resets and reconnections, until the steps are done."""
        rounds = self.rng.randint(1, 3)
        for number in range(rounds):
            server = self.rng.choice(self._servers)
            async with trio.open_nursery() as nursery:
                ours, theirs = socket.socketpair()
                nursery.start_soon(server.serve_socket, theirs)
                self._shim = Shim(SocketTransport(ours))
                await self._connect(nursery, is_first=number == 0)
                for _ in range(self.rng.randint(1, 3)):
                    async with trio.open_nursery() as vcpus:
                        for vcpu in range(VCPUS):
                            vcpus.start_soon(self._vcpu, vcpu, self.plan.steps // rounds)
                    if self.rng.random() < 0.4:
                        await self._do_reset()
                    if self.rng.random() < 0.3:
                        session = server.sessions[self.name]
                        await session.rest_if_idle()
                        await session.rest_if_idle()
                await self._shim.close()
            # The session, and with it the store, is closed.

    async def _connect(self, nursery: trio.Nursery, *, is_first: bool) -> None:
        greeting = hello(
            self.name,
            instance=bytes.fromhex(self.instance),
            reset=self.reset,
            connection=self._connection,
        )
        self._connection += 1
        op = self._issue(PASSWORD, None) if is_first and self._is_new else 0
        await self._shim.negotiate(greeting)
        if op:
            self._done(op, ok=True)
        self._event = trio.Event()
        nursery.start_soon(self._receive)
        await self._set_password(0)

    async def _receive(self) -> None:
        while True:
            try:
                frame = await self._shim.receive()
            except (TransportClosed, trio.ClosedResourceError):
                return
            match frame:
                case f.Reply():
                    event, replies = self._waiting.pop(frame.vcpu)
                    replies.append(frame)
                    event.set()
                case f.EventAck():
                    self._event.set()
                case None:
                    return
                case _:
                    raise AssertionError(frame)

    # -- changes ----------------------------------------------------------------------------

    def _issue(self, key: str, to: object) -> int:
        self._op += 1
        op = self._op * 1000 + self.plan.life
        self._notes.say(partition=self.name, issue=op, key=key, to=to)
        return op

    def _done(self, op: int, *, ok: bool) -> None:
        self._notes.say(partition=self.name, done=op, ok=ok)

    async def _set_password(self, vcpu: int) -> None:
        op = self._issue(PASSWORD, [self.instance, self.reset])
        secret = password(self.instance, self.reset)
        gpa = vcpu * _PAGES + _PASSWORD
        await self._call(vcpu, pks.SET_PASSWORD.number, (3, 0, gpa, len(secret)), {gpa: secret})
        self._done(op, ok=True)  # or it was set already, to this very one

    async def _do_reset(self) -> None:
        op = self._issue(PASSWORD, None)
        self.reset += 1
        self._event = trio.Event()
        await self._shim.send(self._shim.reset_event())
        await self._event.wait()
        self._done(op, ok=True)
        await self._set_password(0)

    async def _vcpu(self, vcpu: int, steps: int) -> None:
        rng = random.Random(self.rng.random())
        for _ in range(steps):
            key = f"{vcpu}.{rng.randrange(LABELS)}"
            if self._exists.get(key, False):
                await self._remove(vcpu, key)
            else:
                size = rng.choice((20, 20, 100, 600, 3000))
                await self._write(vcpu, key, size)
            if rng.random() < 0.5:
                await self._confirm(vcpu, key)

    async def _write(self, vcpu: int, key: str, size: int) -> None:
        tag = f"{self.plan.life}.{self.name}.{key}.{self._op + 1}"
        op = self._issue(key, [tag, size])
        gpa, data = vcpu * _PAGES + _DATA, value(tag, size)
        reply = await self._object_call(
            vcpu, pks.WRITE_OBJECT.number, key, (0, gpa, len(data)), {gpa: data}
        )
        assert reply.status in (H.SUCCESS, H.RESOURCE), reply
        self._exists[key] = True
        self._done(op, ok=reply.status == H.SUCCESS)

    async def _remove(self, vcpu: int, key: str) -> None:
        op = self._issue(key, None)
        reply = await self._object_call(vcpu, pks.REMOVE_OBJECT.number, key, (), {})
        assert reply.status in (H.SUCCESS, H.NOT_FOUND), reply
        self._exists[key] = False
        self._done(op, ok=reply.status == H.SUCCESS)

    async def _confirm(self, vcpu: int, key: str) -> None:
        op = self._op * 1000 + self.plan.life
        self._notes.say(partition=self.name, confirm=op, vcpu=vcpu)
        reply = await self._object_call(vcpu, pks.CONFIRM_OBJECT_FLUSHED.number, key, (), {})
        assert dict(reply.registers)[4] == 1, reply
        self._notes.say(partition=self.name, confirmed=op, vcpu=vcpu)

    async def _object_call(
        self, vcpu: int, number: int, key: str, more: tuple[int, ...], memory: dict[int, bytes]
    ) -> f.Reply:
        secret = password(self.instance, self.reset)
        base = vcpu * _PAGES
        auth = bytes([1, 3]) + bytes(12) + len(secret).to_bytes(2, "big") + secret
        name = label(key)
        memory = {base + _AUTH: auth.ljust(0x1000, b"\0"), base + _LABEL: name, **memory}
        arguments = (base + _AUTH, base + _LABEL, len(name), *more)
        return await self._call(vcpu, number, arguments, memory)

    async def _call(
        self, vcpu: int, number: int, arguments: tuple[int, ...], memory: dict[int, bytes]
    ) -> f.Reply:
        registers = {4 + place: argument for place, argument in enumerate(arguments)}
        segments = []
        for index, buffer in enumerate(self._shim.announced[number].buffers):
            gpa = registers[buffer.address_register]
            size = buffer.max_size
            if buffer.kind is s.BufferKind.SIZED:
                size = registers[buffer.size_register]
            segments.append(f.Segment(index, gpa, s.SegmentStatus.OK, memory[gpa][:size]))
        replies: list[f.Reply] = []
        event = trio.Event()
        self._waiting[vcpu] = event, replies
        frame = self._shim.call_frame(number, *arguments, vcpu=vcpu, segments=tuple(segments))
        await self._shim.send(frame)
        await event.wait()
        return replies[0]


def _server(directory: StateDirectory) -> Server:
    return Server(
        Profiles(None),
        lambda profile: directory.open(profile.partition),
        flush_stores=directory.flush_stores,
        strict=True,
    )


async def main(state: Path, notes: Notes, plan: Plan) -> None:
    """Run the plan."""
    rng = random.Random(f"{plan.seed} {plan.life}")
    # Small, so that all of it happens in a short time.
    sqlite.FLUSH_CHECKPOINT_SIZE = rng.choice((30_000, 200_000))  # type: ignore[misc]
    sqlite.UNFLUSHED_LIMIT = rng.choice((4_000, 1 << 20))  # type: ignore[misc]
    group.JOURNAL_LIMIT = rng.choice((3_000, 20_000))  # type: ignore[misc]
    directories = [StateDirectory(state) for _ in range(2)]
    servers = [_server(directory) for directory in directories]
    async with trio.open_nursery() as nursery:
        for name in plan.machines:
            nursery.start_soon(Guest(plan, name, servers, notes).run)
    for directory in directories:
        directory.close()


if __name__ == "__main__":
    plan = Plan(**json.loads(sys.argv[3]))
    trio.run(main, Path(sys.argv[1]), Notes(Path(sys.argv[2]), plan.kill_after), plan)
