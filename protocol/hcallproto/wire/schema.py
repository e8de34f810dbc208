# SPDX-License-Identifier: Apache-2.0
"""The byte layout of every frame, as construct schemas: the normative truth.

``docs/wire.rst`` says what the frames mean; its layout tables are generated from
this file. ``decode.py`` and ``encode.py`` are a fast path derived from the fixed-size
structures here, and a property test holds them equal for all bytes. All integers are big-endian, as
PAPR's own structures are; no field is padded implicitly.

A frame is a header of 32 bytes, a fixed part that depends on the frame's type, and
for some types a tail of counted items. Nothing may follow the last item.
"""

from __future__ import annotations

import enum
from typing import Any

from construct import (
    Array,
    Bytes,
    Const,
    Construct,
    GreedyBytes,
    If,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64sb,
    Int64ub,
    PascalString,
    Prefixed,
    Struct,
    Terminated,
    this,
)

MAGIC = 0x48434C50  # "HCLP"
"""First four bytes of every frame of every protocol version."""

VERSION = 1
"""The protocol version that this package speaks."""

HEADER_SIZE = 32

NO_VCPU = 0xFFFFFFFF
"""Header field ``vcpu`` of a frame that belongs to no virtual CPU."""

MACHINE_VCPU = 0xFFFFFFFE
"""Header field ``vcpu`` of a call that the shim makes for the machine, not for a virtual CPU."""

LEVEL_SHIM = 3
"""Level of a call that the shim makes by itself; the ISA reserves this LEV."""

LEVEL_COMMAND = 4
"""Level of a command: an ``ioctl``, whose structure's fields stand for registers."""

NO_DESCRIPTOR = 0xFFFF
"""RAM region field ``fd_index`` of a region that came without a file descriptor."""


class FrameType(enum.IntEnum):
    """Frame types. Odd ones come from the shim, even ones from the daemon."""

    # An enum hashes its name, in Python; the tables look types up with every frame.
    __hash__ = int.__hash__

    HELLO = 1
    WELCOME = 2
    ACCEPT = 3
    ANNOUNCE = 4
    RAM = 5
    GOODBYE = 6
    SHIM_GOODBYE = 7
    CALL = 9
    REPLY = 10
    CANCEL = 11
    CANCELLED = 12
    READ_REPLY = 15
    READ = 16
    WRITE_REPLY = 17
    WRITE = 18
    EVENT = 19
    EVENT_ACK = 20
    CONTROL = 22
    PAGES_REPLY = 23
    PAGES = 24


FLAG_RESENT = 1
"""CALL header flag: sent before on an earlier connection."""
FLAG_ALONE = 2
"""CALL header flag, of level 2: all other virtual CPUs are stopped."""

WRITE_FLAG_ZERO = 1
"""WRITE segment flag: zero the range; no data follow."""

CONTEXT_NIP = 1
CONTEXT_MSR = 2
CONTEXT_PAGES = 4
"""REPLY ``context`` bits."""

MSR_EE = 1 << 15
MSR_S = 1 << 22
REPLY_MSR_BITS = MSR_EE | MSR_S
"""MSR bits that a REPLY may change; it can set MSR[S], but not clear it."""


class PageState(enum.IntFlag):
    """What the shim knows of a page. PAGED_OUT goes with UNSHARED."""

    UNSHARED = 1
    PAGED_OUT = 2


class ShimCall(enum.IntEnum):
    """r3 of a call of LEVEL_SHIM."""

    PAGE_IN = 1
    ATTEND = 2


class BufferKind(enum.IntEnum):
    """How the shim knows the size of a buffer."""

    SIZED = 0
    FIXED = 1
    PAGE_BOUNDED = 2


class Direction(enum.IntFlag):
    """Which way a buffer's bytes go."""

    IN = 1
    OUT = 2


class Disposition(enum.IntEnum):
    """What the shim does with an announced call."""

    FORWARD = 0
    ANSWER = 1


CALL_FLAG_WAIT = 1
"""Announced call: while the daemon is gone the vCPU waits for it until the deadline."""
CALL_FLAG_PROBLEM_STATE = 2
"""Announced call: forwarded from MSR[PR] = 1 too."""
CALL_FLAG_SECURE = 4
"""Announced call: forwarded with MSR[S] = 1 only; else it is QEMU's."""


