# SPDX-License-Identifier: Apache-2.0
"""What a handler gives as the REPLY that the shim is sent, and a recorded one read again."""

from __future__ import annotations

from collections.abc import Sequence

from hcalld.core.outcome import Outcome
from hcalld.core.pages import PageRange
from hcallproto.abi.returns import H
from hcallproto.abi.spec import Hcall
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s


def reply_frame(frame: f.Call, outcome: Outcome) -> f.Reply:
    """The answer to a call."""
    writes: tuple[f.WriteSegment, ...] = ()
    if outcome.writes:
        writes = tuple(f.WriteSegment(gpa, len(data), data) for gpa, data in outcome.writes)
    if outcome.zeros:
        writes += tuple(f.WriteSegment(gpa, size, None) for gpa, size in outcome.zeros)
    status = outcome.status
    name = (frame.vcpu, frame.reset, frame.seq)
    context = outcome.context
    if context is None:
        pages = wire_ranges(outcome.pages) if outcome.pages else ()
        return f.Reply(*name, status, outcome.registers, writes, pages=pages)
    return f.Reply(
        *name,
        status,
        outcome.registers,
        writes,
        s.CONTEXT_NIP | s.CONTEXT_MSR,
        context.nip,
        context.msr,
        context.msr_mask,
        wire_ranges(outcome.pages),
    )


def wire_ranges(ranges: Sequence[PageRange]) -> tuple[f.PageRange, ...]:
    """The same, for frames."""
    return tuple(f.PageRange(gpa, size, s.PageState(state)) for gpa, size, state in ranges)


def outcome_of(hcall: Hcall | None, reply: f.Reply) -> Outcome:
    """What a recorded reply was, as far as those who watch are told."""
    status = reply.status
    if hcall is None:
        # Served once, and not any more: the number says too little of the level.
        return Outcome(H(status), reply.registers)
    codes = hcall.return_codes
    if hcall.result and status >= 0:
        return Outcome(codes["SUCCESS"], reply.registers, result=status)
    return Outcome(codes(status), reply.registers)
