# SPDX-License-Identifier: Apache-2.0
"""Calls that meet a rule of faults, from CALL to REPLY or to whatever comes instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.conftest import Logs
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.shim import OTHER_INSTANCE, Shim, hello
from tests.unit.hcalld.runtime.test_calls import cancel_of, entry_keys, events, values
from tests.unit.hcalld.runtime.test_secure import KERNEL, Boot, Guest, boot
from tests.unit.hcalld.runtime.test_tpm import CLOSE, Bench, bench, execute
from trio.testing import MockClock

from hcalld.faults import rules
from hcalld.faults.engine import Faults, Met
from hcalld.faults.rules import Close, Corrupt, Gone, Rule
from hcalld.runtime.mishaps import answered
from hcallproto.abi.families import pks, tpm, uv
from hcallproto.abi.returns import H, U
from hcallproto.abi.spec import Hcall
from hcallproto.conn.states import CallState
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

__all__ = ["bench", "boot"]

PUT = ledger.PUT.name
LONG = 600_000
"""Milliseconds that pass only when a test lets them."""


@pytest.fixture(autouse=True)
def ledger_known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules may name the calls of the tests' own family, where it is served."""
    if "ledger_served" not in request.fixturenames:
        return
    calls = ledger.FAMILY.calls
    monkeypatch.setattr(rules, "CALLS", calls)
    monkeypatch.setattr(rules, "BY_NAME", {call.name: call for call in calls})
    users = {Gone.DISK: (ledger.FLUSH, ledger.FLUSH_THEN_PUT)}
    monkeypatch.setattr(rules, "_USERS", users)


@dataclasses.dataclass
class Comments:
    """Keeps what is said of frames that are sent; see Taps and Tap."""

    sent_frames: list[tuple[f.Frame, str]] = dataclasses.field(default_factory=list)
    ends: list[str] = dataclasses.field(default_factory=list)
    keeps_secrets: bool = False
    """It wants nothing but frames."""

    def tap(
        self, partition: str, profile: Mapping[str, str], *, is_continued: bool = False
    ) -> Comments:
        return self

    def received(self, frame: f.Frame, data: bytes) -> None:
        pass

    def sent(self, frame: f.Frame, data: bytes, why: str) -> None:
        if why:
            self.sent_frames.append((frame, why))

    def happened(self, entry: object) -> None:
        raise AssertionError("told of what it does not keep")

    def closed(self, why: str) -> None:
        self.ends.append(why)

    @property
    def last(self) -> tuple[type[f.Frame], str]:
        frame, why = self.sent_frames[-1]
        return type(frame), why


@pytest.fixture
def comments(daemon: Daemon) -> Comments:
    kept = Comments()
    daemon.server.begin_taps(kept)
    return kept


def noted(daemon: Daemon) -> tuple[str, ...]:
    """What the trace says of the last call."""
    last = daemon.answered[-1]
    return tuple(filter(None, (last.outcome.why, *last.notes)))


async def again(daemon: Daemon) -> Shim:
    """The same machine, connected anew."""
    return await daemon.guest(hello(connection=2))


# -- instead of the call -----------------------------------------------------------------------


async def test_return_when_a_call_meets_it_then_the_call_is_not_carried_out(
    daemon: Daemon, logs: Logs, comments: Comments
):
    daemon.server.faults.add(Rule(call=PUT, returns="H_BUSY", times=2))
    shim = await daemon.guest()
    for _ in range(2):
        reply = await shim.call(ledger.PUT, 1, 1)
        assert (reply.status, reply.registers, reply.writes) == (H.BUSY, (), ())
        assert noted(daemon) == ("fault 1: return H_BUSY",)
        assert comments.last == (f.Reply, "fault 1: return H_BUSY")
    assert entry_keys(daemon) == set()
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS
    assert noted(daemon) == ()
    # A guest that tries again for ever does not fill the log.
    said = [(entry["log_level"], entry["fault"]) for entry in events(logs, "fault met")]
    assert said == [(level, "fault 1: return H_BUSY") for level in ("warning", "debug")]


