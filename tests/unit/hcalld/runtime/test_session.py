# SPDX-License-Identifier: Apache-2.0
"""The life of a connection: negotiation, refusals, breaches, the end."""

from __future__ import annotations

import pathlib

import pytest
import trio
import trio.testing
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.conftest import Logs
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import (
    INSTANCE,
    NO_FEATURES,
    OTHER_INSTANCE,
    RAM,
    Shim,
    garbled,
    hello,
)
from trio.testing import MockClock

from hcalld.config import Profiles
from hcalld.runtime.session import (
    FAREWELL_SECONDS,
    FAST_TURNS,
    HANDSHAKE_SECONDS,
    Session,
)
from hcalld.runtime.transport import StreamTransport
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode


def events(logs: Logs, name: str) -> Logs:
    return [entry for entry in logs if entry["event"] == name]


# -- negotiation --------------------------------------------------------------------------


async def test_hello_when_all_is_well_then_the_announcement_has_every_served_call(daemon: Daemon):
    shim = await daemon.connect()
    welcome = await shim.greet(hello())
    assert welcome.version == s.VERSION
    assert welcome.features is NO_FEATURES
    assert set(shim.announced) == {hcall.number for hcall in ledger.HANDLERS.by_call}
    assert welcome.announcement.strings == ("hcall-ledger",)
    assert welcome.announcement.properties == (("ibm,secure-boot", bytes(4)),)


def use_profile(daemon: Daemon, folder: pathlib.Path, text: str) -> None:
    """The daemon is stopped, and started with another profile for the guest."""
    (folder / "lpar7.toml").write_text(text)
    daemon.server.profiles = Profiles(folder)


async def test_hello_when_the_profile_changed_then_at_the_next_power_on(
    daemon: Daemon, logs: Logs, tmp_path: pathlib.Path
):
    use_profile(daemon, tmp_path, "secure_boot = 1")
    told = []
    for instance in (INSTANCE, INSTANCE, OTHER_INSTANCE):
        shim = await daemon.connect()
        welcome = await shim.greet(hello(instance=instance))
        told.append(dict(welcome.announcement.properties)["ibm,secure-boot"][-1])
        await shim.close()
        await daemon.gone()
        use_profile(daemon, tmp_path, "secure_boot = 2")

    assert told == [1, 1, 2]
    assert [entry["attributes"] for entry in events(logs, "attributes set")] == [
        "secure_boot=1",
        "secure_boot=2",
    ]
    (warning,) = events(logs, "profile changed while the guest is on")
    assert warning["attributes"] == "secure_boot=2"
    assert "next powered on" in warning["reason"]


async def test_hello_when_the_profile_orders_what_is_refused_then_the_shim_is_told_why(
    daemon: Daemon, tmp_path: pathlib.Path
):
    shim = await daemon.guest()
    await shim.close()
    await daemon.gone()
    use_profile(daemon, tmp_path, "keystore_kbytes = 8")

    shim = await daemon.connect()
    await shim.send(hello(instance=OTHER_INSTANCE))
    text = await shim.expect_goodbye(s.GoodbyeReason.REFUSED)

    assert text.startswith("keystore_kbytes cannot be reduced from 64 to 8; set it to at least 64")
    await daemon.gone()
    use_profile(daemon, tmp_path, "keystore_kbytes = 65")
    await daemon.guest(hello(instance=OTHER_INSTANCE))


async def test_hello_when_a_call_has_no_handler_then_the_shim_answers_h_function(daemon: Daemon):
    shim = await daemon.connect()
    welcome = await shim.greet(hello())
    answered = [
        spec
        for spec in welcome.announcement.calls
        if spec.disposition is s.Disposition.ANSWER and spec.level == 1
    ]
    assert [(spec.number, spec.timeout_status) for spec in answered] == [
        (ledger.UNSERVED.number, H.FUNCTION)
    ]


