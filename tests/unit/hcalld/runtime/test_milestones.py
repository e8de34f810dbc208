# SPDX-License-Identifier: Apache-2.0
"""What the log tells of SEV's commands."""

from __future__ import annotations

import pytest

from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome, refusal
from hcalld.runtime.milestones import EVENTS, milestone
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall, Level


def registers(hcall: Hcall, **values: int) -> dict[int, int]:
    """Those of a CALL."""
    gpr = dict.fromkeys(range(3, 13), 0) | {3: hcall.number}
    places = {arg.name: arg.register for arg in hcall.args}
    return gpr | {places[name]: value for name, value in values.items()}


def test_launch_when_it_begins_then_handle_and_policy_are_told_in_words():
    gpr = registers(sev.LAUNCH_START, policy=0x0D, dh_uaddr=0x5000, dh_len=2084)
    (handle,) = (output.register for output in sev.LAUNCH_START.outputs)
    told = milestone(sev.LAUNCH_START.number, gpr, Outcome(SevCode.SUCCESS, ((handle, 7),)))
    assert told == {"event": "launch begun", "handle": 7, "policy": "NODBG|ES|NOSEND"}


def test_secret_when_injected_then_its_place_and_size_are_told():
    gpr = registers(sev.LAUNCH_SECRET, guest_uaddr=0x9000, guest_len=64)
    told = milestone(sev.LAUNCH_SECRET.number, gpr, Outcome(SevCode.SUCCESS))
    assert told == {"event": "secret injected", "address": "0x9000", "size": 64}


@pytest.mark.parametrize("number", EVENTS)
def test_command_when_refused_then_nothing_has_happened(number: int):
    hcall, event = EVENTS[number]
    outcome = Outcome(SevCode.SUCCESS)
    told = milestone(number, registers(hcall), outcome)
    assert told is not None
    assert told["event"] == event
    refused = refusal(hcall, HcallError(SevCode.INVALID_LEN, "asked for lengths"))
    assert milestone(number, registers(hcall), refused) is None


def test_events_when_listed_then_they_are_of_commands_and_say_different_things():
    assert all(hcall.level is Level.COMMAND for hcall, _ in EVENTS.values())
    assert len({event for _, event in EVENTS.values()}) == len(EVENTS)


def test_command_when_it_is_no_step_then_nothing_is_told():
    gpr = registers(sev.GUEST_STATUS)
    assert milestone(sev.GUEST_STATUS.number, gpr, Outcome(SevCode.SUCCESS)) is None
