# SPDX-License-Identifier: Apache-2.0
"""Writes what was gathered as one page that needs nothing else.

What a guest can choose is in the page as text, which jinja2 escapes, or in a JSON block that
no tag can end. Should that ever fail, the page's own policy lets no script run but the one whose
digest it names, and nothing be fetched.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any, Final

import jinja2
from markupsafe import Markup

from hcalld.core.histogram import Histogram, bounds_of
from hcalld.report.gather import SHIM, UNKNOWN, CallSummary, Connection, Gathered
from hcalld.report.memory import Memory
from hcalld.report.timeline import OTHERS, Bar
from hcallproto.abi.registry import FAMILIES
from hcallproto.payloads.quoting import printable
from hcallproto.wire import schema as s

FAMILY_TITLES: Final = {
    **{family.name: family.title for family in FAMILIES},
    SHIM: "QEMU's own calls",
    UNKNOWN: "calls that no table knows",
}
"""In the order of their colours."""
PERCENTILES: Final = (50, 90, 99)
CHART_WIDTH: Final = 180
CHART_HEIGHT: Final = 28
MAX_BAR_WIDTH: Final = 9
_PARTS_SHOWN: Final = 4
"""Bars of a power of two."""
MAX_TABLE_VCPUS: Final = 16
MAX_PLAIN: Final = 700
"""Characters of a text that a file has."""


def render(
    gathered: Gathered, *, name: str, made_by: str, size: int | None = None
) -> Iterator[str]:
    """The page, in pieces.

    Args:
        gathered: what it shows.
        name: of the capture.
        made_by: which program makes the page.
        size: of the capture, in bytes, if it is known.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hcalld.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": _plain,
        "moment": moment,
        "duration": duration,
        "count": lambda number: f"{number:,}",
    }
    style, script = _file("style.css"), _file("script.js")
    return environment.get_template("report.html").generate(
        g=gathered,
        name=name,
        made_by=made_by,
        size=size,
        style=Markup(style),  # a file of ours
        script=Markup(script),
        policy=policy(style, script),
        data=Markup(json_block(_data(gathered))),  # no tag can end it
        span_ns=0 if gathered.first_ns is None else gathered.last_ns - gathered.first_ns,
        calls=sorted(gathered.calls.values(), key=lambda call: (-call.count, call.name)),
        families=list(FAMILY_TITLES),
        titles=FAMILY_TITLES,
        chart=chart,
        chart_size=(CHART_WIDTH, CHART_HEIGHT),
        percentiles=PERCENTILES,
        refusals=sorted(gathered.refusals.values(), key=lambda one: (-one.count, one.first_ns)),
        vcpus=_vcpus,
        features=_features,
        connections=[gathered.connections[key] for key in sorted(gathered.connections)],
        secure={guest: one for guest, one in gathered.memory.items() if one.is_secure},
    )


def _file(name: str) -> str:
    return resources.files("hcalld.report").joinpath("page", name).read_text("utf-8")


def policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {digest(script)}",
            f"style-src {digest(style)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def json_block(data: object) -> str:
    """JSON that can stand in a script element: it has no ``<``, nor anything but ASCII."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# -- the script's data --------------------------------------------------------------------------


def _data(gathered: Gathered) -> dict[str, Any]:
    """Times are nanoseconds since the first packet; they are exact to 2^53."""
    first = gathered.first_ns or 0
    names = list(gathered.calls)
    numbers = {name: number for number, name in enumerate(names)}
    families = list(FAMILY_TITLES)
    return {
        "start_ms": first / 1e6,
        "span": max(1, gathered.last_ns - first),
        "families": families,
        "names": [_plain(name) for name in names],
        "family_of": [families.index(gathered.calls[name].family) for name in names],
        "lanes": [
            {
                "guest": _plain(lane[0]),
                "vcpu": vcpu_name(lane),
                "bars": [_bar(bar, first, numbers) for bar in sorted(bars, key=_start)],
            }
            for lane, bars in sorted(gathered.timeline.lanes.items())
        ],
        "marks": [
            [mark.time_ns - first, _plain(mark.guest), _plain(mark.text)] for mark in gathered.marks
        ],
        "memory": [
            {"guest": _plain(guest), "points": _points(memory, first)}
            for guest, memory in gathered.memory.items()
            if memory.is_secure
        ],
    }


def _start(bar: Bar) -> int:
    return bar.start


def _bar(bar: Bar, first: int, numbers: dict[str, int]) -> list[Any]:
    """Start, end, call, kind, count, refused; then what is to be said of it."""
    head = [bar.start - first, bar.end - first, numbers[bar.most], int(bar.kind), bar.count]
    if bar.count == 1:
        return [*head, bar.refused, bar.text]
    parts = sorted(bar.names.items(), key=lambda one: (-one[1], one[0]))
    return [*head, bar.refused, [[numbers[name], count] for name, count in parts]]


def _points(memory: Memory, first: int) -> list[list[int]]:
    return [[point.time_ns - first, *point[1:]] for point in memory.points]


def vcpu_name(lane: tuple[str, int]) -> str:
    """A lane's virtual CPU, for people."""
    if lane == OTHERS:
        return "all other vCPUs"
    return "QEMU" if lane[1] == s.MACHINE_VCPU else f"cpu{lane[1]}"


