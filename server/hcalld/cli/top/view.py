# SPDX-License-Identifier: Apache-2.0
"""What ``hcalld top`` shows: tables of guests, of calls, and of what was refused last."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hcalld.cli.top.differences import CallRow, GuestRow, Traffic, last_refusals, rows_of
from hcalld.control.messages import GuestStats, RefusalStats, Stats
from hcallproto.payloads.quoting import printable

FEW: Final = 10
"""Refusals that are shown."""
_RIGHT: Final = frozenset(
    {
        *("vCPUs", "calls", "calls/s", "p50", "p90", "p99", "max", "waiting", "refused", "cpu"),
        *("keystore", "secure/shared/out", "rule", "matched", "met"),
    }
)
"""Columns of numbers."""


def view(now: Stats, before: Stats | None, note: str = "", *, rows: int | None = None) -> Group:
    """Everything.

    Args:
        now: the daemon's numbers.
        before: its earlier ones, for what happened lately.
        note: a line above all.
        rows: of calls, at most; None: all.
    """
    guests = rows_of(now, before)
    parts: list[RenderableType] = [_head(now, note)]
    if not guests:
        parts.append(Text("no guest has come yet"))
        return Group(*parts)
    parts.append(_guests(guests))
    calls = sorted((call for guest in guests for call in guest.calls), key=_busiest_first)
    parts.append(_calls(calls[:rows]))
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


def _table(title: str, heads: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, justify="right" if head in _RIGHT else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str, style: str = "") -> None:
    # Text, for rich would take brackets in a guest's name for orders.
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def _guests(guests: list[GuestRow]) -> Table:
    table = _table(
        "\nGuests",
        (
            *("partition", "vCPUs", "calls", "calls/s", "p50", "p99", "waiting", "refused"),
            *("keystore", "TPM", "state", "secure/shared/out"),
        ),
    )
    for row in guests:
        stats, traffic = row.stats, row.traffic
        latency = (_time(traffic, 50), _time(traffic, 99))
        counts = (str(traffic.count), _rate(traffic), *latency)
        guest = stats.guest
        if guest is None:
            _add(
                table, stats.partition, "-", *counts, "-", str(stats.refused), *_gone(), style="dim"
            )
            continue
        _add(
            table,
            stats.partition,
            str(guest.vcpus),
            *counts,
            str(guest.waiting),
            str(stats.refused),
            _keystore(stats),
            guest.tpm,
            *_secure(stats),
        )
    return table


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


def _calls(calls: list[CallRow]) -> Table:
    table = _table(
        "\nCalls",
        ("partition", "call", "calls", "calls/s", "p50", "p90", "p99", "max", "returns"),
    )
    for row in calls:
        traffic = row.traffic
        codes = sorted(row.stats.codes.items(), key=lambda one: -one[1])
        returns = ", ".join(f"{code} {count}" for code, count in codes)
        times = tuple(_time(traffic, percent) for percent in (50, 90, 99))
        most = _duration(row.stats.max_ns)
        counts = (str(traffic.count), _rate(traffic), *times, most)
        _add(table, row.partition, row.stats.call, *counts, returns)
    return table


def _busiest_first(row: CallRow) -> tuple[float, int, str, str]:
    return -(row.traffic.per_second or 0), -row.traffic.count, row.partition, row.stats.call


def _refusals(refusals: list[tuple[str, RefusalStats]]) -> Table:
    table = _table("\nLast refusals", ("time", "partition", "cpu", "call", "code", "reason"))
    for partition, refused in refusals:
        moment = datetime.datetime.fromtimestamp(refused.time_ns / 1e9).astimezone()
        cells = (partition, str(refused.vcpu), refused.call, refused.code, refused.reason)
        _add(table, f"{moment:%H:%M:%S}", *cells)
    return table


def _faults(now: Stats) -> Table:
    table = _table("\nFaults on purpose", ("rule", "what", "matched", "met"))
    for fault in now.faults:
        what = fault.rule.describe()
        cells = (str(fault.number), what, str(fault.matched), str(fault.met))
        _add(table, *cells, style="dim" if fault.spent else "")
    return table


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
