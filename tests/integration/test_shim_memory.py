# SPDX-License-Identifier: Apache-2.0
"""Guest memory by frames and by shared descriptors, on behalf of a call."""

from __future__ import annotations

import mmap
import os
from typing import Any, Literal

import pytest
from tests.e2e.fakedaemon import NO_FEATURES, Peer, announcement, forward
from tests.e2e.lab import Lab
from tests.e2e.machine import ByteOrder, Machine, Memory

from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

pytestmark = pytest.mark.qemu

NUMBER = 0xFFF8
HOLD = f"hold number={NUMBER} gap-ms=60000 run-ms=0"
LOST = -1
RAM_SIZE = 256 << 20
MMIO = 0x2000_8000_0000
"""QEMU's first PCI host bridge has its windows here (hw/ppc/spapr.c SPAPR_PCI_BASE)."""
IGNORED_BITS = 0xF << 60
"""PAPR ignores these of a real address."""

OK = s.AccessStatus.OK
NOT_RAM = s.AccessStatus.NOT_RAM
FIXED = s.BufferKind.FIXED
SIZED = s.BufferKind.SIZED
PAGE_BOUNDED = s.BufferKind.PAGE_BOUNDED
IN = s.Direction.IN
OUT = s.Direction.OUT


def start(
    lab: Lab,
    *buffers: f.BufferSpec,
    memory: Memory = "private",
    features: s.Feature = NO_FEATURES,
    **options: Any,
) -> tuple[Peer, Machine, f.Call]:
    """A guest that waits for its call: r4 is the address of 128 KiB, r5 is 512."""
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2, memory=memory, **options)
    peer = daemon.accept()
    spec = forward(NUMBER, *buffers, lost_status=LOST)
    accept = peer.negotiate(announcement([spec]), features)
    assert not accept.refused
    return peer, machine, peer.call()


def finish(peer: Peer, machine: Machine, call: f.Call) -> None:
    peer.reply(call, 5)
    machine.report().must_pass("hold")
    assert "code=5" in machine.console.text


def test_read_what_was_written(lab: Lab) -> None:
    peer, machine, call = start(lab)
    assert call.segments == ()
    address = call.registers()[4]
    pattern = bytes(range(256)) * 32
    wrote = peer.write_memory(
        call,
        f.WriteSegment(address + 1, len(pattern), pattern),
        f.WriteSegment(address + 10001, 3, b"end"),
    )
    assert wrote.status is OK
    read = peer.read_memory(call, (address + 1, len(pattern)), (address + 10001, 3), (address, 0))
    assert read.segments == ((OK, pattern), (OK, b"end"), (OK, b""))
    # PAPR ignores the top four bits; whoever takes an address from a register masks them.
    wrote = peer.write_memory(call, f.WriteSegment(address | IGNORED_BITS, 2, b"xy"))
    assert wrote.status is NOT_RAM
    read = peer.read_memory(call, (address | IGNORED_BITS, 2))
    assert read.segments == ((NOT_RAM, b""),)
    finish(peer, machine, call)


def test_segments_in_order(lab: Lab) -> None:
    peer, machine, call = start(lab)
    address = call.registers()[4]
    peer.write_memory(
        call,
        f.WriteSegment(address, 8, b"aaaaaaaa"),
        f.WriteSegment(address + 2, 4, None),
        f.WriteSegment(address + 3, 1, b"b"),
    )
    assert peer.read_memory(call, (address, 8)).segments == ((OK, b"aa\0b\0\0aa"),)
    finish(peer, machine, call)


@pytest.mark.parametrize("memory", ["private", "shared"])
def test_zero(memory: Memory, lab: Lab) -> None:
    """Whole pages are discarded; what is around them stays."""
    peer, machine, call = start(lab, memory=memory)
    address = (call.registers()[4] + 0xFFFF) & ~0xFFFF
    size = 65536 - 4096
    peer.write_memory(call, f.WriteSegment(address, size, b"\xa5" * size))
    zeroed = peer.write_memory(call, f.WriteSegment(address + 100, 20000, None))
    assert zeroed.status is OK
    ((status, data),) = peer.read_memory(call, (address, size)).segments
    assert status is OK
    assert data == b"\xa5" * 100 + bytes(20000) + b"\xa5" * (size - 20100)
    # Zeroing is not bounded by a frame's size.
    zeroed = peer.write_memory(call, f.WriteSegment(128 << 20, 64 << 20, None))
    assert zeroed.status is OK
    finish(peer, machine, call)


