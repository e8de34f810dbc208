# SPDX-License-Identifier: Apache-2.0
"""Any bytes at a connection: what must hold, as a program on standard input and as a function.

As a program, by hand or for AFL (``py-afl-fuzz``)::

    PYTHONPATH=protocol:. python tests/fuzz/connection.py --seeds FOLDER
    PYTHONPATH=protocol:. python tests/fuzz/connection.py < bytes

The first byte chooses where the connection stands; the rest comes from the peer. The invariants:

1. Whole at once and byte by byte give the same frames and end with the same breach, or none.
2. Only RemoteProtocolError is raised, once; then the state is ERROR and the connection says so.
3. What was given was whole: encoded again, the frames are the bytes that were taken, but for what
   the connection dropped, as the document lets it, and offered features that nobody has defined.
4. The buffer never holds a frame's greatest size and a read together, and the calls known are
   never more than the bounds of the document.
5. Between frames, end of file closes; inside a frame it is a breach.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Final

from tests.unit.hcallproto.conn.talk import (
    CALL,
    HELLO,
    READ,
    REPLY,
    in_state,
    say,
    say_samples,
)

from hcallproto.conn.connection import Connection
from hcallproto.conn.states import Role, State
from hcallproto.errors import Breach, LocalProtocolError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import FrameType

_T = FrameType
COMMAND: Final = CALL._replace(level=s.LEVEL_COMMAND)


def _after_reset(role: Role) -> Connection:
    connection = in_state(role, State.READY)
    say_samples(connection, (_T.CALL, _T.READ, _T.EVENT))
    return connection


def _in_call(role: Role, *types: FrameType) -> Connection:
    connection = in_state(role, State.READY)
    say_samples(connection, (_T.CALL, *types))
    return connection


def _in_command(role: Role) -> Connection:
    connection = in_state(role, State.READY, features=s.Feature.COMMANDS)
    say(connection, COMMAND)
    return connection


STARTS: Final[tuple[Callable[[], Connection], ...]] = (
    lambda: Connection(Role.DAEMON),
    lambda: in_state(Role.DAEMON, State.WELCOMED),
    lambda: in_state(Role.DAEMON, State.ACCEPTED),
    lambda: in_state(Role.DAEMON, State.READY),
    lambda: _in_call(Role.DAEMON),
    lambda: _in_call(Role.DAEMON, _T.READ),
    lambda: _in_call(Role.DAEMON, _T.WRITE),
    lambda: _after_reset(Role.DAEMON),
    lambda: in_state(Role.SHIM, State.GREETED),
    lambda: in_state(Role.SHIM, State.READY),
    lambda: _in_call(Role.SHIM),
    lambda: _in_call(Role.SHIM, _T.CANCEL),
    lambda: _after_reset(Role.SHIM),
    lambda: in_state(Role.DAEMON, State.READY, features=s.Feature.COMMANDS),
    lambda: _in_command(Role.SHIM),
)
"""Where a connection may stand when the bytes come."""

MAX_CALLS: Final = HELLO.vcpu_max * (1 + s.MAX_CANCELLING)


class Heard:
    """What came of the bytes.

    Attributes:
        frames: what the connection's user was given.
        error: the breach, or None.
        state: where that left the connection.
    """

    def __init__(self, connection: Connection, chunks: Iterable[bytes]) -> None:
        self.connection = connection
        self.frames: list[f.Frame] = []
        self.error: Breach | None = None
        for chunk in chunks:
            if self.error is None:
                self._hear(chunk)
        self.state = connection.state

    def _hear(self, chunk: bytes) -> None:
        connection = self.connection
        connection.receive_data(chunk)
        try:
            while (frame := connection.next_frame()) is not None:
                self.frames.append(frame)
        except RemoteProtocolError as error:
            self.error = error.breach
            return
        assert connection.buffered_size < max(connection.max_frame_size, s.HEADER_SIZE)
        assert len(connection.calls) <= MAX_CALLS

    def end(self) -> None:
        """No more bytes will come."""
        rest = self.connection.buffered_size
        if self.error is None and self.state is not State.CLOSED:
            self._hear(b"")
            assert (self.error is not None) is bool(rest)
            assert self.error in (None, Breach.TRUNCATED)
        if self.error is None:
            assert self.connection.state is State.CLOSED
            return
        assert self.connection.state is State.ERROR
        for broken in (self.connection.next_frame, lambda: self.connection.send(REPLY)):
            try:
                broken()
            except LocalProtocolError:
                continue
            raise AssertionError("a connection in error goes on")


def check(start: int, data: bytes) -> list[f.Frame]:
    """All invariants, for one start and any bytes. Gives the frames."""
    make = STARTS[start % len(STARTS)]
    whole = Heard(make(), [data] if data else [])
    parts = Heard(make(), (bytes([value]) for value in data))
    assert whole.frames == parts.frames
    assert whole.error is parts.error
    assert whole.state is parts.state
    _check_taken(whole, data)
    whole.end()
    parts.end()
    assert whole.error is parts.error
    return whole.frames


def _check_taken(heard: Heard, data: bytes) -> None:
    """Every frame given is a run of the bytes, in order and on a frame's boundary."""
    at = 0
    for frame in heard.frames:
        wire = encode(frame)
        if isinstance(frame, f.Hello):
            wire = wire[:40] + data[40:48] + wire[48:]
        while data[at : at + len(wire)] != wire:
            at += _dropped(data, at)
        at += len(wire)
    while heard.error is None and at < len(data) - heard.connection.buffered_size:
        at += _dropped(data, at)