class RefusedReason(enum.IntEnum):
    """Why the shim does not forward an announced call."""

    SERVED_BY_QEMU = 1
    OUT_OF_RANGE = 2
    LEVEL_NOT_NEGOTIATED = 3
    DUPLICATE = 4
    BAD_BUFFER = 5


class SegmentStatus(enum.IntEnum):
    """What became of a buffer that the shim was to send or check."""

    OK = 0
    NOT_RAM = 1
    TOO_LARGE = 2


class AccessStatus(enum.IntEnum):
    """What became of a READ, WRITE or PAGES."""

    OK = 0
    NOT_RAM = 1
    NO_CALL = 2
    TOO_LARGE = 3
    BUSY = 4


class CancelReason(enum.IntEnum):
    """Why the shim no longer wants a reply."""

    DEADLINE = 1
    VCPU_GONE = 2


class Effect(enum.IntEnum):
    """What a cancelled call left behind."""

    NONE = 0
    DONE = 1
    MAY_REMAIN = 2


class EventKind(enum.IntEnum):
    """What happened to the machine. Only RESET is acknowledged."""

    RESET = 1
    VCPU_ADDED = 2
    VCPU_REMOVED = 3
    STOP = 4
    CONTINUE = 5
    PANIC = 6
    SHUTDOWN = 7


class ControlAction(enum.IntEnum):
    """What the daemon asks of the machine."""

    STOP = 1
    TERMINATE = 2
    RESET = 3
    ATTEND = 4


class GoodbyeReason(enum.IntEnum):
    """Why a connection ends."""

    VERSION = 1
    REFUSED = 2
    BREACH = 3
    SHUTDOWN = 4
    INTERNAL = 5


class Feature(enum.IntFlag):
    """Feature bits of HELLO and WELCOME."""

    SHARED_RAM = 1
    SC2 = 2
    COMMANDS = 4
    PAGE_STATES = 8


# -- bounds (docs/wire.rst, "Bounds") ---------------------------------------------------

MIN_MAX_FRAME = 128 * 1024
"""Smallest ``max_frame_size`` a peer may ask for: one 64 KiB buffer must always fit."""
DEFAULT_MAX_FRAME = 1024 * 1024
MAX_MAX_FRAME = 16 * 1024 * 1024
MAX_SEGMENTS = 64
"""Memory segments in one REPLY, READ or WRITE frame, and ranges of page states."""
MAX_BUFFERS = 4
"""Buffer descriptors of one announced call, and segments of one CALL frame."""
MAX_VCPUS = 4096
"""Virtual CPUs of one machine: pseries has as many interrupts for them (SPAPR_IRQ_NR_IPIS)."""
MAX_CALLS = 512
"""Calls in one announcement."""
MAX_DT_STRINGS = 32
MAX_DT_STRING_SIZE = 63
MAX_DT_PROPERTIES = 16
MAX_DT_NAME_SIZE = 31
MAX_DT_VALUE_SIZE = 256
MAX_RAM_REGIONS = 256
MAX_DESCRIPTORS = 16
"""File descriptors with one RAM frame (QEMU's socket chardev passes no more)."""
MAX_TEXT_SIZE = 512
"""Names, program strings and reasons, in bytes of UTF-8."""
MAX_CANCELLING = 8
"""Cancelled calls of one virtual CPU that the daemon has not yet acknowledged."""
BUFFER_PAGE_SIZE = 4096
"""The page that a ``PAGE_BOUNDED`` buffer must not leave."""
STATE_PAGE_SIZE = 4096
"""The page that has a state of its own; any guest's page is a multiple of it."""


HEADER = Struct(
    "magic" / Const(MAGIC, Int32ub) * "0x48434c50, ``HCLP``",
    "type" / Int16ub * "frame type",
    "flags" / Int16ub * "bits by frame type; undefined bits are 0",
    "size" / Int32ub * "bytes of the whole frame, this header included",
    "vcpu" / Int32ub * "virtual CPU id (the ``reg`` of its cpu node), or 0xffffffff",
    "reset" / Int32ub * "reset count of the machine that the frame belongs to",
    "request" / Int32ub * "memory request, event or announcement number, or 0",
    "seq" / Int64ub * "sequence number of the call, or 0",
)

