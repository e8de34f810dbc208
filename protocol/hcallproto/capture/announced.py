# SPDX-License-Identifier: Apache-2.0
"""Which of a call's buffers come with it: a CALL numbers them as they were announced."""

from __future__ import annotations

from typing import Final

from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

_MAX_CALLS: Final = 4 * s.MAX_CALLS


class Announced:
    """The announcements of one connection.

    One holds from the next reset on, and a call may have been made before it: what was
    announced before holds too. Of a call that was announced with other buffers than before
    it is not known which ones come with it.
    """

    def __init__(self) -> None:
        self._registers: dict[tuple[int, int], tuple[int, ...]] = {}
        """By number and level."""

    def take(self, announcement: f.Announcement) -> None:
        """The daemon announces calls."""
        if len(self._registers) + len(announcement.calls) > _MAX_CALLS:
            self._registers.clear()
        for spec in announcement.calls:
            call = spec.number, spec.level
            registers = tuple(one.address_register for one in spec.buffers)
            if self._registers.setdefault(call, registers) != registers:
                self._registers[call] = ()

    def registers(self, number: int, level: int) -> tuple[int, ...]:
        """The address registers of the buffers that come with a call, in order."""
        return self._registers.get((number, level), ())
