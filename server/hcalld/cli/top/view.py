# SPDX-License-Identifier: Apache-2.0
"""What ``hcalld top`` shows: tables of guests, of calls, and of what was refused last."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Final, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hcalld.cli.top.differences import CallRow, GuestRow, Traffic, last_refusals, rows_of
from hcalld.control.messages import GuestStats, RefusalStats, Stats
from hcallproto.payloads.quoting import printable

FEW: Final = 10
"""Refusals that are shown."""
NARROW: Final = 105
"""Characters in a line, for all columns."""
_RIGHT: Final = frozenset(
    {
        *("vCPUs", "calls", "calls/s", "p50", "p90", "p99", "max", "waiting", "refused", "cpu"),
        *("keystore", "sec/shared/out", "rule", "matched", "met"),
    }
)
"""Columns of numbers."""
_WIDE_ONLY: Final = frozenset({"vCPUs", "TPM", "waiting", "refused", "p90", "max"})
_LONG: Final = frozenset({"returns", "reason", "what"})


def view(
    now: Stats,
    before: Stats | None,
    note: str = "",
    *,
    rows: int | None = None,
    is_narrow: bool = False,
) -> Group:
    """Everything.

    Args:
        now: the daemon's numbers.
        before: its earlier ones, for what happened lately.
        note: a line above all.
        rows: of calls, at most; None: all.
        is_narrow: leave columns out, for a terminal of less than NARROW.
    """
    guests = rows_of(now, before)
    parts: list[RenderableType] = [_head(now, note)]
    if not guests:
        parts.append(Text("no guest has come yet"))
        return Group(*parts)
    parts.append(_guests(guests, is_narrow=is_narrow))
    calls = sorted((call for guest in guests for call in guest.calls), key=_busiest_first)
    parts.append(_calls(calls[:rows], is_narrow=is_narrow))
    if rows is not None and len(calls) > rows:
        parts.append(Text(f"and {len(calls) - rows} calls more", style="dim"))
    if now.faults:
        parts.append(_faults(now))
    refusals = last_refusals(now, FEW)
    if refusals:
        parts.append(_refusals(refusals))
    return Group(*parts)


def _head(now: Stats, note: str) -> Text:
    up = datetime.timedelta(seconds=now.uptime_ns // 10**9)
    text = Text(f"hcalld, up {up}")
    capture = now.capture
    if capture.path is not None:
        text.append(f"; capture {printable(capture.path)}: {capture.frames} frames")
        if capture.dropped:
            text.append(f", {capture.dropped} DROPPED", style="bold red")
    if note:
        text.append(f"\n{printable(note)}", style="bold yellow")
    return text


class _Grid:
    """A table of which a narrow terminal has a part."""

    def __init__(self, title: str, heads: Iterable[str], *, is_narrow: bool) -> None:
        self._kept = [not (is_narrow and head in _WIDE_ONLY) for head in heads]
        self.table = Table(
            title=title, title_justify="left", box=None, pad_edge=False, header_style="bold"
        )
        for head, is_kept in zip(heads, self._kept, strict=True):
            if is_kept:
                justify: Literal["left", "right"] = "right" if head in _RIGHT else "left"
                # What is long takes the room that the others leave.
                is_long = head in _LONG
                self.table.add_column(head, justify=justify, overflow="fold", no_wrap=not is_long)

    def add(self, *cells: str, style: str = "") -> None:
        """A row."""
        # Text, for rich would take brackets in a guest's name for orders.
        shown = [
            Text(printable(cell))
            for cell, is_kept in zip(cells, self._kept, strict=True)
            if is_kept
        ]
        self.table.add_row(*shown, style=style)


def _guests(guests: list[GuestRow], *, is_narrow: bool) -> Table:
    grid = _Grid(
        "\nGuests",
        (
            *("partition", "vCPUs", "calls", "calls/s", "p50", "p99", "waiting", "refused"),
            *("keystore", "TPM", "state", "sec/shared/out"),
        ),
        is_narrow=is_narrow,
    )
    for row in guests:
        stats, traffic = row.stats, row.traffic
        latency = (_time(traffic, 50), _time(traffic, 99))
        counts = (str(traffic.count), _rate(traffic), *latency)
        guest = stats.guest
        if guest is None:
            grid.add(stats.partition, "-", *counts, "-", str(stats.refused), *_gone(), style="dim")
            continue
        grid.add(
            stats.partition,
            str(guest.vcpus),
            *counts,
            str(guest.waiting),
            str(stats.refused),
            _keystore(stats),
            guest.tpm,
            *_secure(stats),
        )
    return grid.table


def _gone() -> tuple[str, ...]:
    return ("-", "-", "gone", "-")


def _keystore(stats: GuestStats) -> str:
    if stats.keystore is None:
        return "-"
    return f"{stats.keystore.used}/{stats.keystore.total}"


def _secure(stats: GuestStats) -> tuple[str, str]:
    assert stats.guest is not None
    pef = stats.guest.pef
    if stats.guest.problem:
        return "?", "-"
    if pef.state == "none":
        return "normal", "-"
    secure = str(pef.secure) if pef.limit is None else f"{pef.secure} of {pef.limit}"
    return pef.state, f"{secure}/{pef.shared}/{pef.out}" if pef.state == "secure" else "-"


def _calls(calls: list[CallRow], *, is_narrow: bool) -> Table:
    grid = _Grid(
        "\nCalls",
        ("partition", "call", "calls", "calls/s", "p50", "p90", "p99", "max", "returns"),
        is_narrow=is_narrow,
    )
    for row in calls:
        traffic = row.traffic
        codes = sorted(row.stats.codes.items(), key=lambda one: -one[1])
        returns = ", ".join(f"{code} {count}" for code, count in codes)
        times = tuple(_time(traffic, percent) for percent in (50, 90, 99))
        most = _duration(row.stats.max_ns)
        counts = (str(traffic.count), _rate(traffic), *times, most)
        grid.add(row.partition, row.stats.call, *counts, returns)
    return grid.table


def _busiest_first(row: CallRow) -> tuple[float, int, str, str]:
    return -(row.traffic.per_second or 0), -row.traffic.count, row.partition, row.stats.call


def _refusals(refusals: list[tuple[str, RefusalStats]]) -> Table:
    grid = _Grid(
        "\nLast refusals", ("time", "partition", "cpu", "call", "code", "reason"), is_narrow=False
    )
    for partition, refused in refusals:
        moment = datetime.datetime.fromtimestamp(refused.time_ns / 1e9).astimezone()
        cells = (partition, str(refused.vcpu), refused.call, refused.code, refused.reason)
        grid.add(f"{moment:%H:%M:%S}", *cells)
    return grid.table


def _faults(now: Stats) -> Table:
    grid = _Grid("\nFaults on purpose", ("rule", "what", "matched", "met"), is_narrow=False)
    for fault in now.faults:
        what = fault.rule.describe()
        cells = (str(fault.number), what, str(fault.matched), str(fault.met))
        grid.add(*cells, style="dim" if fault.spent else "")
    return grid.table


def _rate(traffic: Traffic) -> str:
    if traffic.per_second is None:
        return "-"
    return f"{traffic.per_second:.1f}" if traffic.per_second < 100 else f"{traffic.per_second:.0f}"


def _time(traffic: Traffic, percent: int) -> str:
    return _duration(traffic.latency.percentile(percent)) if traffic.latency.buckets else "-"


def _duration(nanoseconds: int) -> str:
    if nanoseconds < 10_000:
        return f"{nanoseconds / 1000:.1f}us"
    if nanoseconds < 1_000_000:
        return f"{nanoseconds // 1000}us"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1_000_000:.1f}ms"
    return f"{nanoseconds / 1_000_000_000:.2f}s"
