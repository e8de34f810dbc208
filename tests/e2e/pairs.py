# SPDX-License-Identifier: Apache-2.0
"""Guests that write objects and have them confirmed, on all their vCPUs at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.daemon import Daemon
from tests.e2e.fakeshim import FakeShim, connect, hello
from tests.e2e.patience import patience, wait_until

from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f

SYNCS = "fsync,fdatasync,sync,syncfs,sync_file_range,msync"

_AUTH, _LABELS, _DATA = 0x1000, 0x2000, 0x10000
_PAGE = 0x1000
_AUTH_OS = bytes([1, 3]) + bytes(14)
_WORLDREADABLE = 0x0800_0000
_FLUSHED = 1


class _Vcpu:
    """One vCPU: writes an object, has it confirmed, writes the next."""

    def __init__(self, guest: _Guest, number: int) -> None:
        self.guest = guest
        self.number = number
        self._pairs = 0

    def write(self) -> None:
        """Calls WRITE with a label of its own."""
        shim, gpa = self.guest.shim, _LABELS + self.number * _PAGE
        label = self._label()
        shim.ram[gpa : gpa + len(label)] = label
        data = label[-8:]
        shim.ram[_DATA : _DATA + len(data)] = data
        self._call(pks.WRITE_OBJECT.number, _AUTH, gpa, len(label), _WORLDREADABLE, _DATA, 8)

    def confirm(self) -> None:
        """Calls CONFIRM for the object that was just written."""
        gpa = _LABELS + self.number * _PAGE
        number = pks.CONFIRM_OBJECT_FLUSHED.number
        self._call(number, _AUTH, gpa, len(self._label()))
        self._pairs += 1

    def _label(self) -> bytes:
        name = b"%d.%06d" % (self.number, self._pairs)
        return b"pairs\0\0\0\0\x02\x10\0\0\0\0\0" + name

    def _call(self, number: int, *arguments: int) -> None:
        self.guest.shim.send(self.guest.shim.frame(number, *arguments, vcpu=self.number))


class _Guest:
    """A guest with several vCPUs."""

    def __init__(self, socket_path: Path, index: int, vcpus: int) -> None:
        self.shim = FakeShim(connect(socket_path))
        instance = index.to_bytes(16, "big")
        self.shim.negotiate(hello(f"pairs{index}", instance=instance, vcpus=vcpus))
        self.shim.ram[_AUTH : _AUTH + len(_AUTH_OS)] = _AUTH_OS
        self.vcpus = [_Vcpu(self, number) for number in range(vcpus)]

    def replies(self, *, are_confirms: bool = False) -> None:
        """Waits for a reply to each vCPU."""
        for _ in self.vcpus:
            reply = self.shim.expect(f.Reply)
            assert reply.status == H.SUCCESS, reply
            assert not are_confirms or dict(reply.registers)[4] == _FLUSHED, reply

    def run(self, pairs: int) -> None:
        """Each vCPU makes its next call as soon as it has its reply."""
        left = pairs
        confirming: set[int] = set()
        for vcpu in self.vcpus:
            left -= 1
            vcpu.write()
        busy = len(self.vcpus)
        while busy:
            reply = self.shim.expect(f.Reply)
            assert reply.status == H.SUCCESS, reply
            number = reply.vcpu
            vcpu = self.vcpus[number]
            if number not in confirming:
                confirming.add(number)
                vcpu.confirm()
            else:
                confirming.remove(number)
                if left:
                    left -= 1
                    vcpu.write()
                else:
                    busy -= 1


@dataclasses.dataclass(frozen=True)
class Load:
    """How many guests, vCPUs of each, and pairs of calls in all."""

    guests: int = 4
    vcpus: int = 8
    pairs: int = 1000


def run_freely(socket_path: Path, load: Load) -> float:
    """Each vCPU goes on as soon as it has its reply; gives the seconds that it took."""
    machines = [_Guest(socket_path, index, load.vcpus) for index in range(load.guests)]
    each = -(-load.pairs // load.guests)
    with concurrent.futures.ThreadPoolExecutor(load.guests) as pool:
        started = time.perf_counter()
        list(pool.map(lambda guest: guest.run(each), machines))
        took = time.perf_counter() - started
    for guest in machines:
        guest.shim.close()
    return took


def run_in_waves(socket_path: Path, load: Load, process_id: int) -> int:
    """All vCPUs write; then all have it confirmed, in calls that reach the daemon together.

    For that it is stopped while they are sent: how fast this machine is decides nothing.

    Returns:
        How many pairs there were.
    """
    machines = [_Guest(socket_path, index, load.vcpus) for index in range(load.guests)]
    waves = -(-load.pairs // (load.guests * load.vcpus))
    for _ in range(waves):
        for guest in machines:
            for vcpu in guest.vcpus:
                vcpu.write()
        for guest in machines:
            guest.replies()
        with _stopped(process_id):
            for guest in machines:
                for vcpu in guest.vcpus:
                    vcpu.confirm()
        for guest in machines:
            guest.replies(are_confirms=True)
    for guest in machines:
        guest.shim.close()
    return waves * load.guests * load.vcpus


@contextlib.contextmanager
def _stopped(process_id: int) -> Iterator[None]:
    """An idle process does not run inside; strace may have it, or not."""
    stat = Path(f"/proc/{process_id}/stat")
    os.kill(process_id, signal.SIGSTOP)
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] in "Tt", "SIGSTOP")
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)


# -- counting ----------------------------------------------------------------------------------


class CountingDaemon:
    """A daemon under strace, which counts what it syncs from its start to its end.

    Args:
        daemon: not started yet.
        strace: the program.
        output: where strace writes.
    """

    def __init__(self, daemon: Daemon, strace: Path, output: Path) -> None:
        self.daemon = daemon
        self._output = output
        count = ("-f", "-c", "-e", f"trace={SYNCS}", "-o", str(output))
        daemon.command = (str(strace), *count, *daemon.command)

    @property
    def process_id(self) -> int:
        """The daemon's own."""
        assert self.daemon.process is not None
        strace = self.daemon.process.pid
        children = Path(f"/proc/{strace}/task/{strace}/children").read_text()
        return int(children.split()[0])

    def end(self) -> int:
        """End the daemon; gives the number of syncs."""
        assert self.daemon.process is not None
        os.kill(self.process_id, signal.SIGTERM)
        self.daemon.process.wait(patience(20))
        return parse(self._output.read_text())


_LINE = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(?P<calls>\d+)\s+(?:\d+\s+)?(?P<name>\w+)$")


def parse(summary: str) -> int:
    """The number of syncs in what ``strace -c`` printed."""
    found = [_LINE.match(line) for line in summary.splitlines()]
    return sum(int(m["calls"]) for m in found if m and m["name"] in SYNCS.split(","))
