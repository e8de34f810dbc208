# SPDX-License-Identifier: Apache-2.0
"""What happened on one connection, in its order, as far as the capture has been read.

Frames are bytes here: what came in is given to the code as it was, and what went out is
equal to what the code sends now, or is not; only then is it looked at closer.
"""

from __future__ import annotations

import collections
from typing import Final, NamedTuple

from hcallproto.capture.entries import AnyEntry, State
from hcallproto.conn.states import CALL_FRAMES
from hcallproto.wire.layout import HEADER
from hcallproto.wire.schema import FrameType

Name = tuple[int, int]
"""A call's: its vCPU and its sequence number."""


class Head(NamedTuple):
    """A frame's header."""

    type: int
    flags: int
    size: int
    vcpu: int
    reset: int
    request: int
    seq: int

    @property
    def call(self) -> Name | None:
        """The call that the frame belongs to."""
        return (self.vcpu, self.seq) if self.type in _CALL_FRAMES else None


_CALL_FRAMES: Final = frozenset(map(int, CALL_FRAMES))
_head: Final = HEADER.unpack


def head_of(data: bytes) -> Head:
    """The header of a frame."""
    return Head._make(_head(data, 0))


class Inbound(NamedTuple):
    """A frame of the guest's side."""

    data: bytes
    time_ns: int
    is_blanked: bool = False
    """Some of its bytes are not shown."""


class Outbound(NamedTuple):
    """A frame of the daemon's."""

    data: bytes
    time_ns: int
    comment: str = ""
    """What the guest was not told."""


class Gap(NamedTuple):
    """Something is missing here: what follows on the connection cannot be replayed."""

    why: str


Event = Inbound | Outbound | AnyEntry | Gap


class Track:
    """One connection.

    Args:
        guest: the partition.
        number: of the connection in the file, from 0.
    """

    def __init__(self, guest: str, number: int) -> None:
        self.guest = guest
        self.number = number
        self.profile: dict[str, str] = {}
        """The attributes, as text."""
        self.has_secrets = False
        """Frames are whole, and all that was answered is here."""
        self.is_continued = False
        """It was there before the capture began, or goes on from an earlier file."""
        self.events: collections.deque[Event] = collections.deque()
        self.is_over = False
        """No more events will come."""
        self.before_begin = 0
        """Bytes of events that were read before it was begun to be played."""
        self.has_begun = False
        self.is_played = False
        """All has been done with its events that could be, and more of them are of no use."""
        self.end = ""
        """Why the connection or the capture ended, if the capture says so."""

    def state(self) -> State | None:
        """The first state among the events that were read."""
        return next((event for event in self.events if isinstance(event, State)), None)

    def has_call(self) -> bool:
        """Whether a call is among them."""
        return any(
            isinstance(event, Inbound) and head_of(event.data).type == FrameType.CALL
            for event in self.events
        )