# -- negotiation ------------------------------------------------------------------------

HELLO = Struct(
    "version_min" / Int16ub * "oldest protocol version the shim speaks",
    "version_max" / Int16ub * "newest protocol version the shim speaks",
    "max_frame_size" / Int32ub * "greatest frame the shim takes",
    "features" / Int64ub * "feature bits the shim offers",
    "instance" / Bytes(16) * "random id made when the device was realized",
    "uuid" / Bytes(16) * "QEMU's ``-uuid``, or zeros",
    "connection" / Int32ub * "connections made before this one by this instance",
    "vcpu_count" / Int32ub * "virtual CPUs present",
    "vcpu_max" / Int32ub * "virtual CPUs possible",
    "pending" / Int32ub * "calls that will be sent again",
    "page_shift" / Int8ub * "log2 of the guest page size expected (hint)",
    "reserved" / Const(b"\0" * 7),
)

WELCOME = Struct(
    "version" / Int16ub * "protocol version chosen",
    "reserved" / Const(b"\0\0"),
    "max_frame_size" / Int32ub * "greatest frame either side sends from now on",
    "features" / Int64ub * "feature bits in force: a subset of those offered",
)

ANNOUNCEMENT = Struct(
    "call_count" / Int16ub * "calls that follow",
    "string_count" / Int16ub * "``ibm,hypertas-functions`` strings that follow the calls",
    "property_count" / Int16ub * "root properties that follow the strings",
    "reserved" / Const(b"\0\0"),
)

CALL_SPEC = Struct(
    "number" / Int64ub * "r3 of the call",
    "level" / Int8ub * "LEV of ``sc``: 1 or 2; 4 for a command",
    "disposition" / Int8ub * "0 forward, 1 answer ``timeout_status`` without asking",
    "flags"
    / Int8ub
    * "bit 0: wait for a lost daemon; bit 1: also from problem state; bit 2: of secure VMs only",
    "buffer_count" / Int8ub * "buffer descriptors that follow",
    "deadline_ms" / Int32ub * "milliseconds from the call to its cancellation",
    "timeout_status" / Int64sb * "r3 when the deadline passes",
    "lost_status" / Int64sb * "r3 when the daemon is gone and is not waited for",
)

BUFFER_SPEC = Struct(
    "address_register" / Int8ub * "register that holds the real address",
    "kind" / Int8ub * "0 sized by a register, 1 fixed size, 2 fixed, cut at its page's end",
    "direction" / Int8ub * "1 the shim sends it, 2 the daemon writes it, 3 both",
    "size_register" / Int8ub * "register that holds the size (kind 0), else 0",
    "max_size" / Int32ub * "greatest size sent (kind 0), or the size",
)

DT_PROPERTY = Struct(
    "name" / PascalString(Int16ub, "ascii") * "size (u16) and property name",
    "value" / Prefixed(Int16ub, GreedyBytes) * "size (u16) and property value",
)

ACCEPT = Struct(
    "refused_count" / Int16ub * "refused calls that follow",
    "active" / Int16ub * "1 in force now, 0 from the next system reset",
    "reserved" / Const(b"\0\0\0\0"),
)

REFUSED_CALL = Struct(
    "number" / Int64ub * "the call's number",
    "level" / Int8ub * "its level",
    "reason" / Int8ub * "why, see RefusedReason",
    "reserved" / Const(b"\0" * 6),
)

RAM = Struct(
    "region_count" / Int16ub * "regions that follow",
    "descriptor_count" / Int16ub * "file descriptors passed with this frame",
    "reserved" / Const(b"\0\0\0\0"),
)

RAM_REGION = Struct(
    "gpa" / Int64ub * "guest real address of the first byte",
    "size" / Int64ub * "bytes",
    "fd_offset" / Int64ub * "offset of the first byte in the descriptor's file",
    "fd_index" / Int16ub * "which descriptor, or 0xffff",
    "reserved" / Const(b"\0\0"),
    "generation" / Int32ub * "another than that of what was there before",
)

GOODBYE = Struct(
    "reason" / Int16ub * "why the connection ends, see GoodbyeReason",
)

