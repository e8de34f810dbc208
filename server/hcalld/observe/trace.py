# SPDX-License-Identifier: Apache-2.0
"""The trace: one decoded line a call."""

from __future__ import annotations

from typing import TextIO

from hcalld.core.answered import Answered
from hcalld.core.errors import HcalldError
from hcallproto.render import render_call


class Trace:
    """Writes a line for every answered call; an observer of sessions."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, answered: Answered) -> None:
        """Render one call.

        Raises:
            HcalldError: the line cannot be written. It ends the daemon: who asked for a
                trace would take the calls in it for all there were.
        """
        try:
            self._stream.write(_line(answered) + "\n")
            self._stream.flush()
        except OSError as error:
            raise HcalldError(
                f"--trace: cannot write: {error.strerror}; make room or give another file, and "
                "start again: guests wait"
            ) from None


def _line(answered: Answered) -> str:
    frame, outcome = answered.frame, answered.outcome
    return render_call(
        answered.hcall,
        frame.registers(),
        level=frame.level,
        buffers=answered.buffers,
        status=outcome.status,
        outputs=dict(outcome.registers),
        reason="; ".join(filter(None, (outcome.why, *answered.notes))),
        duration_ns=answered.duration_ns,
        where=f"{answered.partition} cpu{frame.vcpu} #{frame.seq}",
    )
