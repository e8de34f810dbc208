# SPDX-License-Identifier: Apache-2.0
"""What a connection does beside its tables: bytes, bounds, negotiation, resets, both errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.hcallproto.conn.talk import (
    ALL_FEATURES,
    ANNOUNCEMENT,
    CALL,
    CANCELLED,
    EVENT,
    EVENT_ACK,
    GOODBYE,
    GPR,
    HELLO,
    NO_FEATURES,
    READ,
    READ_REPLY,
    REPLY,
    REQUEST,
    SAMPLES,
    SEQ,
    SHIM_GOODBYE,
    VCPU,
    WELCOME,
    in_state,
    other,
    ready,
    say,
    say_samples,
)

from hcallproto.conn.connection import LARGE_FRAME, Connection
from hcallproto.conn.states import CallState, Role, State
from hcallproto.errors import Breach, LocalProtocolError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import FrameType

_T = FrameType


def breach(connection: Connection, data: bytes, of: Breach, match: str = ".") -> None:
    """The bytes end the connection with this breach, and for good."""
    connection.receive_data(data)
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        frames(connection)
    assert caught.value.breach is of
    assert connection.state is State.ERROR
    with pytest.raises(LocalProtocolError, match="in error"):
        connection.next_frame()


def frames(connection: Connection) -> list[f.Frame]:
    """All that are there."""
    return list(iter(connection.next_frame, None))


def header(frame_type: int, size: int, **fields: int) -> bytes:
    values = {"flags": 0, "vcpu": s.NO_VCPU, "reset": 0, "request": 0, "seq": 0, **fields}
    return s.HEADER.build({"type": frame_type, "size": size, **values})


# -- the three shapes -----------------------------------------------------------------------

SHIM_SAYS: tuple[f.Frame, ...] = (
    HELLO,
    f.Accept((), True, 0, 2),
    f.Ram((f.RamRegion(0, 1 << 30),), 0, 2),
    CALL,
    f.Call(0, 2, SEQ + 1, False, 2, GPR, 0, 0, 0, 0),
    READ_REPLY,
    f.Cancel(0, 2, SEQ + 1, s.CancelReason.DEADLINE),
    EVENT,
    SHIM_GOODBYE,
)
DAEMON_SAYS: dict[int, f.Frame] = {
    0: WELCOME,
    4: READ,
    5: REPLY,
    6: f.Cancelled(0, 2, SEQ + 1, s.Effect.NONE),
    7: EVENT_ACK,
}
"""After which of the shim's frames the daemon says what."""


def listen(chunks: Iterator[bytes]) -> tuple[list[f.Frame], State]:
    """What a daemon hears of a recorded conversation, and where that leaves it."""
    connection = Connection(Role.DAEMON)
    heard: list[f.Frame] = []
    for chunk in chunks:
        connection.receive_data(chunk)
        while (frame := connection.next_frame()) is not None:
            answer = DAEMON_SAYS.get(len(heard))
            heard.append(frame)
            if answer is not None:
                connection.send(answer)
    return heard, connection.state


RECORDED = b"".join(map(encode, SHIM_SAYS))


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 177, 1000, len(RECORDED)])
def test_conversation_when_it_comes_in_pieces_of_any_size_then_it_is_the_same(size: int):
    pieces = (RECORDED[at : at + size] for at in range(0, len(RECORDED), size))
    heard, state = listen(pieces)
    assert heard == list(SHIM_SAYS)
    assert state is State.CLOSED


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_conversation_when_the_callers_buffer_is_used_again_then_nothing_is_lost(
    kind: Callable[[Any], Any],
):
    """A transport that receives into one buffer hands out views of it."""
    shared = bytearray(50)

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(RECORDED), 50):
            piece = RECORDED[at : at + 50]
            shared[: len(piece)] = piece
            yield kind(memoryview(shared)[: len(piece)])
            shared[:] = bytes(50)

    heard, _ = listen(pieces())
    assert heard == list(SHIM_SAYS)


