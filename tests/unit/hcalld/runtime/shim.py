# SPDX-License-Identifier: Apache-2.0
"""A shim for tests of the daemon's runtime: the protocol's other role, in the same event loop."""

from __future__ import annotations

from typing import Final, TypeVar

from hcalld.runtime.transport import Transport
from hcallproto.abi.spec import Hcall
from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode

RAM_SIZE: Final = 1 << 20
RAM: Final = f.Ram((f.RamRegion(0, RAM_SIZE),), 0, 0)
NO_FEATURES: Final = s.Feature(0)
INSTANCE: Final = bytes(range(16))
OTHER_INSTANCE: Final = bytes(range(16, 32))

FrameT = TypeVar("FrameT")


def hello(
    name: str = "lpar7",
    *,
    instance: bytes = INSTANCE,
    uuid: bytes = bytes(16),
    features: s.Feature = NO_FEATURES,
    reset: int = 0,
    connection: int = 0,
    version: tuple[int, int] = (s.VERSION, s.VERSION),
    max_frame_size: int = s.DEFAULT_MAX_FRAME,
    program: str = "unit test",
) -> f.Hello:
    """A HELLO as QEMU sends it, of a machine with four virtual CPUs."""
    return f.Hello(
        version_min=version[0],
        version_max=version[1],
        max_frame_size=max_frame_size,
        features=features,
        instance=instance,
        uuid=uuid,
        connection=connection,
        vcpu_count=4,
        vcpu_max=4,
        pending=0,
        page_shift=16,
        name=name,
        program=program,
        reset=reset,
    )


class Shim:
    """One end of a connection to a session.

    Args:
        transport: to the session.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.connection = Connection(Role.SHIM)
        self.announced: dict[int, f.CallSpec] = {}
        self.welcome: f.Welcome | None = None
        self.seq = 0
        self._last: f.Call | None = None

    async def send(self, *frames: f.Frame) -> None:
        """Sends frames with one write, so that the daemon finds them together."""
        await self.transport.send(b"".join(self.connection.send(frame) for frame in frames))

    async def send_raw(self, data: bytes) -> None:
        """Sends bytes that the protocol's rules have not seen."""
        await self.transport.send(data)

    async def receive(self) -> f.Frame | None:
        """The daemon's next frame; None when it has closed the connection."""
        while (frame := self.connection.next_frame()) is None:
            if self.connection.state is State.CLOSED:
                return None
            self.connection.receive_data(await self.transport.receive())
        return frame

    async def expect(self, kind: type[FrameT]) -> FrameT:
        """The next frame, which must be of this kind."""
        frame = await self.receive()
        assert isinstance(frame, kind), f"{frame!r} came, expected {kind.__name__}"
        return frame

    async def expect_goodbye(self, reason: s.GoodbyeReason) -> str:
        """The daemon's farewell and the end; gives its text."""
        goodbye = await self.expect(f.Goodbye)
        assert goodbye.reason is reason, goodbye
        assert await self.receive() is None
        return goodbye.text

    async def greet(self, greeting: f.Hello) -> f.Welcome:
        """HELLO and its answer."""
        await self.send(greeting)
        self.welcome = await self.expect(f.Welcome)
        self.announced = {
            spec.number: spec
            for spec in self.welcome.announcement.calls
            if spec.disposition is s.Disposition.FORWARD
        }
        return self.welcome

    async def negotiate(self, greeting: f.Hello, ram: f.Ram = RAM) -> None:
        """All that comes before the first call."""
        await self.greet(greeting)
        await self.send(f.Accept((), True, 0, greeting.reset), ram._replace(reset=greeting.reset))

    def call_frame(
        self,
        hcall: Hcall | int,
        *arguments: int,
        vcpu: int = 0,
        seq: int | None = None,
        is_resent: bool = False,
        segments: tuple[f.Segment, ...] = (),
    ) -> f.Call:
        """A CALL; takes the next sequence number unless one is given."""
        if seq is None:
            self.seq += 1
            seq = self.seq
        else:
            self.seq = max(self.seq, seq)
        number = hcall if isinstance(hcall, int) else hcall.number
        registers = {3: number, **{4 + place: value for place, value in enumerate(arguments)}}
        gpr = tuple(registers.get(register, 0) for register in s.REGISTERS)
        reset = self.connection.reset
        return f.Call(vcpu, reset, seq, is_resent, 1, gpr, 0, 0, 0, 0, segments)

    async def start(self, hcall: Hcall | int, *arguments: int, vcpu: int = 0) -> f.Call:
        """Makes a call and does not wait."""
        call = self.call_frame(hcall, *arguments, vcpu=vcpu)
        await self.send(call)
        return call

    async def call(self, hcall: Hcall | int, *arguments: int, vcpu: int = 0) -> f.Reply:
        """Makes a call and waits for its reply, which must be the next frame."""
        call = await self.start(hcall, *arguments, vcpu=vcpu)
        reply = await self.expect(f.Reply)
        assert (reply.vcpu, reply.reset, reply.seq) == (call.vcpu, call.reset, call.seq)
        return reply

    async def resend(self, call: f.Call) -> f.Reply:
        """Sends a call of an earlier connection again and waits for its reply."""
        self.seq = max(self.seq, call.seq)
        await self.send(call._replace(is_resent=True))
        reply = await self.expect(f.Reply)
        assert reply.seq == call.seq
        return reply

    async def answer_read(self, read: f.Read, *data: bytes) -> None:
        """Gives the daemon the memory it asks for."""
        segments = tuple((s.AccessStatus.OK, part) for part in data)
        await self.send(f.ReadReply(read.vcpu, read.reset, read.seq, read.request, segments))

    async def refuse_read(self, read: f.Read, status: s.AccessStatus) -> None:
        """Gives the daemon none of the memory it asks for."""
        segments = tuple((status, b"") for _ in read.segments)
        await self.send(f.ReadReply(read.vcpu, read.reset, read.seq, read.request, segments))

    async def answer_write(
        self,
        write: f.Write,
        status: s.AccessStatus = s.AccessStatus.OK,
        bad_segment: int = 0,
    ) -> None:
        """Says what became of a WRITE."""
        await self.send(
            f.WriteReply(write.vcpu, write.reset, write.seq, write.request, status, bad_segment)
        )

    def reset_event(self) -> f.Event:
        """A system reset."""
        reset = self.connection.reset + 1
        return f.Event(s.EventKind.RESET, s.NO_VCPU, reset, reset)

    async def close(self) -> None:
        """Ends the connection."""
        await self.transport.aclose()


def garbled(frame: f.Frame, offset: int, value: int) -> bytes:
    """A frame with one byte changed."""
    data = bytearray(encode(frame))
    data[offset] = value
    return bytes(data)
