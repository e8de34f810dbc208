# SPDX-License-Identifier: Apache-2.0
"""The session of a partition with its TPM: its states, and what leads from one to another.

The TPM itself keeps what commands do, so there is nothing to store.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from hcalld.core.records import Change, Record
from hcalld.domain.attributes import PartitionAttributes


class SessionState(enum.Enum):
    """Of a partition's session."""

    CLOSED = "closed"
    OPEN = "open"
    STALE = "stale"
    """Closed for the guest; what it left in the TPM has still to be freed."""


class SessionEvent(enum.Enum):
    """What happens to a session."""

    OPENED = "the TPM was reached for the first EXECUTE"
    FAILED = "a command had no whole response, or was given up"
    CLOSE = "CLOSE_SESSION"
    RESET = "a new run of the machine"
    FREED = "what the session left is freed"


_S = SessionState
_E = SessionEvent

TRANSITIONS: Final[dict[tuple[SessionState, SessionEvent], SessionState]] = {
    (_S.CLOSED, _E.OPENED): _S.OPEN,
    # After a daemon that was restarted the TPM may hold what the guest loaded before.
    (_S.CLOSED, _E.CLOSE): _S.STALE,
    (_S.CLOSED, _E.RESET): _S.CLOSED,
    (_S.CLOSED, _E.FAILED): _S.CLOSED,
    (_S.OPEN, _E.FAILED): _S.STALE,
    (_S.OPEN, _E.CLOSE): _S.STALE,
    (_S.OPEN, _E.RESET): _S.STALE,
    (_S.STALE, _E.FAILED): _S.STALE,
    (_S.STALE, _E.CLOSE): _S.STALE,
    (_S.STALE, _E.RESET): _S.STALE,
    (_S.STALE, _E.FREED): _S.CLOSED,
}
"""What is not here does not happen: EXECUTE frees what is stale before it opens."""


class TpmModel:
    """The family's model: nothing."""

    def __init__(self, attributes: PartitionAttributes, records: Iterable[Record]) -> None:
        """See ``Served.build``."""

    def take_changes(self) -> list[Change]:
        """See Model."""
        return []