@pytest.mark.parametrize("cut", [1, 4, 31, 32, 33, 175])
def test_frames_when_the_last_is_not_whole_then_the_rest_are_given_and_it_waits(cut: int):
    connection = ready(Role.DAEMON)
    event = encode(EVENT)
    call = encode(CALL._replace(reset=3))
    connection.receive_data(event + call[:cut])
    assert frames(connection) == [EVENT]
    assert connection.buffered_size == cut
    connection.receive_data(call[cut:] + event[:1])
    assert frames(connection) == [CALL._replace(reset=3)]
    assert connection.buffered_size == 1


def test_frame_when_bytes_follow_its_last_field_inside_it_then_it_is_a_breach():
    data = bytearray(encode(CALL) + b"\0")
    data[8:12] = len(data).to_bytes(4, "big")
    breach(ready(Role.DAEMON), bytes(data), Breach.LAYOUT, "1 bytes too many")


def test_next_frame_when_a_breach_follows_good_frames_then_they_are_given_first():
    connection = ready(Role.DAEMON)
    connection.receive_data(encode(CALL) + b"garbage")
    assert connection.next_frame() == CALL
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_frame()
    assert caught.value.breach is Breach.MAGIC


# -- bad bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"G", b"GET / HTTP/1.1\r\n\r\n", b"HCL?", b"\0" * 32, b"x" * 99])
@pytest.mark.parametrize("role", Role)
def test_garbage_when_received_then_it_is_a_breach_at_once(role: Role, text: bytes):
    breach(Connection(role), text, Breach.MAGIC, "48434c50")
    # Byte by byte it is one no later than the first that is wrong.
    connection = Connection(role)
    for found, right in zip(text, b"HCLP", strict=False):
        if found != right:
            breach(connection, bytes([found]), Breach.MAGIC)
            return
        connection.receive_data(bytes([found]))
        assert connection.next_frame() is None
    raise AssertionError("no byte is wrong")


@pytest.mark.parametrize("number", [0, 8, 21, 25, 255, 0xFFFF])
def test_type_when_unknown_then_it_is_a_breach(number: int):
    breach(Connection(Role.DAEMON), header(number, 32), Breach.TYPE, f"type {number}")


@pytest.mark.parametrize("size", [0, 1, 31])
def test_size_when_below_the_headers_then_it_is_a_breach(size: int):
    breach(Connection(Role.DAEMON), header(_T.HELLO, size), Breach.SIZE, f"size {size}")


def test_size_when_above_the_bound_then_it_is_a_breach_before_the_payload_is_there():
    limit = s.MIN_MAX_FRAME
    connection = Connection(Role.DAEMON)
    connection.receive_data(header(_T.HELLO, limit))
    assert connection.next_frame() is None
    breach(Connection(Role.DAEMON), header(_T.HELLO, limit + 1), Breach.SIZE, f"most {limit}")


@pytest.mark.parametrize("limit", [s.MIN_MAX_FRAME, s.MIN_MAX_FRAME + 1, s.DEFAULT_MAX_FRAME])
def test_size_when_welcome_has_set_the_bound_then_it_holds_both_ways(limit: int):
    def write(size: int) -> f.Write:
        room = size - s.HEADER_SIZE - s.WRITE.sizeof() - s.WRITE_SEGMENT.sizeof()
        return f.Write(VCPU, 2, SEQ, 1, (f.WriteSegment(0, room, bytes(room)),))

    for size, fits in ((limit - 1, True), (limit, True), (limit + 1, False)):
        frame = write(size)
        data = encode(frame)
        assert len(data) == size
        sender, receiver = (ready(role, max_frame_size=limit) for role in Role.__reversed__())
        assert (sender.role, receiver.role) == (Role.DAEMON, Role.SHIM)
        say(sender, CALL)
        say(receiver, CALL)
        if fits:
            assert sender.send(frame) == data
            receiver.receive_data(data)
            assert receiver.next_frame() == frame
        else:
            with pytest.raises(LocalProtocolError, match=f"{size} bytes, at most {limit}"):
                sender.send(frame)
            breach(receiver, data[: s.HEADER_SIZE], Breach.SIZE, f"most {limit}")


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 31, 32, 33, 100, 175])
def test_end_of_file_when_inside_a_frame_then_it_is_a_breach(cut: int):
    connection = ready(Role.DAEMON)
    connection.receive_data(encode(CALL)[:cut])
    assert connection.next_frame() is None
    breach(connection, b"", Breach.TRUNCATED, f"after {cut} bytes")