BAD_RANGES = {
    "MMIO": (MMIO, 4),
    "first byte behind RAM": (RAM_SIZE, 1),
    "crosses the end of RAM": (RAM_SIZE - 4, 8),
    "unbacked": (1 << 40, 16),
    "wraps 2^60": ((1 << 60) - 8, 16),
    "wraps 2^64": ((1 << 64) - 8, 16),
    "largest": (0, 0xFFFFFFFF),
}


@pytest.mark.parametrize("case", BAD_RANGES)
def test_ranges_that_are_not_ram(case: str, lab: Lab) -> None:
    peer, machine, call = start(lab)
    gpa, size = BAD_RANGES[case]
    address = call.registers()[4]
    peer.write_memory(call, f.WriteSegment(address, 4, b"keep"))
    read = peer.read_memory(call, (address, 4), (gpa, size), (address, 1))
    assert read.segments == ((OK, b"keep"), (NOT_RAM, b""), (OK, b"k"))
    # One bad segment, and none is carried out.
    wrote = peer.write_memory(
        call, f.WriteSegment(address, 4, b"lost"), f.WriteSegment(gpa, size, None)
    )
    assert (wrote.status, wrote.bad_segment) == (NOT_RAM, 1)
    if size < 64:
        wrote = peer.write_memory(call, f.WriteSegment(gpa, size, b"x" * size))
        assert (wrote.status, wrote.bad_segment) == (NOT_RAM, 0)
    assert peer.read_memory(call, (address, 4)).segments == ((OK, b"keep"),)
    finish(peer, machine, call)


def test_last_byte_of_ram(lab: Lab) -> None:
    peer, machine, call = start(lab)
    assert peer.write_memory(call, f.WriteSegment(RAM_SIZE - 3, 3, b"end")).status is OK
    assert peer.read_memory(call, (RAM_SIZE - 4, 4)).segments[0][1][1:] == b"end"
    finish(peer, machine, call)


def test_answer_larger_than_a_frame(lab: Lab) -> None:
    peer, machine, call = start(lab)
    address = call.registers()[4]
    size = 60000
    read = peer.read_memory(call, (address, size), (address, size), (address, size), (address, 8))
    assert [status for status, _ in read.segments] == [OK, OK, s.AccessStatus.TOO_LARGE, OK]
    whole = peer.read_memory(call, (0, s.MIN_MAX_FRAME))
    assert whole.segments == ((s.AccessStatus.TOO_LARGE, b""),)
    finish(peer, machine, call)


def test_64_segments(lab: Lab) -> None:
    peer, machine, call = start(lab)
    address = call.registers()[4]
    writes = [f.WriteSegment(address + 16 * n, 2, bytes([n, 255 - n])) for n in range(64)]
    assert peer.write_memory(call, *writes).status is OK
    read = peer.read_memory(call, *((write.gpa, 2) for write in writes))
    assert read.segments == tuple((OK, write.data) for write in writes)
    finish(peer, machine, call)


def test_request_after_the_reply(lab: Lab) -> None:
    """A late write would corrupt memory that the guest has reused."""
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD.replace("run-ms=0", "run-ms=1500"), daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(announcement([forward(NUMBER)]))
    call = peer.call()
    peer.reply(call, 5)
    live = f.Write(call.vcpu, call.reset, call.seq, 9, (f.WriteSegment(0x100, 4, None),))
    from hcallproto.wire.encode import encode

    peer.send_bytes(encode(live))
    # Our own state machine does not expect the answer, so the bytes are looked at.
    peer.sock.settimeout(20)
    data = peer.sock.recv(4096)
    assert int.from_bytes(data[4:6], "big") == s.FrameType.WRITE_REPLY
    assert int.from_bytes(data[32:36], "big") == s.AccessStatus.NO_CALL
    machine.report().must_pass("hold")


STD_R4 = 0xF89F_0020
"""``std r4,32(r31)``: the stub keeps a call's r4 by it, as the second instruction after ``sc``."""
STD_R12 = 0xF99F_0020
"""``std r12,32(r31)``: it would keep r12 for r4."""


