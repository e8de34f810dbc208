# SPDX-License-Identifier: Apache-2.0
"""A client of a daemon's SEV platform: commands over the wire protocol, one after the other.

What ``ioctl_shim`` does for a program that has ``/dev/sev`` open, without the program: the fields
of a command's structure go in registers, what they point to is in an ``AddressSpace``. One
connection is one VM to the daemon; one that never initialises a VM is an operator's.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, NamedTuple, NoReturn, Self

from hcalld.core.errors import HcalldError
from hcalld.guestowner.errors import GuestOwnerError
from hcalld.guestowner.memory import SPACE_SIZE, AddressSpace
from hcallproto.abi.families.sev import BLOB_MAX_SIZE
from hcallproto.abi.registers import FIRST_ARGUMENT
from hcallproto.abi.registry import find
from hcallproto.abi.returns import SevCode, status_name
from hcallproto.abi.spec import Hcall, Level
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.errors import LocalProtocolError, RemoteProtocolError
from hcallproto.payloads.quoting import printable
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

PATIENCE_SECONDS: Final = 30.0
"""For an answer to HELLO, and for calls beyond their deadline."""

CLOSING_SECONDS: Final = 1.0
"""For the daemon to decommission what the connection has made."""

_VCPU: Final = 0
_RECEIVE_SIZE: Final = 1 << 18
_SEGMENT_HEAD_SIZE: Final = 16
_ANSWER_HEAD_SIZE: Final = 1024
"""More than the heads of a READ_REPLY of 64 segments take."""


class ConnectionFailed(HcalldError):
    """The daemon cannot be talked to, or no longer."""


class CommandRefused(HcalldError):
    """The platform refuses a command.

    Attributes:
        name: of the command.
        status: a firmware status, or below 0 the kernel's -errno.
        fields: of the structure, as they were written back.
    """

    def __init__(self, hcall: Hcall, status: int, fields: Mapping[str, int]) -> None:
        when = "; ".join(code.when for code in hcall.codes if code.code == status)
        super().__init__(
            f"{hcall.name}: the platform refuses: {status_name(status, SevCode)}, "
            f"{when or 'which this command never gives'}; the reason is in the daemon's --trace, "
            "and in its log with --log-level debug"
        )
        self.name = hcall.name
        self.status = status
        self.fields = fields


class Answer(NamedTuple):
    """What came of a call."""

    status: int
    registers: Mapping[int, int]
    """Those that were written back, by number."""


class SevClient:
    """A connection to a daemon.

    Args:
        path: the daemon's socket.
        platform: the name of the platform; "" for the default one.

    Raises:
        ConnectionFailed: nobody is there, or it lets us not in, or has no SEV.
    """

    def __init__(self, path: pathlib.Path, platform: str = "") -> None:
        self.memory = AddressSpace()
        self._path = path
        self._connection = Connection(Role.SHIM)
        self._seq = 0
        self._until = 0.0
        self._pid = os.getpid()
        self._sock = _connect(path)
        try:
            self._announced = self._negotiate(platform)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the daemon decommissions the VM, if there is one.

        It has done so afterwards, as KVM has after ``close``, unless it takes more than
        ``CLOSING_SECONDS``. In a child the connection is still its parent's, and goes on.
        """
        with self._sock, contextlib.suppress(OSError):
            if self._connection.state is State.READY and os.getpid() == self._pid:
                self._part()

    # -- commands -----------------------------------------------------------------------------

    def command(self, hcall: Hcall, **fields: int) -> dict[str, int]:
        """Issue a command; fields that are not given are 0.

        Returns:
            All fields of its structure afterwards.

        Raises:
            CommandRefused: the platform refuses.
            ConnectionFailed: the daemon does not answer.
        """
        names = field_names(hcall)
        values = dict.fromkeys(names, 0)
        for name, value in fields.items():
            if name not in values:
                raise TypeError(f"{hcall.name} has no field {name!r}; expected {', '.join(names)}")
            values[name] = value
        answer = self.call(hcall.number, *values.values())
        for place, name in enumerate(names):
            values[name] = answer.registers.get(FIRST_ARGUMENT + place, values[name])
        if answer.status:
            raise CommandRefused(hcall, answer.status, values)
        return values

    def needed(self, hcall: Hcall, *lengths: str) -> list[int]:
        """Ask how much room an answer needs: with none, the firmware says INVALID_LEN.

        Args:
            hcall: the command.
            lengths: the fields that then say it.

        Raises:
            CommandRefused: the platform refuses otherwise.
            GuestOwnerError: no answer of the firmware is of such a length.
        """
        try:
            found: Mapping[str, int] = self.command(hcall)
        except CommandRefused as refused:
            if refused.status != SevCode.INVALID_LEN:
                raise
            found = refused.fields
        for name in lengths:
            if not 0 < found[name] <= BLOB_MAX_SIZE:
                raise GuestOwnerError(
                    f"{hcall.name}: the platform asks for room of {found[name]} bytes for {name}; "
                    f"expected 1 to {BLOB_MAX_SIZE}"
                )
        return [found[name] for name in lengths]

    def call(self, number: int, *arguments: int) -> Answer:
        """Make a call with whatever arguments.

        Raises:
            ConnectionFailed: the daemon does not answer, or does not take the command.
        """
        spec = self._announced.get(number)
        if spec is None:
            hcall = find(number, Level.COMMAND)
            name = f"0x{number:x}" if hcall is None else hcall.name
            self._fail(f"the daemon does not take the command {name}; expected a hcalld with SEV")
        self._seq += 1
        registers = {3: number} | {
            FIRST_ARGUMENT + place: value for place, value in enumerate(arguments)
        }
        call = f.Call(
            _VCPU,
            0,
            self._seq,
            False,
            Level.COMMAND,
            tuple(registers.get(register, 0) for register in s.REGISTERS),
            0,
            0,
            0,
            0,
            tuple(self._segments(spec, registers)),
        )
        self._wait_at_most(spec.deadline_ms / 1000 + PATIENCE_SECONDS)
        self._send(call)
        while True:
            frame = self._receive()
            match frame:
                case f.Reply():
                    return self._finish(frame, spec)
                case f.Read():
                    self._send(self._read(frame))
                case f.Write():
                    self._send(self._write(frame))
                case f.Goodbye():
                    self._fail(f"the daemon ends the connection: {printable(frame.text)}")
                case f.Control(action=s.ControlAction.TERMINATE):
                    self._fail(f"the daemon terminates the client: {printable(frame.text)}")
                case _:
                    pass  # the others concern machines

    # -- guest memory -------------------------------------------------------------------------

    def _segments(self, spec: f.CallSpec, registers: Mapping[int, int]) -> list[f.Segment]:
        """The buffers that come with a call: docs/wire.rst, Calls."""
        segments = []
        for index, buffer in enumerate(spec.buffers):
            address = registers.get(buffer.address_register, 0)
            size = buffer.max_size
            if buffer.kind is s.BufferKind.SIZED:
                size = registers.get(buffer.size_register, 0)
            elif buffer.kind is s.BufferKind.PAGE_BOUNDED:
                size = min(size, s.BUFFER_PAGE_SIZE - address % s.BUFFER_PAGE_SIZE)
            data, status = b"", s.SegmentStatus.OK
            if size > buffer.max_size:
                status = s.SegmentStatus.TOO_LARGE
            elif size and not self.memory.contains(address, size):
                status = s.SegmentStatus.NOT_RAM
            elif size and buffer.direction & s.Direction.IN:
                data = self.memory.read(address, size)
            segments.append(f.Segment(index, address, status, data))
        return segments

    def _read(self, frame: f.Read) -> f.ReadReply:
        room = self._connection.max_frame_size - _ANSWER_HEAD_SIZE
        answers = []
        for address, size in frame.segments:
            room -= size + _SEGMENT_HEAD_SIZE
            if room < 0:
                answers.append((s.AccessStatus.TOO_LARGE, b""))
            elif not self.memory.contains(address, size):
                answers.append((s.AccessStatus.NOT_RAM, b""))
            else:
                answers.append((s.AccessStatus.OK, self.memory.read(address, size)))
        return f.ReadReply(frame.vcpu, frame.reset, frame.seq, frame.request, tuple(answers))

    def _write(self, frame: f.Write) -> f.WriteReply:
        bad = self._carry_out(frame.segments)
        status = s.AccessStatus.OK if bad is None else s.AccessStatus.NOT_RAM
        return f.WriteReply(
            frame.vcpu, frame.reset, frame.seq, frame.request, status, 0 if bad is None else bad
        )

    def _carry_out(self, segments: tuple[f.WriteSegment, ...]) -> int | None:
        """Write all segments, or none and say which is nowhere."""
        for index, segment in enumerate(segments):
            if not self.memory.contains(segment.gpa, segment.size):
                return index
        for segment in segments:
            data = bytes(segment.size) if segment.data is None else segment.data
            self.memory.write(segment.gpa, data)
        return None

    def _finish(self, reply: f.Reply, spec: f.CallSpec) -> Answer:
        bad = self._carry_out(reply.writes)
        if bad is not None:
            # A page that is not mapped is the caller's mistake; what is no address is ours.
            segment = reply.writes[bad]
            is_address = segment.gpa + segment.size <= SPACE_SIZE
            return Answer(SevCode.EFAULT if is_address else spec.lost_status, {})
        return Answer(reply.status, dict(reply.registers))

    # -- frames -------------------------------------------------------------------------------

    def _negotiate(self, platform: str) -> dict[int, f.CallSpec]:
        self._wait_at_most(PATIENCE_SECONDS)
        self._send(
            f.Hello(
                s.VERSION,
                s.VERSION,
                s.MAX_MAX_FRAME,
                s.Feature.COMMANDS,
                os.urandom(16),
                bytes(16),
                0,
                1,
                1,
                0,
                12,
                platform,
                "hcalld sev",
                0,
            )
        )
        welcome = self._receive()
        if isinstance(welcome, f.Goodbye):
            self._fail(f"the daemon refuses: {printable(welcome.text)}")
        assert isinstance(welcome, f.Welcome)
        if s.Feature.COMMANDS not in welcome.features:
            self._fail("the daemon has no SEV commands; expected an 'hcalld serve' that has them")
        self._send(f.Accept((), True, 0, 0))
        self._send(f.Ram((f.RamRegion(0, SPACE_SIZE),), 0, 0))
        return {
            spec.number: spec
            for spec in welcome.announcement.calls
            if spec.level == Level.COMMAND and spec.disposition is s.Disposition.FORWARD
        }

    def _part(self) -> None:
        """Say goodbye, and wait until the daemon has closed its end."""
        self._wait_at_most(CLOSING_SECONDS)
        goodbye = f.ShimGoodbye(s.GoodbyeReason.SHUTDOWN, "the client is done", 0)
        self._go_on()
        self._sock.sendall(self._connection.send(goodbye))
        self._sock.shutdown(socket.SHUT_WR)
        self._go_on()
        while self._sock.recv(_RECEIVE_SIZE):
            self._go_on()

    def _wait_at_most(self, seconds: float) -> None:
        """Give up after so long, whatever comes meanwhile."""
        self._until = time.monotonic() + seconds

    def _go_on(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)

    def _send(self, frame: f.Frame) -> None:
        try:
            self._go_on()
            # A daemon that has gone may have said why: that is read next.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._sock.sendall(self._connection.send(frame))
        except LocalProtocolError as error:
            self._fail(str(error))
        except TimeoutError:
            self._fail("the daemon does not answer; see its log")

    def _receive(self) -> f.Frame:
        connection = self._connection
        try:
            while (frame := connection.next_frame()) is None:
                if connection.state in (State.CLOSED, State.ERROR):
                    self._fail("the daemon has ended the connection; see its log")
                self._go_on()
                room = connection.room()
                if room is None:
                    connection.receive_data(self._sock.recv(_RECEIVE_SIZE))
                else:
                    connection.filled(self._sock.recv_into(room))
        except RemoteProtocolError as error:
            self._fail(f"what answers breaks the protocol of hcalld: {error}")
        except TimeoutError:
            self._fail("the daemon does not answer; see its log")
        except OSError as error:
            self._fail(f"the connection is lost: {error.strerror or error}")
        return frame

    def _fail(self, why: str) -> NoReturn:
        raise ConnectionFailed(f"{self._path}: {why}") from None


def field_names(hcall: Hcall) -> tuple[str, ...]:
    """The fields of a command's structure, in the order of their registers."""
    if hcall.structure is None:
        return tuple(arg.name for arg in hcall.args)
    return tuple(part.name for part in hcall.structure.subcons if part.name)


def _connect(path: pathlib.Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Room for a whole READ_REPLY, as far as the system allows, so that it leaves us at once.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, s.DEFAULT_MAX_FRAME)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise ConnectionFailed(
            f"{path}: cannot connect: {error.strerror or error}; expected the socket of a running "
            "'hcalld serve', which --socket names"
        ) from None
    return sock


__all__ = [
    "Answer",
    "CommandRefused",
    "ConnectionFailed",
    "SevClient",
    "field_names",
]