@pytest.mark.parametrize("state", [state for state in State if state is not State.ERROR])
def test_end_of_file_when_between_frames_then_the_connection_is_closed(state: State):
    connection = in_state(Role.DAEMON, state)
    if state is not State.CLOSED:
        connection.receive_data(b"")
    assert connection.next_frame() is None
    assert connection.next_frame() is None
    assert connection.state is State.CLOSED


def test_receive_data_when_the_end_of_file_was_told_then_the_caller_is_wrong():
    connection = in_state(Role.DAEMON, State.CLOSED)
    for data in (b"", b"x"):
        with pytest.raises(LocalProtocolError, match="after end of file"):
            connection.receive_data(data)


def test_frame_when_it_follows_a_goodbye_then_it_is_a_breach():
    connection = ready(Role.DAEMON)
    assert say(connection, SHIM_GOODBYE) == SHIM_GOODBYE
    breach(connection, encode(CALL), Breach.STATE, "CALL while closed")


def test_frame_when_it_crosses_our_goodbye_then_it_is_dropped():
    """Not a breach: the peer could not know."""
    connection = ready(Role.DAEMON)
    connection.receive_data(encode(CALL)[:40])
    assert connection.next_frame() is None
    connection.send(GOODBYE)
    connection.receive_data(encode(CALL)[40:] + b"anything")
    assert connection.next_frame() is None
    assert connection.buffered_size == 0
    assert connection.state is State.CLOSED


# -- room for large frames --------------------------------------------------------------------


