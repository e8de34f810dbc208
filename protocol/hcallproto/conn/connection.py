# SPDX-License-Identifier: Apache-2.0
"""One end of a connection, without I/O.

Usage, as in h11::

    conn = Connection(Role.DAEMON)
    conn.receive_data(data)                 # b"" means end of file
    while (frame := conn.next_frame()) is not None:
        ...
    sock.sendall(conn.send(frame))

Both directions run through the tables of ``states.py``. An error is raised once; after
it the state is ERROR and nothing can be sent or received. The buffer holds at most one
frame of ``max_frame_size`` and what came in the same read.
"""

from __future__ import annotations

from typing import NoReturn, cast

from hcallproto.conn.calls import CallFrame, CallRuleError, CallTable
from hcallproto.conn.states import (
    CALL_FRAMES,
    CONNECTION,
    FRAME_FEATURES,
    Role,
    State,
)
from hcallproto.errors import Breach, LocalProtocolError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire.decode import Header, decode, decode_header
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import (
    HEADER_SIZE,
    MAX_MAX_FRAME,
    MIN_MAX_FRAME,
    EventKind,
    Feature,
    FrameType,
)


class Connection:
    """The protocol as one side sees it.

    Attributes:
        role: which side this is.
        state: where the connection stands.
        max_frame_size: bytes; what the peers agreed on, 128 KiB before that.
        features: in force since WELCOME.
        reset: the machine's reset count, as last told by the shim.
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.CONNECTED
        self.max_frame_size = MIN_MAX_FRAME
        self.features = Feature(0)
        self.reset = 0
        self.calls = CallTable()
        self._hello: f.Hello | None = None
        self._unacknowledged_resets = 0
        self._buffer = bytearray()
        self._offset = 0
        self._is_eof = False

    # -- receiving ----------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the peer; ``b""`` says that there will be no more."""
        if data:
            self._buffer += data
        else:
            self._is_eof = True

    @property
    def buffered_size(self) -> int:
        """Bytes received and not yet turned into frames."""
        return len(self._buffer) - self._offset

    def next_frame(self) -> f.Frame | None:
        """The next frame that the caller has to deal with, or None: need more data.

        At end of file on a frame's boundary the state becomes CLOSED.

        Raises:
            RemoteProtocolError: the peer broke the protocol.
        """
        if self.state is State.ERROR:
            raise LocalProtocolError("the connection is in error")
        try:
            while True:
                frame = self._next_frame()
                if frame is None or self._track(frame, is_received=True):
                    return frame
        except CallRuleError as error:
            self._fail(Breach.CALL, str(error))
        except RemoteProtocolError:
            self.state = State.ERROR
            raise

    def _next_frame(self) -> f.Frame | None:
        buffer, offset = self._buffer, self._offset
        available = len(buffer) - offset
        if available < HEADER_SIZE:
            self._need_data(available)
            return None
        header = decode_header(buffer, offset)
        if header.size > self.max_frame_size:
            self._fail(Breach.SIZE, f"frame of {header.size} bytes, at most {self.max_frame_size}")
        self._check_header(header)
        if available < header.size:
            self._need_data(available)
            return None
        frame = decode(header, buffer, offset)
        if available == header.size:
            buffer.clear()
            self._offset = 0
        else:
            self._offset = offset + header.size
            # Drop what is consumed before it outgrows what is pending.
            if self._offset > HEADER_SIZE * 64:
                del buffer[: self._offset]
                self._offset = 0
        return frame

    def _need_data(self, available: int) -> None:
        if self._is_eof:
            if available:
                self._fail(Breach.TRUNCATED, f"end of file after {available} bytes of a frame")
            if self.state is not State.CLOSED:
                self.state = State.CLOSED

    def _check_header(self, header: Header) -> None:
        """Whether the peer may send this type now; before the payload is looked at."""
        if self.role.sends(header.type):
            self._fail(Breach.TYPE, f"{header.type.name} is ours to send")
        if (self.state, header.type) not in CONNECTION:
            self._fail(Breach.STATE, f"{header.type.name} while {self.state.value}")
        needed = FRAME_FEATURES.get(header.type)
        if needed is not None and not needed & self.features:
            self._fail(Breach.FEATURE, f"{header.type.name} without feature {needed.name}")

    def _fail(self, breach: Breach, text: str) -> NoReturn:
        self.state = State.ERROR
        raise RemoteProtocolError(breach, text)

    # -- sending ------------------------------------------------------------------------

    def send(self, frame: f.Frame) -> bytes:
        """The bytes of a frame to be sent now.

        Raises:
            LocalProtocolError: the frame may not be sent, or not now. The state is
                unchanged, except for an error about calls.
        """
        frame_type = f.FRAME_TYPES[type(frame)]
        if not self.role.sends(frame_type):
            raise LocalProtocolError(f"{frame_type.name} is not ours to send")
        if (self.state, frame_type) not in CONNECTION:
            raise LocalProtocolError(f"{frame_type.name} while {self.state.value}")
        needed = FRAME_FEATURES.get(frame_type)
        if needed is not None and not needed & self.features:
            raise LocalProtocolError(f"{frame_type.name} without feature {needed.name}")
        data = encode(frame)
        if len(data) > self.max_frame_size:
            raise LocalProtocolError(
                f"{frame_type.name} of {len(data)} bytes, at most {self.max_frame_size}"
            )
        try:
            self._track(frame, is_received=False)
        except CallRuleError as error:
            raise LocalProtocolError(str(error)) from None
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None
        return data

    # -- both directions ----------------------------------------------------------------

    def _track(self, frame: f.Frame, *, is_received: bool) -> bool:
        """Apply the tables. False: the receiver must drop the frame."""
        frame_type = f.FRAME_TYPES[type(frame)]
        if frame_type in CALL_FRAMES:
            return self._track_call(frame_type, cast("CallFrame", frame), is_received=is_received)
        match frame:
            case f.Hello():
                self._greeted(frame)
            case f.Welcome():
                self._welcomed(frame)
            case f.Event(kind=EventKind.RESET):
                if frame.reset <= self.reset:
                    raise CallRuleError(f"reset {frame.reset} is not above {self.reset}")
                self.reset = frame.reset
                self.calls.clear()
                self._unacknowledged_resets += 1
            case f.EventAck(kind=EventKind.RESET):
                if not self._unacknowledged_resets:
                    raise CallRuleError("EVENT_ACK for no event")
                self._unacknowledged_resets -= 1
        self.state = CONNECTION[self.state, frame_type]
        return True

    def _track_call(self, frame_type: FrameType, frame: CallFrame, *, is_received: bool) -> bool:
        if frame.reset != self.reset:
            return self._stale(frame_type, frame, is_received=is_received)
        return self.calls.apply(frame_type, frame) or not is_received

    def _stale(self, frame_type: FrameType, frame: CallFrame, *, is_received: bool) -> bool:
        """A frame of a run that a reset has ended, or a wrong count.

        The shim drops the daemon's until the reset is acknowledged, but READ and WRITE
        want their answer (NO_CALL); the daemon drops the answers.
        """
        if frame.reset > self.reset:
            raise CallRuleError(f"{frame_type.name} of reset {frame.reset}, now {self.reset}")
        is_answer = frame_type in (FrameType.READ_REPLY, FrameType.WRITE_REPLY)
        if is_answer and self.role is Role.DAEMON:
            return False
        if self.role is Role.SHIM:
            if is_answer and not is_received:
                return True
            if is_received and self._unacknowledged_resets:
                return frame_type in (FrameType.READ, FrameType.WRITE)
        raise CallRuleError(f"{frame_type.name} of reset {frame.reset}, now {self.reset}")

    def _greeted(self, hello: f.Hello) -> None:
        if hello.version_min > hello.version_max:
            raise RemoteProtocolError(
                Breach.VERSION, f"versions {hello.version_min} to {hello.version_max}"
            )
        if hello.max_frame_size < MIN_MAX_FRAME:
            raise RemoteProtocolError(
                Breach.BOUNDS,
                f"max_frame_size {hello.max_frame_size} is below {MIN_MAX_FRAME}",
            )
        self._hello = hello
        self.reset = hello.reset

    def _welcomed(self, welcome: f.Welcome) -> None:
        hello = self._hello
        assert hello is not None
        if not hello.version_min <= welcome.version <= hello.version_max:
            raise RemoteProtocolError(
                Breach.VERSION,
                f"version {welcome.version} chosen from {hello.version_min} to {hello.version_max}",
            )
        if welcome.features & ~hello.features:
            raise RemoteProtocolError(Breach.FEATURE, "features that were not offered")
        greatest = min(hello.max_frame_size, MAX_MAX_FRAME)
        if not MIN_MAX_FRAME <= welcome.max_frame_size <= greatest:
            raise RemoteProtocolError(
                Breach.BOUNDS,
                f"max_frame_size {welcome.max_frame_size} is not between {MIN_MAX_FRAME} "
                f"and {greatest}",
            )
        self.max_frame_size = welcome.max_frame_size
        self.features = welcome.features
