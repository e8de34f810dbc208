# SPDX-License-Identifier: Apache-2.0
"""The trace: one decoded line a call."""

from __future__ import annotations

from typing import TextIO

from hcalld.core.answered import Answered
from hcallproto.render import render_call


class Trace:
    """Writes a line for every answered call; an observer of sessions."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, answered: Answered) -> None:
        """Render one call. A stream that breaks ends the daemon: silent loss is worse."""
        self._stream.write(_line(answered) + "\n")
        self._stream.flush()


def _line(answered: Answered) -> str:
    frame = answered.frame
    return render_call(
        answered.hcall,
        frame.registers(),
        level=frame.level,
        buffers=answered.buffers,
        status=answered.outcome.code,
        outputs=dict(answered.outcome.registers),
        reason="; ".join(filter(None, (answered.outcome.why, *answered.notes))),
        duration_ns=answered.duration_ns,
        where=f"{answered.partition} cpu{frame.vcpu} #{frame.seq}",
    )
