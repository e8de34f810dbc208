# SPDX-License-Identifier: Apache-2.0
"""What the tests of a connection say to it: one frame of each type, and the way to each state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from hcallproto.conn.connection import Connection
from hcallproto.conn.states import CallState, Role, State
from hcallproto.errors import RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import FrameType

ALL_FEATURES: Final = s.Feature.SHARED_RAM | s.Feature.SC2 | s.Feature.PAGE_STATES
"""That go together: COMMANDS is the only one where it is in force."""
NO_FEATURES: Final = s.Feature(0)
VCPU: Final = 3
SEQ: Final = 7
REQUEST: Final = 5
GPR: Final = tuple(range(0x100, 0x100 + len(s.REGISTERS)))

CALL_SPEC: Final = f.CallSpec(
    number=0xF000,
    level=1,
    disposition=s.Disposition.FORWARD,
    flags=s.CALL_FLAG_WAIT,
    deadline_ms=1000,
    timeout_status=-1,
    lost_status=-2,
    buffers=(f.BufferSpec(4, s.BufferKind.SIZED, s.Direction.IN, 5, 4096),),
)
ANNOUNCEMENT: Final = f.Announcement((CALL_SPEC,), ("hcall-pks",), (("ibm,x", b"\0\0\0\1"),))

HELLO: Final = f.Hello(
    version_min=1,
    version_max=2,
    max_frame_size=s.DEFAULT_MAX_FRAME,
    features=ALL_FEATURES,
    instance=bytes(range(16)),
    uuid=bytes(16),
    connection=0,
    vcpu_count=4,
    vcpu_max=8,
    pending=0,
    page_shift=16,
    name="lpar",
    program="QEMU 10.0.13",
    reset=2,
)
WELCOME: Final = f.Welcome(1, s.DEFAULT_MAX_FRAME, ALL_FEATURES, ANNOUNCEMENT, 2)
ACCEPT: Final = f.Accept((f.RefusedCall(0xF000, 1, s.RefusedReason.SERVED_BY_QEMU),), True, 0, 2)
ANNOUNCE: Final = f.Announce(ANNOUNCEMENT, 9, 2)
RAM: Final = f.Ram((f.RamRegion(0, 1 << 30, 0, 0), f.RamRegion(1 << 30, 4096)), 1, 2)
GOODBYE: Final = f.Goodbye(s.GoodbyeReason.SHUTDOWN, "bye", 2)
SHIM_GOODBYE: Final = f.ShimGoodbye(s.GoodbyeReason.INTERNAL, "bye", 2)
CALL: Final = f.Call(VCPU, 2, SEQ, False, 1, GPR, 1, 2, 3, 4)
REPLY: Final = f.Reply(VCPU, 2, SEQ, 0, ((4, 5),), (f.WriteSegment(0x1000, 3, b"abc"),))
CANCEL: Final = f.Cancel(VCPU, 2, SEQ, s.CancelReason.DEADLINE)
CANCELLED: Final = f.Cancelled(VCPU, 2, SEQ, s.Effect.NONE)
READ: Final = f.Read(VCPU, 2, SEQ, REQUEST, ((0x1000, 4), (0x2000, 8)))
READ_REPLY: Final = f.ReadReply(
    VCPU,
    2,
    SEQ,
    REQUEST,
    ((s.AccessStatus.OK, b"data"), (s.AccessStatus.NOT_RAM, b"")),
)
WRITE: Final = f.Write(
    VCPU, 2, SEQ, REQUEST, (f.WriteSegment(0, 4, b"data"), f.WriteSegment(64, 4096, None))
)
WRITE_REPLY: Final = f.WriteReply(VCPU, 2, SEQ, REQUEST, s.AccessStatus.OK, 0)
PAGES: Final = f.Pages(VCPU, 2, SEQ, REQUEST, (f.PageRange(0x1000, 0x3000, s.PageState.UNSHARED),))
PAGES_REPLY: Final = f.PagesReply(VCPU, 2, SEQ, REQUEST, s.AccessStatus.OK, 0)
EVENT: Final = f.Event(s.EventKind.RESET, s.NO_VCPU, 1, 3)
EVENT_ACK: Final = f.EventAck(s.EventKind.RESET, 1, 3)
CONTROL: Final = f.Control(s.ControlAction.STOP, "because", 2)

SAMPLES: Final[dict[FrameType, f.Frame]] = {
    FrameType.HELLO: HELLO,
    FrameType.WELCOME: WELCOME,
    FrameType.ACCEPT: ACCEPT,
    FrameType.ANNOUNCE: ANNOUNCE,
    FrameType.RAM: RAM,
    FrameType.GOODBYE: GOODBYE,
    FrameType.SHIM_GOODBYE: SHIM_GOODBYE,
    FrameType.CALL: CALL,
    FrameType.REPLY: REPLY,
    FrameType.CANCEL: CANCEL,
    FrameType.CANCELLED: CANCELLED,
    FrameType.READ: READ,
    FrameType.READ_REPLY: READ_REPLY,
    FrameType.WRITE: WRITE,
    FrameType.WRITE_REPLY: WRITE_REPLY,
    FrameType.PAGES: PAGES,
    FrameType.PAGES_REPLY: PAGES_REPLY,
    FrameType.EVENT: EVENT,
    FrameType.EVENT_ACK: EVENT_ACK,
    FrameType.CONTROL: CONTROL,
}
"""One frame of each type, as they can come in one conversation."""

_T = FrameType
_ROAD = (_T.HELLO, _T.WELCOME, _T.ACCEPT, _T.RAM)
_STEPS: Final[dict[State, int]] = {
    State.CONNECTED: 0,
    State.GREETED: 1,
    State.WELCOMED: 2,
    State.ACCEPTED: 3,
    State.READY: 4,
}

CALL_ROADS: Final[dict[CallState, tuple[FrameType, ...]]] = {
    CallState.NONE: (),
    CallState.LIVE: (_T.CALL,),
    CallState.ACCESSING: (_T.CALL, _T.READ),
    CallState.CANCELLING: (_T.CALL, _T.CANCEL),
    CallState.CANCELLING_ACCESSING: (_T.CALL, _T.READ, _T.CANCEL),
}
"""The frames that bring a call into each state."""


def other(role: Role) -> Role:
    """The other side."""
    return Role.DAEMON if role is Role.SHIM else Role.SHIM


def say(connection: Connection, frame: f.Frame) -> f.Frame | None:
    """The frame goes through the connection, whichever way its type goes.

    Returns:
        What the connection's user sees of a received frame.
    """
    if connection.role.sends(f.FRAME_TYPES[type(frame)]):
        connection.send(frame)
        return None
    connection.receive_data(encode(frame))
    return connection.next_frame()


def say_samples(connection: Connection, types: Iterable[FrameType]) -> None:
    """Samples, one after the other."""
    for frame_type in types:
        say(connection, SAMPLES[frame_type])


def greeting(features: s.Feature) -> f.Hello:
    """The sample HELLO; COMMANDS is offered by those who ask for it, beside all others."""
    return HELLO._replace(features=ALL_FEATURES | features & s.Feature.COMMANDS)


def in_state(role: Role, state: State, **welcome: Any) -> Connection:
    """A connection that has come to a state in the ordinary way.

    Args:
        role: whose.
        state: which.
        **welcome: what the WELCOME has other than the sample.
    """
    connection = Connection(role)
    if state is State.ERROR:
        with_error(connection)
    elif state is State.CLOSED:
        connection.receive_data(b"")
        assert connection.next_frame() is None
    else:
        for frame_type in _ROAD[: _STEPS[state]]:
            frame = SAMPLES[frame_type]
            if isinstance(frame, f.Hello) and "features" in welcome:
                frame = greeting(welcome["features"])
            if isinstance(frame, f.Welcome):
                frame = frame._replace(**welcome)
            if isinstance(frame, f.Ram) and s.Feature.SHARED_RAM not in connection.features:
                frame = f.Ram((f.RamRegion(0, 1 << 30),), 0, 2)
            say(connection, frame)
    assert connection.state is state
    return connection


def with_error(connection: Connection) -> None:
    """The peer breaks the protocol."""
    connection.receive_data(b"\0" * s.HEADER_SIZE)
    try:
        connection.next_frame()
    except RemoteProtocolError:
        return


def ready(role: Role, **welcome: Any) -> Connection:
    """A connection in READY."""
    return in_state(role, State.READY, **welcome)
