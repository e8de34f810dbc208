# SPDX-License-Identifier: Apache-2.0
"""Which calls of a capture a live daemon can be asked again, and which it cannot."""

from __future__ import annotations

from hcalld.replay.differences import call_name
from hcalld.replay.errors import ReplayError
from hcallproto.abi.families import tpm
from hcallproto.abi.registry import find
from hcallproto.abi.spec import Buffer, Direction, Hcall, Level
from hcallproto.wire import frames as f
from hcallproto.wire.schema import LEVEL_SHIM


def why_not_made(call: f.Call, *, is_blanked: bool) -> str:
    """Why a call is not made, because nothing could be said of its answer; "" if it is.

    Args:
        call: as the capture has it.
        is_blanked: the capture has no secrets.

    Raises:
        ReplayError: nor of all that follows.
    """
    hcall = find(call.number, call.level)
    brought = _brought(hcall)
    if any(one.fresh for one in brought):
        return "made for the captured run"
    if not is_blanked:
        return ""
    if call.level == Level.COMMAND and any(one.secret for one in brought):
        raise ReplayError(
            f"{call_name(call)}: what is done with a guest of SEV hangs on its memory, and the "
            "capture has none of it; capture with --capture-secrets, and play that"
        )
    if call.level in (Level.SC2, LEVEL_SHIM):
        raise ReplayError(
            f"{call_name(call)}: a secure VM lives off its memory, and the capture has none of "
            "it; capture with --capture-secrets, and play that with 'hcalld replay code'"
        )
    if hcall is tpm.TPM_COMM and call.by_number()[4] == tpm.Operation.EXECUTE:
        return "its request is blanked"
    return ""


def check_keys(call: f.Call, captured: f.Reply, live: f.Reply) -> None:
    """See that the daemon has the keys for which what a call brings was made.

    Raises:
        ReplayError: it has not.
    """
    hcall = find(call.number, call.level)
    if hcall is not None and not captured.status and live.status == hcall.foreign_code:
        raise ReplayError(
            f"{call_name(call)}: what it brings was made for the captured daemon's keys, and this "
            "one has others; give it a copy of that one's state directory, or play the capture "
            "with 'hcalld replay code'"
        )


def _brought(hcall: Hcall | None) -> list[Buffer]:
    """The buffers that a call brings."""
    buffers = () if hcall is None else hcall.buffers
    return [buffer for buffer in buffers if buffer.direction is Direction.IN]
