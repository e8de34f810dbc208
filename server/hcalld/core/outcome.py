# SPDX-License-Identifier: Apache-2.0
"""What a handler gives back: the guest's r3, registers and memory."""

from __future__ import annotations

import dataclasses

from hcalld.core.errors import HcallError
from hcallproto.abi.returns import H, U
from hcallproto.abi.spec import Hcall


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call.

    Args:
        code: r3.
        registers: (register, unsigned 64-bit value) pairs, in rising order.
        writes: (guest real address, bytes) pairs; they travel in the reply and are
            carried out before the vCPU goes on, all or none.
        why: for a refusal, the reason in words (never for the guest).
    """

    code: H | U
    registers: tuple[tuple[int, int], ...] = ()
    writes: tuple[tuple[int, bytes], ...] = dataclasses.field(default=(), repr=False)
    why: str = ""


def refusal(hcall: Hcall, error: HcallError) -> Outcome:
    """What a refused call gives: the code, and what is defined in spite of it."""
    registers = dict(hcall.refusal_registers)
    registers.update(error.registers)
    return Outcome(error.code, tuple(sorted(registers.items())), (), error.why)
