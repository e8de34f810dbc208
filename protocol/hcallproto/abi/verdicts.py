# SPDX-License-Identifier: Apache-2.0
"""What r3 says of a call: done, to be made again, or refused.

Everything that counts, marks or selects refusals asks here, so that all agree.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from hcallproto.abi.returns import AGAIN, Code, SevCode
from hcallproto.abi.spec import Hcall


class Verdict(enum.Enum):
    """What became of an answered call."""

    DONE = "done"
    """Carried out; or it only asked for lengths, and got them."""
    AGAIN = "to be called again"
    REFUSED = "refused"


def is_number(hcall: Hcall | None, status: int) -> bool:
    """Whether r3 is no code, but a number that the call gives when it succeeds."""
    return (
        hcall is not None
        and bool(hcall.result)
        and status >= 0
        and all(one.code != status for one in hcall.codes)
    )


def is_query(hcall: Hcall, registers: Sequence[int]) -> bool:
    """Whether a call only asks for lengths.

    Args:
        hcall: which.
        registers: what it was made with, by number.
    """
    query = hcall.query
    if query is None:
        return False
    return query.is_asked({name: registers[hcall.arg(name).register] for name in query.asks})


def verdict(
    status: int, codes: type[Code], hcall: Hcall | None, registers: Sequence[int]
) -> Verdict:
    """What r3 says.

    Args:
        status: r3, as a signed 64-bit number; no header need name it.
        codes: what it is read with.
        hcall: which call; None: one that is in no table.
        registers: what it was made with, by number.
    """
    if not status or is_number(hcall, status):
        return Verdict.DONE
    if status in AGAIN[codes]:
        return Verdict.AGAIN
    if codes is not SevCode:
        # A number above 0 that no header names is no error.
        return Verdict.REFUSED if status < 0 else Verdict.DONE
    if hcall is not None and hcall.query is not None and status == hcall.query.code:
        return Verdict.DONE if is_query(hcall, registers) else Verdict.REFUSED
    return Verdict.REFUSED
