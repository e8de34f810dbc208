# SPDX-License-Identifier: Apache-2.0
"""What may be secret does not stay in a frame; what people read does."""

from __future__ import annotations

import pytest

from hcallproto.abi.families import pks, svm, tpm, uv
from hcallproto.abi.registry import CALLS
from hcallproto.abi.spec import Direction, Hcall
from hcallproto.capture.blank import MAX_LEFT_OVER, Blanker
from hcallproto.payloads.pks import AUTH_HEADER_SIZE
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

AT = {"auth": 0x1000, "label": 0x2000, "input": 0x3000, "output": 0x4000}
SECRET = b"correct horse battery"


def call(hcall: Hcall, *segments: f.Segment, vcpu: int = 3, **args: int) -> f.Call:
    gpr = [0] * 13
    gpr[2] = hcall.number
    for arg in hcall.args:
        register = arg.register
        gpr[register - 1 if register > 1 else 0] = args.get(arg.name, 0)
    return f.Call(vcpu, 0, 7, False, hcall.level, tuple(gpr), 0, 0, 0, 0, segments)


def announce(blanker: Blanker, *hcalls: Hcall) -> None:
    """What a session tells the shim: all IN buffers come with the call, in order."""
    blanker.blank(
        f.Announce(
            f.Announcement(
                tuple(
                    f.CallSpec(
                        hcall.number,
                        hcall.level,
                        s.Disposition.FORWARD,
                        0,
                        0,
                        0,
                        0,
                        tuple(
                            f.BufferSpec(
                                hcall.arg(buffer.address).register,
                                s.BufferKind.SIZED,
                                s.Direction.IN,
                                0,
                                64,
                            )
                            for buffer in hcall.buffers
                            if buffer.direction is Direction.IN
                        ),
                    )
                    for hcall in hcalls
                )
            ),
            1,
            0,
        )
    )


def inline(hcall: Hcall) -> list[f.Segment]:
    buffers = [buffer for buffer in hcall.buffers if buffer.direction is Direction.IN]
    return [
        f.Segment(index, 0x1000 * (index + 1), s.SegmentStatus.OK, SECRET)
        for index, _ in enumerate(buffers)
    ]


@pytest.mark.parametrize(
    "hcall", [hcall for hcall in CALLS if hcall.buffers], ids=lambda hcall: hcall.name
)
def test_blank_when_buffers_come_with_a_call_then_the_tables_secret_ones_are_zeros(hcall: Hcall):
    blanker = Blanker()
    announce(blanker, hcall)
    shown = blanker.blank(call(hcall, *inline(hcall)))
    assert isinstance(shown, f.Call)
    buffers = [buffer for buffer in hcall.buffers if buffer.direction is Direction.IN]
    assert [segment.data for segment in shown.segments] == [
        SECRET[: one.open_size].ljust(len(SECRET), b"\0") if one.secret else SECRET
        for one in buffers
    ]


def test_blank_when_a_call_was_not_announced_or_is_unknown_then_all_its_buffers_are_zeros():
    unknown = call(pks.READ_OBJECT, *inline(pks.READ_OBJECT))
    gpr = (*unknown.gpr[:2], 0x4242, *unknown.gpr[3:])
    for frame in (unknown, unknown._replace(gpr=gpr)):
        shown = Blanker().blank(frame)
        assert isinstance(shown, f.Call)
        assert {segment.data for segment in shown.segments} == {bytes(len(SECRET))}
        assert shown.gpr == frame.gpr


def reply(hcall: Hcall, at: int, **args: int) -> f.Reply:
    blanker = Blanker()
    blanker.blank(call(hcall, **args))
    shown = blanker.blank(
        f.Reply(3, 0, 7, 0, ((4, 5),), (f.WriteSegment(at, len(SECRET), SECRET),))
    )
    assert isinstance(shown, f.Reply)
    return shown


