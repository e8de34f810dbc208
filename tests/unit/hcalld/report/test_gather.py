# SPDX-License-Identifier: Apache-2.0
"""What is kept of a capture: all counts, and a bounded part of the rest."""

from __future__ import annotations

import pytest
from tests.unit.hcallproto.capture.sample import TIME, Capture, call, read_of_db

from hcalld.report import gather
from hcalld.report.gather import Gathered
from hcalld.report.timeline import Kind
from hcallproto.abi.families import pks, sev, uv
from hcallproto.abi.returns import H, SevCode, U
from hcallproto.capture.records import Dropped, Start, Stop
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s


def gathered(capture: Capture) -> Gathered:
    return Gathered([capture.data])


def answered(capture: Capture, seq: int, status: int, frame: f.Call, why: str = "") -> None:
    capture.frame(frame)
    capture.frame(f.Reply(frame.vcpu, 0, seq, status), comment=why)


@pytest.fixture
def capture() -> Capture:
    capture = Capture()
    capture.guest("lpar7")
    return capture


def test_calls_when_two_guests_read_then_counts_and_returns_are_told():
    found = gathered(read_of_db())
    summary = found.calls["H_PKS_READ_OBJECT"]
    assert (summary.family, summary.count, summary.refused) == ("pks", 2, 1)
    assert summary.codes == {"H_NOT_FOUND": 1, "H_SUCCESS": 1}
    assert (summary.latency.count, summary.latency.total, summary.latency.largest) == (
        2,
        7000,
        5000,
    )
    assert (found.call_count, found.refused_count, found.unanswered_count) == (2, 1, 0)
    (refusal,) = found.refusals.values()
    assert (refusal.guest, refusal.name, refusal.code) == (
        *("lpar8", "H_PKS_READ_OBJECT", "H_NOT_FOUND"),
    )
    assert (refusal.reason, refusal.count, refusal.vcpus) == ("no object has this label", 1, {3})
    assert refusal.first_ns == refusal.last_ns == TIME + 6000
    assert found.first_ns == TIME
    assert found.last_ns == TIME + 9000
    ((bar,),) = [found.timeline.lanes["lpar8", 3]]
    assert (bar.start, bar.end, bar.kind) == (TIME + 6000, TIME + 8000, Kind.REFUSED)
    assert 'label="db\\0"' in bar.text
    assert "H_NOT_FOUND 2us -- no object has this label" in bar.text


@pytest.mark.parametrize(
    ("frame", "status", "kind", "code"),
    [
        (call(pks.GET_CONFIG, 1), 0, Kind.DONE, "H_SUCCESS"),
        (
            call(pks.GET_CONFIG, 1),
            H.LONG_BUSY_ORDER_10_MSEC,
            Kind.BUSY,
            "H_LONG_BUSY_ORDER_10_MSEC",
        ),
        (call(uv.SHARE_PAGE, 1), U.BUSY, Kind.BUSY, "U_BUSY"),
        (call(pks.GET_CONFIG, 1), H.P2, Kind.REFUSED, "H_P2"),
        (call(pks.GET_CONFIG, 1), -4321, Kind.REFUSED, "-4321"),
        (call(uv.SHARE_PAGE, 1), U.RETRY, Kind.BUSY, "U_RETRY"),
        (call(uv.ESM, 1), U.P2, Kind.REFUSED, "U_P2"),
        (call(sev.FACTORY_RESET, 1), SevCode.EBUSY, Kind.REFUSED, "EBUSY"),
        (call(sev.PEK_CSR, 1), SevCode.INVALID_LEN, Kind.DONE, "SEV_RET_INVALID_LEN"),
        (
            call(sev.PEK_CSR, 1, address=0x1000, length=8),
            SevCode.INVALID_LEN,
            Kind.REFUSED,
            "SEV_RET_INVALID_LEN",
        ),
    ],
)
def test_end_when_a_call_is_answered_then_it_is_of_its_kind(
    capture: Capture, frame: f.Call, status: int, kind: Kind, code: str
):
    answered(capture, 1, status, frame)
    found = gathered(capture)
    ((bar,),) = found.timeline.lanes.values()
    assert bar.kind is kind
    (summary,) = found.calls.values()
    assert summary.codes == {code: 1}


def test_end_when_a_success_is_a_number_then_it_is_no_code(capture: Capture):
    # As the kernel of a VM goes on elsewhere, with a number of its own choice in r3.
    answered(capture, 1, 1 << 40, call(uv.ESM, 1))
    (summary,) = gathered(capture).calls.values()
    assert list(summary.codes) == [uv.ESM.result or "1099511627776"]
    assert summary.refused == 0


def test_end_when_nobody_answers_then_that_is_told(capture: Capture):
    capture.frame(call(pks.GET_CONFIG, 1))
    capture.frame(call(pks.GET_CONFIG, 2, vcpu=4))
    capture.frame(f.Cancelled(4, 0, 2, s.Effect.NONE))
    found = gathered(capture)
    assert (found.refused_count, found.unanswered_count) == (0, 2)
    assert found.calls["H_PKS_GET_CONFIG"].codes == {"cancelled": 1, "lost": 1}
    assert found.calls["H_PKS_GET_CONFIG"].latency.count == 0
    assert {refusal.code for refusal in found.refusals.values()} == {"cancelled", "lost"}