def _dropped(data: bytes, at: int) -> int:
    """The size of a frame that the user was not given: one that crossed a cancel or a reset."""
    kind = int.from_bytes(data[at + 4 : at + 6], "big")
    assert kind in (_T.REPLY, _T.CANCELLED, _T.READ_REPLY, _T.WRITE_REPLY), kind
    return int.from_bytes(data[at + 8 : at + 12], "big")


def seeds() -> dict[str, bytes]:
    """A first corpus: the conversation of each start, as one byte and the peer's frames."""
    hello = encode(HELLO)
    cancel = encode(f.Cancel(CALL.vcpu, CALL.reset, CALL.seq, s.CancelReason.DEADLINE))
    call = encode(CALL._replace(seq=CALL.seq + 1, vcpu=0))
    event = encode(f.Event(s.EventKind.RESET, s.NO_VCPU, 1, 3))
    answer = encode(
        f.ReadReply(
            CALL.vcpu,
            CALL.reset,
            CALL.seq,
            READ.request,
            tuple((s.AccessStatus.OK, bytes(size)) for _, size in READ.segments),
        )
    )
    return {
        "hello": bytes([0]) + hello,
        "negotiation": bytes([1]) + encode(f.Accept((), True, 0, 2)) + encode(f.Ram((), 0, 2)),
        "ready": bytes([3]) + call + cancel + event,
        "live": bytes([4]) + cancel + call,
        "accessing": bytes([5]) + answer + cancel,
        "welcome": bytes([8]) + encode(f.Welcome(1, 1 << 17, HELLO.features, f.Announcement(), 2)),
        "reply": bytes([10]) + encode(READ) + encode(REPLY),
        "crossed": bytes([11]) + encode(REPLY) + encode(READ),
        "client": bytes([13]) + encode(COMMAND) + cancel,
        "command": bytes([14]) + encode(READ) + event,
        "reset": bytes([12]) + encode(REPLY) + encode(f.EventAck(s.EventKind.RESET, 1, 3)),
    }


def main() -> None:
    """Write the seeds; or one run on standard input, or as many as AFL wants, in its loop."""
    match sys.argv[1:]:
        case ["--seeds", folder]:
            for name, seed in seeds().items():
                pathlib.Path(folder, name).write_bytes(seed)
            return
        case [_, *_]:
            sys.exit(f"usage: {sys.argv[0]} [--seeds FOLDER] < bytes")
    try:
        import afl  # type: ignore[import-not-found]  # only where AFL is
    except ImportError:
        _once()
        return
    while afl.loop(10_000):
        _once()


def _once() -> None:
    data = sys.stdin.buffer.read()
    if data:
        check(data[0], data[1:])


if __name__ == "__main__":
    main()