def test_blank_when_a_reply_writes_an_object_then_it_is_zeros():
    shown = reply(pks.READ_OBJECT, 0x4000, output=0x4000, output_size=64)
    assert shown.writes[0].data == bytes(len(SECRET))
    assert shown.registers == ((4, 5),)


def test_blank_when_a_reply_writes_what_is_no_secret_then_it_stays():
    (buffer,) = pks.GET_CONFIG.buffers
    arg = buffer.address
    size = {buffer.size: 64} if buffer.size else {}
    shown = reply(pks.GET_CONFIG, 0x4000, **{arg: 0x4000}, **size)
    assert shown.writes[0].data == SECRET


@pytest.mark.parametrize("at", [0x3FF0, 0x4030, 0x9000])
def test_blank_when_a_reply_writes_beside_its_buffer_then_it_is_zeros(at: int):
    (buffer,) = pks.GET_CONFIG.buffers
    size = {buffer.size: 64} if buffer.size else {}
    shown = reply(pks.GET_CONFIG, at, **{buffer.address: 0x4000}, **size)
    assert shown.writes[0].data == bytes(len(SECRET))


def test_blank_when_a_result_register_is_secret_then_it_is_zero():
    blanker = Blanker()
    blanker.blank(call(svm.RANDOM))
    shown = blanker.blank(f.Reply(3, 0, 7, 0, ((4, 0x1234),)))
    assert isinstance(shown, f.Reply)
    assert shown.registers == ((4, 0),)


def test_blank_when_a_reply_is_of_a_call_that_was_not_seen_then_its_results_are_zeros():
    """A capture may begin while a vCPU waits for a secret; and one call's is not another's."""
    reply = f.Reply(3, 0, 8, 0, ((4, 0x5EC), (11, 0x7E7)))
    blanked = reply._replace(registers=((4, 0), (11, 0)))
    assert Blanker().blank(reply) == blanked
    blanker = Blanker()
    blanker.blank(call(pks.WRAP_OBJECT))
    assert blanker.blank(reply) == blanked
    blanker.blank(call(pks.WRAP_OBJECT))
    assert blanker.blank(reply._replace(seq=7)) == reply._replace(seq=7)


def test_blank_when_a_later_call_has_a_secret_result_in_a_register_it_has_no_use_for():
    """Registers r4 to r12 are volatile: what one call has left there goes out with the next."""
    blanker = Blanker()
    blanker.blank(call(uv.ESMB_GET_FILE))
    secrets = tuple((number, 0x5EC0 + number) for number in range(4, 12))
    blanker.blank(f.Reply(3, 0, 7, 0, secrets))
    gpr = list(call(uv.SHARE_PAGE, gfn=0x5EC4, num=1, vcpu=4).gpr)
    gpr[0] = 0x5EC9  # r0
    gpr[8:11] = 0x5EC9, 0x5ECA, 0x77  # r9 to r11
    later = call(uv.SHARE_PAGE, vcpu=4)._replace(gpr=tuple(gpr))
    shown = blanker.blank(later)
    assert isinstance(shown, f.Call)
    assert shown.registers()[4] == 0x5EC4, "an argument stays"
    assert [shown.registers()[number] for number in (0, 3, 9, 10, 11)] == [
        0,
        uv.SHARE_PAGE.number,
        0,
        0,
        0x77,
    ]
    assert Blanker().blank(later) is later
    for number in range(100):
        blanker.blank(call(svm.RANDOM))
        blanker.blank(f.Reply(3, 0, 7, 0, ((4, 0x10_0000 + number),)))
    assert len(blanker._left_over) <= MAX_LEFT_OVER
    assert blanker.blank(later) is not later


def test_blank_when_memory_is_read_for_a_call_before_then_it_is_zeros():
    """What a vCPU's newest call declares says nothing of the memory of another."""
    blanker = Blanker()
    blanker.blank(call(pks.SIGNED_UPDATE, label=0x2000, label_size=8))
    for seq, expected in ((7, b"a label!"), (6, bytes(8))):
        blanker.blank(f.Read(3, 0, seq, seq, ((0x2000, 8),)))
        reply = blanker.blank(f.ReadReply(3, 0, seq, seq, ((s.AccessStatus.OK, b"a label!"),)))
        assert isinstance(reply, f.ReadReply)
        assert reply.segments[0][1] == expected


