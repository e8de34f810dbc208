# SPDX-License-Identifier: Apache-2.0
"""What the log tells of calls that the table calls milestones."""

from __future__ import annotations

import pytest

from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome, refusal
from hcalld.runtime.milestones import milestone
from hcallproto.abi.families import sev
from hcallproto.abi.registry import CALLS
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall

STEPS = [hcall for hcall in CALLS if hcall.milestone is not None]


def registers(hcall: Hcall, **values: int) -> dict[int, int]:
    """Those of a CALL."""
    gpr = dict.fromkeys(range(3, 13), 0) | {3: hcall.number}
    places = {arg.name: arg.register for arg in hcall.args}
    return gpr | {places[name]: value for name, value in values.items()}


def test_launch_when_it_begins_then_handle_and_policy_are_told_in_words():
    gpr = registers(sev.LAUNCH_START, policy=0x0D, dh_uaddr=0x5000, dh_len=2084)
    (handle,) = (output.register for output in sev.LAUNCH_START.outputs)
    told = milestone(sev.LAUNCH_START, gpr, Outcome(SevCode.SUCCESS, ((handle, 7),)))
    assert told == {"event": "launch begun", "handle": 7, "policy": "NODBG|ES|NOSEND"}


def test_secret_when_injected_then_its_place_and_size_are_told():
    gpr = registers(sev.LAUNCH_SECRET, guest_uaddr=0x9000, guest_len=64)
    told = milestone(sev.LAUNCH_SECRET, gpr, Outcome(SevCode.SUCCESS))
    assert told == {"event": "secret injected", "address": "0x9000", "size": 64}


@pytest.mark.parametrize("hcall", STEPS, ids=lambda hcall: hcall.name)
def test_call_when_refused_then_nothing_has_happened(hcall: Hcall):
    outputs = tuple((output.register, 0) for output in hcall.outputs)
    told = milestone(hcall, registers(hcall), Outcome(SevCode.SUCCESS, outputs))
    assert hcall.milestone is not None
    assert told["event"] == hcall.milestone.event
    refused = refusal(hcall, HcallError(SevCode.INVALID_LEN, "asked for lengths"))
    assert milestone(hcall, registers(hcall), refused) == {}


def test_steps_when_listed_then_they_say_different_things():
    events = {hcall.milestone.event for hcall in STEPS if hcall.milestone is not None}
    assert len(events) == len(STEPS) > 0


def test_call_when_it_is_no_step_then_nothing_is_told():
    gpr = registers(sev.GUEST_STATUS)
    assert milestone(sev.GUEST_STATUS, gpr, Outcome(SevCode.SUCCESS)) == {}
