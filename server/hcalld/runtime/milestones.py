# SPDX-License-Identifier: Apache-2.0
"""What the log tells of a SEV guest's life, and of a platform's.

A pseries guest's life is its connection's; a launch has steps that its owner and its host wait for.
Each is one command that succeeded, so its line is made of the table of calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hcalld.core.outcome import Outcome
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import Hcall
from hcallproto.render import describe_call

_EVENTS: Final[Mapping[Hcall, str]] = {
    sev.LAUNCH_START: "launch begun",
    sev.LAUNCH_MEASURE: "launch measured",
    sev.LAUNCH_SECRET: "secret injected",
    sev.LAUNCH_FINISH: "launch finished",
    sev.SEND_START: "sending begun",
    sev.SEND_CANCEL: "sending cancelled",
    sev.SEND_FINISH: "guest sent",
    sev.RECEIVE_START: "receiving begun",
    sev.RECEIVE_FINISH: "guest received",
    sev.FACTORY_RESET: "platform reset",
    sev.PEK_GEN: "platform has a new PEK",
    sev.PDH_GEN: "platform has a new PDH",
    sev.PEK_CERT_IMPORT: "platform has an owner",
}
EVENTS: Final[Mapping[int, tuple[Hcall, str]]] = {
    hcall.number: (hcall, event) for hcall, event in _EVENTS.items()
}
"""By number."""

_NAMES: Final = ("handle", "policy")
"""What is told of those that have it."""


def milestone(number: int, registers: Mapping[int, int], outcome: Outcome) -> dict[str, Any] | None:
    """Gives what the log says of a command that was answered; None: nothing.

    Args:
        number: r3 of its CALL.
        registers: those of its CALL.
        outcome: what became of it.
    """
    found = EVENTS.get(number)
    if found is None or outcome.code is not SevCode.SUCCESS:
        return None
    hcall, event = found
    told = describe_call(hcall, registers, status=outcome.code, outputs=dict(outcome.registers))
    # A result has the name of the argument that it is written over.
    values = told["args"] | told.get("outputs", {})
    fields = {name: values[name] for name in _NAMES if name in values}
    if hcall is sev.LAUNCH_SECRET:
        where = values["guest_uaddr"]
        fields |= {"address": where["gpa"], "size": where["size"]}
    return {"event": event, **fields}