async def test_return_when_it_is_a_number_then_r3_is_this_number(daemon: Daemon):
    daemon.server.faults.add(Rule(returns=-1234, times=1))
    daemon.server.faults.add(Rule(returns=int(H.NOT_FOUND), times=1))
    shim = await daemon.guest()
    assert (await shim.call(ledger.PUT, 1, 1)).status == -1234
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.NOT_FOUND
    assert daemon.answered[-1].outcome.code is H.NOT_FOUND


@pytest.mark.parametrize(
    ("hcall", "code", "registers"),
    [
        # What was in progress still is, under the token that the call brought.
        (pks.WRAP_OBJECT, "H_LONG_BUSY_ORDER_1_MSEC", ((4, 77),)),
        (pks.UNWRAP_OBJECT, "H_BUSY", ((4, 77),)),
        (pks.SIGNED_UPDATE, "H_BUSY", ((4, 77),)),
        (pks.SIGNED_UPDATE, "H_AUTHORITY", ((4, 0),)),
        (pks.CONFIRM_OBJECT_FLUSHED, "H_BUSY", ((4, 0),)),
        (pks.READ_OBJECT, "H_TOO_BIG", ()),
    ],
)
def test_return_when_the_call_has_outputs_then_they_are_what_a_refusal_defines(
    hcall: Hcall, code: str, registers: Sequence[tuple[int, int]]
):
    gpr = [0] * len(s.REGISTERS)
    for arg in hcall.args:
        gpr[s.REGISTERS.index(arg.register)] = 77
    frame = f.Call(0, 0, 1, False, 1, tuple(gpr), 0, 0, 0, 0, ())
    outcome = answered(hcall, frame, Met(1, Rule(call=hcall.name, returns=code)))
    assert outcome.registers == registers


