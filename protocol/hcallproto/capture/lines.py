# SPDX-License-Identifier: Apache-2.0
"""A call of a capture as one line for people."""

from __future__ import annotations

from hcallproto.capture.exchanges import Exchange
from hcallproto.render import render_call


def line_of(exchange: Exchange, *, where: str) -> str:
    """All about a call.

    Args:
        exchange: the call.
        where: what stands before it.
    """
    call, reply = exchange.call, exchange.reply
    return render_call(
        exchange.hcall,
        call.registers(),
        level=call.level,
        buffers=exchange.buffers,
        status=None if reply is None else reply.status,
        outputs=exchange.outputs,
        reason=exchange.reason if reply is not None else exchange.fate.value,
        duration_ns=exchange.end_ns - exchange.start_ns,
        where=where,
    )