def test_calls_when_they_are_qemus_own_then_they_are_named_so(capture: Capture):
    frame = call(pks.GET_CONFIG, 1)._replace(level=s.LEVEL_SHIM, vcpu=s.MACHINE_VCPU)
    gpr = list(frame.gpr)
    gpr[2] = s.ShimCall.ATTEND
    answered(capture, 1, U.RETRY, frame._replace(gpr=tuple(gpr)))
    found = gathered(capture).calls["ATTEND"]
    assert (found.family, found.codes) == ("shim", {"U_RETRY": 1})


def test_calls_when_a_guest_makes_up_numbers_then_some_have_a_row_and_all_are_counted(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gather, "MAX_NAMES", 5)
    for seq in range(20):
        frame = call(pks.GET_CONFIG, seq)
        gpr = list(frame.gpr)
        gpr[2] = 0x10000 + 4 * seq
        answered(capture, seq, H.FUNCTION, frame._replace(gpr=tuple(gpr)))
    found = gathered(capture)
    assert len(found.calls) == 6
    assert found.calls["hcall 0x10000"].count == 1
    assert found.calls["other calls"].count == 15


def test_codes_when_there_are_too_many_then_some_are_told_together(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gather, "MAX_CODES", 3)
    for seq in range(10):
        answered(capture, seq, -5000 - seq, call(pks.GET_CONFIG, seq))
    codes = gathered(capture).calls["H_PKS_GET_CONFIG"].codes
    assert codes == {"-5000": 1, "-5001": 1, "-5002": 1, "others": 7}


def test_refusals_when_there_are_too_many_kinds_then_the_others_are_counted(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gather, "MAX_REFUSALS", 3)
    for seq in range(10):
        answered(capture, seq, H.P2, call(pks.GET_CONFIG, seq), f"reason {seq % 5}")
    found = gathered(capture)
    assert [one.count for one in found.refusals.values()] == [2, 2, 2]
    assert found.other_refusals == 4


def test_refusals_when_there_are_more_vcpus_than_can_be_then_some_are_told(capture: Capture):
    capture.data = bytearray(capture.data)  # type: ignore[assignment]  # bytes take for ever
    for vcpu in range(s.MAX_VCPUS + 10):
        capture.frame(call(pks.GET_CONFIG, 1, vcpu=vcpu))
        capture.frame(f.Reply(vcpu, 0, 1, -7))
    (refusal,) = Gathered([bytes(capture.data)]).refusals.values()
    assert refusal.count == s.MAX_VCPUS + 10
    assert refusal.vcpus == set(range(s.MAX_VCPUS))


def test_reasons_when_one_is_long_then_it_is_cut(capture: Capture):
    answered(capture, 1, H.P2, call(pks.GET_CONFIG, 1), "x" * 5000)
    (refusal,) = gathered(capture).refusals.values()
    assert len(refusal.reason) == gather.MAX_TEXT + 1
    ((bar,),) = gathered(capture).timeline.lanes.values()
    assert len(bar.text) <= gather.MAX_TEXT + 1


def test_connections_when_records_tell_of_them_then_so_does_the_page(capture: Capture):
    hello = f.Hello(
        1, 1, 1 << 20, s.Feature.SC2, bytes(16), bytes(16), 0, 4, 8, 0, 16, "a", "QEMU", 0
    )
    capture.frame(hello)
    capture.frame(f.Event(s.EventKind.RESET, s.NO_VCPU, 0, 1))
    capture.record(Dropped(frames=3))
    capture.record(Stop(why="closed by the peer"))
    found = gathered(capture)
    (connection,) = found.connections.values()
    assert connection.hello == hello
    assert connection.start is not None
    assert (connection.why, connection.dropped, connection.frames) == ("closed by the peer", 3, 2)
    assert found.dropped == 3
    assert [mark.text for mark in found.marks] == [
        "event RESET",
        "3 frames are missing here",
        "connection ended: closed by the peer",
    ]


def test_connections_when_there_are_too_many_then_the_first_are_kept(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gather, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(gather, "MAX_MARKS", 4)
    for number in range(10):
        capture.guest(f"guest {number}")
        capture.frame(f.Event(s.EventKind.RESET, s.NO_VCPU, 0, 1), f"guest {number}")
    found = gathered(capture)
    assert len(found.connections) <= 4
    assert found.connection_count == 11
    assert (len(found.marks), found.mark_count) == (4, 10)
    assert len(found.memory) <= 3


def test_capture_when_it_is_damaged_then_what_is_before_is_told(capture: Capture):
    answered(capture, 1, 0, call(pks.GET_CONFIG, 1))
    answered(capture, 2, 0, call(pks.GET_CONFIG, 2))
    found = Gathered([capture.data[:-5]])
    assert found.calls["H_PKS_GET_CONFIG"].count == 2
    assert found.unanswered_count == 1
    assert "all before it was read" in found.reader.problems[0]


def test_start_when_it_has_more_than_a_daemon_writes_then_a_part_is_kept():
    capture = Capture()
    capture.guest("lpar7", has_start=False)
    profile = {f"{number:03}" + "n" * 5000: "v" * 5000 for number in range(200)}
    capture.record(Start(program="p" * 5000, partition="lpar7", profile=profile))
    (connection,) = gathered(capture).connections.values()
    assert connection.start is not None
    assert len(connection.start.profile) == gather.MAX_ATTRIBUTES
    texts = [connection.start.program]
    for pair in connection.start.profile.items():
        texts += pair
    assert max(map(len, texts)) == gather.MAX_TEXT + 1