@pytest.mark.parametrize("by", ["WRITE", "REPLY"])
@pytest.mark.parametrize("byte_order", ["le", "be"])
def test_written_code_is_executed(byte_order: ByteOrder, by: str, lab: Lab) -> None:
    """No stale translation: what has run many times before is another instruction now."""
    daemon = lab.fake_daemon()
    machine = lab.stub("hcall", daemon, smp=1, byte_order=byte_order)
    peer = daemon.accept()
    peer.negotiate(announcement([forward(NUMBER)]))
    call = peer.call()
    order: Literal["little", "big"] = "little" if byte_order == "le" else "big"
    place = call.nip + 4
    ((_, code),) = peer.read_memory(call, (place, 4)).segments
    assert int.from_bytes(code, order) == STD_R4
    write = f.WriteSegment(place, 4, STD_R12.to_bytes(4, order))
    if by == "REPLY":
        peer.reply(call, -2, (), (write,))
    else:
        assert peer.write_memory(call, write).status is OK
        peer.reply(call, -2)
    report = machine.report()
    assert "hcall: not ok: leaves the other registers alone" in list(report.failures())


# -- what comes with the call and with the reply --------------------------------------------


def spec(
    address: int, kind: s.BufferKind, direction: s.Direction, size_register: int, size: int
) -> f.BufferSpec:
    return f.BufferSpec(address, kind, direction, size_register, size)


def test_buffers_that_come_with_the_call(lab: Lab) -> None:
    """The stub's r4 is a page's address, r5 is 512; r6 on hold no addresses."""
    peer, machine, call = start(
        lab,
        spec(4, SIZED, IN, 5, 512),
        spec(4, FIXED, IN, 0, 100),
        spec(4, PAGE_BOUNDED, IN, 0, 8192),
        spec(4, FIXED, OUT, 0, 64),
    )
    address, size = call.registers()[4], call.registers()[5]
    assert (address % 4096, size) == (0, 512)
    assert [segment.gpa for segment in call.segments] == 4 * [address]
    assert [segment.buffer for segment in call.segments] == [0, 1, 2, 3]
    assert [segment.status for segment in call.segments] == 4 * [s.SegmentStatus.OK]
    assert [len(segment.data) for segment in call.segments] == [512, 100, 4096, 0]
    ((_, memory),) = peer.read_memory(call, (address, 4096)).segments
    for segment in call.segments:
        assert memory.startswith(segment.data)
    finish(peer, machine, call)


def test_buffers_that_cannot_come(lab: Lab) -> None:
    peer, machine, call = start(
        lab,
        spec(4, SIZED, IN, 5, 511),
        spec(6, FIXED, IN, 0, 16),
        spec(6, PAGE_BOUNDED, OUT, 0, 16),
        spec(4, FIXED, IN, 0, 0xFFFFFFFF),
    )
    assert [segment.status for segment in call.segments] == [
        s.SegmentStatus.TOO_LARGE,
        s.SegmentStatus.NOT_RAM,
        s.SegmentStatus.NOT_RAM,
        s.SegmentStatus.NOT_RAM,
    ]
    assert all(segment.data == b"" for segment in call.segments)
    finish(peer, machine, call)


def test_buffer_larger_than_a_frame(lab: Lab) -> None:
    peer, machine, call = start(
        lab, spec(4, FIXED, IN, 0, s.MIN_MAX_FRAME), spec(4, FIXED, IN, 0, 8)
    )
    assert [segment.status for segment in call.segments] == [
        s.SegmentStatus.TOO_LARGE,
        s.SegmentStatus.OK,
    ]
    finish(peer, machine, call)


