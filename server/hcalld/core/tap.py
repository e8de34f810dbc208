# SPDX-License-Identifier: Apache-2.0
"""What a connection tells those who keep its frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hcallproto.capture.entries import AnyEntry
from hcallproto.wire import frames as f

NOW = -1
"""``at`` of an entry that is told: whoever keeps it knows which frame is next."""


class Tap(Protocol):
    """One connection's frames, as they pass. Never waits, and never raises."""

    keeps_secrets: bool
    """It wants to be told of what happened beside frames."""

    def received(self, frame: f.Frame, data: bytes) -> None:
        """A frame of the guest's side has come.

        Args:
            frame: what it says.
            data: its bytes.
        """

    def sent(self, frame: f.Frame, data: bytes, why: str) -> None:
        """A frame is on its way to the guest's side.

        Args:
            frame: what it says.
            data: its bytes.
            why: what the guest is not told: why a call was refused.
        """

    def happened(self, entry: AnyEntry) -> None:
        """Something else happened, after the last frame and before the next; for its secrets.

        Args:
            entry: what, ``at`` NOW.
        """

    def closed(self, why: str) -> None:
        """The connection has ended."""


class Taps(Protocol):
    """Where connections' frames are kept."""

    def tap(self, partition: str, profile: Mapping[str, str], *, is_continued: bool = False) -> Tap:
        """What a connection tells of its frames.

        Args:
            partition: whose it is.
            profile: the partition's attributes as text, without secrets.
            is_continued: the connection was there before.
        """