def large_call(seq: int, size: int) -> f.Call:
    data = bytes(seq + n & 0xFF for n in range(256)) * (size // 256)
    segment = f.Segment(0, 0, s.SegmentStatus.OK, data)
    return f.Call(VCPU, 2, seq, False, 1, GPR, 0, 0, 0, 0, (segment,))


def calls_and_cancels(*sizes: int) -> list[f.Frame]:
    found: list[f.Frame] = []
    for seq, size in enumerate(sizes, 1):
        found += [large_call(seq, size), f.Cancel(VCPU, 2, seq, s.CancelReason.DEADLINE)]
    return found


SIZES = (0, 3 * LARGE_FRAME, 2 * LARGE_FRAME, 256, 2 * LARGE_FRAME, 4 * LARGE_FRAME)


@pytest.mark.parametrize("is_used", [True, False], ids=["used", "ignored"])
@pytest.mark.parametrize("chunk", [100, 32 * 1024 + 1, LARGE_FRAME, 5 * LARGE_FRAME])
def test_room_when_frames_are_large_then_they_are_the_same_as_without(chunk: int, is_used: bool):
    connection = ready(Role.DAEMON)
    sent = calls_and_cancels(*SIZES)
    data = b"".join(map(encode, sent))
    heard: list[f.Frame] = []
    at = rooms = 0
    while at < len(data):
        room = connection.room()
        if room is None or not is_used:
            part = data[at : at + chunk]
            connection.receive_data(part)
        else:
            rooms += 1
            part = data[at : at + min(chunk, len(room))]
            room[: len(part)] = part
            connection.filled(len(part))
        at += len(part)
        while (frame := connection.next_frame()) is not None:
            heard.append(frame)
            assert connection.frame_data == encode(frame)
            if isinstance(frame, f.Cancel):
                connection.send(f.Cancelled(VCPU, 2, frame.seq, s.Effect.NONE))
    assert heard == sent
    assert connection.buffered_size == 0
    assert connection.room() is None
    assert bool(rooms) is is_used


def test_room_when_no_large_frame_is_coming_then_there_is_none():
    connection = ready(Role.DAEMON)
    assert connection.room() is None
    data = encode(large_call(1, LARGE_FRAME - 1024))
    connection.receive_data(data[:100])
    assert connection.next_frame() is None
    assert connection.room() is None


def test_room_when_a_large_frame_is_coming_then_for_what_it_lacks():
    connection = ready(Role.DAEMON)
    data = encode(large_call(1, LARGE_FRAME))
    connection.receive_data(data[:100])
    assert connection.next_frame() is None
    room = connection.room()
    assert room is not None
    assert len(room) == len(data) - 100
    assert connection.buffered_size == 100


def test_filled_when_it_is_the_end_then_the_frame_is_truncated():
    connection = ready(Role.DAEMON)
    connection.receive_data(encode(large_call(1, LARGE_FRAME))[:100])
    assert connection.next_frame() is None
    connection.filled(0)
    with pytest.raises(RemoteProtocolError, match="end of file after 100 bytes"):
        connection.next_frame()


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_filled_when_there_was_no_room_then_the_caller_is_wrong(size: int):
    connection = ready(Role.DAEMON)
    if size:
        with pytest.raises(LocalProtocolError, match="no room"):
            connection.filled(size)
    data = encode(large_call(1, LARGE_FRAME))
    connection.receive_data(data[:100])
    assert connection.next_frame() is None
    if not size:
        connection.filled(0)
    with pytest.raises(LocalProtocolError, match="no room"):
        connection.filled(len(data) - 99 if size > 0 else size)


# -- what a connection keeps ------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1 << 10, 1 << 16, 1 << 20])
def test_buffer_when_the_peer_sends_for_ever_then_it_holds_less_than_a_frame(chunk: int):
    limit = s.MIN_MAX_FRAME
    connection = ready(Role.DAEMON, max_frame_size=limit)
    room = limit - len(encode(CALL)) - s.CALL_SEGMENT.sizeof()
    segment = f.Segment(0, 0, s.SegmentStatus.OK, bytes(room))
    data = b""
    for seq in range(1, 30):
        data += encode(f.Call(VCPU, 2, seq, False, 1, GPR, 0, 0, 0, 0, (segment,)))
        data += encode(f.Cancel(VCPU, 2, seq, s.CancelReason.DEADLINE))
    peak = 0
    for at in range(0, len(data), chunk):
        connection.receive_data(data[at : at + chunk])
        peak = max(peak, connection.buffered_size)
        while (frame := connection.next_frame()) is not None:
            if isinstance(frame, f.Cancel):
                connection.send(f.Cancelled(VCPU, 2, frame.seq, s.Effect.NONE))
        assert connection.buffered_size < limit
    assert peak < limit + chunk
    assert connection.buffered_size == 0
    assert len(connection.calls) == 0


def test_calls_when_the_peer_names_ever_new_ones_then_they_are_bounded():
    """Once, counters of acknowledged calls stayed, and vcpu numbers had no bound."""
    connection = ready(Role.DAEMON)
    vcpu_max = HELLO.vcpu_max + 1  # with the machine itself
    for vcpu in range(vcpu_max):
        for seq in range(1, s.MAX_CANCELLING + 1):
            say(connection, f.Cancel(vcpu, 2, seq, s.CancelReason.DEADLINE))
    assert len(connection.calls) == vcpu_max * s.MAX_CANCELLING
    breach(
        connection,
        encode(f.Cancel(vcpu_max, 2, 1, s.CancelReason.DEADLINE)),
        Breach.CALL,
        f"only {vcpu_max}",
    )


# -- negotiation ------------------------------------------------------------------------------

MAX_U32 = 0xFFFF_FFFF
HELLO_BOUNDS: list[tuple[dict[str, int], Breach | None]] = [
    ({"version_min": 0, "version_max": 0}, None),
    ({"version_min": 2, "version_max": 1}, Breach.VERSION),
    ({"version_min": 0xFFFF, "version_max": 0xFFFF}, None),
    ({"max_frame_size": 0}, Breach.BOUNDS),
    ({"max_frame_size": s.MIN_MAX_FRAME - 1}, Breach.BOUNDS),
    ({"max_frame_size": s.MIN_MAX_FRAME}, None),
    ({"max_frame_size": s.MAX_MAX_FRAME + 1}, None),
    ({"max_frame_size": MAX_U32}, None),
    ({"vcpu_count": 8}, None),
    ({"vcpu_count": 9}, Breach.BOUNDS),
    ({"vcpu_count": 0}, None),
    ({"vcpu_max": s.MAX_VCPUS - 1}, None),
    ({"vcpu_max": s.MAX_VCPUS}, None),
    ({"vcpu_max": s.MAX_VCPUS + 1}, Breach.BOUNDS),
    ({"vcpu_max": MAX_U32, "vcpu_count": MAX_U32}, Breach.BOUNDS),
]


@pytest.mark.parametrize(("change", "expected"), HELLO_BOUNDS, ids=str)
def test_hello_when_at_a_bound_then_it_is_kept_and_beyond_refused(
    change: dict[str, Any], expected: Breach | None
):
    hello = HELLO._replace(**change)
    if expected is None:
        assert say(Connection(Role.DAEMON), hello) == hello
        Connection(Role.SHIM).send(hello)
        return
    breach(Connection(Role.DAEMON), encode(hello), expected)
    shim = Connection(Role.SHIM)
    with pytest.raises(LocalProtocolError):
        shim.send(hello)
    assert shim.state is State.CONNECTED


def test_hello_when_it_comes_twice_then_it_is_a_breach():
    for state in (State.GREETED, State.WELCOMED, State.ACCEPTED, State.READY):
        breach(in_state(Role.DAEMON, state), encode(HELLO), Breach.STATE, "HELLO while")


def test_hello_when_read_then_the_connection_knows_the_reset_and_nothing_is_in_force():
    connection = in_state(Role.DAEMON, State.GREETED)
    assert (connection.reset, connection.features) == (HELLO.reset, NO_FEATURES)
    assert connection.max_frame_size == s.MIN_MAX_FRAME


WELCOME_BOUNDS: list[tuple[dict[str, Any], dict[str, Any], Breach | None]] = [
    ({}, {"version": 0}, Breach.VERSION),
    ({}, {"version": 1}, None),
    ({}, {"version": 2}, None),
    ({}, {"version": 3}, Breach.VERSION),
    ({}, {"max_frame_size": s.MIN_MAX_FRAME - 1}, Breach.BOUNDS),
    ({}, {"max_frame_size": s.MIN_MAX_FRAME}, None),
    ({}, {"max_frame_size": s.DEFAULT_MAX_FRAME + 1}, Breach.BOUNDS),
    ({"max_frame_size": MAX_U32}, {"max_frame_size": s.MAX_MAX_FRAME}, None),
    ({"max_frame_size": MAX_U32}, {"max_frame_size": s.MAX_MAX_FRAME + 1}, Breach.BOUNDS),
    ({}, {"features": NO_FEATURES}, None),
    ({"features": s.Feature.SC2}, {"features": s.Feature.SC2}, None),
    (
        {"features": s.Feature.SC2},
        {"features": s.Feature.SC2 | s.Feature.SHARED_RAM},
        Breach.FEATURE,
    ),
    ({"features": s.Feature.COMMANDS}, {}, None),
    (
        {"features": s.Feature.COMMANDS | ALL_FEATURES},
        {"features": s.Feature.COMMANDS},
        None,
    ),
    *(
        (
            {"features": s.Feature.COMMANDS | ALL_FEATURES},
            {"features": s.Feature.COMMANDS | more},
            Breach.FEATURE,
        )
        for more in ALL_FEATURES
    ),
]


@pytest.mark.parametrize(("offer", "choice", "expected"), WELCOME_BOUNDS, ids=str)
def test_welcome_when_at_a_bound_then_it_is_kept_and_beyond_refused(
    offer: dict[str, Any], choice: dict[str, Any], expected: Breach | None
):
    hello = HELLO._replace(**offer)
    welcome = f.Welcome(1, s.MIN_MAX_FRAME, hello.features, ANNOUNCEMENT, 2)._replace(**choice)
    shim, daemon = Connection(Role.SHIM), Connection(Role.DAEMON)
    for connection in (shim, daemon):
        say(connection, hello)
    if expected is None:
        assert say(shim, welcome) == welcome
        daemon.send(welcome)
        for connection in (shim, daemon):
            assert connection.max_frame_size == welcome.max_frame_size
            assert connection.features == welcome.features
        return
    breach(shim, encode(welcome), expected)
    with pytest.raises(LocalProtocolError):
        daemon.send(welcome)
    assert daemon.state is State.GREETED


def test_features_when_undefined_bits_are_offered_then_they_are_ignored_and_cost_nothing():
    """Once, each combination became a member of Feature, kept for ever."""
    data = bytearray(encode(HELLO))
    members = len(s.Feature._value2member_map_)
    for high in range(1, 50):
        data[40:48] = (high << 32 | int(ALL_FEATURES)).to_bytes(8, "big")
        connection = Connection(Role.DAEMON)
        connection.receive_data(bytes(data))
        assert connection.next_frame() == HELLO
    assert len(s.Feature._value2member_map_) == members


@pytest.mark.parametrize("features", [NO_FEATURES, s.Feature.SC2, s.Feature.SHARED_RAM])
def test_ram_when_it_brings_descriptors_then_shared_ram_must_be_in_force(features: s.Feature):
    connection = ready(Role.DAEMON, features=features)
    ram = f.Ram((f.RamRegion(0, 4096, 0, 0),), 1, 2)
    if s.Feature.SHARED_RAM in features:
        assert say(connection, ram) == ram
    else:
        breach(connection, encode(ram), Breach.FEATURE, "without SHARED_RAM")


@pytest.mark.parametrize(
    ("features", "level", "is_fine"),
    [
        (NO_FEATURES, 0, False),
        (NO_FEATURES, 1, True),
        (NO_FEATURES, 2, False),
        (s.Feature.SC2, 0, False),
        (s.Feature.SC2, 1, True),
        (s.Feature.SC2, 2, True),
        (s.Feature.SC2, 3, False),
        (ALL_FEATURES, s.LEVEL_COMMAND, False),
        (ALL_FEATURES, 255, False),
        (s.Feature.COMMANDS, s.LEVEL_COMMAND, True),
        *((s.Feature.COMMANDS, level, False) for level in (0, 1, 2, s.LEVEL_SHIM, 5)),
    ],
)
def test_call_when_its_level_is_not_in_force_then_it_is_a_breach(
    features: s.Feature, level: int, is_fine: bool
):
    connection = ready(Role.DAEMON, features=features)
    call = CALL._replace(level=level)
    if is_fine:
        assert say(connection, call) == call
    else:
        breach(connection, encode(call), Breach.CALL, f"level {level}")


# -- resets -----------------------------------------------------------------------------------


def reset_event(reset: int, number: int = 1) -> f.Event:
    return f.Event(s.EventKind.RESET, s.NO_VCPU, number, reset)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("reset", "is_fine"), [(0, False), (2, False), (3, True), (9, True)])
