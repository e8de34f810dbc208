# SPDX-License-Identifier: Apache-2.0
"""H_TPM_COMM from CALL to REPLY, over a TPM that fails in every way."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest
import trio
from tests.unit.hcalld.runtime.conftest import Logs
from tests.unit.hcalld.runtime.daemon import Daemon
from tests.unit.hcalld.runtime.faketpm import FakeTpm, response
from tests.unit.hcalld.runtime.shim import OTHER_INSTANCE, RAM_SIZE, Shim, hello

from hcalld.core.errors import ConfigError
from hcalld.core.records import Run
from hcalld.domain.tpm import SessionState
from hcalld.runtime.tpm import TpmSession
from hcallproto.abi.families import pks, tpm
from hcallproto.abi.returns import H
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

REQUEST, RESPONSE = 0x1000, 0x2000
COMMAND = bytes.fromhex("80010000000c0000017b0008")
SECRET = bytes.fromhex("80010000001a0000ffff") + b"not for any log!"
EXECUTE, CLOSE = tpm.Operation.EXECUTE, tpm.Operation.CLOSE_SESSION


@dataclasses.dataclass
class Bench:
    """A daemon whose guests have TPMs, by partition."""

    daemon: Daemon
    tpms: dict[str, FakeTpm]

    @property
    def tpm(self) -> FakeTpm:
        return self.tpms["lpar7"]

    @property
    def session(self) -> TpmSession:
        partition = self.daemon.server.sessions["lpar7"].partition
        assert partition is not None
        assert partition.tpm is not None
        return partition.tpm


@pytest.fixture
async def bench(nursery: trio.Nursery, logs: Logs) -> AsyncIterator[Bench]:
    tpms = {"lpar7": FakeTpm(), "lpar8": FakeTpm()}
    daemon = Daemon(nursery, open_tpm=lambda profile: tpms.get(profile.partition))
    yield Bench(daemon, tpms)
    daemon.close()


def frame(shim: Shim, command: bytes = COMMAND, *, vcpu: int = 0) -> f.Call:
    segment = f.Segment(0, REQUEST, s.SegmentStatus.OK, command)
    arguments = (EXECUTE, REQUEST, len(command), RESPONSE, 4096)
    return shim.call_frame(tpm.TPM_COMM, *arguments, vcpu=vcpu, segments=(segment,))


async def execute(shim: Shim, command: bytes = COMMAND, *, vcpu: int = 0) -> f.Reply:
    call = frame(shim, command, vcpu=vcpu)
    await shim.send(call)
    reply = await shim.expect(f.Reply)
    assert (reply.vcpu, reply.seq) == (vcpu, call.seq)
    return reply


async def close(shim: Shim) -> int:
    return (await shim.call(tpm.TPM_COMM, CLOSE)).status


def is_lost(reply: f.Reply) -> bool:
    return (reply.status, reply.registers, reply.writes) == (H.RESOURCE, (), ())


# -- announced -----------------------------------------------------------------------------------


async def test_a_partition_without_a_tpm_is_told_nothing_of_the_call(bench: Bench):
    shim = await bench.daemon.guest(hello("lpar9"))
    assert shim.welcome is not None
    announced = {spec.number for spec in shim.welcome.announcement.calls}
    assert tpm.TPM_COMM.number not in announced
    assert pks.GET_CONFIG.number in announced
    assert (await shim.call(tpm.TPM_COMM, CLOSE)).status == H.FUNCTION


async def test_a_partition_with_one_has_the_tables_values(bench: Bench):
    shim = await bench.daemon.guest()
    spec = shim.announced[tpm.TPM_COMM.number]
    assert spec.timeout_status == spec.lost_status == H.RESOURCE
    assert spec.buffers == (f.BufferSpec(5, s.BufferKind.SIZED, s.Direction.IN, 6, 4096),)


async def test_a_tpm_that_is_configured_wrongly_keeps_the_guest_off(
    nursery: trio.Nursery, logs: Logs
):
    def refuse(_: object) -> None:
        raise ConfigError("no swtpm here")

    daemon = Daemon(nursery, open_tpm=refuse)
    shim = await daemon.connect()
    await shim.send(hello())
    assert await shim.expect_goodbye(s.GoodbyeReason.REFUSED) == "no swtpm here"
    assert daemon.server.sessions == {}


# -- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_quick", [False, True])
async def test_a_command_goes_out_and_its_response_comes_back(bench: Bench, is_quick: bool):
    bench.tpm.is_quick = is_quick
    shim = await bench.daemon.guest()
    for _ in range(3):
        reply = await execute(shim)
        assert (reply.status, reply.registers) == (H.SUCCESS, ((4, 16),))
        assert [(w.gpa, w.data) for w in reply.writes] == [(RESPONSE, response(b"answer"))]
    assert bench.tpm.commands == [COMMAND] * 3
    assert bench.tpm.trail == ["open"]
    assert bench.session.state is SessionState.OPEN


async def test_an_error_of_the_tpm_is_none_of_the_call(bench: Bench):
    bench.tpm.answer = response(code=0x142)
    shim = await bench.daemon.guest()
    reply = await execute(shim)
    assert (reply.status, reply.registers) == (H.SUCCESS, ((4, 10),))
    assert bench.session.state is SessionState.OPEN


async def test_the_greatest_response_is_written_whole(bench: Bench):
    bench.tpm.answer = response(bytes(4086))
    shim = await bench.daemon.guest()
    reply = await execute(shim)
    assert reply.registers == ((4, 4096),)
    assert len(reply.writes[0].data or b"") == 4096


@pytest.mark.parametrize("is_quick", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        response()[:9],
        response(size=9),
        response(size=11),
        response(b"answer", size=15),
        response(bytes(4087)),
        response(size=0xFFFF_FFFF),
    ],
)
async def test_what_is_no_whole_response_is_not_passed_on(
    bench: Bench, answer: bytes, is_quick: bool
):
    bench.tpm.answer = answer
    shim = await bench.daemon.guest()
    assert is_lost(await execute(shim))
    assert bench.session.state is SessionState.STALE
    bench.tpm.answer, bench.tpm.is_quick = response(b"answer"), is_quick
    assert (await execute(shim)).status == H.SUCCESS
    bench.tpm.answer = answer
    assert is_lost(await execute(shim))
    assert bench.tpm.trail == ["open", "close", "open"]


@pytest.mark.parametrize("is_quick", [False, True])
async def test_a_tpm_that_fails_costs_the_session(bench: Bench, is_quick: bool, logs: Logs):
    shim = await bench.daemon.guest()
    await execute(shim)
    bench.tpm.is_quick, bench.tpm.failure = is_quick, "it died"
    assert is_lost(await execute(shim))
    assert bench.daemon.answered[-1].outcome.why == "it died"
    bench.tpm.failure = ""
    assert (await execute(shim)).status == H.SUCCESS
    assert bench.tpm.trail == ["open", "close", "open"]
    assert [e["reason"] for e in logs if e["event"] == "TPM session lost"] == ["it died"]


async def test_a_tpm_that_cannot_be_reached(bench: Bench):
    bench.tpm.cannot_open = "not there"
    shim = await bench.daemon.guest()
    assert is_lost(await execute(shim))
    assert bench.session.state is SessionState.CLOSED
    assert (await shim.call(pks.GET_CONFIG, 0x1000, 32)).status == H.SUCCESS
    bench.tpm.cannot_open = ""
    assert (await execute(shim)).status == H.SUCCESS
    assert bench.tpm.commands == [COMMAND]


async def test_no_command_is_in_a_log_or_an_outcome(bench: Bench, logs: Logs):
    bench.tpm.failure = "it died"
    shim = await bench.daemon.guest()
    await execute(shim, SECRET)
    assert b"not for any log" in bench.tpm.commands[0]
    assert "not for any log" not in repr(logs)
    assert "not for any log" not in repr([a.outcome for a in bench.daemon.answered])


# -- who waits -------------------------------------------------------------------------------------


async def test_a_slow_command_holds_up_only_its_caller(bench: Bench):
    slow = bench.tpm.may_answer = trio.Event()
    shim, other = await bench.daemon.guest(), await bench.daemon.guest(hello("lpar8"))
    call = frame(shim)
    await shim.send(call)
    await bench.daemon.settle()
    assert (await shim.call(pks.GET_CONFIG, 0x1000, 32, vcpu=1)).status == H.SUCCESS
    assert (await execute(other)).status == H.SUCCESS
    slow.set()
    assert (await shim.expect(f.Reply)).seq == call.seq


@pytest.mark.parametrize("is_open", [False, True])
async def test_commands_of_several_vcpus_go_one_by_one_in_their_order(bench: Bench, is_open: bool):
    shim = await bench.daemon.guest()
    if is_open:
        await execute(shim)
        bench.tpm.commands.clear()
    slow = bench.tpm.may_answer = trio.Event()
    calls = [frame(shim, COMMAND + bytes([vcpu]), vcpu=vcpu) for vcpu in range(4)]
    for call in calls:
        await shim.send(call)
        await bench.daemon.settle()
    assert bench.tpm.commands == [COMMAND + b"\0"]
    slow.set()
    replies = [await shim.expect(f.Reply) for _ in calls]
    assert [reply.vcpu for reply in replies] == [0, 1, 2, 3]
    assert bench.tpm.commands == [COMMAND + bytes([vcpu]) for vcpu in range(4)]
    assert bench.tpm.at_work_most == 1


async def test_close_comes_after_the_commands_before_it(bench: Bench):
    slow = bench.tpm.may_answer = trio.Event()
    shim = await bench.daemon.guest()
    await shim.send(frame(shim))
    await bench.daemon.settle()
    await shim.send(shim.call_frame(tpm.TPM_COMM, CLOSE, vcpu=1))
    await bench.daemon.settle()
    assert bench.tpm.trail == ["open"]
    slow.set()
    assert [(await shim.expect(f.Reply)).status for _ in range(2)] == [H.SUCCESS, H.SUCCESS]
    assert bench.tpm.trail == ["open", "close"]


# -- CLOSE -----------------------------------------------------------------------------------------


async def test_close_frees_and_is_success_without_a_session(bench: Bench):
    shim = await bench.daemon.guest()
    assert await close(shim) == H.SUCCESS
    await execute(shim)
    assert await close(shim) == H.SUCCESS
    assert bench.session.state is SessionState.CLOSED
    assert await close(shim) == H.SUCCESS
    await execute(shim)
    assert bench.tpm.trail == ["close", "open", "close", "close", "open"]


async def test_close_of_a_tpm_that_does_not_answer(bench: Bench):
    shim = await bench.daemon.guest()
    await execute(shim)
    bench.tpm.cannot_close = "mute"
    assert await close(shim) == H.RESOURCE
    assert bench.session.state is SessionState.STALE
    assert is_lost(await execute(shim))
    assert len(bench.tpm.commands) == 1
    bench.tpm.cannot_close = ""
    assert (await execute(shim)).status == H.SUCCESS
    assert bench.tpm.trail == ["open", "close", "open"]


# -- given up --------------------------------------------------------------------------------------


async def test_a_call_that_is_cancelled_may_have_had_its_effect(bench: Bench):
    bench.tpm.may_answer = trio.Event()
    shim = await bench.daemon.guest()
    call = frame(shim)
    await shim.send(call)
    await bench.daemon.settle()
    await shim.send(f.Cancel(call.vcpu, call.reset, call.seq, s.CancelReason.DEADLINE))
    assert (await shim.expect(f.Cancelled)).effect is s.Effect.MAY_REMAIN
    assert bench.session.state is SessionState.STALE
    bench.tpm.may_answer.set()
    assert (await execute(shim)).status == H.SUCCESS
    assert bench.tpm.trail == ["open", "close", "open"]


async def test_a_call_that_is_cancelled_before_its_turn_was_never_sent(bench: Bench):
    bench.tpm.may_answer = trio.Event()
    shim = await bench.daemon.guest()
    first, second = frame(shim), frame(shim, COMMAND + b"2", vcpu=1)
    await shim.send(first)
    await bench.daemon.settle()
    await shim.send(second)
    await bench.daemon.settle()
    await shim.send(f.Cancel(1, second.reset, second.seq, s.CancelReason.DEADLINE))
    await shim.expect(f.Cancelled)
    bench.tpm.may_answer.set()
    assert (await shim.expect(f.Reply)).status == H.SUCCESS
    assert bench.tpm.commands == [COMMAND]
    assert bench.session.state is SessionState.OPEN


async def test_a_call_that_is_cancelled_together_with_its_coming_gives_its_turn_back(
    bench: Bench,
):
    shim = await bench.daemon.guest()
    await execute(shim)
    bench.tpm.may_answer = trio.Event()
    call = frame(shim)
    await shim.send(call, f.Cancel(0, call.reset, call.seq, s.CancelReason.DEADLINE))
    await shim.expect(f.Cancelled)
    bench.tpm.may_answer.set()
    assert (await execute(shim)).status == H.SUCCESS


async def test_a_reset_closes_the_session(bench: Bench):
    shim = await bench.daemon.guest()
    await execute(shim)
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    await bench.daemon.settle()
    assert bench.tpm.trail == ["open", "close"]
    assert bench.session.state is SessionState.CLOSED
    assert (await execute(shim)).status == H.SUCCESS
    assert [run.reset for run in bench.tpm.runs] == [0, 1]


async def test_a_reset_with_a_command_under_way_closes_the_session(bench: Bench):
    shim = await bench.daemon.guest()
    bench.tpm.may_answer = trio.Event()
    await shim.send(frame(shim))
    await bench.daemon.settle()
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    bench.tpm.may_answer.set()
    assert (await execute(shim)).status == H.SUCCESS
    assert bench.tpm.trail == ["open", "close", "open"]


async def test_a_reset_of_a_tpm_that_does_not_answer_is_tried_again(bench: Bench, logs: Logs):
    shim = await bench.daemon.guest()
    await execute(shim)
    bench.tpm.cannot_close = "mute"
    await shim.send(shim.reset_event())
    await shim.expect(f.EventAck)
    await bench.daemon.settle()
    assert "TPM session not freed" in {entry["event"] for entry in logs}
    bench.tpm.cannot_close = ""
    assert (await execute(shim)).status == H.SUCCESS
    assert bench.tpm.trail == ["open", "close", "open"]


async def test_the_end_of_the_connection_ends_the_tpm(bench: Bench):
    shim = await bench.daemon.guest()
    bench.tpm.may_answer = trio.Event()
    await shim.send(frame(shim))
    await bench.daemon.settle()
    await shim.close()
    await bench.daemon.gone()
    assert bench.tpm.trail == ["open", "end"]
    assert bench.tpm.at_work == 0


# -- sent again ------------------------------------------------------------------------------------


async def test_a_command_is_not_sent_twice(bench: Bench):
    shim = await bench.daemon.guest()
    call = frame(shim)
    await shim.send(call)
    await shim.expect(f.Reply)
    await shim.close()
    shim = await bench.daemon.guest(hello(connection=1))
    assert is_lost(await shim.resend(call))
    assert bench.tpm.commands == [COMMAND]
    assert bench.tpm.trail == ["open", "end", "close"]
    assert bench.session.state is SessionState.CLOSED
    assert (await execute(shim)).status == H.SUCCESS


async def test_a_close_that_is_sent_again_is_carried_out(bench: Bench):
    shim = await bench.daemon.guest()
    call = shim.call_frame(tpm.TPM_COMM, CLOSE)
    await shim.close()
    shim = await bench.daemon.guest(hello(connection=1))
    assert (await shim.resend(call)).status == H.SUCCESS


async def test_bad_arguments_come_before_that(bench: Bench):
    shim = await bench.daemon.guest()
    call = shim.call_frame(tpm.TPM_COMM, EXECUTE, REQUEST, 9, RESPONSE, 4096)
    await shim.close()
    shim = await bench.daemon.guest(hello(connection=1))
    assert (await shim.resend(call)).status == H.P3


async def test_another_machine_begins_with_its_own_run(bench: Bench):
    await (await bench.daemon.guest()).close()
    await bench.daemon.gone()
    await bench.daemon.guest(hello(instance=OTHER_INSTANCE))
    assert bench.tpm.runs[-1] == Run(OTHER_INSTANCE, 0)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((0, REQUEST, 12, RESPONSE, 4096), H.PARAMETER),
        ((3, RAM_SIZE, 0, RAM_SIZE, 0), H.PARAMETER),
        ((1 << 32 | 1, REQUEST, 12, RESPONSE, 4096), H.PARAMETER),
        ((1, RAM_SIZE, 12, RESPONSE, 4096), H.P2),
        ((1, RAM_SIZE - 11, 12, RESPONSE, 4096), H.P2),
        ((1, RAM_SIZE, 0, RAM_SIZE, 0), H.P2),
        ((1, REQUEST, 0, RESPONSE, 4096), H.P3),
        ((1, REQUEST, 9, RESPONSE, 4096), H.P3),
        ((1, REQUEST, 4097, RESPONSE, 4096), H.P3),
        ((1, REQUEST, 1 << 32 | 12, RESPONSE, 4096), H.P3),
        ((1, REQUEST, 12, RAM_SIZE, 4096), H.P4),
        ((1, REQUEST, 12, RAM_SIZE - 4095, 4096), H.P4),
        ((1, REQUEST, 12, RAM_SIZE - 4096, 4097), H.P4),
        ((1, REQUEST, 12, RESPONSE, 4095), H.P5),
        ((1, REQUEST, 12, RESPONSE, 0), H.P5),
        ((1, REQUEST, 12, RESPONSE, 1 << 32), H.P5),
        ((2, RAM_SIZE, 0, RAM_SIZE, 0), H.SUCCESS),
    ],
)
async def test_arguments(bench: Bench, arguments: tuple[int, ...], code: H):
    shim = await bench.daemon.guest()
    reply = await shim.call(tpm.TPM_COMM, *arguments)
    assert (reply.status, reply.registers, reply.writes) == (code, (), ())
    assert bench.tpm.commands == []


@pytest.mark.parametrize(
    ("request_gpa", "response_gpa", "size"),
    [
        (RAM_SIZE - 12, RESPONSE, 4096),
        (REQUEST, RAM_SIZE - 4096, 4096),
        (REQUEST | 0xF << 60, RESPONSE, 65536),
        (REQUEST, REQUEST, 4096),
    ],
)
async def test_buffers_that_just_fit(bench: Bench, request_gpa: int, response_gpa: int, size: int):
    shim = await bench.daemon.guest()
    gpa = request_gpa & ~(0xF << 60)
    segment = f.Segment(0, gpa, s.SegmentStatus.OK, COMMAND)
    arguments = (EXECUTE, request_gpa, 12, response_gpa, size)
    await shim.send(shim.call_frame(tpm.TPM_COMM, *arguments, segments=(segment,)))
    reply = await shim.expect(f.Reply)
    assert reply.status == H.SUCCESS
    assert reply.writes[0].gpa == response_gpa


async def test_a_buffer_that_left_ram_meanwhile(bench: Bench):
    shim = await bench.daemon.guest()
    segment = f.Segment(0, REQUEST, s.SegmentStatus.NOT_RAM, b"")
    arguments = (EXECUTE, REQUEST, 12, RESPONSE, 4096)
    await shim.send(shim.call_frame(tpm.TPM_COMM, *arguments, segments=(segment,)))
    assert (await shim.expect(f.Reply)).status == H.P2
    assert bench.tpm.commands == []
