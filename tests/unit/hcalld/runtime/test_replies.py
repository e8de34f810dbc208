# SPDX-License-Identifier: Apache-2.0
"""What a handler gives, as the frame that the shim is sent."""

from __future__ import annotations

import pytest
from tests.unit.hcallproto.capture.sample import call

from hcalld.core.outcome import Context, Outcome
from hcalld.core.pages import PageBits, PageRange
from hcalld.runtime.replies import outcome_of, reply_frame
from hcallproto.abi.families import pks, sev, uv
from hcallproto.abi.returns import H, SevCode, U
from hcallproto.abi.spec import Hcall
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

CALL = call(pks.READ_OBJECT, 7, vcpu=2, reset=3)


def test_reply_when_memory_is_written_then_zeros_come_last():
    outcome = Outcome(H.SUCCESS, ((4, 5),), ((0x1000, b"ab"),), zeros=((0x2000, 16),))
    assert reply_frame(CALL, outcome) == f.Reply(
        *(2, 3, 7, 0, ((4, 5),)),
        (f.WriteSegment(0x1000, 2, b"ab"), f.WriteSegment(0x2000, 16, None)),
    )


def test_reply_when_the_caller_goes_on_elsewhere_then_it_says_where_and_with_which_bits():
    pages = (PageRange(0x10000, 0x10000, PageBits.OUT),)
    outcome = Outcome(U.SUCCESS, result=9, context=Context(0x4000, 1, 3), pages=pages)
    reply = reply_frame(CALL, outcome)
    assert (reply.status, reply.nip, reply.msr, reply.msr_mask) == (9, 0x4000, 1, 3)
    assert reply.context == s.CONTEXT_NIP | s.CONTEXT_MSR
    assert reply.pages == (f.PageRange(0x10000, 0x10000, s.PageState(3)),)


@pytest.mark.parametrize(
    ("hcall", "outcome"),
    [
        (pks.READ_OBJECT, Outcome(H.NOT_FOUND, ((4, 5),))),
        (uv.ESM, Outcome(U.SUCCESS, result=1 << 40)),
        (uv.ESM, Outcome(U.P2)),
        (sev.LAUNCH_MEASURE, Outcome(SevCode.INVALID_LEN, ((5, 48),))),
        (None, Outcome(H.FUNCTION)),
    ],
)
def test_outcome_when_it_was_recorded_then_it_is_read_again(hcall: Hcall | None, outcome: Outcome):
    assert outcome_of(hcall, reply_frame(CALL, outcome)) == outcome
