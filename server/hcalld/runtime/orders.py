# SPDX-License-Identifier: Apache-2.0
"""What reaches a connection from outside, not from its guest: from operators and the daemon.

Plain data, so that it can be written down and ordered again; ``Session.carry_out`` does.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class PageOut:
    """These pages of the secure VM, by guest address, shall leave secure memory.

    What the hypervisor takes out by itself it looks for behind the last of them.
    """

    gpas: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Withdraw:
    """These pages may stay, if they are still there."""

    gpas: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Attend:
    """QEMU is asked for an ATTEND."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rest:
    """The models are given up; the next call loads the store anew."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """The connection is ended by the daemon."""

    why: str


Order = PageOut | Withdraw | Attend | Rest | Stop