def test_reset_when_its_count_does_not_grow_then_it_is_refused(
    role: Role, reset: int, is_fine: bool
):
    connection = ready(role)
    event = reset_event(reset)
    if is_fine:
        say(connection, event)
        assert connection.reset == reset
    elif role is Role.SHIM:
        with pytest.raises(LocalProtocolError, match="not above 2"):
            connection.send(event)
        assert connection.reset == 2
    else:
        breach(connection, encode(event), Breach.CALL, "not above 2")


@pytest.mark.parametrize("role", Role)
def test_reset_when_calls_are_in_flight_then_none_is_left(role: Role):
    connection = ready(role)
    say_samples(connection, (_T.CALL, _T.READ))
    say(connection, f.Call(0, 2, SEQ + 1, False, 1, GPR, 0, 0, 0, 0))
    say(connection, f.Cancel(0, 2, SEQ + 1, s.CancelReason.VCPU_GONE))
    assert len(connection.calls) == 2
    say(connection, reset_event(3))
    assert len(connection.calls) == 0
    assert connection.calls.live() == []
    # The vCPU starts anew, and the sequence goes on.
    say(connection, CALL._replace(reset=3, seq=SEQ + 2))
    assert connection.calls.live() == [(VCPU, SEQ + 2)]


def test_sequence_when_the_machine_was_reset_then_it_does_not_restart():
    connection = ready(Role.DAEMON)
    say(connection, CALL)
    say(connection, reset_event(3))
    breach(connection, encode(CALL._replace(reset=3)), Breach.CALL, f"not above {SEQ}")


