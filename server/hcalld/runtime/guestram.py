# SPDX-License-Identifier: Apache-2.0
"""Guest RAM through the descriptors that the shim passes (feature SHARED_RAM).

Read with ``pread`` and not mapped: for the sizes that calls use one system call costs
what a page fault does, and a peer that truncates its file gives a short read, where a
mapping would kill the daemon by SIGBUS. Never written: a write behind the translator's
back leaves stale code and dirty bits (docs/wire.rst).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hcalld.core.guestmem import RamMap
from hcallproto.wire.frames import RamRegion
from hcallproto.wire.schema import NO_DESCRIPTOR


class SharedRam:
    """The RAM of one guest: which addresses there are, and a way to read some of them."""

    def __init__(self, regions: Sequence[RamRegion] = (), descriptors: Sequence[int] = ()) -> None:
        """Takes ownership of ``descriptors``."""
        self.map = RamMap(
            ((region.gpa, region.size) for region in regions),
            {region.gpa: region.generation for region in regions},
        )
        self._descriptors = tuple(descriptors)
        self._shared = tuple(r for r in regions if r.fd_index != NO_DESCRIPTOR)

    def shares(self, gpa: int, size: int) -> bool:
        """True if the shim shares all of them: ``read`` may be tried."""
        for region in self._shared:
            offset = gpa - region.gpa
            if offset >= 0 and offset + size <= region.size:
                return True
        return False

    def read(self, gpa: int, size: int) -> bytes | None:
        """The bytes, or None if they are not all in one shared region."""
        for region in self._shared:
            offset = gpa - region.gpa
            if offset >= 0 and offset + size <= region.size:
                fd = self._descriptors[region.fd_index]
                try:
                    data = os.pread(fd, size, region.fd_offset + offset)
                except (OSError, OverflowError):
                    # The peer's file is no file, or its offset no offset.
                    return None
                return data if len(data) == size else None
        return None

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors = ()
        self._shared = ()
