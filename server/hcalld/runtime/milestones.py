# SPDX-License-Identifier: Apache-2.0
"""What the log tells of a guest's life beside its connection's.

These are the steps that the table of calls names, such as those of a SEV guest's launch, which its
owner and its host wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hcalld.core.outcome import Outcome
from hcallproto.abi.spec import Hcall
from hcallproto.render import describe_call


def milestone(hcall: Hcall, registers: Mapping[int, int], outcome: Outcome) -> dict[str, Any]:
    """Gives what the log says of a call that was answered; empty: nothing.

    Args:
        hcall: what was called.
        registers: those of its CALL.
        outcome: what became of it.
    """
    step = hcall.milestone
    if step is None or outcome.code:
        return {}
    told = describe_call(hcall, registers, status=outcome.code, outputs=dict(outcome.registers))
    # A result has the name of the argument that it is written over.
    values = told["args"] | told.get("outputs", {})
    fields: dict[str, Any] = {"event": step.event}
    for name in step.tells:
        if name not in values:
            continue  # a rule of faults has answered, without it
        value = values[name]
        is_buffer = isinstance(value, dict)
        fields |= {"address": value["gpa"], "size": value["size"]} if is_buffer else {name: value}
    return fields
