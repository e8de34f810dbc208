# SPDX-License-Identifier: Apache-2.0
"""What a command changes about the platform: the effect ChangePlatform's bytes.

A change says what is to be, and is worked out by the command; the platform only checks that it
fits, and keeps it.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Initialized(msgspec.Struct, frozen=True, tag="init"):
    """A VM was initialized for SEV, and the driver has initialized the platform for it."""


class GuestOpened(msgspec.Struct, frozen=True, tag="open"):
    """A guest was launched or begins to be received. It ends with its connection."""

    handle: int
    policy: int
    asid: int
    vek: bytes

    def __repr__(self) -> str:
        return f"GuestOpened(handle={self.handle}, policy={self.policy:#x}, asid={self.asid})"


class IdentityChanged(msgspec.Struct, frozen=True, tag="identity"):
    """Keys, certificates or the owner are others now."""

    packed_identity: bytes

    def __repr__(self) -> str:
        return "IdentityChanged()"


class FactoryReset(msgspec.Struct, frozen=True, tag="reset"):
    """The same, and the platform is shut down."""

    packed_identity: bytes

    def __repr__(self) -> str:
        return "FactoryReset()"


Change = Initialized | GuestOpened | IdentityChanged | FactoryReset
KEPT: Final = (IdentityChanged, FactoryReset)
"""Those that outlive the daemon."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Change]] = msgspec.msgpack.Decoder(Change)


def pack_change(change: Change) -> bytes:
    """The bytes of a change."""
    return _ENCODER.encode(change)


def unpack_change(packed: bytes) -> Change:
    """The change behind ``pack_change``'s bytes."""
    return _DECODER.decode(packed)
