# SPDX-License-Identifier: Apache-2.0
"""The page of a real guest's capture, in a browser: what it shows is what the capture has."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import ImageColor
from tests.e2e.browser import Browser, Color, browser
from tests.e2e.daemon import run_hcalld
from tests.e2e.lab import Lab
from tests.e2e.patience import wait_until
from tests.e2e.secure import SecureLab
from tests.e2e.stubwords import KEYSTORE
from tests.unit.hcalld.report.test_page import HOSTILE, hostile
from tests.unit.hcallproto.capture.sample import Capture, call

from hcalld.report.gather import MAX_REFUSALS
from hcalld.report.timeline import MAX_BARS
from hcallproto.abi.families import pks
from hcallproto.wire import frames as f

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

ENOUGH: Final = 8
"""Calls that are looked at."""
RELATIVE_ERROR: Final = 1 / 32
"""Of a percentile that is told from buckets."""

Call = dict[str, Any]


@pytest.fixture
def page(lab: Lab) -> Iterator[Browser]:
    """A browser."""
    with browser(lab.require, lab.artifacts) as opened:
        yield opened


def report(path: Path) -> Path:
    done = run_hcalld("report", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    return path.with_suffix(".html")


def decoded(path: Path) -> list[Call]:
    """The calls of a capture, as ``hcalld decode`` reads them."""
    done = run_hcalld("decode", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def capture(lab: Lab) -> Path:
    """A capture of the stub's calls to the keystore."""
    path = lab.artifacts / "capture.pcapng"
    daemon = lab.daemon("--capture", str(path))
    lab.stub(KEYSTORE, daemon, smp=2).report().must_pass("pks_object")
    daemon.terminate()
    return path


def bars_of(page: Browser, calls: list[Call]) -> tuple[list[Any], int]:
    """All bars, and when the time began that they are counted from, in nanoseconds."""
    script = "return JSON.parse(data.textContent).lanes.flatMap((lane) => lane.bars)"
    bars: list[Any] = page.run(script)
    return bars, min(one["time_ns"] for one in calls) - min(bar[0] for bar in bars)


class Plot:
    """The timeline: where a call's bar is to be, by the axis that it shows."""

    def __init__(self, page: Browser, calls: list[Call], first_ns: int) -> None:
        self._page = page
        self._first_ns = first_ns
        self._lanes = sorted({(one["guest"], one["vcpu"]) for one in calls})
        dataset = page.run("return Object.assign({}, document.getElementById('lanes').dataset)")
        self._set = {name: float(value) for name, value in dataset.items()}
        self.width: float = page.run("return document.getElementById('lanes').clientWidth")

    def x(self, time_ns: int) -> float:
        """Of a time."""
        at = self._set
        part = (time_ns - self._first_ns - at["from"]) / (at["to"] - at["from"])
        return at["gutter"] + part * (self.width - at["gutter"])

    def y(self, one: Call) -> float:
        """Of the lower part of a call's lane, where no mark is."""
        number = self._lanes.index((one["guest"], one["vcpu"]))
        at = self._set
        return at["axis"] + number * (at["lane"] + at["gap"]) + at["gap"] + at["lane"] * 0.75

    def has(self, x: float) -> bool:
        """It is a place in the plot, and not at its edge."""
        return self._set["gutter"] + 5 < x < self.width - 5

    def pixel(self, x: float, y: float) -> Color:
        """Of the canvas."""
        found = self._page.run(
            "return [...document.getElementById('lanes').getContext('2d')"
            ".getImageData(arguments[0], arguments[1], 1, 1).data]",
            int(x),
            int(y),
        )
        return found[0], found[1], found[2]


def color(page: Browser, name: str) -> Color:
    """One of the page's colours."""
    text = page.run(
        "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])", name
    )
    red, green, blue, *_ = ImageColor.getrgb(text.strip())
    return red, green, blue


def spaced(calls: list[Call], plot: Plot, least: float) -> list[Call]:
    """Calls in view whose bars stand alone: nothing else of their lane is so near."""
    found = []
    last: dict[int, float] = {}
    """Where the bars of each vCPU end, so far."""
    alone: dict[int, Call] = {}
    for one in sorted(calls, key=lambda one: int(one["time_ns"])):
        vcpu, x = one["vcpu"], plot.x(one["time_ns"])
        if vcpu in alone and x > last[vcpu] + least:
            found.append(alone[vcpu])
        alone.pop(vcpu, None)
        end = plot.x(one["time_ns"] + one["duration_ns"])
        if x > last.get(vcpu, 0) + least and plot.has(x) and plot.has(end):
            alone[vcpu] = one
        last[vcpu] = max(last.get(vcpu, 0), end)
    return found


