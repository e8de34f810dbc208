# SPDX-License-Identifier: Apache-2.0
"""The tables of ``docs/wire.rst``, from ``wire/schema.py`` and ``conn/states.py``."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from hcallproto.codegen.layouts import enum_table, layout
from hcallproto.codegen.rst import Blocks, code, table
from hcallproto.conn import states
from hcallproto.wire import schema
from hcallproto.wire.schema import FrameType

StateT = TypeVar("StateT", bound=enum.Enum)

_LAYOUTS = (
    "HEADER",
    "HELLO",
    "WELCOME",
    "ANNOUNCEMENT",
    "CALL_SPEC",
    "BUFFER_SPEC",
    "DT_PROPERTY",
    "ACCEPT",
    "REFUSED_CALL",
    "RAM",
    "RAM_REGION",
    "GOODBYE",
    "CALL",
    "CALL_SEGMENT",
    "REPLY",
    "WRITE_SEGMENT",
    "CANCEL",
    "CANCELLED",
    "READ",
    "READ_SEGMENT",
    "READ_REPLY",
    "READ_DATA",
    "WRITE",
    "WRITE_REPLY",
    "PAGES",
    "PAGE_RANGE",
    "PAGES_REPLY",
    "EVENT",
    "EVENT_ACK",
    "CONTROL",
)

_ENUMS = (
    schema.RefusedReason,
    schema.SegmentStatus,
    schema.AccessStatus,
    schema.CancelReason,
    schema.EventKind,
    schema.ControlAction,
    schema.ShimCall,
    schema.GoodbyeReason,
)

_BOUNDS = (
    ("MIN_MAX_FRAME", "smallest ``max_frame_size`` a side may ask for"),
    ("DEFAULT_MAX_FRAME", "``max_frame_size`` of a side that has no reason for another"),
    ("MAX_MAX_FRAME", "greatest ``max_frame_size``"),
    ("MAX_CALLS", "calls in one announcement"),
    ("MAX_BUFFERS", "buffer descriptors of one announced call, and segments of one CALL"),
    ("MAX_VCPUS", "virtual CPUs possible"),
    ("MAX_DT_STRINGS", "``ibm,hypertas-functions`` strings in one announcement"),
    ("MAX_DT_STRING_SIZE", "bytes of such a string"),
    ("MAX_DT_PROPERTIES", "root properties in one announcement"),
    ("MAX_DT_NAME_SIZE", "bytes of a property's name"),
    ("MAX_DT_VALUE_SIZE", "bytes of a property's value"),
    ("MAX_SEGMENTS", "memory segments in one REPLY, READ or WRITE; page ranges in one frame"),
    ("MAX_RAM_REGIONS", "regions in one RAM frame"),
    ("MAX_DESCRIPTORS", "file descriptors with one RAM frame"),
    ("MAX_TEXT_SIZE", "bytes of a name, program string or reason"),
    ("MAX_CANCELLING", "calls of one virtual CPU that are cancelled and not yet acknowledged"),
    ("BUFFER_PAGE_SIZE", "bytes of the page that a PAGE_BOUNDED buffer does not leave"),
    ("STATE_PAGE_SIZE", "bytes of the page that has a state of its own"),
)


def types() -> str:
    """Number, name and sender of each frame type."""
    return table(
        ("Type", "Name", "Sender"),
        [
            (str(kind.value), kind.name, "shim" if states.Role.SHIM.sends(kind) else "daemon")
            for kind in FrameType
        ],
    )


def bounds() -> str:
    """The limits, with their names in the schema."""
    return table(
        ("Bound", "Name", "What"),
        [(_bound(name), code(name), what) for name, what in _BOUNDS],
    )


def _bound(name: str) -> str:
    value: int = getattr(schema, name)
    if not name.endswith(("_FRAME", "_SIZE")):
        return str(value)
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if value >= 1 << shift and value % (1 << shift) == 0:
            return f"{value >> shift} {unit}"
    return str(value)


def transitions() -> str:
    """Both transition tables."""
    return "\n\n".join(
        (
            "Of the connection, from CONNECTED:",
            _transition_table(states.CONNECTION),
            "Of each call, from NONE, by the frames that name it:",
            _transition_table(states.CALL),
        )
    )


def _transition_table(transitions: Mapping[tuple[StateT, FrameType], StateT]) -> str:
    grouped: dict[tuple[StateT, StateT], list[str]] = {}
    for (before, frame_type), after in transitions.items():
        grouped.setdefault((before, after), []).append(frame_type.name)
    order = list(type(next(iter(grouped))[0]))
    return table(
        ("State", "State after", "Frames"),
        [
            (before.name, after.name, ", ".join(frames))
            for (before, after), frames in sorted(
                grouped.items(), key=lambda item: (order.index(item[0][0]), order.index(item[0][1]))
            )
        ],
    )


def _blocks() -> Iterator[tuple[str, Any]]:
    yield "layout TYPES", types
    yield "layout STATES", transitions
    yield "layout BOUNDS", bounds
    for name in _LAYOUTS:
        yield f"layout {name}", functools.partial(layout, getattr(schema, name))
    for values in _ENUMS:
        yield f"layout {values.__name__}", functools.partial(enum_table, values)


BLOCKS: Blocks = dict(_blocks())
