# SPDX-License-Identifier: Apache-2.0
"""The measurement of a launch (55766 command LAUNCH_MEASURE)."""

from __future__ import annotations

import functools
from typing import Final

from hcalld.core.secret import Secret
from hcalld.crypto.sev.kdf import mac
from hcallproto.payloads.sev import Api, PacketContext, Version

BOUND_SINCE: Final = Api(0, 17)
"""Since then a measurement names the firmware, and a secret its measurement."""


def measure(tik: Secret, version: Version, policy: int, digest: bytes, mnonce: bytes) -> bytes:
    """The 32 bytes that prove a launch to whoever knows the TIK.

    Args:
        tik: transport integrity key.
        version: the platform's; before API 0.17 it is not covered.
        policy: the guest's.
        digest: SHA-256 of what was launched.
        mnonce: the platform's nonce.
    """
    return mac(tik, covered(version, policy, digest, mnonce))


def covered(version: Version, policy: int, digest: bytes, mnonce: bytes) -> bytes:
    """What a measurement is the MAC of; arguments as for ``measure``."""
    return _head(version, policy) + digest + mnonce


@functools.lru_cache(maxsize=64)
def _head(version: Version, policy: int) -> bytes:
    """What of a measurement is the same for many launches."""
    covered = policy.to_bytes(4, "little")
    if version.api < BOUND_SINCE:
        return covered
    return bytes((PacketContext.MEASURE, *version)) + covered
