# SPDX-License-Identifier: Apache-2.0
"""Frames as values. Named tuples, because a call costs one each way and they are quick.

Field names are those of ``schema.py``, where their meaning is written; ``docs/wire.rst``
says when each is sent. ``vcpu``, ``reset`` and ``seq`` name the call a frame belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hcallproto.wire.schema import (
    NO_DESCRIPTOR,
    REGISTERS,
    AccessStatus,
    BufferKind,
    CancelReason,
    ControlAction,
    Direction,
    Disposition,
    Effect,
    EventKind,
    Feature,
    FrameType,
    GoodbyeReason,
    PageState,
    RefusedReason,
    SegmentStatus,
)


class BufferSpec(NamedTuple):
    """How the shim finds one buffer of an announced call."""

    address_register: int
    kind: BufferKind
    direction: Direction
    size_register: int
    max_size: int


class CallSpec(NamedTuple):
    """One announced call."""

    number: int
    level: int
    disposition: Disposition
    flags: int
    deadline_ms: int
    timeout_status: int
    lost_status: int
    buffers: tuple[BufferSpec, ...] = ()


class Announcement(NamedTuple):
    """The calls a daemon takes, and what the device tree says of them."""

    calls: tuple[CallSpec, ...] = ()
    strings: tuple[str, ...] = ()
    properties: tuple[tuple[str, bytes], ...] = ()


class Hello(NamedTuple):
    """The shim introduces its machine."""

    version_min: int
    version_max: int
    max_frame_size: int
    features: Feature
    instance: bytes
    uuid: bytes
    connection: int
    vcpu_count: int
    vcpu_max: int
    pending: int
    page_shift: int
    name: str
    program: str
    reset: int


class Welcome(NamedTuple):
    """The daemon accepts the machine and announces its calls."""

    version: int
    max_frame_size: int
    features: Feature
    announcement: Announcement
    reset: int


class RefusedCall(NamedTuple):
    """An announced call that the shim will not forward."""

    number: int
    level: int
    reason: RefusedReason


class Accept(NamedTuple):
    """The shim takes an announcement."""

    refused: tuple[RefusedCall, ...]
    is_active: bool
    request: int
    reset: int


class Announce(NamedTuple):
    """The daemon changes its announcement, from the next reset on."""

    announcement: Announcement
    request: int
    reset: int


class RamRegion(NamedTuple):
    """A range of guest RAM."""

    gpa: int
    size: int
    fd_offset: int = 0
    fd_index: int = NO_DESCRIPTOR
    generation: int = 0


class Ram(NamedTuple):
    """The whole map of guest RAM."""

    regions: tuple[RamRegion, ...]
    descriptor_count: int
    reset: int


class Goodbye(NamedTuple):
    """The daemon ends the connection."""

    reason: GoodbyeReason
    text: str
    reset: int = 0


class ShimGoodbye(NamedTuple):
    """The shim ends the connection."""

    reason: GoodbyeReason
    text: str
    reset: int = 0


class Segment(NamedTuple):
    """A buffer that came with a call; ``data`` is empty unless ``status`` is OK."""

    buffer: int
    gpa: int
    status: SegmentStatus
    data: bytes


_NOT_FORWARDED = (0,) * (REGISTERS[-1] - REGISTERS[-2] - 1)
"""In the place of r13 to r30."""


class Call(NamedTuple):
    """A vCPU's call."""

    vcpu: int
    reset: int
    seq: int
    is_resent: bool
    level: int
    gpr: tuple[int, ...]
    nip: int
    msr: int
    pidr: int
    lpidr: int
    segments: tuple[Segment, ...] = ()
    is_alone: bool = False
    """All other vCPUs are stopped; told of ultracalls only."""

    @property
    def number(self) -> int:
        """The call's number: r3."""
        return self.gpr[2]

    def registers(self) -> Mapping[int, int]:
        """Register number to value."""
        return dict(zip(REGISTERS, self.gpr, strict=True))

    def by_number(self) -> tuple[int, ...]:
        """What ``registers`` gives, to be indexed by register number; others are no registers.

        The order of ``REGISTERS`` makes this three slices, where ``registers`` builds a
        dictionary: every call pays for it.
        """
        return self.gpr[:1] + self.gpr[:12] + _NOT_FORWARDED + self.gpr[12:]


