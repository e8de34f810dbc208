# SPDX-License-Identifier: Apache-2.0
"""The platform as a command sees it: what the effect ReadPlatform answers.

The bytes hold the platform's keys, and the keys of its guests: whoever keeps them seals them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from hcalld.core.errors import HcallError
from hcalld.domain.sev.identity import Identity, unpack_identity
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import PlatformState, Version


class GuestEntry(msgspec.Struct, array_like=True, frozen=True):
    """One guest, as the platform knows it."""

    handle: int
    policy: int
    asid: int
    vek: bytes
    """The key of its memory."""

    def __repr__(self) -> str:
        return f"GuestEntry(handle={self.handle}, policy={self.policy:#x}, asid={self.asid})"


class PlatformView(msgspec.Struct, array_like=True, frozen=True):
    """All of a platform."""

    state: PlatformState
    version: Version
    es: bool
    encrypted: bool
    strict_mainline: bool
    asids: int
    next_handle: int
    guests: tuple[GuestEntry, ...]
    packed_identity: bytes

    def __repr__(self) -> str:
        return f"PlatformView(state={self.state!r}, version={self.version}, guests={self.guests})"

    @property
    def identity(self) -> Identity:
        """Its keys and certificates."""
        return unpack_identity(self.packed_identity)

    def guest(self, handle: int) -> GuestEntry:
        """The guest with a handle.

        Raises:
            HcallError: INVALID_GUEST.
        """
        for guest in self.guests:
            if guest.handle == handle:
                return guest
        raise HcallError(SevCode.INVALID_GUEST, f"no guest has handle {handle}")

    def free_asid(self) -> int:
        """The lowest ASID that no guest has.

        Raises:
            HcallError: RESOURCE_LIMIT.
        """
        used = {guest.asid for guest in self.guests}
        for asid in range(1, self.asids + 1):
            if asid not in used:
                return asid
        raise HcallError(
            SevCode.RESOURCE_LIMIT, f"all {self.asids} ASIDs are in use; more: asids in the profile"
        )


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(PlatformView)


def pack_view(view: PlatformView) -> bytes:
    """The bytes of a platform."""
    return _ENCODER.encode(view)


def unpack_view(packed: bytes) -> PlatformView:
    """The platform behind ``pack_view``'s bytes."""
    return _DECODER.decode(packed)
