# SPDX-License-Identifier: Apache-2.0
"""One end of a connection, without I/O.

Usage, as in h11::

    conn = Connection(Role.DAEMON)
    conn.receive_data(data)                 # b"" means end of file
    while (frame := conn.next_frame()) is not None:
        ...
    sock.sendall(conn.send(frame))

Both directions run through the tables of ``states.py``. An error is raised once; after
it the state is ERROR and nothing can be sent or received. Once ``next_frame`` has given
None, the buffer holds less than one frame of ``max_frame_size``.

Large frames need not be copied together: while ``room`` gives some, bytes may be received into it
instead, and ``filled`` says how many.
"""

from __future__ import annotations

from typing import NoReturn

from hcallproto.conn.calls import CallFrame, CallRuleError, CallTable
from hcallproto.conn.states import (
    CALL_FRAMES,
    CONNECTION,
    FRAME_FEATURES,
    MACHINE_FRAMES,
    Role,
    State,
)
from hcallproto.errors import Breach, LocalProtocolError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire.decode import check_magic, decode, decode_header
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import (
    HEADER_SIZE,
    LEVEL_COMMAND,
    LEVEL_SHIM,
    MAX_MAX_FRAME,
    MAX_VCPUS,
    MIN_MAX_FRAME,
    ControlAction,
    EventKind,
    Feature,
    FrameType,
)

LARGE_FRAME = 64 << 10
"""Bytes of a frame that is worth a buffer of its own."""

