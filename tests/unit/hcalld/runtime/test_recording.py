# SPDX-License-Identifier: Apache-2.0
"""What is told of a connection beside its frames, and where between them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping

import msgspec
import pytest
import trio
import trio.testing
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import Shim, hello
from tests.unit.hcalld.runtime.test_calls import Memory, memory, sharing_guest
from tests.unit.hcalld.runtime.test_secure import Boot, boot
from tests.unit.hcalld.runtime.test_tpm import COMMAND, Bench, bench, execute

from hcalld.config import Profile
from hcalld.faults import rules
from hcalld.faults.rules import Rule
from hcalld.runtime import orders
from hcalld.runtime.recording import entry_of
from hcalld.runtime.transport import StreamTransport
from hcallproto.abi.families import svm
from hcallproto.abi.returns import H
from hcallproto.capture import entries as e
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

__all__ = ["bench", "boot", "memory"]


@dataclasses.dataclass
class Kept:
    """All that is told, in order; see Taps and Tap."""

    told: list[f.Frame | e.AnyEntry] = dataclasses.field(default_factory=list)
    keeps_secrets: bool = True

    def tap(
        self, partition: str, profile: Mapping[str, str], *, is_continued: bool = False
    ) -> Kept:
        return self

    def received(self, frame: f.Frame, data: bytes) -> None:
        self.told.append(frame)

    def sent(self, frame: f.Frame, data: bytes, why: str) -> None:
        self.told.append(frame)

    def happened(self, entry: e.AnyEntry) -> None:
        assert entry.at == -1
        self.told.append(entry)

    def closed(self, why: str) -> None:
        pass

    def since(self, kind: type[object]) -> list[object]:
        """From the newest of a kind on: entries whole, of frames what they are."""
        places = [place for place, one in enumerate(self.told) if type(one) is kind]
        return [one if isinstance(one, e.Entry) else type(one) for one in self.told[places[-1] :]]

    @property
    def state(self) -> e.State:
        """The newest."""
        return [one for one in self.told if isinstance(one, e.State)][-1]


@pytest.fixture
def kept(daemon: Daemon) -> Kept:
    kept = Kept()
    daemon.server.begin_taps(kept)
    return kept


def answer(
    seq: int, kind: e.EffectKind, value: bytes | int | None = None, asked: e.Asked = None
) -> e.Answer:
    return e.Answer(-1, 0, seq, kind, value, None, asked)


def turn(seq: int) -> e.Turn:
    return e.Turn(-1, 0, seq)


async def test_state_when_a_connection_begins_then_it_is_before_the_welcome(
    daemon: Daemon, kept: Kept
):
    shim = await daemon.guest()
    assert (await shim.call(ledger.PUT, 1, 7)).status == H.SUCCESS
    assert [type(one) for one in kept.told[:3]] == [f.Hello, e.State, f.Welcome]
    state = kept.state
    hello = kept.told[0]
    assert isinstance(hello, f.Hello)
    assert (state.partition, state.instance, state.reset) == ("lpar7", hello.instance, hello.reset)
    assert (state.is_begin, state.waiting, state.problem) == (True, (), "")
    assert {record.namespace for record in state.records} == {"partition"}
    assert msgspec.json.decode(state.profile, type=Profile).partition == "lpar7"


async def test_answers_when_nothing_waits_then_they_are_between_call_and_reply(
    daemon: Daemon, kept: Kept
):
    shim = await daemon.guest()
    reply = await shim.call(ledger.NOTE, 1)
    call, *told, reply_told = kept.since(f.Call)
    assert (call, reply_told) == (f.Call, f.Reply)
    kinds = [one.effect for one in told if isinstance(one, e.Answer)]
    assert kinds == [e.EffectKind.NOW, e.EffectKind.ENTROPY]
    time, entropy = (one for one in told if isinstance(one, e.Answer))
    assert isinstance(entropy.value, bytes)
    assert (time.asked, entropy.asked) == (None, len(entropy.value))
    assert reply.status == H.SUCCESS


async def test_answers_when_a_call_waits_then_its_turns_are_told(daemon: Daemon, kept: Kept):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 7)
    reply = await shim.call(ledger.FLUSH, 1)
    seq = reply.seq
    assert kept.since(f.Call) == [
        f.Call,
        turn(seq),
        answer(seq, e.EffectKind.FLUSH),
        turn(seq),
        f.Reply,
    ]


async def test_answers_when_the_disk_fails_then_the_error_is_told(daemon: Daemon, kept: Kept):
    shim = await daemon.guest()
    daemon.faults.commit = "no space left"
    reply = await shim.call(ledger.PUT, 1, 7)
    raised = e.Raised(e.Failure.STORE, "no space left")
    told = e.Answer(-1, 0, reply.seq, e.EffectKind.COMMIT, None, raised)
    assert kept.since(f.Call) == [f.Call, told, f.Reply]
    daemon.faults.commit = ""
    daemon.faults.load = "unreadable"
    await shim.call(ledger.PUT, 1, 7)
    raised = e.Raised(e.Failure.STORE, "unreadable")
    told = e.Answer(-1, e.NO_CALL, 0, e.EffectKind.LOAD, None, raised)
    assert kept.since(f.Call) == [f.Call, told, f.Reply]


async def test_begin_when_a_reset_cannot_be_written_then_the_error_is_told(
    daemon: Daemon, kept: Kept
):
    shim = await daemon.guest()
    daemon.faults.begin_run = "disk gone"
    await shim.send(shim.reset_event())
    await shim.expect_goodbye(s.GoodbyeReason.REFUSED)
    raised = e.Raised(e.Failure.STORE, "disk gone")
    told = e.Answer(-1, e.NO_CALL, 0, e.EffectKind.BEGIN, None, raised)
    assert kept.since(f.Event) == [f.Event, told, f.Goodbye]


async def test_faults_when_one_is_met_then_its_rule_is_told(
    daemon: Daemon, kept: Kept, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rules, "BY_NAME", {call.name: call for call in ledger.FAMILY.calls})
    monkeypatch.setattr(rules, "CALLS", ledger.FAMILY.calls)
    rule = Rule(call=ledger.PUT.name, returns="H_BUSY")
    daemon.server.faults.add(rule)
    shim = await daemon.guest()
    assert (await shim.call(ledger.PUT, 1, 7)).status == H.BUSY
    call, fault, reply = kept.since(f.Call)
    assert (call, reply) == (f.Call, f.Reply)
    assert isinstance(fault, e.Fault)
    assert (fault.vcpu, fault.number, fault.count) == (0, 1, 1)
    assert msgspec.json.decode(fault.rule, type=Rule) == rule
    await shim.call(ledger.GET, 1)
    assert kept.since(f.Call) == [f.Call, f.Reply]


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (orders.PageOut((0, 65536)), e.PageOut(-1, (0, 65536))),
        (orders.Withdraw((65536,)), e.Withdraw(-1, (65536,))),
        (orders.Attend(), e.Attend(-1)),
        (orders.Rest(), e.Rest(-1)),
        (orders.Stop("why"), e.Stop(-1, "why")),
    ],
)
def test_orders_when_there_is_one_then_it_has_an_entry(order: orders.Order, told: e.Order):
    assert entry_of(order) == told


async def test_orders_when_the_daemon_stops_a_guest_then_it_is_told(daemon: Daemon, kept: Kept):
    shim = await daemon.guest()
    await daemon.settle()
    daemon.server.sessions["lpar7"].stop("enough")
    await shim.expect_goodbye(s.GoodbyeReason.SHUTDOWN)
    assert kept.since(e.Stop) == [e.Stop(-1, "enough"), f.Goodbye]


async def test_tpm_when_it_answers_then_that_is_told(bench: Bench):
    kept = Kept()
    bench.daemon.server.begin_taps(kept)
    shim = await bench.daemon.guest()
    await execute(shim, COMMAND)
    told = [one for one in kept.told if isinstance(one, e.Answer)]
    asked = {one.effect: one.asked for one in told}
    assert asked[e.EffectKind.TPM_TRANSMIT] == hashlib.sha256(COMMAND).digest()[:16]
    assert kept.state.has_tpm


# -- in the middle of a connection ----------------------------------------------------------------


async def test_state_when_a_capture_begins_later_then_it_is_what_the_store_holds(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 7)
    await shim.call(ledger.PUT, 1 << 33, 8)
    loads, kept = daemon.faults.loads, Kept()
    daemon.server.begin_taps(kept)
    kinds = [type(one) for one in kept.told]
    assert kinds == [f.Hello, f.Welcome, f.Accept, f.Ram, e.State]
    state = kept.state
    assert (state.is_begin, state.waiting, state.problem) == (False, (), "")
    stored = {(one.key, one.lifetime) for one in state.records if one.namespace == "ledger"}
    assert stored == {((1).to_bytes(8, "big"), 0), ((1 << 33).to_bytes(8, "big"), 1)}
    assert [reply.seq for reply in state.replies] == [2]
    # The models begin with the same, and not with what they remember.
    await shim.call(ledger.GET, 1)
    assert daemon.faults.loads == loads + 2


async def test_state_when_a_call_waits_then_it_is_said_that_it_is_not_all(daemon: Daemon):
    shim = await daemon.guest()
    call = await shim.start(ledger.LOAD, 1, 0x1000, 4)
    read = await shim.expect(f.Read)
    kept = Kept()
    daemon.server.begin_taps(kept)
    assert kept.state.waiting == ((0, call.seq),)
    assert kept.state.problem == ("1 calls waited when the capture began; their begin is not in it")
    await shim.answer_read(read, bytes(4))
    await shim.expect(f.Reply)


async def test_state_when_the_store_cannot_be_read_then_it_is_said(daemon: Daemon):
    await daemon.guest()
    daemon.faults.load = "bad sector"
    kept = Kept()
    daemon.server.begin_taps(kept)
    assert kept.state.problem == "the partition's store could not be read: bad sector"


async def test_recording_when_it_ends_then_nothing_more_is_told(daemon: Daemon, kept: Kept):
    shim = await daemon.guest()
    daemon.server.end_taps()
    count = len(kept.told)
    await shim.call(ledger.NOTE, 1)
    assert len(kept.told) == count
    again = Kept()
    daemon.server.begin_taps(again)
    await shim.call(ledger.NOTE, 1)
    answers = [one for one in again.told if isinstance(one, e.Answer)]
    assert len(answers) == 2, "each is told once"


async def test_shared_ram_when_it_is_read_then_that_is_told(
    daemon: Daemon, kept: Kept, memory: Memory
):
    shim = await sharing_guest(daemon, memory)
    os.pwrite(memory.fd, b"secrets!", 0x1000)
    reply = await shim.call(ledger.LARGE, 1, 0x1000, 8)
    read = answer(reply.seq, e.EffectKind.READ_RAM, b"secrets!", (0x1000, 8))
    assert kept.since(f.Call) == [f.Call, read, f.Reply]
    os.ftruncate(memory.fd, 0x1000)
    call = await shim.start(ledger.LARGE, 1, 0x1000, 8)
    await shim.answer_read(await shim.expect(f.Read), b"secrets!")
    await shim.expect(f.Reply)
    told = kept.since(f.Call)
    assert told[:2] == [f.Call, answer(call.seq, e.EffectKind.READ_RAM, None, (0x1000, 8))]
    assert told[2:] == [turn(call.seq), f.Read, f.ReadReply, turn(call.seq), f.Reply]


async def test_state_when_a_capture_begins_with_a_secure_vm_then_calls_from_outside_end_it(
    boot: Boot,
):
    guest = await boot()
    await guest.enter()
    assert guest.machine.is_secure
    kept = Kept()
    guest.daemon.server.begin_taps(kept)
    assert (kept.state.problem, kept.state.waiting) == ("", ())
    assert {record.namespace for record in kept.state.records} >= {"uv"}
    await guest.call(svm.INIT_DONE, level=1, msr=0)
    (control,) = guest.controls
    assert control.action is s.ControlAction.TERMINATE


async def test_state_when_pages_are_wanted_out_then_it_is_said_that_it_is_not_all(boot: Boot):
    guest = await boot()
    await guest.enter()
    guest.daemon.server.sessions["lpar7"].carry_out(orders.PageOut((0x10000,)))
    kept = Kept()
    guest.daemon.server.begin_taps(kept)
    assert kept.state.problem == ("memory was being plugged in or paged out when the capture began")


# -- connections that are over ----------------------------------------------------------------


async def test_taps_when_a_guest_is_being_refused_then_nothing_is_told_of_it(
    nursery: trio.Nursery, daemon: Daemon
):
    daemon.faults.begin_run = "no disk"
    ours, theirs = trio.testing.lockstep_stream_pair()
    nursery.start_soon(daemon.server.serve_transport, StreamTransport(theirs, "memory"))
    await Shim(StreamTransport(ours, "daemon")).send(hello())
    await daemon.settle()
    # It does not read why, so the session is still there.
    assert list(daemon.server.sessions) == ["lpar7"]
    kept = Kept()
    daemon.server.begin_taps(kept)
    assert kept.told == []


async def test_taps_when_a_connection_has_ended_then_nothing_is_told_of_it(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 7)
    daemon.faults.may_flush.clear()
    try:
        await shim.close()
        await daemon.settle()
        assert list(daemon.server.sessions) == ["lpar7"]
        kept = Kept()
        daemon.server.begin_taps(kept)
        # Nobody would tell of its end.
        assert kept.told == []
    finally:
        daemon.faults.may_flush.set()