async def test_hello_when_ready_then_the_log_says_who_came(daemon: Daemon, logs: Logs):
    shim = await daemon.guest()
    await daemon.settle()
    (entry,) = events(logs, "guest connected")
    assert entry["name"] == "lpar7"
    assert entry["partition"] == "lpar7"
    assert entry["program"] == "unit test"
    assert entry["profile"] == "built-in"
    assert entry["shared_ram"] is False
    assert events(logs, "guest ready")
    await shim.close()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (s.MIN_MAX_FRAME, s.MIN_MAX_FRAME),
        (s.DEFAULT_MAX_FRAME - 1, s.DEFAULT_MAX_FRAME - 1),
        (s.DEFAULT_MAX_FRAME, s.DEFAULT_MAX_FRAME),
        (s.MAX_MAX_FRAME, s.DEFAULT_MAX_FRAME),
    ],
)
async def test_hello_when_a_frame_size_is_asked_then_the_smaller_of_both_holds(
    daemon: Daemon, asked: int, expected: int
):
    shim = await daemon.connect()
    assert (await shim.greet(hello(max_frame_size=asked))).max_frame_size == expected


async def test_hello_when_the_stream_passes_no_descriptors_then_ram_is_not_shared(daemon: Daemon):
    shim = await daemon.connect()
    assert (await shim.greet(hello(features=s.Feature.SHARED_RAM))).features == NO_FEATURES


async def test_hello_when_every_feature_is_offered_over_a_unix_socket_then_what_is_served_holds(
    daemon: Daemon,
):
    shim = await daemon.connect_socket()
    offered = s.Feature.SHARED_RAM | s.Feature.SC2 | s.Feature.PAGE_STATES
    welcome = await shim.greet(hello(features=offered))
    assert welcome.features == s.Feature.SHARED_RAM
    assert ledger.ULTRA.number not in shim.announced
    await shim.close()


async def test_accept_when_it_refuses_calls_then_the_log_names_them(daemon: Daemon, logs: Logs):
    shim = await daemon.connect()
    await shim.greet(hello())
    refused = (
        f.RefusedCall(ledger.PUT.number, 1, s.RefusedReason.SERVED_BY_QEMU),
        f.RefusedCall(0x1234, 1, s.RefusedReason.OUT_OF_RANGE),
    )
    await shim.send(f.Accept(refused, True, 0, 0), RAM)
    await daemon.settle()
    assert [(entry["call"], entry["reason"]) for entry in events(logs, "call not forwarded")] == [
        ("H_LEDGER_PUT", "SERVED_BY_QEMU"),
        ("0x1234", "OUT_OF_RANGE"),
    ]
    await shim.close()


@pytest.mark.parametrize("spoken", [(2, 9), (0, 0)])
async def test_hello_when_no_version_is_common_then_goodbye_says_which_would_be(
    daemon: Daemon, spoken: tuple[int, int]
):
    shim = await daemon.connect()
    await shim.send(hello(version=spoken))
    text = await shim.expect_goodbye(s.GoodbyeReason.VERSION)
    assert f"version {s.VERSION}" in text
    assert f"{spoken[0]} to {spoken[1]}" in text


async def test_hello_when_versions_overlap_then_ours_is_chosen(daemon: Daemon):
    shim = await daemon.connect()
    assert (await shim.greet(hello(version=(0, 7)))).version == s.VERSION


async def test_hello_when_the_guest_is_unknown_and_such_are_refused_then_goodbye_says_what_to_do(
    nursery: trio.Nursery, tmp_path: pathlib.Path, logs: Logs
):
    daemon = Daemon(nursery, Profiles(tmp_path, refuse_unknown=True))
    shim = await daemon.connect()
    await shim.send(hello("stranger"))
    text = await shim.expect_goodbye(s.GoodbyeReason.REFUSED)
    assert "no profile for guest 'stranger'" in text
    assert str(tmp_path) in text
    await daemon.settle()
    assert events(logs, "guest refused")[0]["reason"] == text
    assert not daemon.server.sessions


@pytest.mark.parametrize("fault", ["begin_run", "load"])
async def test_hello_when_the_store_is_unreadable_then_the_guest_is_refused_with_the_reason(
    daemon: Daemon, fault: str
):
    setattr(daemon.faults, fault, "the store is damaged; restore it from a copy")
    shim = await daemon.connect()
    await shim.send(hello())
    assert "restore it from a copy" in await shim.expect_goodbye(s.GoodbyeReason.REFUSED)
    await daemon.gone()
    assert not daemon.server.sessions
    setattr(daemon.faults, fault, "")
    assert (await (await daemon.guest()).call(ledger.PUT, 1, 2)).status == H.SUCCESS


