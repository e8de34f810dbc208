# SPDX-License-Identifier: Apache-2.0
"""Which pages of a secure VM others may see, and which are not there: what QEMU is told.

QEMU holds two bits for each 4 KiB of RAM, set by replies or in the middle of a call. A
guest's access to a paged-out page, or a device's to an unshared one, is QEMU's to stop.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final, NamedTuple

from hcalld.core.effects import Effect

STATE_SHIFT: Final = 12
STATE_SIZE: Final = 1 << STATE_SHIFT
"""The page that has a state of its own: any guest's page is a multiple of it."""


class PageBits(enum.IntFlag):
    """What QEMU knows of a page. PAGED_OUT goes with UNSHARED."""

    NONE = 0
    """Shared, or of a VM that is not secure."""
    UNSHARED = 1
    PAGED_OUT = 2
    OUT = 3
    """Both: a paged-out page is nobody's to see."""


class PageRange(NamedTuple):
    """Pages and the bits that they are to have."""

    gpa: int
    size: int
    state: PageBits


@dataclasses.dataclass(frozen=True, slots=True)
class SetPages(Effect[None]):
    """Give pages their bits now, not with the reply.

    When it is answered no vCPU holds a translation that says otherwise. Raises
    GuestMemoryError in the handler.
    """

    ranges: tuple[PageRange, ...]