# -- calls ------------------------------------------------------------------------------

REGISTERS = (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 31)
"""General-purpose registers in a CALL, in the order of the ``gpr`` array."""

CALL = Struct(
    "level" / Int8ub * "LEV of ``sc``; 3 the shim's own, 4 a command",
    "segment_count" / Int8ub * "segments that follow",
    "reserved" / Const(b"\0" * 6),
    "gpr" / Array(len(REGISTERS), Int64ub) * "r0, r2, r3 to r12, r31",
    "nip" / Int64ub * "address of the instruction after ``sc``",
    "msr" / Int64ub * "MSR of the caller",
    "pidr" / Int64ub * "PIDR of the caller",
    "lpidr" / Int64ub * "LPIDR of the caller",
)

CALL_SEGMENT = Struct(
    "gpa" / Int64ub * "address from the register",
    "size" / Int32ub * "bytes of data that follow",
    "buffer" / Int8ub * "index of the buffer descriptor in the announcement",
    "status" / Int8ub * "see SegmentStatus",
    "reserved" / Const(b"\0\0"),
)

REPLY = Struct(
    "status" / Int64sb * "r3 for the guest",
    "register_mask" / Int32ub * "bit n set: rn follows (r0, r2, r4 to r12, r31)",
    "context" / Int16ub * "bit 0: set NIP; bit 1: set MSR bits; bit 2: page states follow",
    "write_count" / Int16ub * "memory segments that follow the registers",
    "nip" / Int64ub * "new NIP, or 0",
    "msr" / Int64ub * "new values of the MSR bits in ``msr_mask``, or 0",
    "msr_mask" / Int64ub * "MSR bits to change, or 0",
)

WRITE_SEGMENT = Struct(
    "gpa" / Int64ub * "where",
    "size" / Int32ub * "bytes",
    "flags" / Int32ub * "bit 0: zero the range, no data follow",
)

CANCEL = Struct(
    "reason" / Int32ub * "see CancelReason",
    "reserved" / Const(b"\0\0\0\0"),
)

CANCELLED = Struct(
    "effect" / Int32ub * "0 none, 1 done, 2 may remain",
    "reserved" / Const(b"\0\0\0\0"),
)

# -- guest memory -----------------------------------------------------------------------

READ = Struct(
    "segment_count" / Int32ub * "segments that follow",
    "reserved" / Const(b"\0\0\0\0"),
)

READ_SEGMENT = Struct(
    "gpa" / Int64ub * "where",
    "size" / Int32ub * "bytes",
    "reserved" / Const(b"\0\0\0\0"),
)

READ_REPLY = Struct(
    "segment_count" / Int32ub * "segments that follow, as many as were asked for",
    "reserved" / Const(b"\0\0\0\0"),
)

READ_DATA = Struct(
    "size" / Int32ub * "bytes of data that follow: as asked, or 0 on failure",
    "status" / Int32ub * "see AccessStatus",
)

WRITE = Struct(
    "segment_count" / Int32ub * "segments that follow",
    "reserved" / Const(b"\0\0\0\0"),
)

WRITE_REPLY = Struct(
    "status" / Int32ub * "see AccessStatus; anything but OK: nothing was written",
    "bad_segment" / Int32ub * "first segment that is not RAM, or 0",
)

PAGES = Struct(
    "range_count" / Int32ub * "ranges that follow",
    "reserved" / Const(b"\0\0\0\0"),
)

PAGE_RANGE = Struct(
    "gpa" / Int64ub * "first byte, a multiple of 4096",
    "size" / Int64ub * "bytes, a multiple of 4096",
    "state" / Int8ub * "bit 0: unshared; bit 1: paged out, and unshared",
    "reserved" / Const(b"\0" * 7),
)

PAGES_REPLY = Struct(
    "status" / Int32ub * "see AccessStatus; anything but OK: no state has changed",
    "bad_range" / Int32ub * "first range that is not RAM, or is busy, or 0",
)

# -- events -----------------------------------------------------------------------------

EVENT = Struct(
    "kind" / Int16ub * "see EventKind",
    "reserved" / Const(b"\0" * 6),
)

EVENT_ACK = Struct(
    "kind" / Int16ub * "the event's kind",
    "reserved" / Const(b"\0" * 6),
)