def zoomed(page: Browser, calls: list[Call], first_ns: int, least: float) -> Plot:
    """Turns the wheel over a refused call until enough calls stand alone."""
    refused = [one for one in calls if one["status"] < 0]
    target = refused[len(refused) // 2]
    plot = Plot(page, calls, first_ns)
    for _ in range(40):
        if len(spaced(calls, plot, least)) >= ENOUGH:
            return plot
        page.redrawn(lambda: page.turn_wheel("#lanes", plot.x(target["time_ns"]), -500))  # noqa: B023
        plot = Plot(page, calls, first_ns)
    raise AssertionError("the wheel does not zoom")


def test_a_report_has_the_numbers_of_the_capture(page: Browser, capture: Path) -> None:
    calls = decoded(capture)
    page.open(report(capture))
    counts = collections.Counter(one["call"] for one in calls)
    shown = {row.get_attribute("data-call"): row for row in page.all("#calls tbody tr[data-call]")}
    assert set(shown) == {one["call"] or f"hcall 0x{one['number']:x}" for one in calls}
    for name, count in counts.items():
        if name is None:
            continue
        cells = page.run(
            "const row = arguments[0]; return {"
            "count: row.querySelector('td[data-count]').dataset.count,"
            "codes: Object.fromEntries([...row.querySelectorAll('.code')].map("
            "  (one) => [one.dataset.code, Number(one.dataset.count)])),"
            "percentiles: Object.fromEntries([...row.querySelectorAll('[data-percentile]')].map("
            "  (one) => [one.dataset.percentile, Number(one.dataset.ns)])),"
            "most: Number(row.querySelector('[data-max]').dataset.max),"
            "bars: [...row.querySelectorAll('rect title')].map((one) => one.textContent)}",
            shown[name],
        )
        mine = [one for one in calls if one["call"] == name]
        assert int(cells["count"]) == count
        assert cells["codes"] == collections.Counter(one["code"] for one in mine)
        times = sorted(one["duration_ns"] for one in mine)
        assert cells["most"] == times[-1]
        for percent, told in cells["percentiles"].items():
            exact = times[math.ceil(count * int(percent) / 100) - 1]
            assert abs(told - exact) <= exact * RELATIVE_ERROR
        assert sum(int(bar.rpartition(": ")[2].replace(",", "")) for bar in cells["bars"]) == count
    refused = [one for one in calls if one["status"] < 0]
    assert page.one("#refused-count").text == f"{len(refused):,}"
    assert page.one("#call-count").text == f"{len(calls):,}"
    groups = collections.Counter(
        (one["call"] or f"hcall 0x{one['number']:x}", one["code"], one.get("reason", "\u2013"))
        for one in refused
    )
    rows = page.run(
        "return [...document.querySelectorAll('#refusals tbody tr')].map((row) =>"
        " [...row.cells].map((cell) => cell.textContent))"
    )
    assert len(rows) == min(MAX_REFUSALS, len(groups))
    for times, _, name, code, reason, *_ in rows:
        assert groups[name, code, reason] == int(times.replace(",", ""))
    assert page.complaints() == []
    fetched = "return performance.getEntriesByType('resource').map((one) => one.name)"
    assert page.run(fetched) == []


def test_bars_are_where_the_calls_are(page: Browser, capture: Path, lab: Lab) -> None:
    calls = decoded(capture)
    page.open(report(capture))
    bars, first_ns = bars_of(page, calls)
    assert sorted(bar[0] + first_ns for bar in bars) == sorted(one["time_ns"] for one in calls)
    plot = zoomed(page, calls, first_ns, 5)
    family, back = color(page, "--f0"), color(page, "--panel")
    seen = 0
    alone = spaced(calls, plot, 5)
    for one in alone[:40]:
        x, y = plot.x(one["time_ns"]), plot.y(one)
        assert plot.pixel(round(x), y) == family, one
        assert plot.pixel(round(x) - 2, y) in (back, color(page, "--line")), one
        seen += 1
    assert seen >= ENOUGH
    image = page.screenshot(lab.artifacts / "report.png")
    assert len(image.getcolors(1 << 24) or ()) > 50, "not blank"
    box = page.place("#lanes")
    one = alone[0]
    at = (int(box[0] + round(plot.x(one["time_ns"]))), int(box[1] + plot.y(one)))
    assert image.getpixel(at) == family
    page.redrawn(lambda: page.prefers("dark"))
    assert color(page, "--panel") != back
    assert plot.pixel(round(plot.x(one["time_ns"])), plot.y(one)) == color(page, "--f0") != family


def test_a_call_is_told_of_where_the_mouse_is(page: Browser, capture: Path) -> None:
    calls = decoded(capture)
    page.open(report(capture))
    _, first_ns = bars_of(page, calls)
    whole = Plot(page, calls, first_ns)
    plot = zoomed(page, calls, first_ns, 10)
    alone = spaced(calls, plot, 10)
    refused = [one for one in alone if one["status"] < 0] or alone
    for one in (alone[0], refused[0], alone[-1]):
        page.point("#lanes", plot.x(one["time_ns"]), plot.y(one))
        tip = page.one("#tip").text
        assert f"#{one['seq']} {one['call']}(" in tip
        assert f"= {one['code']} " in tip
        assert one.get("reason", "") in tip
    page.point("#lanes", plot.x(alone[0]["time_ns"]), plot.y(alone[0]), is_click=True)
    assert f"#{alone[0]['seq']} " in page.one("#detail").text
    # What is told is found again when the view is another one.
    one = refused[0]
    page.redrawn(lambda: page.one("button[data-do='in']").click())
    row = next(row for row in page.all("#refusals tbody tr") if one.get("reason", "") in row.text)
    page.redrawn(row.click)
    assert one.get("reason", "") in page.one("#detail").text
    near = Plot(page, calls, first_ns)
    assert near.x(calls[-1]["time_ns"]) - near.x(calls[0]["time_ns"]) > near.width
    page.redrawn(lambda: page.one("button[data-do='all']").click())
    again = Plot(page, calls, first_ns)
    assert again.x(one["time_ns"]) == pytest.approx(whole.x(one["time_ns"]))
    page.redrawn(lambda: page.one("input[data-family='pks']").click())
    page.point("#lanes", again.x(one["time_ns"]), again.y(one))
    assert not page.one("#tip").is_displayed(), "its family is not shown"


def test_what_a_guest_says_is_only_text(page: Browser, lab: Lab) -> None:
    path = lab.artifacts / "hostile.pcapng"
    path.write_bytes(hostile().data)
    page.open(report(path))
    assert page.driver.title == "hostile.pcapng: hypercalls"
    assert HOSTILE.partition("\x1b")[0] in page.one("#refusals td.reason").text
    assert page.all("img") == []
    assert page.complaints() == []
    page.run(
        "const script = document.createElement('script');"
        "try { script.textContent = \"document.title = 'evil'\"; } catch { return; }"
        "document.body.append(script)"
    )
    assert page.driver.title == "hostile.pcapng: hypercalls", "the policy runs no other script"


def test_a_page_of_very_many_calls_opens(page: Browser, lab: Lab) -> None:
    capture = Capture()
    capture.data = bytearray(capture.data)  # type: ignore[assignment]  # bytes take for ever
    capture.guest("lpar7")
    count = 2 * MAX_BARS
    for seq in range(count):
        capture.frame(call(pks.GET_CONFIG, seq, vcpu=seq % 4))
        capture.frame(f.Reply(seq % 4, 0, seq, 0))
    path = lab.artifacts / "many.pcapng"
    path.write_bytes(capture.data)
    made = report(path)
    assert made.stat().st_size < 8 << 20
    page.open(made)
    bars = page.run("return JSON.parse(data.textContent).lanes.flatMap((lane) => lane.bars)")
    assert len(bars) <= MAX_BARS
    assert sum(bar[4] for bar in bars) == count
    assert f"{count:,} calls" in page.one("#merged").text
    page.point("#lanes", page.run("return lanes.clientWidth") / 2, 40)
    assert "calls within" in page.one("#tip").text


def test_a_page_whose_clock_was_set_zooms_as_far_as_its_numbers_go(page: Browser, lab: Lab) -> None:
    capture = Capture()
    now, capture.time_ns = capture.time_ns, 0
    capture.guest("lpar7")
    for seq in (1, 2):
        capture.frame(call(pks.GET_CONFIG, seq))
        capture.frame(f.Reply(3, 0, seq, -seq))
        capture.time_ns = now
    path = lab.artifacts / "set.pcapng"
    path.write_bytes(capture.data)
    page.open(report(path))
    page.redrawn(page.all("#refusals tbody tr")[1].click)
    for _ in range(60):
        page.redrawn(page.one("button[data-do='in']").click)
    at = page.run("return lanes.dataset")
    assert 1e6 < float(at["to"]) - float(at["from"]) < 1e8


def test_memory_of_a_secure_vm_is_shown_over_time(page: Browser, lab: Lab) -> None:
    path = lab.artifacts / "capture.pcapng"
    secure = SecureLab(lab, "page_shift = 12\n", "--capture", str(path))
    secure.stub("secure_pages esm=1 shift=12 seed=1 rounds=5 require=1").report()
    secure.daemon.terminate()
    calls = decoded(path)
    page.open(report(path))
    (memory,) = page.run("return JSON.parse(data.textContent).memory")
    shared = [one for one in calls if one["call"] == "UV_SHARE_PAGE" and one["status"] == 0]
    assert shared
    assert max(point[1] for point in memory["points"]) > 0
    times = {point[0] for point in memory["points"] if point[2]}
    assert times, "something was shared"
    target = page.one("canvas.memory")
    wait_until(lambda: target.get_attribute("data-most"), "the chart")
    found = page.run(
        "const c = arguments[0]; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height)"
        ".data; const s = new Set(); for (let i = 0; i < d.length; i += 4)"
        " s.add(`${d[i]},${d[i + 1]},${d[i + 2]}`); return [...s]",
        target,
    )
    for name in ("--secure", "--shared"):
        assert ",".join(map(str, color(page, name))) in found
