# SPDX-License-Identifier: Apache-2.0
"""What may be sent when: the transition tables, nothing else.

Theory of operation. A connection goes through negotiation once and is then ready until
it ends. Both peers are tracked by one machine: a frame's type says who sent it (odd: the
shim, even: the daemon), so the same table serves both roles, and two ``Connection``
objects can be tested against each other. A pair that is not in the table is a breach by
whoever sent the frame; after it the machine is in ERROR for good.

Each call has a machine of its own. The shim and the daemon may see its frames in
different orders where two cross on the wire: CANCEL and REPLY, CANCEL and READ. Both
orders are in the table. While a call is CANCELLING, a REPLY is dropped and a READ or
WRITE is answered NO_CALL, until CANCELLED ends it.

``docs/wire.rst`` shows both tables; they are generated from here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from hcallproto.wire.schema import Feature, FrameType


class Role(enum.Enum):
    """Which side a connection is on."""

    SHIM = 1
    DAEMON = 0

    def sends(self, frame_type: FrameType) -> bool:
        """True if this side sends frames of the type."""
        return frame_type & 1 == self.value


class State(enum.Enum):
    """Of the connection."""

    # By identity, as it compares: Enum's own hashes the name, in Python, with every frame.
    __hash__ = object.__hash__

    CONNECTED = "connected"
    GREETED = "greeted"
    WELCOMED = "welcomed"
    ACCEPTED = "accepted"
    READY = "ready"
    CLOSED = "closed"
    ERROR = "error"


class CallState(enum.Enum):
    """Of one call."""

    __hash__ = object.__hash__  # as above

    NONE = "none"
    LIVE = "live"
    ACCESSING = "accessing"
    CANCELLING = "cancelling"
    CANCELLING_ACCESSING = "cancelling, accessing"


_T = FrameType

CONNECTION: Final[Mapping[tuple[State, FrameType], State]] = {
    (State.CONNECTED, _T.HELLO): State.GREETED,
    (State.GREETED, _T.WELCOME): State.WELCOMED,
    (State.WELCOMED, _T.ACCEPT): State.ACCEPTED,
    (State.ACCEPTED, _T.RAM): State.READY,
    (State.READY, _T.RAM): State.READY,
    (State.READY, _T.ANNOUNCE): State.READY,
    (State.READY, _T.ACCEPT): State.READY,
    (State.READY, _T.CALL): State.READY,
    (State.READY, _T.REPLY): State.READY,
    (State.READY, _T.CANCEL): State.READY,
    (State.READY, _T.CANCELLED): State.READY,
    (State.READY, _T.READ): State.READY,
    (State.READY, _T.READ_REPLY): State.READY,
    (State.READY, _T.WRITE): State.READY,
    (State.READY, _T.WRITE_REPLY): State.READY,
    (State.READY, _T.PAGES): State.READY,
    (State.READY, _T.PAGES_REPLY): State.READY,
    (State.READY, _T.EVENT): State.READY,
    (State.READY, _T.EVENT_ACK): State.READY,
    (State.READY, _T.CONTROL): State.READY,
    (State.CONNECTED, _T.GOODBYE): State.CLOSED,
    (State.GREETED, _T.GOODBYE): State.CLOSED,
    (State.WELCOMED, _T.GOODBYE): State.CLOSED,
    (State.ACCEPTED, _T.GOODBYE): State.CLOSED,
    (State.READY, _T.GOODBYE): State.CLOSED,
    (State.GREETED, _T.SHIM_GOODBYE): State.CLOSED,
    (State.WELCOMED, _T.SHIM_GOODBYE): State.CLOSED,
    (State.ACCEPTED, _T.SHIM_GOODBYE): State.CLOSED,
    (State.READY, _T.SHIM_GOODBYE): State.CLOSED,
}
"""(state, frame type) to the state after it."""

CALL: Final[Mapping[tuple[CallState, FrameType], CallState]] = {
    (CallState.NONE, _T.CALL): CallState.LIVE,
    (CallState.LIVE, _T.REPLY): CallState.NONE,
    (CallState.LIVE, _T.READ): CallState.ACCESSING,
    (CallState.LIVE, _T.WRITE): CallState.ACCESSING,
    (CallState.LIVE, _T.PAGES): CallState.ACCESSING,
    (CallState.ACCESSING, _T.READ_REPLY): CallState.LIVE,
    (CallState.ACCESSING, _T.WRITE_REPLY): CallState.LIVE,
    (CallState.ACCESSING, _T.PAGES_REPLY): CallState.LIVE,
    (CallState.NONE, _T.CANCEL): CallState.CANCELLING,
    (CallState.LIVE, _T.CANCEL): CallState.CANCELLING,
    (CallState.ACCESSING, _T.CANCEL): CallState.CANCELLING_ACCESSING,
    (CallState.CANCELLING, _T.REPLY): CallState.CANCELLING,
    (CallState.CANCELLING, _T.READ): CallState.CANCELLING_ACCESSING,
    (CallState.CANCELLING, _T.WRITE): CallState.CANCELLING_ACCESSING,
    (CallState.CANCELLING, _T.PAGES): CallState.CANCELLING_ACCESSING,
    (CallState.CANCELLING_ACCESSING, _T.READ_REPLY): CallState.CANCELLING,
    (CallState.CANCELLING_ACCESSING, _T.WRITE_REPLY): CallState.CANCELLING,
    (CallState.CANCELLING_ACCESSING, _T.PAGES_REPLY): CallState.CANCELLING,
    (CallState.CANCELLING, _T.CANCELLED): CallState.NONE,
}
"""(state, frame type) to the state after it, for the call that the frame names."""

CALL_FRAMES: Final = frozenset(frame_type for _, frame_type in CALL)
"""Frame types that belong to a call."""

FRAME_FEATURES: Final[Mapping[FrameType, Feature]] = {
    _T.PAGES: Feature.PAGE_STATES,
    _T.PAGES_REPLY: Feature.PAGE_STATES,
}
"""Frame types that need a feature in force."""

MACHINE_FRAMES: Final = frozenset({_T.EVENT, _T.EVENT_ACK})
"""Frame types of machines: none comes with COMMANDS in force."""
