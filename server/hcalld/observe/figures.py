# SPDX-License-Identifier: Apache-2.0
"""The numbers of a running daemon: what each guest called, what it got, and how long that took.

They are kept once; ``hcalld top``, the control socket and the metrics all show these. A
partition keeps its numbers when its guest is gone, until the daemon ends or too many others
have come.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from hcalld.core.histogram import Histogram
from hcalld.core.outcome import Outcome
from hcallproto.abi.returns import Code, H, SevCode, U
from hcallproto.abi.spec import Hcall
from hcallproto.abi.verdicts import Verdict
from hcallproto.wire import frames as f

MAX_PARTITIONS: Final = 256
"""That have figures: a peer may invent names. The one that was the longest gone is forgotten."""
MAX_REFUSALS: Final = 32
"""Of each partition, the last ones."""
MAX_REASON_SIZE: Final = 300
"""Characters of a reason."""
UNKNOWN: Final[Mapping[type[Code], str]] = MappingProxyType(
    {H: "unknown", U: "unknown ultracall", SevCode: "unknown command"}
)
"""The name of all calls that are not served, whatever numbers a guest makes up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A call that was refused."""

    time_ns: int
    """Since the epoch."""
    vcpu: int
    call: str
    code: Code
    reason: str


class CallFigures:
    """One call of one guest.

    Attributes:
        codes: how often it gave which code.
        latency: nanoseconds from the call to its answer.
    """

    __slots__ = ("codes", "latency")

    def __init__(self) -> None:
        self.codes: dict[Code, int] = {}
        self.latency = Histogram()


class GuestFigures:
    """One partition's calls; see core.tally.Tally.

    Args:
        clock: nanoseconds since the epoch.
    """

    __slots__ = ("_clock", "calls", "refusals", "refused_count")

    def __init__(self, clock: Callable[[], int]) -> None:
        self.calls: dict[str, CallFigures] = {}
        """By the call's name."""
        self.refusals: collections.deque[Refused] = collections.deque(maxlen=MAX_REFUSALS)
        self.refused_count = 0
        self._clock = clock

    def answered(
        self, hcall: Hcall | None, frame: f.Call, outcome: Outcome, duration_ns: int
    ) -> None:
        """See Tally."""
        name = UNKNOWN[type(outcome.code)] if hcall is None else hcall.name
        figures = self.calls.get(name)
        if figures is None:
            figures = self.calls[name] = CallFigures()
        code = outcome.code
        codes = figures.codes
        codes[code] = codes.get(code, 0) + 1
        figures.latency.add(duration_ns)
        # Most calls end here, and each pays for what is asked.
        if outcome.status and outcome.verdict(hcall, frame.by_number()) is Verdict.REFUSED:
            reason = outcome.why[:MAX_REASON_SIZE]
            self.refused_count += 1
            self.refusals.append(Refused(self._clock(), frame.vcpu, name, code, reason))


class Figures:
    """All partitions'; see core.tally.Tallies.

    Args:
        is_connected: says whether a partition's guest is connected.
        clock: nanoseconds since the epoch.
    """

    def __init__(
        self,
        is_connected: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._is_connected = is_connected
        self._clock = clock
        self._guests: dict[str, GuestFigures] = {}
        """The one that came last is last."""

    @property
    def guests(self) -> Mapping[str, GuestFigures]:
        """By partition."""
        return self._guests

    def of(self, partition: str) -> GuestFigures:
        """See Tallies."""
        guest = self._guests.pop(partition, None) or GuestFigures(self._clock)
        while len(self._guests) >= MAX_PARTITIONS:
            gone = (name for name in self._guests if not self._is_connected(name))
            del self._guests[next(gone, next(iter(self._guests)))]
        self._guests[partition] = guest
        return guest