async def test_hello_when_nothing_comes_then_the_peer_is_turned_away_in_time(
    daemon: Daemon,
    autojump_clock: MockClock,
):
    daemon.faults.is_never_dirty = True
    shim = await daemon.connect()
    started = trio.current_time()
    text = await shim.expect_goodbye(s.GoodbyeReason.REFUSED)
    assert trio.current_time() - started == pytest.approx(HANDSHAKE_SECONDS)
    assert f"{HANDSHAKE_SECONDS} s" in text


async def test_hello_when_the_peer_stops_before_accept_then_it_is_turned_away_in_time(
    daemon: Daemon,
    autojump_clock: MockClock,
):
    daemon.faults.is_never_dirty = True
    shim = await daemon.connect()
    await shim.greet(hello())
    assert "negotiation" in await shim.expect_goodbye(s.GoodbyeReason.REFUSED)
    await daemon.settle()
    assert not daemon.server.sessions


async def test_ready_when_the_guest_is_silent_for_hours_then_it_stays(
    daemon: Daemon, autojump_clock: MockClock
):
    daemon.faults.is_never_dirty = True
    shim = await daemon.guest()
    await trio.sleep(80_000)
    assert (await shim.call(ledger.PUT, 1, 2)).status == H.SUCCESS


# -- who has the partition ----------------------------------------------------------------


async def test_claim_when_another_instance_has_the_partition_then_it_is_refused_with_a_reason(
    daemon: Daemon,
    autojump_clock: MockClock,
):
    daemon.faults.is_never_dirty = True
    first = await daemon.guest()
    second = await daemon.connect()
    await second.send(hello(instance=OTHER_INSTANCE))
    text = await second.expect_goodbye(s.GoodbyeReason.REFUSED)
    assert "'lpar7' is in use" in text
    assert "-name or -uuid" in text
    assert (await first.call(ledger.PUT, 1, 2)).status == H.SUCCESS


async def test_claim_when_the_other_instance_goes_meanwhile_then_the_next_gets_the_partition(
    daemon: Daemon,
    autojump_clock: MockClock,
):
    daemon.faults.is_never_dirty = True
    first = await daemon.guest()
    second = await daemon.connect()
    await second.send(hello(instance=OTHER_INSTANCE))
    await trio.sleep(1)
    await first.close()
    assert await second.expect(f.Welcome)


async def test_claim_when_two_wait_for_a_partition_then_one_gets_it(
    daemon: Daemon, autojump_clock: MockClock
):
    daemon.faults.is_never_dirty = True
    first = await daemon.guest()
    waiting = [await daemon.connect() for _ in range(2)]
    for number, shim in enumerate(waiting):
        await shim.send(hello(instance=bytes([100 + number]) * 16))
    await trio.sleep(1)
    await first.close()
    frames = [await shim.receive() for shim in waiting]
    assert sorted(type(frame).__name__ for frame in frames) == ["Goodbye", "Welcome"]


async def test_claim_when_the_same_instance_comes_again_then_it_takes_over(daemon: Daemon):
    first = await daemon.guest()
    second = await daemon.guest(hello(connection=1))
    text = await first.expect_goodbye(s.GoodbyeReason.SHUTDOWN)
    assert "newer connection" in text
    assert (await second.call(ledger.PUT, 1, 2)).status == H.SUCCESS


async def test_claim_when_the_old_connection_holds_a_call_then_the_new_one_gets_it_done(
    daemon: Daemon,
):
    first = await daemon.guest()
    call = await first.start(ledger.LOAD, 1, 0x100, 8)
    await first.expect(f.Read)
    second = await daemon.guest(hello(connection=1))
    await second.send(call._replace(is_resent=True))
    await second.answer_read(await second.expect(f.Read), b"12345678")
    assert (await second.expect(f.Reply)).registers == ((4, 1),)
    assert not events_of_bugs(daemon)


def events_of_bugs(daemon: Daemon) -> list[str]:
    return [a.outcome.why for a in daemon.answered if "internal error" in a.outcome.why]