OLD_FRAMES = [SAMPLES[number] for number in (_T.REPLY, _T.CANCELLED, _T.READ, _T.WRITE)]


@pytest.mark.parametrize("frame", OLD_FRAMES, ids=lambda frame: type(frame).__name__)
def test_old_frame_when_it_crosses_a_reset_then_only_memory_requests_are_seen(frame: f.Frame):
    shim = ready(Role.SHIM)
    shim.send(CALL)
    shim.send(reset_event(3))
    assert say(shim, frame) == (frame if isinstance(frame, f.Read | f.Write) else None)
    assert shim.state is State.READY
    if isinstance(frame, f.Read):
        no_call = (s.AccessStatus.NO_CALL, b"")
        shim.send(f.ReadReply(VCPU, 2, SEQ, REQUEST, (no_call, no_call)))
    if isinstance(frame, f.Write):
        shim.send(f.WriteReply(VCPU, 2, SEQ, REQUEST, s.AccessStatus.NO_CALL, 0))


@pytest.mark.parametrize("frame", OLD_FRAMES, ids=lambda frame: type(frame).__name__)
def test_old_frame_when_the_reset_is_acknowledged_then_it_is_a_breach(frame: f.Frame):
    shim = ready(Role.SHIM)
    shim.send(CALL)
    shim.send(reset_event(3))
    say(shim, f.EventAck(s.EventKind.RESET, 1, 3))
    breach(shim, encode(frame), Breach.CALL, "of reset 2, now 3")