def test_reply_writes(lab: Lab) -> None:
    """What a reply wrote is there before the vCPU goes on: a second call finds it."""
    daemon = lab.fake_daemon()
    machine = lab.stub("hcall " + HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(announcement([forward(NUMBER)]))
    first = peer.call()
    place = 64 << 20
    data = b"written by a reply"
    writes = (f.WriteSegment(place, len(data), data), f.WriteSegment(place + 8, 1, None))
    peer.reply(first, -2, (), writes)
    second = peer.call()
    ((_, found),) = peer.read_memory(second, (place, len(data))).segments
    assert found == data[:8] + b"\0" + data[9:]
    finish(peer, machine, second)


@pytest.mark.parametrize("case", BAD_RANGES)
def test_reply_that_writes_outside_ram(case: str, lab: Lab) -> None:
    """Nothing is written, no register is set, and the guest is told what was announced."""
    daemon = lab.fake_daemon()
    machine = lab.stub("hcall " + HOLD, daemon, smp=2)
    peer = daemon.accept()
    peer.negotiate(announcement([forward(NUMBER, lost_status=-2)]))
    first = peer.call()
    place = 64 << 20
    peer.write_memory(first, f.WriteSegment(place, 4, b"keep"))
    gpa, size = BAD_RANGES[case]
    writes = (f.WriteSegment(place, 4, b"lost"), f.WriteSegment(gpa, size, None))
    # The stub's test takes -2, and fails when another register has changed.
    peer.reply(first, 0, ((4, 99), (7, 99)), writes)
    second = peer.call()
    assert peer.read_memory(second, (place, 4)).segments == ((OK, b"keep"),)
    peer.reply(second, 5)
    machine.report().must_pass("hcall", "hold")


# -- shared RAM -----------------------------------------------------------------------------


def test_shared_ram(lab: Lab) -> None:
    peer, machine, call = start(lab, memory="shared", features=s.Feature.SHARED_RAM)
    (ram,) = peer.rams
    assert ram.regions == (f.RamRegion(0, RAM_SIZE, 0, 0, 1),)
    (descriptor,) = peer.descriptors
    address = call.registers()[4]
    with mmap.mmap(descriptor, RAM_SIZE, prot=mmap.PROT_READ) as view:
        peer.write_memory(call, f.WriteSegment(address, 6, b"shared"))
        assert view[address : address + 6] == b"shared"
        ((_, page),) = peer.read_memory(call, (address, 4096)).segments
        assert view[address : address + 4096] == page
        peer.write_memory(call, f.WriteSegment(address, 4096, None))
        assert view[address : address + 4096] == bytes(4096)
    finish(peer, machine, call)


def test_shared_ram_after_reconnection(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2, memory="shared")
    for _ in range(3):
        peer = daemon.accept()
        hello = peer.greet()
        assert hello.features & s.Feature.SHARED_RAM
        peer.welcome(announcement([forward(NUMBER)]), s.Feature.SHARED_RAM)
        call = peer.call()
        assert len(peer.descriptors) == 1
        assert os.fstat(peer.descriptors[0]).st_size == RAM_SIZE
        if peer.hello is not None and peer.hello.connection < 2:
            peer.close()
    finish(peer, machine, call)


def test_no_descriptor_without_the_feature(lab: Lab) -> None:
    """Offered and not taken: none is sent."""
    peer, machine, call = start(lab, memory="shared")
    (ram,) = peer.rams
    assert ram.descriptor_count == 0
    assert [region.fd_index for region in ram.regions] == [s.NO_DESCRIPTOR]
    assert not peer.descriptors
    finish(peer, machine, call)


def test_private_ram_is_not_offered(lab: Lab) -> None:
    peer, machine, call = start(lab)
    assert peer.hello is not None
    assert not peer.hello.features & s.Feature.SHARED_RAM
    assert peer.rams[0].regions == (f.RamRegion(0, RAM_SIZE, 0, s.NO_DESCRIPTOR, 1),)
    finish(peer, machine, call)


def test_memory_that_is_plugged(lab: Lab) -> None:
    daemon = lab.fake_daemon()
    machine = lab.stub(HOLD, daemon, smp=2, memory="shared", extra=["-m", "256M,slots=2,maxmem=1G"])
    peer = daemon.accept()
    peer.negotiate(announcement([forward(NUMBER)]), s.Feature.SHARED_RAM)
    call = peer.call()
    plugged = 256 << 20
    machine.qmp.execute(
        "object-add", qom_type="memory-backend-memfd", id="more", size=plugged, share=True
    )
    machine.qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
    (dimm,) = machine.qmp.execute("query-memory-devices")
    gpa = dimm["data"]["addr"]
    # The new map is sent before the answer to what is asked after it.
    read = peer.read_memory(call, (gpa, 8), (gpa - 1, 1), (gpa + plugged - 1, 1))
    assert read.segments == ((OK, bytes(8)), (NOT_RAM, b""), (OK, b"\0"))
    ram = peer.rams[-1]
    assert len(peer.rams) >= 2
    assert sum(region.size for region in ram.regions) == RAM_SIZE + plugged
    assert ram.descriptor_count == 2
    assert {region.fd_index for region in ram.regions} == {0, 1}
    finish(peer, machine, call)
