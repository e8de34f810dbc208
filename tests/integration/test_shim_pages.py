# SPDX-License-Identifier: Apache-2.0
"""Pages that are out when QEMU or a call needs them, memory that comes and goes, who sees what."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.fakedaemon import Peer, announcement, forward
from tests.e2e.gdb import Gdb, gdb_options
from tests.e2e.lab import Lab
from tests.e2e.machine import Machine
from tests.e2e.patience import wait_until
from tests.e2e.ultravisor import PAGE, Pager, enter, ultracall

from hcallproto.abi.families import tpm, uv
from hcallproto.abi.returns import U
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

pytestmark = pytest.mark.qemu

FEATURES = s.Feature.SC2 | s.Feature.PAGE_STATES
OUT = s.PageState.UNSHARED | s.PageState.PAGED_OUT
MIB = 1 << 20
RAM_SIZE = 256 * MIB
MORE_SIZE = 256 * MIB
"""The least that pseries plugs."""

IN, OUTWARDS = s.Direction.IN, s.Direction.OUT
COMM = forward(
    tpm.TPM_COMM.number,
    f.BufferSpec(5, s.BufferKind.SIZED, IN, 6, PAGE),
    f.BufferSpec(7, s.BufferKind.SIZED, OUTWARDS, 8, PAGE),
)


@pytest.mark.parametrize("byte_order", ["le", "be"])
def test_calls_with_buffers_that_are_out(byte_order: Any, lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub("page_calls require=1", daemon, smp=1, byte_order=byte_order)
    peer = daemon.accept()
    peer.greet()
    peer.welcome(announcement([ultracall(uv.UNSHARE_PAGE), COMM]), FEATURES)
    pager = Pager(peer)
    forwarded = 0
    while not isinstance(frame := pager.receive(), f.ShimGoodbye):
        assert isinstance(frame, f.Call)
        if frame.number == uv.UNSHARE_PAGE.number:
            pager.page_out(frame, frame.registers()[4])
            peer.reply(frame, U.SUCCESS)
            continue
        assert frame.number == tpm.TPM_COMM.number
        forwarded += 1
        answer_in_use(peer, frame)
    assert forwarded == 1
    machine.report().must_pass("page_calls")


def answer_in_use(peer: Peer, call: f.Call) -> None:
    """Inverts the request into the response, neither of which can go out meanwhile."""
    request, response = call.registers()[5], call.registers()[7]
    data = call.segments[0].data
    assert len(data) == PAGE
    for gpa in (request, response):
        ranges = (f.PageRange(0, PAGE, OUT), f.PageRange(gpa, PAGE, OUT))
        peer.send(f.Pages(call.vcpu, call.reset, call.seq, 1, ranges))
        reply = peer.expect(f.PagesReply)
        assert (reply.status, reply.bad_range) == (s.AccessStatus.BUSY, 1)
    inverted = bytes(byte ^ 0xFF for byte in data)
    peer.reply(call, writes=(f.WriteSegment(response, PAGE, inverted),))


def more_memory(machine: Machine, path: Path, turn: int) -> str:
    """Plugs memory whose content the host has made; gives the device's name."""
    backend: dict[str, Any] = {"qom-type": "memory-backend-file", "mem-path": str(path)}
    backend |= {"id": f"more{turn}", "size": MORE_SIZE, "share": True}
    machine.qmp.execute("object-add", **backend)
    machine.qmp.execute("device_add", driver="pc-dimm", id=f"dimm{turn}", memdev=f"more{turn}")
    return f"dimm{turn}"