def _vcpus(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    shown = [vcpu_name(("", number)).removeprefix("cpu") for number in found[:MAX_TABLE_VCPUS]]
    return ", ".join(shown) + (", …" if len(found) > MAX_TABLE_VCPUS else "")


def _features(connection: Connection) -> str:
    if connection.hello is None:
        return ""
    features = connection.hello.features
    return ", ".join(sorted(str(one.name) for one in s.Feature if one in features)) or "none"


# -- charts ---------------------------------------------------------------------------------------


def chart(call: CallSummary) -> list[dict[str, str]]:
    """The bars of a call's histogram: geometry, and what each says."""
    bins = _bins(call.latency)
    if not bins:
        return []
    most = max(count for _, _, count in bins)
    width = min(CHART_WIDTH / len(bins), MAX_BAR_WIDTH)
    found = []
    for place, (low, end, count) in enumerate(bins):
        height = 0.0 if not count else max(1.5, CHART_HEIGHT * count / most)
        found.append(
            {
                "x": f"{place * width:.2f}",
                "y": f"{CHART_HEIGHT - height:.2f}",
                "width": f"{max(1.0, width - 1):.2f}",
                "height": f"{height:.2f}",
                "text": f"{duration(low)} to {duration(end)}: {count:,}",
            }
        )
    return found


def _bins(latency: Histogram) -> list[tuple[int, int, int]]:
    """(least, least beyond, how many) of ranges without a gap, four to a power of two."""
    if not latency.buckets:
        return []
    counts: dict[int, int] = {}
    for bucket, number in latency.buckets.items():
        counts[_bin_of(bounds_of(bucket)[0])] = (
            counts.get(_bin_of(bounds_of(bucket)[0]), 0) + number
        )
    return [
        (_bin_start(one), _bin_start(one + 1), counts.get(one, 0))
        for one in range(min(counts), max(counts) + 1)
    ]


def _bin_of(value: int) -> int:
    if value < _PARTS_SHOWN:
        return 0
    shift = value.bit_length() - _PARTS_SHOWN.bit_length()
    return shift * _PARTS_SHOWN + (value >> shift) - _PARTS_SHOWN + 1


def _bin_start(number: int) -> int:
    if number == 0:
        return 0
    shift, part = divmod(number - 1, _PARTS_SHOWN)
    return (_PARTS_SHOWN + part) << shift


def _plain(text: str) -> str:
    """A text of somebody else's: no character steers anything, and it is not endless."""
    return printable(text[:MAX_PLAIN]) + ("…" if len(text) > MAX_PLAIN else "")


# -- words ----------------------------------------------------------------------------------------


def moment(time_ns: int) -> str:
    """A time, in UTC; a file may say any."""
    try:
        when = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"
    return f"{when:%Y-%m-%d %H:%M:%S}.{time_ns % 10**9 // 1000:06}"


def duration(nanoseconds: int) -> str:
    """``63 µs``, ``1.3 ms``, ``2.50 s``."""
    if nanoseconds < 1000:
        return f"{nanoseconds} ns"
    if nanoseconds < 10_000:
        return f"{nanoseconds / 1000:.1f} µs"
    if nanoseconds < 1_000_000:
        return f"{nanoseconds // 1000} µs"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1_000_000:.1f} ms"
    return f"{nanoseconds / 1_000_000_000:.2f} s"
