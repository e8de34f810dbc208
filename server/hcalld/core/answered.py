# SPDX-License-Identifier: Apache-2.0
"""A call and what became of it, for those who watch: trace, metrics, capture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from hcalld.core.outcome import Outcome
from hcallproto.abi.spec import Hcall
from hcallproto.wire import frames as f


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """One answered call."""

    partition: str
    frame: f.Call
    hcall: Hcall | None
    """None: a number that the table does not know."""
    buffers: Mapping[str, bytes | None]
    """What came with the call, by address argument; None: it was not RAM. May be secret."""
    outcome: Outcome
    notes: tuple[str, ...]
    duration_ns: int
    is_replayed: bool = False
    """The recorded reply of an earlier connection was sent again."""


Observer = Callable[[Answered], None]
"""May raise HcalldError, which ends the daemon: silent loss is worse."""