async def test_claim_when_guests_have_other_names_then_each_has_a_partition(daemon: Daemon):
    first = await daemon.guest(hello("one"))
    second = await daemon.guest(hello("two", instance=OTHER_INSTANCE))
    await first.call(ledger.PUT, 1, 2)
    assert (await second.call(ledger.GET, 1)).status == H.NOT_FOUND
    assert (await first.call(ledger.GET, 1)).registers == ((4, 2),)


async def test_claim_when_the_store_is_open_elsewhere_then_the_guest_is_refused(daemon: Daemon):
    daemon.open_store(Profiles(None).find("lpar7", bytes(16)))
    shim = await daemon.connect()
    await shim.send(hello())
    assert "in use" in await shim.expect_goodbye(s.GoodbyeReason.REFUSED)


# -- breaches ------------------------------------------------------------------------------


async def breach(daemon: Daemon, shim: Shim, logs: Logs, data: bytes) -> Logs:
    """Sends what no shim may send; the connection must end with GOODBYE and a log line."""
    await shim.send_raw(data)
    await shim.expect_goodbye(s.GoodbyeReason.BREACH)
    await daemon.settle()
    return events(logs, "protocol breach")


async def test_breach_when_garbage_comes_first_then_the_log_says_what_is_wrong(
    daemon: Daemon, logs: Logs
):
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    shim = await daemon.connect()
    (entry,) = await breach(daemon, shim, logs, b"GET / HTTP/1.1\r\n\r\n" + bytes(64))
    assert entry["breach"] == "magic"
    assert (await other.call(ledger.PUT, 1, 2)).status == H.SUCCESS
    assert list(daemon.server.sessions) == ["other"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encode(hello()), "state"),
        (garbled(RAM, 5, 99), "type"),
        (encode(f.Goodbye(s.GoodbyeReason.BREACH, "", 0)), "type"),
        (garbled(RAM, 8, 0x7F), "size"),
        (encode(RAM)[:-8] + b"\1" * 8, "layout"),
    ],
    ids=["second HELLO", "unknown type", "the daemon's frame", "oversized", "reserved not zero"],
)
async def test_breach_when_a_ready_guest_commits_it_then_only_its_connection_ends(
    daemon: Daemon, logs: Logs, data: bytes, kind: str
):
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    shim = await daemon.guest()
    (entry,) = await breach(daemon, shim, logs, data)
    assert entry["breach"] == kind
    assert entry["detail"]
    assert entry["partition"] == "lpar7"
    assert (await other.call(ledger.PUT, 1, 2)).status == H.SUCCESS


async def test_breach_when_a_frame_comes_byte_by_byte_then_it_is_as_good_as_whole(daemon: Daemon):
    shim = await daemon.guest()
    call = shim.call_frame(ledger.PUT, 1, 2)
    data = shim.connection.send(call)
    for index in range(len(data)):
        await shim.send_raw(data[index : index + 1])
    assert (await shim.expect(f.Reply)).status == H.SUCCESS


