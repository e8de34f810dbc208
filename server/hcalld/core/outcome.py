# SPDX-License-Identifier: Apache-2.0
"""What a handler gives back: the guest's r3, registers and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hcalld.core.errors import HcallError
from hcalld.core.pages import PageRange
from hcallproto.abi.returns import Code
from hcallproto.abi.spec import Hcall
from hcallproto.abi.verdicts import Verdict, verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """Where the caller goes on, if not after its call."""

    nip: int
    msr: int
    """New values of the bits of ``msr_mask``."""
    msr_mask: int


@dataclasses.dataclass(unsafe_hash=True, slots=True)
class Outcome:
    """The result of a call; not to be changed, and not frozen, which costs each call 2 us.

    Args:
        code: r3.
        registers: (register, unsigned 64-bit value) pairs, in rising order.
        writes: (guest real address, bytes) pairs; they travel in the reply and are
            carried out before the vCPU goes on, all or none.
        why: for a refusal, the reason in words (never for the guest).
        result: r3 of a success that gives a number instead of a code.
        zeros: (guest real address, size) pairs, zeroed after the writes, with the reply.
        pages: bits of pages, set after that, with the reply.
        context: where the caller goes on.
        notes: for the trace, beside those of the ``Note`` effect: what is said after the
            model was changed.
        terminate: why the guest must be taken down; "" if it goes on.
    """

    code: Code
    registers: tuple[tuple[int, int], ...] = ()
    writes: tuple[tuple[int, bytes], ...] = dataclasses.field(default=(), repr=False)
    why: str = ""
    result: int | None = None
    zeros: tuple[tuple[int, int], ...] = ()
    pages: tuple[PageRange, ...] = ()
    context: Context | None = None
    notes: Sequence[str] = ()
    terminate: str = ""

    @property
    def status(self) -> int:
        """r3, as a signed 64-bit number."""
        return self.code if self.result is None else self.result

    def verdict(self, hcall: Hcall | None, registers: Sequence[int]) -> Verdict:
        """What r3 says; see ``hcallproto.abi.verdicts``."""
        return verdict(self.status, type(self.code), hcall, registers)


def refusal(hcall: Hcall, error: HcallError) -> Outcome:
    """What a refused call gives: the code, and what is defined in spite of it."""
    registers = dict(hcall.refusal_registers)
    registers.update(error.registers)
    return Outcome(error.code, tuple(sorted(registers.items())), (), error.why)
