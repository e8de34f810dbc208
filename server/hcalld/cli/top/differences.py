# SPDX-License-Identifier: Apache-2.0
"""What happened between two moments of a daemon: calls a second, and how long they took."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from hcalld.control.messages import CallStats, GuestStats, RefusalStats, Stats
from hcalld.core.histogram import Histogram

_SECOND = 1e9


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """Calls of one kind, or of one guest.

    Attributes:
        count: since the daemon began.
        per_second: lately; None: nothing is known of earlier.
        latency: of those that came lately, or of all if nothing is known of earlier.
    """

    count: int
    per_second: float | None
    latency: Histogram


@dataclasses.dataclass(frozen=True, slots=True)
class CallRow:
    """One call of one guest."""

    partition: str
    stats: CallStats
    traffic: Traffic


@dataclasses.dataclass(frozen=True, slots=True)
class GuestRow:
    """One guest."""

    stats: GuestStats
    traffic: Traffic
    calls: tuple[CallRow, ...]


def rows_of(now: Stats, before: Stats | None = None) -> list[GuestRow]:
    """All guests.

    Args:
        now: the daemon's numbers.
        before: the same daemon's earlier ones, if they are known.
    """
    seconds = 0.0 if before is None else (now.uptime_ns - before.uptime_ns) / _SECOND
    # A daemon that was started again counts anew.
    if before is None or seconds <= 0:
        return [_row(guest, None, 0) for guest in now.guests]
    earlier = {guest.partition: guest for guest in before.guests}
    return [_row(guest, earlier.get(guest.partition), seconds) for guest in now.guests]


def _row(guest: GuestStats, before: GuestStats | None, seconds: float) -> GuestRow:
    earlier = {} if before is None else {call.call: call for call in before.calls}
    calls = tuple(
        CallRow(guest.partition, call, _traffic(call, earlier.get(call.call), seconds))
        for call in guest.calls
    )
    return GuestRow(guest, _sum([call.traffic for call in calls], seconds), calls)


def _traffic(now: CallStats, before: CallStats | None, seconds: float) -> Traffic:
    latency = Histogram.of_pairs(now.latency, now.max_ns)
    count = latency.count
    if not seconds:
        return Traffic(count, None, latency)
    if before is not None:
        latency = latency.since(Histogram.of_pairs(before.latency, before.max_ns))
    return Traffic(count, latency.count / seconds, latency)


def _sum(parts: Iterable[Traffic], seconds: float) -> Traffic:
    count, latency = 0, Histogram()
    for part in parts:
        count += part.count
        latency.largest = max(latency.largest, part.latency.largest)
        for bucket, number in part.latency.buckets.items():
            latency.buckets[bucket] = latency.buckets.get(bucket, 0) + number
    return Traffic(count, latency.count / seconds if seconds else None, latency)


def last_refusals(stats: Stats, count: int) -> list[tuple[str, RefusalStats]]:
    """The last refusals of all guests, each with whose it is, the newest first."""
    found = [(guest.partition, refusal) for guest in stats.guests for refusal in guest.refusals]
    found.sort(key=lambda one: one[1].time_ns, reverse=True)
    return found[:count]