CONTROL = Struct(
    "action" / Int16ub * "see ControlAction",
)

TEXT = PascalString(Int16ub, "utf8")
"""Size (u16) and UTF-8 text, at most MAX_TEXT_SIZE bytes."""


def _data_size(ctx: Any) -> int:
    """A zeroing segment carries no data, whatever its size."""
    return 0 if ctx.head.flags & WRITE_FLAG_ZERO else ctx.head.size


_CALL_ENTRY = Struct("spec" / CALL_SPEC, "buffers" / Array(this.spec.buffer_count, BUFFER_SPEC))
_WRITE_ENTRY = Struct("head" / WRITE_SEGMENT, "data" / Bytes(_data_size))

_PAGES = Struct("head" / PAGES, "ranges" / Array(this.head.range_count, PAGE_RANGE))

_ANNOUNCEMENT = (
    "announcement" / ANNOUNCEMENT,
    "calls" / Array(this.announcement.call_count, _CALL_ENTRY),
    "strings" / Array(this.announcement.string_count, PascalString(Int16ub, "ascii")),
    "properties" / Array(this.announcement.property_count, DT_PROPERTY),
)

PAYLOADS: dict[FrameType, Construct[Any, Any]] = {
    FrameType.HELLO: Struct("fixed" / HELLO, "name" / TEXT, "program" / TEXT, Terminated),
    FrameType.WELCOME: Struct("fixed" / WELCOME, *_ANNOUNCEMENT, Terminated),
    FrameType.ACCEPT: Struct(
        "fixed" / ACCEPT, "refused" / Array(this.fixed.refused_count, REFUSED_CALL), Terminated
    ),
    FrameType.ANNOUNCE: Struct(*_ANNOUNCEMENT, Terminated),
    FrameType.RAM: Struct(
        "fixed" / RAM, "regions" / Array(this.fixed.region_count, RAM_REGION), Terminated
    ),
    FrameType.GOODBYE: Struct("fixed" / GOODBYE, "text" / TEXT, Terminated),
    FrameType.SHIM_GOODBYE: Struct("fixed" / GOODBYE, "text" / TEXT, Terminated),
    FrameType.CALL: Struct(
        "fixed" / CALL,
        "segments"
        / Array(
            this.fixed.segment_count, Struct("head" / CALL_SEGMENT, "data" / Bytes(this.head.size))
        ),
        Terminated,
    ),
    FrameType.REPLY: Struct(
        "fixed" / REPLY,
        "registers" / Array(lambda ctx: ctx.fixed.register_mask.bit_count(), Int64ub),
        "writes" / Array(this.fixed.write_count, _WRITE_ENTRY),
        "pages" / If(lambda ctx: ctx.fixed.context & CONTEXT_PAGES, _PAGES),
        Terminated,
    ),
    FrameType.CANCEL: Struct("fixed" / CANCEL, Terminated),
    FrameType.CANCELLED: Struct("fixed" / CANCELLED, Terminated),
    FrameType.READ: Struct(
        "fixed" / READ, "segments" / Array(this.fixed.segment_count, READ_SEGMENT), Terminated
    ),
    FrameType.READ_REPLY: Struct(
        "fixed" / READ_REPLY,
        "segments"
        / Array(
            this.fixed.segment_count, Struct("head" / READ_DATA, "data" / Bytes(this.head.size))
        ),
        Terminated,
    ),
    FrameType.WRITE: Struct(
        "fixed" / WRITE, "segments" / Array(this.fixed.segment_count, _WRITE_ENTRY), Terminated
    ),
    FrameType.WRITE_REPLY: Struct("fixed" / WRITE_REPLY, Terminated),
    FrameType.PAGES: Struct("pages" / _PAGES, Terminated),
    FrameType.PAGES_REPLY: Struct("fixed" / PAGES_REPLY, Terminated),
    FrameType.EVENT: Struct("fixed" / EVENT, Terminated),
    FrameType.EVENT_ACK: Struct("fixed" / EVENT_ACK, Terminated),
    FrameType.CONTROL: Struct("fixed" / CONTROL, "text" / TEXT, Terminated),
}
"""The payload (all bytes after the header) of each frame type."""
