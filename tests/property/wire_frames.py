# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies: frames of every type with any values that the document allows."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.schema import FrameType

_DT_STRING: Final = "abcdefghijklmnopqrstuvwxyz0123456789-"
_DT_NAME: Final = _DT_STRING + "ABCDEFGHIJKLMNOPQRSTUVWXYZ,._+?#"
_EDGES: Final = (0, 1, 3, 0x7F, 0xFF, 0x1000, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    """Any number of so many bits, and often one at an edge."""
    edges = [n for n in (*_EDGES, (1 << 63) - 1, 1 << 63, (1 << 64) - 1) if n < 1 << bits]
    return st.sampled_from(edges) | st.integers(0, (1 << bits) - 1)


u8, u16, u32, u64 = (unsigned(bits) for bits in (8, 16, 32, 64))
s64 = st.integers(-(1 << 63), (1 << 63) - 1)
vcpus = st.integers(0, s.NO_VCPU - 1)
datas = st.binary(max_size=40)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
features = st.builds(s.Feature, st.integers(0, 15))

buffers = st.builds(
    f.BufferSpec,
    u8,
    st.sampled_from(s.BufferKind),
    st.builds(s.Direction, st.integers(1, 3)),
    u8,
    u32,
)
call_specs = st.builds(
    f.CallSpec,
    u64,
    u8,
    st.sampled_from(s.Disposition),
    st.integers(0, 3),
    u32,
    s64,
    s64,
    st.lists(buffers, max_size=s.MAX_BUFFERS).map(tuple),
)
announcements = st.builds(
    f.Announcement,
    st.lists(call_specs, max_size=5).map(tuple),
    st.lists(st.text(_DT_STRING, min_size=1, max_size=s.MAX_DT_STRING_SIZE), max_size=3).map(tuple),
    st.lists(
        st.tuples(st.text(_DT_NAME, min_size=1, max_size=s.MAX_DT_NAME_SIZE), datas), max_size=3
    ).map(tuple),
)


@st.composite
def rams(draw: st.DrawFn) -> f.Ram:
    """Regions in rising order, without overlap."""
    descriptor_count = draw(st.integers(0, s.MAX_DESCRIPTORS))
    indexes = st.just(s.NO_DESCRIPTOR)
    if descriptor_count:
        indexes |= st.integers(0, descriptor_count - 1)
    regions = []
    at = 0
    for gap, size in draw(st.lists(st.tuples(unsigned(60), st.integers(1, 1 << 60)), max_size=4)):
        at += gap
        regions.append(f.RamRegion(at, size, draw(u64), draw(indexes)))
        at += size
    return f.Ram(tuple(regions), descriptor_count, draw(u32))


@st.composite
def segments(draw: st.DrawFn) -> tuple[f.Segment, ...]:
    """Of a CALL: in the order of the buffers, data only with status OK."""
    found = []
    for buffer in sorted(draw(st.sets(st.integers(0, s.MAX_BUFFERS - 1)))):
        status = draw(st.sampled_from(s.SegmentStatus))
        data = draw(datas) if status is s.SegmentStatus.OK else b""
        found.append(f.Segment(buffer, draw(u64), status, data))
    return tuple(found)


@st.composite
def write_segments(draw: st.DrawFn) -> f.WriteSegment:
    """With data of the size told, or none."""
    data = draw(st.none() | datas)
    return f.WriteSegment(draw(u64), draw(u32) if data is None else len(data), data)


read_data = st.tuples(st.just(s.AccessStatus.OK), datas) | st.tuples(
    st.sampled_from([status for status in s.AccessStatus if status is not s.AccessStatus.OK]),
    st.just(b""),
)
registers = st.dictionaries(
    st.sampled_from([number for number in s.REGISTERS if number != 3]), u64
).map(lambda values: tuple(sorted(values.items())))
events = st.sampled_from(s.EventKind).flatmap(
    lambda kind: st.builds(
        f.Event,
        st.just(kind),
        vcpus if kind in (s.EventKind.VCPU_ADDED, s.EventKind.VCPU_REMOVED) else st.just(s.NO_VCPU),
        u32,
        u32,
    )
)


def few(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """A tuple of some, now and then of as many as may be."""
    return st.lists(items, max_size=4).map(tuple) | items.map(lambda one: (one,) * s.MAX_SEGMENTS)


NAME: Final = (vcpus, u32, u64)
"""The fields that name a call: ``vcpu``, ``reset``, ``seq``."""

page_ranges = st.builds(
    f.PageRange,
    u64.map(lambda gpa: gpa & -s.STATE_PAGE_SIZE),
    u64.map(lambda size: size & -s.STATE_PAGE_SIZE),
    st.sampled_from([s.PageState(bits) for bits in (0, 1, 3)]),
)


@st.composite
def replies(draw: st.DrawFn) -> f.Reply:
    """NIP and MSR bits only where they are to be set; MSR[S] is not cleared."""
    context = draw(st.integers(0, 3))
    nip = draw(u64) if context & s.CONTEXT_NIP else 0
    msr, msr_mask = 0, 0
    if context & s.CONTEXT_MSR:
        msr_mask = draw(st.sampled_from([0, s.MSR_EE, s.MSR_S, s.MSR_EE | s.MSR_S]))
        msr = msr_mask & draw(st.sampled_from([s.MSR_S, s.MSR_EE | s.MSR_S]))
    kept = page_ranges.filter(lambda pages: s.PageState.PAGED_OUT not in pages.state)
    pages = draw(st.just(()) | few(kept))
    writes = draw(few(write_segments()))
    vcpu, reset, seq = (draw(part) for part in NAME)
    status, values = draw(s64), draw(registers)
    return f.Reply(vcpu, reset, seq, status, values, writes, context, nip, msr, msr_mask, pages)


STRATEGIES: Final[dict[FrameType, st.SearchStrategy[f.Frame]]] = {
    FrameType.HELLO: st.builds(
        f.Hello,
        *(u16, u16, u32, features, st.binary(min_size=16, max_size=16)),
        *(st.binary(min_size=16, max_size=16), u32, u32, u32, u32, u8, texts, texts, u32),
    ),
    FrameType.WELCOME: st.builds(f.Welcome, u16, u32, features, announcements, u32),
    FrameType.ACCEPT: st.builds(
        f.Accept,
        st.lists(
            st.builds(f.RefusedCall, u64, u8, st.sampled_from(s.RefusedReason)), max_size=4
        ).map(tuple),
        st.booleans(),
        u32,
        u32,
    ),
    FrameType.ANNOUNCE: st.builds(f.Announce, announcements, u32, u32),
    FrameType.RAM: rams(),
    FrameType.GOODBYE: st.builds(f.Goodbye, st.sampled_from(s.GoodbyeReason), texts, u32),
    FrameType.SHIM_GOODBYE: st.builds(f.ShimGoodbye, st.sampled_from(s.GoodbyeReason), texts, u32),
    FrameType.CALL: st.builds(
        f.Call,
        *NAME,
        st.booleans(),
        u8,
        st.tuples(*[u64] * len(s.REGISTERS)),
        *(u64, u64, u64, u64),
        segments(),
    ),
    FrameType.REPLY: replies(),
    FrameType.CANCEL: st.builds(f.Cancel, *NAME, st.sampled_from(s.CancelReason)),
    FrameType.CANCELLED: st.builds(f.Cancelled, *NAME, st.sampled_from(s.Effect)),
    FrameType.READ: st.builds(f.Read, *NAME, u32, few(st.tuples(u64, u32))),
    FrameType.READ_REPLY: st.builds(f.ReadReply, *NAME, u32, few(read_data)),
    FrameType.WRITE: st.builds(f.Write, *NAME, u32, few(write_segments())),
    FrameType.WRITE_REPLY: st.builds(
        f.WriteReply, *NAME, u32, st.sampled_from(s.AccessStatus), u32
    ),
    FrameType.PAGES: st.builds(f.Pages, *NAME, u32, few(page_ranges)),
    FrameType.PAGES_REPLY: st.builds(
        f.PagesReply, *NAME, u32, st.sampled_from(s.AccessStatus), u32
    ),
    FrameType.EVENT: events,
    FrameType.EVENT_ACK: st.builds(f.EventAck, st.sampled_from(s.EventKind), u32, u32),
    FrameType.CONTROL: st.builds(f.Control, st.sampled_from(s.ControlAction), texts, u32),
}

any_frame: Final = st.sampled_from(FrameType).flatmap(STRATEGIES.__getitem__)