class WriteSegment(NamedTuple):
    """Bytes for guest memory; ``data`` None means: zero ``size`` bytes."""

    gpa: int
    size: int
    data: bytes | None


class PageRange(NamedTuple):
    """Pages, and the state that they are to have."""

    gpa: int
    size: int
    state: PageState


class Reply(NamedTuple):
    """The answer to a call. ``registers`` are (number, value) pairs in rising order.

    ``context`` is without CONTEXT_PAGES, which says no more than that there are ``pages``.
    """

    vcpu: int
    reset: int
    seq: int
    status: int
    registers: tuple[tuple[int, int], ...] = ()
    writes: tuple[WriteSegment, ...] = ()
    context: int = 0
    nip: int = 0
    msr: int = 0
    msr_mask: int = 0
    pages: tuple[PageRange, ...] = ()


class Cancel(NamedTuple):
    """The shim no longer wants the reply."""

    vcpu: int
    reset: int
    seq: int
    reason: CancelReason


class Cancelled(NamedTuple):
    """The daemon is done with a cancelled call."""

    vcpu: int
    reset: int
    seq: int
    effect: Effect


class Read(NamedTuple):
    """The daemon asks for guest memory; ``segments`` are (gpa, size) pairs."""

    vcpu: int
    reset: int
    seq: int
    request: int
    segments: tuple[tuple[int, int], ...]


class ReadReply(NamedTuple):
    """The bytes asked for; empty data where the status is not OK."""

    vcpu: int
    reset: int
    seq: int
    request: int
    segments: tuple[tuple[AccessStatus, bytes], ...]


class Write(NamedTuple):
    """The daemon writes guest memory during a call."""

    vcpu: int
    reset: int
    seq: int
    request: int
    segments: tuple[WriteSegment, ...]


class WriteReply(NamedTuple):
    """What became of a WRITE."""

    vcpu: int
    reset: int
    seq: int
    request: int
    status: AccessStatus
    bad_segment: int


class Pages(NamedTuple):
    """The daemon changes the states of pages during a call."""

    vcpu: int
    reset: int
    seq: int
    request: int
    ranges: tuple[PageRange, ...]


class PagesReply(NamedTuple):
    """What became of a PAGES."""

    vcpu: int
    reset: int
    seq: int
    request: int
    status: AccessStatus
    bad_range: int


class Event(NamedTuple):
    """Something happened to the machine."""

    kind: EventKind
    vcpu: int
    request: int
    reset: int


class EventAck(NamedTuple):
    """The daemon has dealt with an event."""

    kind: EventKind
    request: int
    reset: int


class Control(NamedTuple):
    """The daemon asks something of the machine."""

    action: ControlAction
    text: str
    reset: int


Frame = (
    Hello
    | Welcome
    | Accept
    | Announce
    | Ram
    | Goodbye
    | ShimGoodbye
    | Call
    | Reply
    | Cancel
    | Cancelled
    | Read
    | ReadReply
    | Write
    | WriteReply
    | Pages
    | PagesReply
    | Event
    | EventAck
    | Control
)

FRAME_TYPES: Mapping[type[Frame], FrameType] = {
    Hello: FrameType.HELLO,
    Welcome: FrameType.WELCOME,
    Accept: FrameType.ACCEPT,
    Announce: FrameType.ANNOUNCE,
    Ram: FrameType.RAM,
    Goodbye: FrameType.GOODBYE,
    ShimGoodbye: FrameType.SHIM_GOODBYE,
    Call: FrameType.CALL,
    Reply: FrameType.REPLY,
    Cancel: FrameType.CANCEL,
    Cancelled: FrameType.CANCELLED,
    Read: FrameType.READ,
    ReadReply: FrameType.READ_REPLY,
    Write: FrameType.WRITE,
    WriteReply: FrameType.WRITE_REPLY,
    Pages: FrameType.PAGES,
    PagesReply: FrameType.PAGES_REPLY,
    Event: FrameType.EVENT,
    EventAck: FrameType.EVENT_ACK,
    Control: FrameType.CONTROL,
}
"""Each frame class and the number it travels under."""
