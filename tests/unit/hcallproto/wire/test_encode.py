# SPDX-License-Identifier: Apache-2.0
"""Frames to bytes: what cannot be sent is refused here, not by the peer."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.hcallproto.conn.talk import (
    ANNOUNCE,
    ANNOUNCEMENT,
    CALL,
    CALL_SPEC,
    CONTROL,
    EVENT,
    GOODBYE,
    HELLO,
    RAM,
    READ,
    READ_REPLY,
    REPLY,
    SAMPLES,
    WELCOME,
    WRITE,
    WRITE_REPLY,
)
from tests.unit.hcallproto.wire.raw import part, payload_of, read

from hcallproto.errors import LocalProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import FrameType


def refuse(frame: f.Frame, match: str) -> None:
    with pytest.raises(LocalProtocolError, match=match):
        encode(frame)


@pytest.mark.parametrize("frame_type", FrameType, ids=lambda t: t.name)
def test_frame_when_encoded_then_header_and_schema_agree_and_it_reads_back(frame_type: FrameType):
    frame: Any = SAMPLES[frame_type]
    data = encode(frame)
    header = s.HEADER.parse(data)
    assert header.type == frame_type
    assert header.size == len(data)
    assert header.flags == 0
    assert header.reset == frame.reset
    assert header.vcpu == getattr(frame, "vcpu", s.NO_VCPU)
    assert header.seq == getattr(frame, "seq", 0)
    assert header.request == getattr(frame, "request", 0)
    assert payload_of(data) is not None
    assert read(data) == frame


def test_call_when_resent_then_it_has_the_flag():
    data = encode(CALL._replace(is_resent=True))
    assert s.HEADER.parse(data).flags == s.FLAG_RESENT
    assert read(data) == CALL._replace(is_resent=True)


# -- replies ----------------------------------------------------------------------------------


def test_reply_when_it_has_everything_then_its_bytes_are_those_of_the_schema():
    reply = REPLY._replace(
        status=-4,
        registers=((0, 1), (4, 2), (12, 3), (31, (1 << 64) - 1)),
        writes=(f.WriteSegment(16, 2, b"ab"), f.WriteSegment(4096, 4096, None)),
        context=3,
        nip=1,
        msr=s.MSR_S,
        msr_mask=s.MSR_S | s.MSR_EE,
        pages=(f.PageRange(0x1000, 0x2000, s.PageState.UNSHARED),),
    )
    assert encode(reply)[s.HEADER_SIZE :] == b"".join(
        [
            part(
                s.REPLY,
                status=-4,
                register_mask=1 | 1 << 4 | 1 << 12 | 1 << 31,
                context=7,
                write_count=2,
                nip=1,
                msr=s.MSR_S,
                msr_mask=s.MSR_S | s.MSR_EE,
            ),
            *(value.to_bytes(8, "big") for value in (1, 2, 3, (1 << 64) - 1)),
            part(s.WRITE_SEGMENT, gpa=16, size=2) + b"ab",
            part(s.WRITE_SEGMENT, gpa=4096, size=4096, flags=s.WRITE_FLAG_ZERO),
            part(s.PAGES, range_count=1),
            part(s.PAGE_RANGE, gpa=0x1000, size=0x2000, state=1),
        ]
    )


@pytest.mark.parametrize("count", range(len(s.REGISTERS)))
def test_reply_when_it_sets_any_number_of_registers_then_it_reads_back(count: int):
    numbers = [n for n in s.REGISTERS if n != 3][:count]
    reply = REPLY._replace(registers=tuple((n, 100 + n) for n in numbers))
    assert read(encode(reply)) == reply


@pytest.mark.parametrize(
    "registers",
    [
        ((5, 1), (4, 2)),
        ((4, 1), (4, 1)),
        ((4, 1), (12, 2), (5, 3)),
        ((3, 1),),
        ((1, 1),),
        ((13, 1),),
        ((32, 1),),
        ((-1, 1),),
        tuple((n, 0) for n in range(64)),
    ],
)
def test_reply_when_registers_do_not_rise_or_may_not_be_set_then_it_is_refused(
    registers: tuple[tuple[int, int], ...],
):
    """Once, r5 and r4 in this order exchanged their values on the way."""
    refuse(REPLY._replace(registers=registers), "expected a rising list")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"status": 1 << 63}, "Reply"),
        ({"status": -(1 << 63) - 1}, "Reply"),
        ({"registers": ((4, 1 << 64),)}, "Reply"),
        ({"registers": ((4, -1),)}, "Reply"),
        ({"context": 4}, "context bits 0x4"),
        ({"context": -1}, "context bits"),
        ({"context": 8}, "context bits 0x8"),
        ({"context": s.CONTEXT_NIP, "nip": 1 << 64}, "Reply"),
        ({"nip": 1}, "not say that it is to be set"),
        ({"msr_mask": s.MSR_EE}, "not to be set"),
        ({"context": s.CONTEXT_MSR, "msr": s.MSR_EE}, "outside of its mask"),
        ({"context": s.CONTEXT_MSR, "msr": 1 << 14, "msr_mask": 1 << 14}, "changes MSR bits"),
        ({"context": s.CONTEXT_MSR, "msr_mask": s.MSR_S}, r"clears MSR\[S\]"),
        ({"pages": (f.PageRange(1, 0x1000, s.PageState(0)),)}, "not of whole pages"),
        ({"pages": (f.PageRange(0, 0x1001, s.PageState(0)),)}, "not of whole pages"),
        ({"pages": (f.PageRange(0, 0x1000, s.PageState(3)),)}, "which only PAGES can"),
        ({"pages": (f.PageRange(0, 0, s.PageState(0)),) * 65}, "65 page ranges, at most 64"),
        ({"vcpu": 1 << 32}, "Reply"),
        ({"seq": 1 << 64}, "Reply"),
        ({"reset": -1}, "Reply"),
        ({"writes": (f.WriteSegment(0, 2, b"abc"),)}, "of 2 bytes holds 3"),
        ({"writes": (f.WriteSegment(0, 4, b"abc"),)}, "of 4 bytes holds 3"),
        ({"writes": (f.WriteSegment(1 << 64, 0, b""),)}, "Reply"),
        ({"writes": (f.WriteSegment(0, 1 << 32, None),)}, "Reply"),
        ({"writes": (f.WriteSegment(0, 0, b""),) * 65}, "65 segments, at most 64"),
    ],
)
def test_reply_when_a_value_cannot_be_sent_then_it_is_refused(change: dict[str, Any], match: str):
    refuse(REPLY._replace(**change), match)


@pytest.mark.parametrize(
    "change",
    [
        {"status": (1 << 63) - 1},
        {"status": -(1 << 63)},
        {"seq": (1 << 64) - 1, "vcpu": 0xFFFF_FFFE, "reset": 0xFFFF_FFFF},
        {"writes": (f.WriteSegment(0, 0, b""),) * 64},
        {"writes": (f.WriteSegment((1 << 64) - 1, 0xFFFF_FFFF, None),)},
        {"registers": (), "writes": ()},
    ],
)
def test_reply_when_a_value_is_at_its_bound_then_it_reads_back(change: dict[str, Any]):
    reply = REPLY._replace(**change)
    assert read(encode(reply)) == reply


# -- others -----------------------------------------------------------------------------------

WRONG: list[tuple[f.Frame, str]] = [
    (READ._replace(segments=((0, 0),) * 65), "65 segments"),
    (READ._replace(segments=((0, 1 << 32),)), "Read"),
    (READ._replace(request=1 << 32), "Read"),
    (WRITE._replace(segments=(f.WriteSegment(0, 0, None),) * 65), "65 segments"),
    (WRITE._replace(segments=(f.WriteSegment(0, 1, b""),)), "of 1 bytes holds 0"),
    (READ_REPLY._replace(segments=((s.AccessStatus.OK, b""),) * 65), "65 segments"),
    (READ_REPLY._replace(segments=((s.AccessStatus.NOT_RAM, b"x"),)), "data and status NOT_RAM"),
    (WRITE_REPLY._replace(bad_segment=-1), "WriteReply"),
    (CALL._replace(gpr=(1 << 64, *CALL.gpr[1:])), "Call"),
    (CALL._replace(gpr=CALL.gpr[1:]), "Call"),
    (CALL._replace(segments=(f.Segment(4, 0, s.SegmentStatus.OK, b""),)), "buffer 4 out of order"),
    (
        CALL._replace(segments=(f.Segment(0, 0, s.SegmentStatus.TOO_LARGE, b"x"),)),
        "data and status TOO_LARGE",
    ),
    (EVENT._replace(vcpu=3), "RESET has vcpu"),
    (EVENT._replace(kind=s.EventKind.VCPU_ADDED), "VCPU_ADDED has vcpu"),
    (RAM._replace(regions=(f.RamRegion(0, 0),)), "empty"),
    (RAM._replace(descriptor_count=0), "names descriptor 0"),
    (RAM._replace(descriptor_count=17), "17 descriptors"),
    (HELLO._replace(vcpu_max=1 << 32), "Hello"),
    (HELLO._replace(instance=bytes(15)), "instance and uuid of 15 and 16 bytes"),
    (HELLO._replace(uuid=bytes(17)), "instance and uuid of 16 and 17 bytes"),
    (ANNOUNCE._replace(announcement=f.Announcement((CALL_SPEC,) * 513)), "513 calls"),
    (
        ANNOUNCE._replace(
            announcement=f.Announcement((CALL_SPEC._replace(buffers=CALL_SPEC.buffers * 5),))
        ),
        "5 buffers",
    ),
    (ANNOUNCE._replace(announcement=f.Announcement(strings=("Hcall",))), "is not b'"),
    (ANNOUNCE._replace(announcement=f.Announcement(strings=("ä",))), "Announce"),
    (ANNOUNCE._replace(announcement=f.Announcement(strings=("",))), "is not b'"),
    (ANNOUNCE._replace(announcement=f.Announcement(properties=(("ä", b""),))), "Announce"),
    (
        ANNOUNCE._replace(announcement=f.Announcement(properties=(("a", bytes(257)),))),
        "257 bytes, at most 256",
    ),
    (
        WELCOME._replace(announcement=ANNOUNCEMENT._replace(strings=("a" * 64,))),
        "64 bytes, at most 63",
    ),
]


@pytest.mark.parametrize(
    ("frame", "match"), WRONG, ids=[f"{type(w[0]).__name__}-{w[1]}" for w in WRONG]
)
def test_frame_when_the_peer_would_take_it_for_a_breach_then_it_is_refused(
    frame: f.Frame, match: str
):
    refuse(frame, match)


# -- texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("", ""),
        ("x" * 512, "x" * 512),
        ("x" * 513, "x" * 512),
        ("ä" * 256, "ä" * 256),
        ("x" + "ä" * 256, "x" + "ä" * 255),
        ("😀" * 129, "😀" * 128),
        ("x" + "😀" * 128, "x" + "😀" * 127),
        ("broken \udcff name", "broken ? name"),
    ],
)
def test_text_when_it_is_too_long_then_it_is_cut_between_characters(text: str, sent: str):
    for frame in (GOODBYE, CONTROL):
        assert read(encode(frame._replace(text=text))) == frame._replace(text=sent)
    found = read(encode(HELLO._replace(name=text, program=text)))
    assert found == HELLO._replace(name=sent, program=sent)