def test_old_frame_when_one_of_two_resets_is_acknowledged_then_its_age_decides():
    def shim() -> Connection:
        connection = ready(Role.SHIM)
        connection.send(reset_event(3, 1))
        connection.send(reset_event(4, 2))
        say(connection, f.EventAck(s.EventKind.RESET, 1, 3))
        return connection

    assert say(shim(), REPLY._replace(reset=3)) is None
    breach(shim(), encode(REPLY), Breach.CALL, "of reset 2, now 4")


@pytest.mark.parametrize("frame", OLD_FRAMES, ids=lambda frame: type(frame).__name__)
def test_old_frame_when_a_daemon_sends_it_then_it_is_told_so(frame: f.Frame):
    daemon = ready(Role.DAEMON)
    say(daemon, CALL)
    say(daemon, reset_event(3))
    with pytest.raises(LocalProtocolError, match="of reset 2, now 3"):
        daemon.send(frame)


@pytest.mark.parametrize("number", [_T.READ_REPLY, _T.WRITE_REPLY])
def test_old_answer_when_it_reaches_the_daemon_then_it_is_dropped(number: FrameType):
    daemon = ready(Role.DAEMON)
    say(daemon, reset_event(3))
    assert say(daemon, SAMPLES[number]) is None
    assert daemon.state is State.READY


@pytest.mark.parametrize("number", [_T.CALL, _T.CANCEL])
@pytest.mark.parametrize("role", Role)
def test_old_frame_when_it_is_the_shims_then_it_is_refused(role: Role, number: FrameType):
    """The shim knows of its own resets."""
    connection = ready(role)
    say(connection, reset_event(3))
    frame = SAMPLES[number]
    if role is Role.SHIM:
        with pytest.raises(LocalProtocolError, match="of reset 2, now 3"):
            connection.send(frame)
    else:
        breach(connection, encode(frame), Breach.CALL, "of reset 2, now 3")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("number", [_T.CALL, _T.READ, _T.READ_REPLY, _T.REPLY])
def test_frame_when_it_is_of_a_reset_to_come_then_it_is_refused(role: Role, number: FrameType):
    connection = ready(role)
    say(connection, CALL)
    frame: Any = SAMPLES[number]
    frame = frame._replace(reset=3)
    if role.sends(number):
        with pytest.raises(LocalProtocolError, match="of reset 3, now 2"):
            connection.send(frame)
    else:
        breach(connection, encode(frame), Breach.CALL, "of reset 3, now 2")