def test_memory_that_is_plugged_waits_for_the_daemon(lab: Lab) -> None:
    """The same place twice, over memory that the host has prepared."""
    path = lab.artifacts / "more"
    daemon = lab.fake_daemon()
    extra = ["-m", "256M,slots=2,maxmem=1G"]
    machine = lab.stub("secure_plug count=2 require=1", daemon, smp=1, extra=extra)
    peer = daemon.accept()
    peer.greet()
    calls = (uv.ESM, uv.SHARE_PAGE, uv.UNSHARE_PAGE)
    peer.welcome(announcement([ultracall(call) for call in calls]), FEATURES)
    call = peer.call(60)
    enter(peer, call, pages=[f.PageRange(0, RAM_SIZE, s.PageState.UNSHARED)])
    generations = {peer.rams[-1].regions[-1].generation}
    for turn in range(2):
        with path.open("r+b" if turn else "wb") as file:
            file.truncate(MORE_SIZE)
            file.write(b"planted!" * (2 * PAGE // 8))
        call = peer.call()
        assert call.number == uv.SHARE_PAGE.number
        name = more_memory(machine, path, turn)
        region = new_region(peer)
        assert region.generation not in generations
        generations.add(region.generation)
        hidden = lab.artifacts / "hidden"
        machine.qmp.execute("pmemsave", val=region.gpa, size=2 * PAGE, filename=str(hidden))
        assert hidden.read_bytes() == bytes(2 * PAGE)
        peer.reply(call, U.SUCCESS, registers=((4, region.gpa),))
        # The daemon is not quick. Nothing of the host's is seen until it has answered.
        missed = peer.call()
        assert (missed.level, missed.number) == (s.LEVEL_SHIM, s.ShimCall.PAGE_IN)
        assert missed.registers()[4] & -PAGE == region.gpa
        assert missed.msr & s.MSR_S
        zeros = (f.WriteSegment(region.gpa, MORE_SIZE, None),)
        state = (f.PageRange(region.gpa, MORE_SIZE, s.PageState.UNSHARED),)
        peer.send(f.Reply(missed.vcpu, missed.reset, missed.seq, 0, writes=zeros, pages=state))
        call = peer.call()
        assert call.number == uv.UNSHARE_PAGE.number
        machine.qmp.execute("device_del", id=name)
        machine.qmp.wait_event("DEVICE_DELETED")
        machine.qmp.execute("object-del", id=f"more{turn}")
        # What the secure VM has left in the file is not the host's.
        with path.open("rb") as file:
            assert not any(file.read(4 * PAGE))
        peer.reply(call, U.SUCCESS)
    machine.report().must_pass("secure_plug")


def new_region(peer: Peer) -> f.RamRegion:
    """The region that has come last, once it is told."""
    count = len(peer.rams)
    while len(peer.rams) == count or len(peer.rams[-1].regions) < 2:
        frame = super(Peer, peer).receive()
        assert isinstance(frame, f.Ram)
        peer.rams.append(frame)
    return peer.rams[-1].regions[-1]


MARKER = b"only-the-guest-may-read-this"
LOW = 64 * MIB
"""Firmware puts the device tree, with the marker, below."""
KDUMP_PAGE = 1 << 16


def inflated(data: bytes) -> bytes:
    """All that zlib has packed in a file, whatever is around it."""
    found, at = [], data.find(b"\x78\x01")
    while at >= 0:
        unpacker = zlib.decompressobj()
        with contextlib.suppress(zlib.error):
            found.append(unpacker.decompress(data[at : at + 2 * KDUMP_PAGE], KDUMP_PAGE))
        at = data.find(b"\x78\x01", at + 1)
    return b"".join(found)


class Spy:
    """A user of the host who reads the guest's memory in every way there is."""

    def __init__(self, machine: Machine, folder: Path, gdb: Path) -> None:
        self._machine = machine
        self._file = folder / "spied"
        self._gdb = gdb

    def saved(self, command: str, at: int, size: int) -> bytes:
        """What pmemsave or memsave writes."""
        self._machine.qmp.execute(command, val=at, size=size, filename=str(self._file))
        return self._file.read_bytes()

    def dumped(self, **options: Any) -> bytes:
        """What dump-guest-memory writes."""
        protocol = f"file:{self._file}"
        self._machine.qmp.execute("dump-guest-memory", 300, protocol=protocol, **options)
        return self._file.read_bytes()

    def printed(self, command: str, at: int) -> bytes:
        """What xp or x prints."""
        line = f"{command}/{len(MARKER)}xb 0x{at:x}"
        text = self._machine.qmp.execute("human-monitor-command", command_line=line)
        lines = [line.partition(":")[2].split() for line in text.splitlines()]
        return bytes(int(word, 16) for words in lines for word in words)

    def all_of(self, at: int) -> dict[str, bytes]:
        """What each way shows."""
        seen = {name: self.saved(name, at, len(MARKER)) for name in ("pmemsave", "memsave")}
        seen |= {name: self.printed(name, at) for name in ("xp", "x")}
        seen["elf"] = self.dumped(paging=False, begin=at & -PAGE, length=2 * PAGE)
        seen["elf, by its tables"] = self.dumped(paging=True, begin=at & -PAGE, length=2 * PAGE)
        for name in ("kdump-zlib", "kdump-raw-zlib"):
            seen[name] = inflated(self.dumped(paging=False, format=name))
        with Gdb(self._gdb) as gdb:
            seen["gdb"] = gdb.memory(at, len(MARKER))
            gdb.physical()
            seen["gdb, physical"] = gdb.memory(at, len(MARKER))
        self._file.unlink()
        return seen

    def writes(self, at: int) -> list[str]:
        """What gdb is told when it writes."""
        with Gdb(self._gdb) as gdb:
            answers = [gdb.set_memory(at, b"forged")]
            gdb.physical()
            return [*answers, gdb.set_memory(at, b"forged")]


def test_the_user_sees_no_unshared_page(lab: Lab) -> None:
    path = lab.socket_dir / "gdb.sock"
    daemon = lab.fake_daemon()
    append = f"secure_plug count=1 marker={MARKER.decode()}"
    machine = lab.stub(append, daemon, smp=1, extra=gdb_options(path))
    peer = daemon.accept()
    peer.greet()
    peer.welcome(announcement([ultracall(uv.ESM), ultracall(uv.SHARE_PAGE)]), FEATURES)
    call = peer.call(60)
    spy = Spy(machine, lab.artifacts, path)
    at = spy.saved("pmemsave", 0, LOW).find(MARKER)
    assert at >= 0
    for way, shown in spy.all_of(at).items():
        assert MARKER in shown, way
    unshared = f.PageRange(0, RAM_SIZE, s.PageState.UNSHARED)
    enter(peer, call, pages=[unshared])
    call = peer.call()
    for way, shown in spy.all_of(at).items():
        assert MARKER not in shown, way
    assert MARKER not in spy.saved("pmemsave", 0, RAM_SIZE)
    assert all(answer.startswith("E") for answer in spy.writes(at))
    # Shared, all of it is there as before: nobody has written to it.
    shared = f.PageRange(at & -PAGE, 2 * PAGE, s.PageState(0))
    machine.qmp.execute("stop")
    peer.send(f.Reply(call.vcpu, call.reset, call.seq, U.P2, pages=(shared,)))
    wait_until(lambda: any(spy.saved("pmemsave", at, len(MARKER))), "the page that is shared")
    assert spy.saved("pmemsave", at, len(MARKER)) == MARKER