_REQUESTS = (FrameType.READ, FrameType.WRITE, FrameType.PAGES)
_ANSWERS = (FrameType.READ_REPLY, FrameType.WRITE_REPLY, FrameType.PAGES_REPLY)


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
        self.max_frame_size = MIN_MAX_FRAME
        self.features = Feature(0)
        self.reset = 0
        self._last: tuple[bytes | bytearray | memoryview, int, int] = b"", 0, 0
        """Of the last frame: its buffer, where it begins there, its size."""
        self.calls = CallTable()
        self._hello: f.Hello | None = None
        self._acknowledged_reset = 0
        self._told: dict[int, int] = {}
        self._has_said_goodbye = False
        self._buffer: bytes | bytearray = b""
        self._offset = 0
        """Of the first byte that is no frame yet."""
        self._end = 0
        """After the last byte that was received."""
        self._large: bytearray | None = None
        """Holds large frames, one after the other: the kernel takes long to give new memory."""
        self._large_size = 0
        """Of the frame that is coming there; 0: none is."""
        self._is_eof = False
        self._enter(State.CONNECTED)

    # -- receiving ----------------------------------------------------------------------

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes from the peer; ``b""`` says that there will be no more.

        Raises:
            LocalProtocolError: that has been said already.
        """
        if self._is_eof:
            raise LocalProtocolError("receive_data after end of file")
        if not data:
            self._is_eof = True
        elif self._offset == self._end:
            # Nearly always: whole frames, and nothing left over from before.
            self._hold(bytes(data))
        else:
            room = self.room()
            if room is not None and len(data) <= len(room):
                room[: len(data)] = data
                self._end += len(data)
                return
            self._large_size = 0
            rest = bytearray(memoryview(self._buffer)[self._offset : self._end])
            rest += data
            self._hold(rest)

    def room(self) -> memoryview | None:
        """Where the rest of a large frame, of which a part is there, can be received into.

        Returns:
            Room for as many bytes as the frame lacks. None: no such frame is coming.
        """
        if not self._large_size:
            return None
        return memoryview(self._buffer)[self._end : self._large_size]

    def filled(self, size: int) -> None:
        """The first ``size`` bytes of ``room`` are the peer's; 0 says that there will be no more.

        Raises:
            LocalProtocolError: there was no room for so many, or they were said to be all.
        """
        if self._is_eof or not 0 <= size <= self._large_size - self._end:
            raise LocalProtocolError(f"{size} bytes received where there was no room for them")
        self._end += size
        self._is_eof = not size

    def _hold(self, data: bytes | bytearray) -> None:
        self._buffer, self._offset, self._end = data, 0, len(data)

    @property
    def buffered_size(self) -> int:
        """Bytes received and not yet turned into frames."""
        return self._end - self._offset

    def next_frame(self) -> f.Frame | None:
        """The next frame that the caller has to deal with, or None: need more data.

        At end of file on a frame's boundary the state becomes CLOSED.

        Raises:
            RemoteProtocolError: the peer broke the protocol.
        """
        if self.state is State.ERROR:
            raise LocalProtocolError("the connection is in error")
        if self._has_said_goodbye:
            # What the peer sent before it saw the goodbye is not its fault.
            self._hold(b"")
            self._large_size = 0
            return None
        try:
            while True:
                frame = self._next_frame()
                if frame is None or self._track(frame, is_received=True):
                    return frame
        except CallRuleError as error:
            self._fail(Breach.CALL, str(error))
        except RemoteProtocolError:
            self._enter(State.ERROR)
            raise

    @property
    def frame_data(self) -> bytes:
        """The bytes of the frame that ``next_frame`` gave last, until more are received."""
        buffer, offset, size = self._last
        return bytes(memoryview(buffer)[offset : offset + size])

    def _next_frame(self) -> f.Frame | None:
        buffer, offset = self._buffer, self._offset
        available = self._end - offset
        if available < HEADER_SIZE:
            check_magic(buffer, offset)
            self._need_data(available)
            return None
        header = decode_header(buffer, offset)
        size = header.size
        if size > self.max_frame_size:
            self._fail(Breach.SIZE, f"frame of {size} bytes, at most {self.max_frame_size}")
        if header.type not in self._receivable:
            self._fail(*self._why_not(header.type, is_ours=False))
        if available < size:
            self._need_data(available)
            if size >= LARGE_FRAME and not self._large_size:
                self._make_room(size)
            return None
        frame = decode(header, buffer, offset)
        self._last = buffer, offset, size
        if self._large_size:
            self._large_size = 0
        elif self._large is not None:
            # Large frames come in rows, and this was the last one of its row.
            self._large = None
        if available == size:
            self._hold(b"")
        else:
            self._offset = offset + size
        return frame

    def _make_room(self, size: int) -> None:
        """Have what is still to come of a large frame received where it belongs."""
        large = self._large
        if large is None or len(large) < size:
            large = self._large = bytearray(size)
        available = self._end - self._offset
        large[:available] = memoryview(self._buffer)[self._offset : self._end]
        self._buffer, self._offset, self._end = large, 0, available
        self._large_size = size

    def _need_data(self, available: int) -> None:
        if self._is_eof:
            if available:
                self._fail(Breach.TRUNCATED, f"end of file after {available} bytes of a frame")
            self._enter(State.CLOSED)

    def _fail(self, breach: Breach, text: str) -> NoReturn:
        self._enter(State.ERROR)
        raise RemoteProtocolError(breach, text)

    # -- sending ------------------------------------------------------------------------

    def send(self, frame: f.Frame, encoded: bytes | None = None) -> bytes:
        """The bytes of a frame to be sent now.

        Args:
            frame: what is sent.
            encoded: its bytes, if they are known.

        Raises:
            LocalProtocolError: the frame may not be sent, or not now; nothing has changed.
        """
        frame_type = f.FRAME_TYPES[type(frame)]
        if frame_type not in self._sendable:
            raise LocalProtocolError(self._why_not(frame_type, is_ours=True)[1])
        data = encode(frame) if encoded is None else encoded
        if len(data) > self.max_frame_size:
            raise LocalProtocolError(
                f"{frame_type.name} of {len(data)} bytes, at most {self.max_frame_size}"
            )
        try:
            self._track(frame, is_received=False)
        except (CallRuleError, RemoteProtocolError) as error:
            raise LocalProtocolError(str(error)) from None
        self._has_said_goodbye = self.state is State.CLOSED
        return data

    # -- both directions ----------------------------------------------------------------

    def _enter(self, state: State) -> None:
        """Change the state, and note which frames it allows with the features in force."""
        self.state = state
        allowed = {
            frame_type
            for before, frame_type in CONNECTION
            if before is state and self._has_feature(frame_type)
        }
        self._sendable = frozenset(filter(self.role.sends, allowed))
        self._receivable = frozenset(allowed - self._sendable)

    def _has_feature(self, frame_type: FrameType) -> bool:
        if Feature.COMMANDS in self.features and frame_type in MACHINE_FRAMES:
            return False
        needed = FRAME_FEATURES.get(frame_type)
        return needed is None or needed in self.features

    def _why_not(self, frame_type: FrameType, *, is_ours: bool) -> tuple[Breach, str]:
        """What is wrong with a frame that may not be sent or received now."""
        name = frame_type.name
        if self.role.sends(frame_type) is not is_ours:
            sender = "shim" if Role.SHIM.sends(frame_type) else "daemon"
            return Breach.TYPE, f"only a {sender} sends {name}, this is the other side"
        if (self.state, frame_type) not in CONNECTION:
            return Breach.STATE, f"{name} while {self.state.value}"
        if frame_type in MACHINE_FRAMES:
            return Breach.FEATURE, f"{name} with feature COMMANDS, whose client is no machine"
        return Breach.FEATURE, f"{name} without feature {FRAME_FEATURES[frame_type].name}"

    def _track(self, frame: f.Frame, *, is_received: bool) -> bool:
        """Apply the tables. False: the receiver must drop the frame."""
        frame_type = f.FRAME_TYPES[type(frame)]
        if frame_type in CALL_FRAMES:
            if frame_type is FrameType.REPLY:
                self._check_page_states(frame)
            call_frame: CallFrame = frame  # type: ignore[assignment]  # by CALL_FRAMES
            if frame.reset != self.reset:
                return self._stale(frame_type, call_frame, is_received=is_received)
            return self.calls.apply(frame_type, call_frame) or not is_received
        match frame:
            case f.Hello():
                self._greeted(frame)
            case f.Welcome():
                self._welcomed(frame)
            case f.Ram():
                if frame.descriptor_count and Feature.SHARED_RAM not in self.features:
                    raise RemoteProtocolError(Breach.FEATURE, "descriptors without SHARED_RAM")
            case f.Event(kind=EventKind.RESET):
                if frame.reset <= self.reset:
                    raise CallRuleError(f"reset {frame.reset} is not above {self.reset}")
                self.reset = frame.reset
                self._told[frame.reset] = frame.request
                self.calls.clear()
            case f.EventAck():
                self._acknowledged(frame)
            case f.Control(action=ControlAction.ATTEND):
                self._check_attend()
        after = CONNECTION[self.state, frame_type]
        if after is not self.state:
            self._enter(after)
        return True

    def _check_page_states(self, reply: f.Frame) -> None:
        assert isinstance(reply, f.Reply)
        if reply.pages and Feature.PAGE_STATES not in self.features:
            raise RemoteProtocolError(Breach.FEATURE, "page states without PAGE_STATES")

    def _check_attend(self) -> None:
        if Feature.PAGE_STATES not in self.features:
            raise RemoteProtocolError(Breach.FEATURE, "CONTROL ATTEND without PAGE_STATES")

    def _stale(self, frame_type: FrameType, frame: CallFrame, *, is_received: bool) -> bool:
        """A frame of a run that a reset has ended, or a wrong count.

        The shim drops the daemon's until the reset is acknowledged, but READ, WRITE and
        PAGES want their answer (NO_CALL); the daemon drops the answers.
        """
        if frame.reset > self.reset:
            raise CallRuleError(f"{frame_type.name} of reset {frame.reset}, now {self.reset}")
        is_answer = frame_type in _ANSWERS
        if self.role is Role.DAEMON:
            if is_answer:
                return False
        elif is_received:
            if frame.reset >= self._acknowledged_reset:
                return frame_type in _REQUESTS
        elif is_answer:
            return True
        raise CallRuleError(f"{frame_type.name} of reset {frame.reset}, now {self.reset}")

    def _acknowledged(self, ack: f.EventAck) -> None:
        if ack.kind is not EventKind.RESET:
            raise CallRuleError(f"EVENT_ACK of {ack.kind.name}, only RESET is acknowledged")
        if self._told.get(ack.reset) != ack.request:
            raise CallRuleError(
                f"EVENT_ACK {ack.request} of reset {ack.reset}; to be acknowledged are "
                f"{[(number, reset) for reset, number in self._told.items()]}"
            )
        self._acknowledged_reset = ack.reset
        # An acknowledgement stands for those before it.
        self._told = {reset: n for reset, n in self._told.items() if reset > ack.reset}

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
        if not hello.vcpu_count <= hello.vcpu_max <= MAX_VCPUS:
            raise RemoteProtocolError(
                Breach.BOUNDS,
                f"{hello.vcpu_count} of {hello.vcpu_max} virtual CPUs, at most {MAX_VCPUS}",
            )
        self._hello = hello
        self.reset = self._acknowledged_reset = hello.reset
        self.calls.vcpu_max = hello.vcpu_max

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
        if Feature.COMMANDS in welcome.features and welcome.features != Feature.COMMANDS:
            raise RemoteProtocolError(Breach.FEATURE, "COMMANDS together with other features")
        greatest = min(hello.max_frame_size, MAX_MAX_FRAME)
        if not MIN_MAX_FRAME <= welcome.max_frame_size <= greatest:
            raise RemoteProtocolError(
                Breach.BOUNDS,
                f"max_frame_size {welcome.max_frame_size} is not between {MIN_MAX_FRAME} "
                f"and {greatest}",
            )
        self.max_frame_size = welcome.max_frame_size
        self.features = welcome.features
        if Feature.COMMANDS in self.features:
            # Its client is no machine, and makes no other calls.
            self.calls.levels = (LEVEL_COMMAND,)
        elif Feature.SC2 in self.features:
            self.calls.levels = (1, 2)
        if Feature.PAGE_STATES in self.features:
            # The shim makes calls too, one at a time of them for no virtual CPU.
            self.calls.levels = (*self.calls.levels, LEVEL_SHIM)
            self.calls.vcpu_max += 1
