# SPDX-License-Identifier: Apache-2.0
"""Which memory of the program a daemon sees and changes: the command's buffers, and no other."""

from __future__ import annotations

import pytest
from tests.e2e.fakedaemon import FakeDaemon
from tests.e2e.sevprogram import (
    ERROR_BEFORE,
    KVM_MEMORY_ENCRYPT_OP,
    PAGE,
    READ_ONLY,
    SEV_ISSUE_CMD,
    SevProgram,
)
from tests.integration.ioctl_shim.conftest import SevShim
from tests.integration.ioctl_shim.liar import (
    LOST,
    REFUSED,
    announce_all,
    begin,
    meet,
    register,
    spec,
    write,
)

from hcallproto.abi.families import pks, sev
from hcallproto.abi.returns import SevCode
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

OK = s.AccessStatus.OK
NOT_RAM = s.AccessStatus.NOT_RAM


@pytest.fixture
def fake(shim: SevShim) -> FakeDaemon:
    return shim.lab.fake_daemon()


@pytest.fixture
def program(shim: SevShim, fake: FakeDaemon) -> SevProgram:
    return shim.program(fake.path)


def test_call_when_sent_then_it_has_the_fields_and_the_buffers(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    session, dh = bytes(range(128)), b"certificate" * 9
    places = {"dh_uaddr": program.put(dh), "session_uaddr": program.put(session)}
    pending = begin(
        program, vm, sev.LAUNCH_START, handle=7, policy=0xFFFF_FFFF, dh_len=len(dh),
        session_len=len(session), **places,
    )  # fmt: skip
    peer = meet(fake)
    assert peer.hello is not None
    assert (peer.hello.name, peer.hello.program) == ("", "sev-client")
    assert peer.rams[0].regions == (f.RamRegion(0, 1 << 47, 0, s.NO_DESCRIPTOR, 1),)
    call = peer.call()
    assert (call.level, call.number) == (4, sev.LAUNCH_START.number)
    assert call.gpr[3:9] == (
        7, 0xFFFF_FFFF, places["dh_uaddr"], len(dh), places["session_uaddr"], 128
    )  # fmt: skip
    assert (set(call.gpr[:2]), set(call.gpr[9:])) == ({0}, {0})
    assert [(one.status, one.data) for one in call.segments] == [
        (s.SegmentStatus.OK, dh),
        (s.SegmentStatus.OK, session),
    ]
    handle = register(sev.LAUNCH_START, "handle")
    peer.reply(call, SevCode.SUCCESS, ((handle, 0x1_2345_6789),))
    result = pending.result()
    assert (result.status, result.error) == (0, 0)
    # A field has its own size, whatever the register.
    assert result.fields["handle"] == 0x2345_6789
    assert result.fields["policy"] == 0xFFFF_FFFF


def test_segments_when_a_buffer_is_bad_then_it_is_told_and_nothing_is_sent(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    pages = program.map(2 * PAGE)
    program.do("unmap", pages + PAGE, PAGE)
    cases = [
        (0, 16, s.SegmentStatus.NOT_RAM),
        (pages + PAGE - 8, 16, s.SegmentStatus.NOT_RAM),
        ((1 << 64) - 8, 16, s.SegmentStatus.NOT_RAM),
        (1 << 47, 16, s.SegmentStatus.NOT_RAM),
        (pages, sev.BLOB_MAX_SIZE + 1, s.SegmentStatus.TOO_LARGE),
        (0, 0, s.SegmentStatus.OK),
        (pages, 16, s.SegmentStatus.OK),
    ]
    peer = None
    for address, size, status in cases:
        pending = begin(program, vm, sev.LAUNCH_START, dh_uaddr=address, dh_len=size)
        peer = peer or meet(fake)
        call = peer.call()
        head = call.segments[0]
        expected = bytes(size) if status is s.SegmentStatus.OK else b""
        assert (head.status, head.data) == (status, expected), (hex(address), size)
        peer.reply(call, SevCode.EFAULT)
        assert pending.result().status == SevCode.EFAULT


def test_structure_when_its_address_is_bad_then_it_is_a_fault_and_nothing_is_asked(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    first = begin(program, vm, sev.LAUNCH_FINISH)
    peer = meet(fake)
    peer.reply(peer.call())
    assert first.result().status == 0
    request = KVM_MEMORY_ENCRYPT_OP
    for bad in (0, 1, 1 << 47, (1 << 64) - 1):
        argument = program.argument(sev.LAUNCH_MEASURE, bad)
        assert program.ask("ioctl", vm, request, argument) == (-1, -SevCode.EFAULT)
        # NULL in place of the argument is the question whether there is SEV.
        assert program.ask("ioctl", vm, request, bad) == ((-1, -SevCode.EFAULT) if bad else (0, 0))
    assert peer.nothing_comes(0.1)


def test_fields_when_the_structure_cannot_be_written_then_it_is_a_fault(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    page = program.map(PAGE)
    program.do("protect", page, PAGE, READ_ONLY)
    data = page
    argument = program.argument(sev.LAUNCH_MEASURE, data)
    program.send("ioctl", vm, KVM_MEMORY_ENCRYPT_OP, argument)
    peer = meet(fake)
    peer.reply(peer.call(), SevCode.INVALID_LEN, ((register(sev.LAUNCH_MEASURE, "len"), 48),))
    assert program.answer() == (-1, -SevCode.EFAULT)


def test_read_when_within_a_buffer_then_it_is_answered_and_else_refused(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    room = program.map(4 * PAGE)
    program.set(room, bytes(range(256)) * 64)
    begin(program, vm, sev.LAUNCH_UPDATE_DATA, uaddr=room + PAGE, len=PAGE)
    peer = meet(fake)
    call = peer.call()
    answers = peer.read_memory(
        call,
        (room + PAGE, PAGE),
        (room + PAGE + 17, 3),
        (room + PAGE, 0),
        (room + PAGE - 1, 2),
        (room + 2 * PAGE - 1, 2),
        (room + 2 * PAGE, 1),
        (room, PAGE),
        (room, 4 * PAGE),
        (0, 1),
        ((1 << 64) - 1, 2),
    )
    assert answers.segments == (
        (OK, bytes(range(256)) * 16),
        (OK, bytes((17, 18, 19))),
        (OK, b""),
        *(((NOT_RAM, b""),) * 7),
    )
    peer.reply(call)
    assert program.answer() == (0, 0)
    assert f"{sev.LAUNCH_UPDATE_DATA.name}: refused to read" in program.messages()


def test_write_when_beyond_the_buffer_then_nothing_at_all_is_written(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    room = program.map(3 * PAGE)
    begin(program, vm, sev.LAUNCH_UPDATE_DATA, uaddr=room + PAGE, len=PAGE)
    peer = meet(fake)
    call = peer.call()
    good = write(room + PAGE, b"good")
    for bad in (
        write(room + PAGE - 1, b"xx"),
        write(room + 2 * PAGE - 1, b"xx"),
        f.WriteSegment(room, 3 * PAGE, None),
        write(0x1000, b"x"),
    ):
        answer = peer.write_memory(call, good, bad)
        assert (answer.status, answer.bad_segment) == (NOT_RAM, 1)
        assert peer.read_memory(call, (room + PAGE, 4)).segments == ((OK, bytes(4)),)
    # As much as the buffer holds, and not one byte more: zeroes cost a daemon nothing to send.
    whole = f.WriteSegment(room + PAGE, PAGE, None)
    for bad in (whole, write(room + PAGE, b"x")):
        answer = peer.write_memory(call, whole, bad)
        assert (answer.status, answer.bad_segment) == (NOT_RAM, 1)
    assert peer.write_memory(call, good, f.WriteSegment(room + PAGE + 1, 2, None)).status is OK
    peer.reply(call)
    assert program.answer() == (0, 0)
    assert program.get(room, 3 * PAGE) == bytes(PAGE) + b"g\0\0d" + bytes(2 * PAGE - 4)


def test_reply_when_it_writes_beyond_the_buffer_then_nothing_is_written_and_the_call_is_lost(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    room = program.map(PAGE)
    fields = {"uaddr": room, "len": 48}
    length = register(sev.LAUNCH_MEASURE, "len")
    peer = None
    for bad in (write(room + 1, bytes([1]) * 48), write(room - 1, b"x"), write(room + 48, b"x")):
        pending = begin(program, vm, sev.LAUNCH_MEASURE, **fields)
        peer = peer or meet(fake)
        peer.reply(peer.call(), SevCode.SUCCESS, ((length, 40),), (write(room, b"good"), bad))
        result = pending.result()
        assert (result.status, result.error, result.fields["len"]) == (LOST, ERROR_BEFORE, 48)
        assert program.get(room, PAGE) == bytes(PAGE)
    assert peer is not None
    pending = begin(program, vm, sev.LAUNCH_MEASURE, **fields)
    peer.reply(peer.call(), SevCode.SUCCESS, ((length, 48),), (write(room, b"m" * 48),))
    assert pending.result().status == 0
    assert program.get(room, 50) == b"m" * 48 + b"\0\0"


def test_buffer_when_it_is_only_read_then_it_is_never_written(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    dh = program.put(b"d" * 64)
    pending = begin(program, vm, sev.LAUNCH_START, dh_uaddr=dh, dh_len=64)
    peer = meet(fake)
    call = peer.call()
    assert peer.read_memory(call, (dh, 64)).segments == ((OK, b"d" * 64),)
    assert peer.write_memory(call, write(dh, b"x")).status is NOT_RAM
    peer.reply(call)
    assert pending.result().status == 0
    assert program.get(dh, 64) == b"d" * 64


def test_buffers_when_they_cannot_be_written_then_it_is_a_fault(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    room = program.map(PAGE, READ_ONLY)
    pending = begin(program, vm, sev.LAUNCH_MEASURE, uaddr=room, len=48)
    peer = meet(fake)
    call = peer.call()
    assert peer.write_memory(call, write(room, b"x")).status is NOT_RAM
    peer.reply(call, SevCode.SUCCESS, (), (write(room, b"x"),))
    result = pending.result()
    assert (result.status, result.error) == (SevCode.EFAULT, ERROR_BEFORE)


def test_debug_when_unaligned_then_whole_blocks_are_its_buffers(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    room = program.map(2 * PAGE)
    begin(program, vm, sev.DBG_ENCRYPT, src_uaddr=room + 7, dst_uaddr=room + PAGE + 30, len=5)
    peer = meet(fake)
    call = peer.call()
    source, target = room, room + PAGE + 16
    answers = peer.read_memory(
        call, (source, 16), (target, 32), (source, 17), (source - 1, 1), (target - 1, 1),
        (target, 33),
    )  # fmt: skip
    assert [status for status, _ in answers.segments] == [OK, OK, *[NOT_RAM] * 4]
    assert peer.write_memory(call, write(target, b"w" * 32)).status is OK
    assert peer.write_memory(call, write(target + 32, b"w")).status is NOT_RAM
    assert peer.write_memory(call, write(source, b"w")).status is NOT_RAM
    peer.reply(call)
    assert program.answer() == (0, 0)
    assert program.get(room, 2 * PAGE) == bytes(PAGE + 16) + b"w" * 32 + bytes(PAGE - 48)


def test_get_id_when_it_has_no_structure_then_the_pointer_is_the_buffer(
    program: SevProgram, fake: FakeDaemon
):
    device = program.open("/dev/sev")
    room = program.map(PAGE)
    argument = program.argument(sev.GET_ID, room + 16)
    program.send("ioctl", device, SEV_ISSUE_CMD, argument)
    peer = meet(fake)
    call = peer.call()
    assert call.gpr[3] == room + 16
    assert peer.write_memory(call, write(room + 15, b"x")).status is NOT_RAM
    assert peer.write_memory(call, write(room + 16 + 128, b"x")).status is NOT_RAM
    peer.reply(call, SevCode.SUCCESS, (), (write(room + 16, b"i" * 128),))
    assert program.answer() == (0, 0)
    assert program.get(room, 160) == bytes(16) + b"i" * 128 + bytes(16)


def test_lengths_when_refused_then_they_come_back_with_invalid_len_only(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    registers = (
        (register(sev.SEND_START, "policy"), 9),
        (register(sev.SEND_START, "session_len"), 128),
    )
    peer = None
    for status, policy, length in (
        (SevCode.INVALID_LEN, 3, 128),
        (REFUSED, 3, 5),
        (SevCode.EINVAL, 3, 5),
        (SevCode.SUCCESS, 9, 128),
    ):
        pending = begin(program, vm, sev.SEND_START, policy=3, session_len=5)
        peer = peer or meet(fake)
        peer.reply(peer.call(), status, registers)
        result = pending.result()
        assert result.status == status
        assert (result.fields["policy"], result.fields["session_len"]) == (policy, length)
        assert result.error == (ERROR_BEFORE if status < 0 else status)


def test_announcement_when_it_lies_then_calls_are_refused_each_with_its_reason(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    sized = s.BufferKind.SIZED
    wrong = (
        f.BufferSpec(5, sized, s.Direction.IN, 6, 100),
        f.BufferSpec(4, sized, s.Direction.IN, 6, 100),
        f.BufferSpec(4, s.BufferKind.FIXED, s.Direction.IN, 0, 100),
        f.BufferSpec(4, s.BufferKind.PAGE_BOUNDED, s.Direction.IN, 0, 100),
        f.BufferSpec(4, sized, s.Direction.OUT, 5, 100),
        f.BufferSpec(6, sized, s.Direction.IN, 9, 100),
        f.BufferSpec(31, sized, s.Direction.IN, 5, 100),
    )
    hcalls = (
        sev.LAUNCH_SECRET, sev.RECEIVE_UPDATE_DATA, sev.SEND_UPDATE_DATA, sev.DBG_DECRYPT,
        sev.DBG_ENCRYPT, sev.LAUNCH_UPDATE_VMSA, sev.GET_ATTESTATION_REPORT,
    )  # fmt: skip
    good = [spec(sev.LAUNCH_FINISH), spec(sev.LAUNCH_START)]
    bad = [spec(hcall, buffer) for hcall, buffer in zip(hcalls, wrong, strict=True)]
    unknown = f.CallSpec(0xAEBA_0099, 4, s.Disposition.FORWARD, 0, 1000, -1, -1, ())
    pending = begin(program, vm, sev.LAUNCH_FINISH)
    peer = fake.accept()
    peer.greet()
    accept = peer.welcome(
        f.Announcement(
            (*good, good[0], *bad, unknown, spec(pks.GET_CONFIG, *bad[0].buffers, level=1)),
            ("hcall-x",),
            (("ibm,x", b"y"),),
        ),
        s.Feature.COMMANDS,
    )
    reasons = [(refused.number, refused.reason) for refused in accept.refused]
    assert reasons == [
        (sev.LAUNCH_FINISH.number, s.RefusedReason.DUPLICATE),
        *((hcall.number, s.RefusedReason.BAD_BUFFER) for hcall in hcalls),
        (0xAEBA_0099, s.RefusedReason.OUT_OF_RANGE),
        (pks.GET_CONFIG.number, s.RefusedReason.LEVEL_NOT_NEGOTIATED),
    ]
    peer.reply(peer.call())
    assert pending.result().status == 0
    # What is not served is not known, and nothing of it is written back.
    result = program.issue(vm, sev.LAUNCH_SECRET, hdr_len=1)
    assert (result.status, result.error) == (SevCode.EINVAL, ERROR_BEFORE)
    assert peer.nothing_comes(0.1)


def test_read_when_more_than_a_frame_holds_then_it_is_too_large(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    size = s.MIN_MAX_FRAME
    room = program.map(size)
    begin(program, vm, sev.LAUNCH_UPDATE_DATA, uaddr=room, len=size)
    peer = meet(fake)
    call = peer.call()
    heads = s.HEADER_SIZE + 8 + 2 * 8
    answers = peer.read_memory(call, (room, size - heads - 1), (room, 2))
    assert [status for status, _ in answers.segments] == [OK, s.AccessStatus.TOO_LARGE]
    answers = peer.read_memory(call, (room, size - heads - 1), (room, 1))
    assert [status for status, _ in answers.segments] == [OK, OK]
    peer.reply(call)
    assert program.answer() == (0, 0)


def test_buffers_when_together_more_than_a_frame_then_the_last_is_too_large(
    program: SevProgram, fake: FakeDaemon
):
    vm = program.create_vm()
    size = s.MIN_MAX_FRAME // 2
    room = program.map(size)
    calls = [one for one in announce_all() if one.number != sev.RECEIVE_UPDATE_DATA.number]
    buffers = [
        f.BufferSpec(address, s.BufferKind.SIZED, s.Direction.IN, address + 1, size)
        for address in (4, 8)
    ]
    calls.append(spec(sev.RECEIVE_UPDATE_DATA, *buffers))
    pending = begin(
        program, vm, sev.RECEIVE_UPDATE_DATA, hdr_uaddr=room, hdr_len=size, trans_uaddr=room,
        trans_len=size,
    )  # fmt: skip
    peer = meet(fake, calls)
    call = peer.call()
    assert [one.status for one in call.segments] == [
        s.SegmentStatus.OK,
        s.SegmentStatus.TOO_LARGE,
    ]
    peer.send_bytes(encode(f.Reply(0, 0, call.seq, SevCode.INVALID_LEN)))
    assert pending.result().status == SevCode.INVALID_LEN