ACK_CASES: list[tuple[f.EventAck, str]] = [
    (f.EventAck(s.EventKind.RESET, 1, 3), ""),
    (f.EventAck(s.EventKind.RESET, 2, 5), ""),
    (f.EventAck(s.EventKind.RESET, 2, 3), "to be acknowledged"),
    (f.EventAck(s.EventKind.RESET, 1, 4), "to be acknowledged"),
    (f.EventAck(s.EventKind.RESET, 1, 2), "to be acknowledged"),
    (f.EventAck(s.EventKind.RESET, 3, 6), "to be acknowledged"),
    (f.EventAck(s.EventKind.STOP, 1, 3), "only RESET"),
]


@pytest.mark.parametrize(("ack", "wrong"), ACK_CASES)
@pytest.mark.parametrize("role", Role)
def test_ack_when_it_names_no_reset_that_waits_for_one_then_it_is_refused(
    role: Role, ack: f.EventAck, wrong: str
):
    connection = ready(role)
    say(connection, reset_event(3, 1))
    say(connection, reset_event(5, 2))
    if not wrong:
        say(connection, ack)
        # Once is enough, and the newest stands for all.
        wrong = "to be acknowledged"
    if role is Role.DAEMON:
        with pytest.raises(LocalProtocolError, match=wrong):
            connection.send(ack)
    else:
        breach(connection, encode(ack), Breach.CALL, wrong)


def test_ack_when_it_is_of_the_newest_then_older_ones_are_done_too():
    shim = ready(Role.SHIM)
    shim.send(reset_event(3, 1))
    shim.send(reset_event(5, 2))
    say(shim, f.EventAck(s.EventKind.RESET, 2, 5))
    breach(shim, encode(f.EventAck(s.EventKind.RESET, 1, 3)), Breach.CALL, "are \\[\\]")


@pytest.mark.parametrize("kind", [kind for kind in s.EventKind if kind is not s.EventKind.RESET])
def test_event_when_it_is_no_reset_then_calls_go_on(kind: s.EventKind):
    connection = ready(Role.DAEMON)
    say(connection, CALL)
    is_of_vcpu = kind in (s.EventKind.VCPU_ADDED, s.EventKind.VCPU_REMOVED)
    event = f.Event(kind, 0 if is_of_vcpu else s.NO_VCPU, 1, 2)
    assert say(connection, event) == event
    assert connection.calls.state(VCPU, SEQ) is CallState.LIVE


# -- whose fault ------------------------------------------------------------------------------


def test_send_when_it_is_refused_then_nothing_has_changed():
    """One refusal of each kind, and the frame that is right is still taken."""
    daemon = ready(Role.DAEMON)
    say(daemon, CALL)
    too_big = f.WriteSegment(0, s.MAX_MAX_FRAME, bytes(s.MAX_MAX_FRAME))
    wrong: list[f.Frame] = [
        WELCOME,
        CALL,
        REPLY._replace(seq=SEQ + 1),
        REPLY._replace(context=s.CONTEXT_NIP),
        REPLY._replace(registers=((5, 1), (4, 1))),
        REPLY._replace(status=1 << 64),
        REPLY._replace(writes=(too_big,)),
        CANCELLED,
        EVENT_ACK,
        READ._replace(request=0),
    ]
    for frame in wrong:
        with pytest.raises(LocalProtocolError):
            daemon.send(frame)
        assert daemon.state is State.READY
        assert daemon.calls.state(VCPU, SEQ) is CallState.LIVE
    daemon.send(REPLY)


def test_two_connections_when_they_talk_then_each_is_where_the_other_is():
    ends = {role: Connection(role) for role in Role}
    script: list[f.Frame] = []
    for at, frame in enumerate(SHIM_SAYS[:-1]):
        script.append(frame)
        if at in DAEMON_SAYS:
            script.append(DAEMON_SAYS[at])
    for frame in script:
        sender = next(role for role in Role if role.sends(f.FRAME_TYPES[type(frame)]))
        ends[other(sender)].receive_data(ends[sender].send(frame))
        assert ends[other(sender)].next_frame() == frame
        assert ends[Role.SHIM].state is ends[Role.DAEMON].state
        assert ends[Role.SHIM].reset == ends[Role.DAEMON].reset
        assert ends[Role.SHIM].calls.live() == ends[Role.DAEMON].calls.live()