def test_blank_when_memory_is_read_during_a_call_then_only_declared_buffers_stay():
    blanker = Blanker()
    blanker.blank(call(pks.WRITE_OBJECT, auth=0x1000, label=0x2000, label_size=21, input=0x3000))
    asked = ((0x2000, 21), (0x1000, 21), (0x2000, 22), (0x7000, 21))
    assert blanker.blank(f.Read(3, 0, 7, 9, asked)) == f.Read(3, 0, 7, 9, asked)
    got = tuple((s.AccessStatus.OK, SECRET.ljust(size, b".")) for _, size in asked)
    shown = blanker.blank(f.ReadReply(3, 0, 7, 9, got))
    assert isinstance(shown, f.ReadReply)
    label, auth, *others = (data for _, data in shown.segments)
    assert label == SECRET
    assert auth == SECRET[:AUTH_HEADER_SIZE].ljust(21, b"\0")
    assert others == [bytes(22), bytes(21)]
    again = blanker.blank(f.ReadReply(3, 0, 7, 9, got))
    assert isinstance(again, f.ReadReply), "nobody asked a second time"
    assert all(data == bytes(len(data)) for _, data in again.segments)


def test_blank_when_a_label_is_where_a_password_is_then_neither_stays():
    blanker = Blanker()
    blanker.blank(call(pks.READ_OBJECT, auth=0x1000, label=0x1000, label_size=21))
    blanker.blank(f.Read(3, 0, 7, 9, ((0x1000, 21),)))
    shown = blanker.blank(f.ReadReply(3, 0, 7, 9, ((s.AccessStatus.OK, SECRET),)))
    assert isinstance(shown, f.ReadReply)
    assert shown.segments == ((s.AccessStatus.OK, bytes(21)),)


@pytest.mark.parametrize("hcall", [uv.ESM, uv.SHARE_PAGE, tpm.TPM_COMM], ids=lambda one: one.name)
def test_blank_when_memory_is_written_during_a_call_then_it_is_zeros(hcall: Hcall):
    blanker = Blanker()
    blanker.blank(call(hcall))
    segments = (f.WriteSegment(0x1000, 21, SECRET), f.WriteSegment(0x2000, 8192, None))
    shown = blanker.blank(f.Write(3, 0, 7, 9, segments))
    assert isinstance(shown, f.Write)
    assert shown.segments == (f.WriteSegment(0x1000, 21, bytes(21)), segments[1])


def test_blank_when_a_peer_invents_calls_and_requests_then_memory_is_bounded():
    blanker = Blanker()
    for number in range(20_000):
        blanker.blank(call(pks.READ_OBJECT, vcpu=number))
        blanker.blank(f.Read(3, 0, 7, number, ((0, 1),)))
    held = [value for value in vars(blanker).values() if isinstance(value, dict)]
    assert max(map(len, held)) <= 8192


def test_blank_when_a_frame_holds_no_memory_then_it_is_the_same():
    event = f.Event(s.EventKind.RESET, s.NO_VCPU, 1, 1)
    assert Blanker().blank(event) is event


def test_another_fill_tells_what_was_blanked():
    whole = call(pks.READ_OBJECT, f.Segment(0, AT["auth"], s.SegmentStatus.OK, SECRET), auth=0x1000)
    outside = f.Write(3, 0, 7, 1, (f.WriteSegment(0x9000, len(SECRET), SECRET),))
    event = f.Event(s.EventKind.RESET, s.NO_VCPU, 1, 1)
    first, again = Blanker(), Blanker(fill=0xA5)
    for frame, has_secret in ((whole, True), (outside, True), (event, False)):
        blanked = first.blank(frame)
        assert (blanked != frame) is has_secret
        assert (again.blank(blanked) != blanked) is has_secret
