# SPDX-License-Identifier: Apache-2.0
"""QEMU's processor models that have SEV, and the signature that each shows a guest.

A guest's SEV-ES state after a reset holds the signature in RDX, so a measurement depends on it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from hcalld.guestowner.errors import GuestOwnerError


class CpuModel(NamedTuple):
    """What CPUID 1 says in EAX, taken apart."""

    family: int
    model: int
    stepping: int

    @property
    def signature(self) -> int:
        """EAX of CPUID 1 (AMD 25481): families above 15 and models above 15 go on in others' bits.

        Raises:
            GuestOwnerError: a number does not fit.
        """
        for name, limit in (("family", 0x10E), ("model", 0xFF), ("stepping", 0xF)):
            if not 0 <= getattr(self, name) <= limit:
                raise GuestOwnerError(
                    f"a processor's {name} {getattr(self, name)}: expected 0 to {limit}"
                )
        low, high = min(self.family, 0xF), max(self.family - 0xF, 0)
        return (
            high << 20
            | (self.model >> 4) << 16
            | low << 8
            | (self.model & 0xF) << 4
            | self.stepping
        )


MODELS: Final = {
    "EPYC": CpuModel(23, 1, 2),
    "EPYC-Rome": CpuModel(23, 49, 0),
    "EPYC-Milan": CpuModel(25, 1, 1),
    "EPYC-Genoa": CpuModel(25, 17, 0),
    "EPYC-Turin": CpuModel(26, 0, 0),
}
"""By QEMU's name (target/i386/cpu.c); a version such as -v2 changes no signature."""

_ALIASES: Final = {"EPYC-IBPB": "EPYC"}


def named(name: str) -> CpuModel:
    """A model by QEMU's name, with a version or without.

    Raises:
        GuestOwnerError: it is not known.
    """
    base = re.sub(r"-v[0-9]+$", "", name)
    found = MODELS.get(_ALIASES.get(base, base))
    if found is None:
        raise GuestOwnerError(
            f"the processor type {name} is not known; expected {', '.join(MODELS)}, with a version "
            "such as -v2 or without; give another one's --vcpu-family, --vcpu-model and "
            "--vcpu-stepping"
        )
    return found