async def test_rules_when_there_are_none_then_no_call_is_held_against_any(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    def meet(*_: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(daemon.server.faults, "meet", meet)
    shim = await daemon.guest()
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS


async def test_rules_when_they_are_of_one_guest_then_others_are_untouched(daemon: Daemon):
    daemon.server.faults.add(Rule(call=PUT, guest="lpar7", returns="H_BUSY"))
    shim = await daemon.guest()
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    assert (await other.call(ledger.PUT, 1, 1)).status == H.SUCCESS
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.BUSY
    daemon.server.faults.clear()
    assert (await shim.call(ledger.PUT, 1, 1)).status == H.SUCCESS


# -- later -------------------------------------------------------------------------------------


async def test_delay_when_a_call_meets_it_then_only_this_call_waits(
    daemon: Daemon, mock_clock: MockClock
):
    daemon.server.faults.add(Rule(vcpu=0, delay_ms=LONG, times=1))
    shim = await daemon.guest()
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    late = await shim.start(ledger.PUT, 1, 1, vcpu=0)
    assert values(await shim.call(ledger.PUT, 2, 2, vcpu=1)) == (1,)
    assert (await other.call(ledger.PUT, 1, 1, vcpu=1)).status == H.SUCCESS
    mock_clock.jump(LONG / 1000)
    reply = await shim.expect(f.Reply)
    assert (reply.seq, values(reply)) == (late.seq, (2,))
    assert noted(daemon) == ("fault 1: delay 600000 ms",)


async def test_delay_when_something_else_goes_wrong_too_then_it_does_so_later(
    daemon: Daemon, mock_clock: MockClock
):
    daemon.server.faults.add(Rule(call=PUT, delay_ms=LONG, returns="H_BUSY", times=1))
    shim = await daemon.guest()
    await shim.start(ledger.PUT, 1, 1)
    await daemon.settle()
    assert daemon.answered == []
    mock_clock.jump(LONG / 1000)
    assert (await shim.expect(f.Reply)).status == H.BUSY
    assert noted(daemon) == ("fault 1: delay 600000 ms, return H_BUSY",)


async def test_delay_when_its_rule_is_removed_then_who_waits_has_met_it_all_the_same(
    daemon: Daemon, mock_clock: MockClock
):
    rule = daemon.server.faults.add(Rule(call=PUT, delay_ms=LONG, returns="H_BUSY"))
    shim = await daemon.guest()
    late = await shim.start(ledger.PUT, 1, 1, vcpu=0)
    await daemon.settle()
    daemon.server.faults.remove(rule.number)
    assert (await shim.call(ledger.PUT, 2, 2, vcpu=1)).status == H.SUCCESS
    mock_clock.jump(LONG / 1000)
    reply = await shim.expect(f.Reply)
    assert (reply.seq, reply.status) == (late.seq, H.BUSY)


async def test_delay_when_the_handler_waits_too_then_it_goes_on_where_it_would(
    daemon: Daemon, mock_clock: MockClock
):
    daemon.server.faults.add(Rule(delay_ms=LONG))
    shim = await daemon.guest()
    await shim.start(ledger.LOAD, 1, 0, 8)
    await daemon.settle()
    mock_clock.jump(LONG / 1000)
    await shim.answer_read(await shim.expect(f.Read), b"12345678")
    assert values(await shim.expect(f.Reply)) == (1,)


async def test_delay_when_the_shim_gives_up_then_the_call_is_never_looked_at(
    daemon: Daemon, mock_clock: MockClock, comments: Comments
):
    daemon.server.faults.add(Rule(delay_ms=LONG, times=1))
    shim = await daemon.guest()
    late = await shim.start(ledger.PUT, 1, 1)
    await daemon.settle()
    await shim.send(cancel_of(late))
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.NONE
    assert comments.last == (f.Cancelled, "fault 1: delay 600000 ms")
    mock_clock.jump(LONG / 1000)
    assert values(await shim.call(ledger.PUT, 2, 2)) == (1,)


async def test_delay_when_it_ends_together_with_the_call_then_what_is_left_is_told(
    daemon: Daemon, mock_clock: MockClock
):
    daemon.server.faults.add(Rule(delay_ms=LONG, times=1))
    shim = await daemon.guest()
    late = await shim.start(ledger.PUT, 1, 1)
    await daemon.settle()
    await shim.send(cancel_of(late))
    mock_clock.jump(LONG / 1000)
    # Either may come first; the shim drops a reply that crosses its CANCEL.
    while not isinstance(frame := await shim.receive(), f.Cancelled):
        assert isinstance(frame, f.Reply)
    assert frame.effect is (s.Effect.DONE if entry_keys(daemon) else s.Effect.NONE)


async def test_delay_when_the_machine_is_reset_then_the_call_is_over(
    daemon: Daemon, mock_clock: MockClock
):
    daemon.server.faults.add(Rule(delay_ms=LONG, times=1))
    shim = await daemon.guest()
    await shim.start(ledger.PUT, 1, 1)
    await daemon.settle()
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    mock_clock.jump(LONG / 1000)
    assert values(await shim.call(ledger.PUT, 2, 2)) == (1,)


# -- the reply ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hcall", "effect"),
    [(ledger.PUT, s.Effect.DONE), (ledger.NOTE, s.Effect.NONE), (ledger.REFUSE, s.Effect.NONE)],
)
async def test_drop_when_the_shim_gives_up_then_it_is_told_what_is_left(
    daemon: Daemon, comments: Comments, hcall: Hcall, effect: s.Effect
):
    daemon.server.faults.add(Rule(drop_reply=True, times=1))
    shim = await daemon.guest()
    call = await shim.start(hcall, 1, 2)
    await daemon.settle()
    assert noted(daemon)[-1] == "fault 1: no reply"
    await shim.send(cancel_of(call))
    cancelled = await shim.expect(f.Cancelled)
    assert (cancelled.seq, cancelled.effect) == (call.seq, effect)
    assert comments.last == (f.Cancelled, "fault 1: no reply")
    assert shim.connection.calls.state(0, call.seq) is CallState.NONE
    assert (await shim.call(ledger.PUT, 5, 5)).status == H.SUCCESS


async def test_drop_when_memory_was_written_then_that_may_remain(daemon: Daemon):
    daemon.server.faults.add(Rule(call=ledger.STORE.name, drop_reply=True))
    shim = await daemon.guest()
    call = await shim.start(ledger.STORE, 1, 0x200, 24)
    for _ in range(2):
        await shim.answer_write(await shim.expect(f.Write))
    await daemon.settle()
    await shim.send(cancel_of(call))
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.MAY_REMAIN


async def test_drop_when_the_call_is_sent_again_then_its_record_answers(daemon: Daemon):
    daemon.server.faults.add(Rule(call=PUT, drop_reply=True))
    shim = await daemon.guest()
    call = await shim.start(ledger.PUT, 1, 2)
    await daemon.settle()
    await shim.close()
    await daemon.gone()
    # The rule is still in force: what answers from the record is not carried out.
    reply = await (await again(daemon)).resend(call)
    assert (reply.status, values(reply)) == (H.SUCCESS, (1,))
    assert daemon.answered[-1].is_replayed


async def test_drop_when_another_call_is_given_up_then_it_is_not_taken_for_this_one(
    daemon: Daemon, comments: Comments
):
    daemon.server.faults.add(Rule(drop_reply=True, times=1))
    shim = await daemon.guest()
    await shim.start(ledger.PUT, 1, 2)
    await daemon.settle()
    await shim.send(f.Cancel(0, 0, 99, s.CancelReason.DEADLINE))
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.NONE
    assert comments.sent_frames == []


# -- the connection ----------------------------------------------------------------------------


@pytest.mark.parametrize("hcall", [ledger.PUT, ledger.LOAD], ids=lambda hcall: hcall.name)
@pytest.mark.parametrize("delay_ms", [None, 1])
@pytest.mark.parametrize("when", Close)
async def test_close_when_a_call_meets_it_then_there_is_no_farewell(
    daemon: Daemon,
    comments: Comments,
    logs: Logs,
    when: Close,
    delay_ms: int | None,
    hcall: Hcall,
):
    daemon.server.faults.add(Rule(close=when, times=1, delay_ms=delay_ms))
    shim = await daemon.guest()
    call = await shim.start(hcall, 1, 0, 8)
    if hcall is ledger.LOAD and when is Close.AFTER:
        await shim.answer_read(await shim.expect(f.Read), b"12345678")
    assert await shim.receive() is None
    await daemon.gone()
    assert comments.ends[-1].endswith(f"close {when.value}")
    assert events(logs, "guest gone")[-1]["reason"] == comments.ends[-1]
    assert entry_keys(daemon) == ({1} if when is Close.AFTER else set())
    shim = await again(daemon)
    await shim.send(call._replace(is_resent=True))
    if hcall is ledger.LOAD and when is Close.BEFORE:
        await shim.answer_read(await shim.expect(f.Read), b"12345678")
    assert values(await shim.expect(f.Reply)) == (1,)
    assert daemon.answered[-1].is_replayed is (when is Close.AFTER)


async def test_close_when_one_guest_meets_it_then_others_stay(daemon: Daemon):
    daemon.server.faults.add(Rule(guest="lpar7", close=Close.BEFORE))
    shim = await daemon.guest()
    other = await daemon.guest(hello("other", instance=OTHER_INSTANCE))
    await shim.start(ledger.PUT, 1, 1)
    assert await shim.receive() is None
    assert (await other.call(ledger.PUT, 1, 1)).status == H.SUCCESS


# -- what is gone ------------------------------------------------------------------------------


async def test_space_when_it_is_gone_then_the_commit_is_refused_and_nothing_is_changed(
    daemon: Daemon, logs: Logs
):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.server.faults.add(Rule(gone=Gone.SPACE, times=1))
    reply = await shim.call(ledger.PUT, 2, 2)
    assert (reply.status, reply.registers) == (ledger.PUT.timeout_code, ())
    why = "fault 1: no space: cannot commit: No space left on device"
    assert noted(daemon) == (why, "fault 1: no space")
    assert events(logs, "store failed")[0]["reason"] == why
    assert entry_keys(daemon) == {1}
    # The model was loaded anew: it has not kept what the store does not have.
    assert values(await shim.call(ledger.PUT, 3, 3)) == (2,)


async def test_space_when_nothing_is_committed_then_the_rule_is_without_effect(daemon: Daemon):
    daemon.server.faults.add(Rule(gone=Gone.SPACE))
    shim = await daemon.guest()
    assert (await shim.call(ledger.NOTE, 1)).status == H.SUCCESS
    assert noted(daemon)[-1] == "fault 1: no space, without effect"


async def test_disk_when_it_is_gone_then_the_flush_fails_for_this_call(daemon: Daemon):
    shim = await daemon.guest()
    await shim.call(ledger.PUT, 1, 1)
    daemon.server.faults.add(Rule(gone=Gone.DISK, times=2))
    reply = await shim.call(ledger.FLUSH, 0)
    assert (reply.status, reply.registers) == (H.ABORTED, ((4, 0),))
    why = "fault 1: no disk: cannot flush: Input/output error"
    assert noted(daemon) == (why, "fault 1: no disk")
    assert (await shim.call(ledger.FLUSH_THEN_PUT, 5)).status == H.RESOURCE
    assert daemon.faults.flushes == 0
    # It was the call's own failure: the store is as good as before.
    assert (await shim.call(ledger.FLUSH, 0)).status == H.SUCCESS
    assert entry_keys(daemon) == {1}


async def test_tpm_when_it_is_gone_then_the_command_is_not_sent(bench: Bench):
    shim = await bench.daemon.guest()
    bench.daemon.server.faults.add(Rule(call="H_TPM_COMM", gone=Gone.TPM, times=1, after=1))
    assert (await execute(shim)).status == H.SUCCESS
    reply = await execute(shim)
    assert (reply.status, reply.writes) == (H.RESOURCE, ())
    why = "fault 1: no tpm: the TPM does not answer"
    assert noted(bench.daemon) == (why, "fault 1: no tpm")
    assert len(bench.tpm.commands) == 1
    assert (await execute(shim)).status == H.SUCCESS


async def test_tpm_when_it_is_gone_then_its_session_cannot_be_closed(bench: Bench):
    shim = await bench.daemon.guest()
    bench.daemon.server.faults.add(Rule(call="H_TPM_COMM", gone=Gone.TPM, times=1))
    assert (await shim.call(tpm.TPM_COMM, CLOSE)).status == H.RESOURCE
    assert (await shim.call(tpm.TPM_COMM, CLOSE)).status == H.SUCCESS


# -- bits --------------------------------------------------------------------------------------


async def test_corrupt_when_a_register_is_meant_then_its_bits_are_turned(bench: Bench):
    (output,) = tpm.TPM_COMM.outputs
    turn = Corrupt(name=output.name, bits=0x8001)
    bench.daemon.server.faults.add(Rule(call="H_TPM_COMM", corrupt=turn, times=1))
    shim = await bench.daemon.guest()
    spoiled, right = await execute(shim), await execute(shim)
    ((_, value),) = right.registers
    assert spoiled.registers == ((output.register, value ^ 0x8001),)
    assert spoiled.writes == right.writes
    assert noted(bench.daemon) == ()
    assert bench.daemon.answered[-2].notes == (f"fault 1: corrupt {output.name}",)


@pytest.mark.parametrize("offset", [0, 5, 15])
async def test_corrupt_when_a_byte_is_meant_then_its_bits_are_turned(bench: Bench, offset: int):
    turn = Corrupt(name="response", offset=offset, bits=0x81)
    bench.daemon.server.faults.add(Rule(call="H_TPM_COMM", corrupt=turn, times=1))
    shim = await bench.daemon.guest()
    spoiled, right = await execute(shim), await execute(shim)
    ((gpa, size, data),) = right.writes
    assert data is not None
    expected = bytearray(data)
    expected[offset] ^= 0x81
    assert spoiled.writes == (f.WriteSegment(gpa, size, bytes(expected)),)
    assert spoiled.registers == right.registers


async def test_corrupt_when_there_is_no_such_byte_then_the_rule_is_without_effect(bench: Bench):
    turn = Corrupt(name="response", offset=16)
    bench.daemon.server.faults.add(Rule(call="H_TPM_COMM", corrupt=turn))
    shim = await bench.daemon.guest()
    assert (await execute(shim)).status == H.SUCCESS
    assert noted(bench.daemon) == ("fault 1: corrupt response, without effect",)
    assert (await shim.call(tpm.TPM_COMM, CLOSE)).status == H.SUCCESS
    assert noted(bench.daemon) == ("fault 1: corrupt response, without effect",)


async def test_corrupt_when_the_call_is_sent_again_then_it_is_told_the_same(bench: Bench):
    """The record is of what was sent, not of what should have been."""
    bench.daemon.server.faults.add(
        Rule(call="H_PKS_GEN_PASSWORD", corrupt=Corrupt(name="password"))
    )
    shim = await bench.daemon.guest()
    call = await shim.start(pks.GEN_PASSWORD, 3, 0, 0x1000, 32)
    reply = await shim.expect(f.Reply)
    assert reply.status == H.SUCCESS
    assert noted(bench.daemon) == ("fault 1: corrupt password",)
    await shim.close()
    await bench.daemon.gone()
    assert await (await again(bench.daemon)).resend(call) == reply


# -- all of them -------------------------------------------------------------------------------


async def test_faults_when_they_are_a_daemons_own_then_they_begin_with_none(daemon: Daemon):
    assert isinstance(daemon.server.faults, Faults)
    assert not daemon.server.faults.is_active


# -- secure VMs --------------------------------------------------------------------------------


@pytest.fixture
async def secure(boot: Boot) -> Guest:
    """A guest that is a secure VM."""
    guest: Guest = await boot("page_shift = 12")
    await guest.enter()
    assert guest.machine.is_secure
    return guest


async def test_ultracall_when_it_meets_a_rule_then_it_gets_the_code(secure: Guest):
    secure.daemon.server.faults.add(Rule(call="UV_SHARE_PAGE", returns="U_RETRY", times=1))
    reply = await secure.call(uv.SHARE_PAGE, KERNEL >> 12, 1)
    assert (reply.status, reply.pages, reply.registers) == (U.RETRY, (), ())
    assert secure.machine.is_secure
    assert (await secure.call(uv.SHARE_PAGE, KERNEL >> 12, 1)).status == U.SUCCESS


async def test_esm_when_it_meets_a_rule_then_the_guest_stays_what_it_was(boot: Boot):
    guest: Guest = await boot("page_shift = 12")
    guest.daemon.server.faults.add(Rule(call="UV_ESM", returns="U_PERMISSION", times=1))
    reply = await guest.enter()
    assert (reply.status, reply.context) == (U.PERMISSION, 0)
    assert not guest.machine.is_secure
    await guest.enter()
    assert guest.machine.is_secure


async def test_rule_when_a_vcpu_is_outside_of_secure_state_then_it_is_taken_down_all_the_same(
    secure: Guest,
):
    """No rule may lead out of what keeps a secure VM's memory its own."""
    secure.daemon.server.faults.add(Rule(call="UV_SHARE_PAGE", returns="U_SUCCESS"))
    reply = await secure.call(uv.SHARE_PAGE, KERNEL >> 12, 1, msr=0)
    assert reply.status != U.SUCCESS
    assert (await secure.control()).action is s.ControlAction.TERMINATE


@pytest.mark.parametrize(
    ("name", "number", "arguments", "vcpu"),
    [
        ("PAGE_IN", s.ShimCall.PAGE_IN, (KERNEL,), 0),
        ("ATTEND", s.ShimCall.ATTEND, (), s.MACHINE_VCPU),
    ],
)
async def test_qemus_own_call_when_its_reply_is_dropped_then_qemu_makes_it_anew(
    secure: Guest, name: str, number: s.ShimCall, arguments: tuple[int, ...], vcpu: int
):
    faults = secure.daemon.server.faults
    faults.add(Rule(call=name, drop_reply=True, times=1))
    frame = secure.frame(number, *arguments, level=3, vcpu=vcpu)
    await secure.shim.send(frame)
    await secure.daemon.settle()
    await secure.shim.send(cancel_of(frame))
    while not isinstance(await secure.shim.receive(), f.Cancelled):
        pass
    reply = await secure.call(number, *arguments, level=3, vcpu=vcpu)
    assert reply.status == U.SUCCESS
    assert [active.met for active in faults] == [1]


async def test_qemus_own_call_when_the_rule_is_for_every_call_then_it_does_not_meet_it(
    secure: Guest,
):
    secure.daemon.server.faults.add(Rule(close=Close.BEFORE))
    reply = await secure.call(s.ShimCall.PAGE_IN, KERNEL, level=3)
    assert reply.status == U.SUCCESS