async def test_breach_when_a_second_call_of_a_live_vcpu_comes_then_the_connection_ends(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.start(ledger.LOAD, 1, 0, 8)
    await shim.expect(f.Read)
    second = shim.call_frame(ledger.PUT, 1, 2)
    (entry,) = await breach(daemon, shim, logs, encode(second))
    assert entry["breach"] == "call"
    assert daemon.stored() == []


async def test_breach_when_the_peer_hangs_up_inside_a_frame_then_the_log_says_so(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.send_raw(encode(RAM)[:40])
    await shim.close()
    await daemon.settle()
    (entry,) = events(logs, "protocol breach")
    assert entry["breach"] == "truncated"


async def test_breach_when_descriptors_are_announced_and_do_not_come_then_the_connection_ends(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.connect_socket()
    await shim.greet(hello(features=s.Feature.SHARED_RAM))
    region = f.RamRegion(0, 4096, 0, 0)
    await shim.send(f.Accept((), True, 0, 0), f.Ram((region,), 1, 0))
    await daemon.gone()
    assert "1 file descriptors announced, 0 received" in events(logs, "guest gone")[0]["reason"]
    await shim.close()


# -- the end -------------------------------------------------------------------------------


async def test_end_when_the_peer_hangs_up_then_its_partition_is_free(daemon: Daemon, logs: Logs):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 2)
    await shim.close()
    await daemon.gone()
    (entry,) = events(logs, "guest gone")
    assert entry["reason"] == "closed by the peer"
    assert not daemon.server.sessions
    assert daemon.faults.closes == 1
    assert daemon.states["lpar7"].flushed == daemon.states["lpar7"].generation


async def test_end_when_the_shim_says_goodbye_then_the_log_has_its_reason(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.send(f.ShimGoodbye(s.GoodbyeReason.SHUTDOWN, "QEMU ends", 0))
    await daemon.gone()
    (entry,) = events(logs, "shim says goodbye")
    assert (entry["reason"], entry["text"]) == ("SHUTDOWN", "QEMU ends")


@pytest.mark.usefixtures("ledger_served")
async def test_end_when_the_daemon_stops_then_guests_are_told(logs: Logs):
    async with trio.open_nursery() as nursery:
        daemon = Daemon(nursery)
        shim = await daemon.guest()
        await daemon.settle()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            assert "stopping" in await shim.expect_goodbye(s.GoodbyeReason.SHUTDOWN)
            await daemon.gone()
    assert events(logs, "guest gone")[0]["reason"] == "ended by the daemon"


@pytest.mark.usefixtures("ledger_served", "logs")
async def test_end_when_the_daemon_stops_and_the_guest_does_not_read_then_it_stops_soon(
    autojump_clock: MockClock,
):
    async with trio.open_nursery() as nursery:
        daemon = Daemon(nursery)
        daemon.faults.is_never_dirty = True
        await daemon.guest()
        await daemon.settle()
        started = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started <= FAREWELL_SECONDS
    assert not daemon.server.sessions


async def test_end_when_what_was_committed_cannot_be_flushed_then_the_log_says_so(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 2)
    daemon.faults.flush = "the disk is gone"
    await shim.close()
    await daemon.gone()
    assert events(logs, "store not flushed")[0]["reason"] == "the disk is gone"
    assert events(logs, "guest gone")


async def test_end_when_the_store_cannot_be_closed_then_the_log_says_so_and_others_live_on(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    daemon.faults.close = "the disk is gone"
    await shim.close()
    while "lpar7" in daemon.server.sessions:
        await trio.lowlevel.checkpoint()
    assert events(logs, "store not closed")[0]["reason"] == "the disk is gone"
    assert events(logs, "guest gone")
    daemon.faults.close = ""
    assert (await other.call(ledger.PUT, 1, 2)).status == H.SUCCESS
    shim = await daemon.guest(hello(connection=1))
    assert (await shim.call(ledger.PUT, 1, 2)).status == H.SUCCESS


async def test_bug_when_the_session_itself_breaks_then_only_its_connection_ends(
    lenient_daemon: Daemon, logs: Logs, monkeypatch: pytest.MonkeyPatch
):
    daemon = lenient_daemon
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    shim = await daemon.guest()
    await daemon.settle()
    session = daemon.server.sessions["lpar7"]
    monkeypatch.setattr(session, "_event", None)
    await shim.send(f.Event(s.EventKind.STOP, s.NO_VCPU, 0, 0))
    await shim.expect_goodbye(s.GoodbyeReason.INTERNAL)
    assert events(logs, "bug in a session")[0]["exc_info"]
    assert (await other.call(ledger.PUT, 1, 2)).status == H.SUCCESS


# -- events --------------------------------------------------------------------------------


async def test_event_when_it_is_no_reset_then_it_is_logged_and_not_answered(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    for kind in s.EventKind:
        if kind is not s.EventKind.RESET:
            vcpu = 1 if kind.name.startswith("VCPU") else s.NO_VCPU
            await shim.send(f.Event(kind, vcpu, 0, 0))
    assert (await shim.call(ledger.PUT, 1, 2)).status == H.SUCCESS
    assert [entry["kind"] for entry in events(logs, "event")] == [
        kind.name for kind in s.EventKind if kind is not s.EventKind.RESET
    ]


async def test_event_when_the_machine_resets_then_what_lives_for_a_run_is_gone(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 11)
    await shim.call(ledger.PUT, 1 << 32, 12)
    event = shim.reset_event()
    await shim.send(event)
    ack = await shim.expect(f.EventAck)
    assert (ack.kind, ack.request, ack.reset) == (s.EventKind.RESET, event.request, 1)
    assert (await shim.call(ledger.GET, 1)).registers == ((4, 11),)
    assert (await shim.call(ledger.GET, 1 << 32)).status == H.NOT_FOUND


@pytest.mark.parametrize(
    ("greeting", "survives"),
    [
        (hello(connection=1), True),
        (hello(connection=1, reset=1), False),
        (hello(instance=OTHER_INSTANCE), False),
    ],
    ids=["the same run", "a reset while away", "powered on again"],
)
async def test_hello_when_a_guest_comes_back_then_its_run_decides_what_is_left(
    daemon: Daemon, greeting: f.Hello, survives: bool
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 11)
    await shim.call(ledger.PUT, 1 << 32, 12)
    await shim.close()
    shim = await daemon.guest(greeting)
    shim.seq = 100
    assert (await shim.call(ledger.GET, 1)).status == H.SUCCESS
    assert ((await shim.call(ledger.GET, 1 << 32)).status == H.SUCCESS) is survives


async def test_event_when_the_store_fails_at_a_reset_then_the_guest_is_refused(daemon: Daemon):
    shim = await daemon.guest()
    daemon.faults.begin_run = "no space left"
    await shim.send(shim.reset_event())
    assert "no space left" in await shim.expect_goodbye(s.GoodbyeReason.REFUSED)


# -- a session alone ---------------------------------------------------------------------------


class Eager:
    """A transport whose guest has its next frame ready, always."""

    peer = "eager"
    passes_descriptors = False

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames
        self.tried_between_waits = [0]

    def try_receive(self, room: memoryview | None = None) -> bytes | None:
        self.tried_between_waits[-1] += 1
        return self.frames.pop(0) if self.frames else b""

    async def receive(self, room: memoryview | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        self.tried_between_waits.append(0)
        return self.frames.pop(0) if self.frames else b""

    def try_send(self, data: bytes | memoryview) -> int:
        return len(data)

    async def send(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()

    def take_descriptors(self, count: int) -> list[int]:
        return []

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.usefixtures("ledger_served", "logs")
async def test_spin_when_a_guest_never_pauses_then_others_get_their_turn(nursery: trio.Nursery):
    daemon = Daemon(nursery, spin_us=1000)
    shim = Shim(StreamTransport(trio.testing.memory_stream_pair()[0], "unused"))
    calls = [shim.call_frame(ledger.PUT, number, 1) for number in range(3 * FAST_TURNS)]
    frames: list[f.Frame] = [hello(), f.Accept((), True, 0, 0), RAM, *calls]
    eager = Eager([encode(frame) for frame in frames])
    await daemon.server.serve_transport(eager)
    assert len(daemon.answered) == len(calls)
    assert max(eager.tried_between_waits) <= FAST_TURNS
    assert len(eager.tried_between_waits) >= 3


async def test_rest_when_nothing_was_said_yet_then_nothing_happens(daemon: Daemon):
    session = Session(Eager([]), daemon.server, [])
    await session.rest_if_idle()
    assert session.pending_count == 0


async def test_dispatch_when_a_frame_is_not_for_a_daemon_then_it_is_our_bug(daemon: Daemon):
    session = Session(Eager([]), daemon.server, [])
    with pytest.raises(TypeError, match="EventAck is not for a daemon"):
        await session._dispatch(f.EventAck(s.EventKind.RESET, 1, 0))


@pytest.mark.usefixtures("ledger_served", "logs")
async def test_observers_when_there_are_none_then_all_goes_on(nursery: trio.Nursery):
    daemon = Daemon(nursery)
    daemon.server._observers.clear()
    shim = await daemon.guest()
    call = await shim.start(ledger.PUT, 1, 1)
    reply = await shim.expect(f.Reply)
    waiting = shim.call_frame(ledger.LOAD, 1, 0, 8)
    await shim.send(waiting, f.Cancel(0, 0, waiting.seq, s.CancelReason.VCPU_GONE))
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.NONE
    await shim.close()
    shim = await daemon.guest(hello(connection=1))
    assert await shim.resend(call) == reply
    assert daemon.answered == []
