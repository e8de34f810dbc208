# SPDX-License-Identifier: Apache-2.0
"""The page: what a file says is text in it, and nothing else; all numbers are there."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from typing import Any, Final

import pytest
from tests.unit.hcallproto.capture.sample import Capture, call, read_of_db

from hcalld.core.histogram import Histogram
from hcalld.report import page
from hcalld.report.gather import CallSummary, Gathered
from hcalld.report.page import chart, duration, json_block, moment, render
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.capture.records import Start, Stop
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

HOSTILE: Final = (
    "</script><script>document.title='evil'</script><img src=x onerror=alert(1)>"
    "\"'--><!--]]>{{ 7 * 7 }}\x1b[2J\x00\u202e\u2028"
)


class Page(html.parser.HTMLParser):
    """A page, as a parser sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.contents: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.contents.setdefault(self.inside[-1], []).append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def data(self) -> dict[str, Any]:
        """What the script reads."""
        found: dict[str, Any] = json.loads(self.contents["script"][0])
        return found


def page_of(capture: Capture, name: str = "a.pcapng") -> Page:
    return Page("".join(render(Gathered([capture.data]), name=name, made_by="hcalld 0", size=7)))


def hostile() -> Capture:
    """A capture all of whose texts are hostile."""
    capture = Capture()
    capture.guest(HOSTILE, has_start=False)
    start = Start(program=HOSTILE, partition=HOSTILE, profile={HOSTILE: HOSTILE})
    capture.record(start, HOSTILE)
    # What QEMU says of itself is printable by the protocol's rules; tags are.
    hello = f.Hello(
        1, 1, 1 << 20, s.Feature(0), bytes(16), bytes(16), 0, 4, 8, 0, 16, "<b>", "<i>", 0
    )
    capture.frame(hello, HOSTILE)
    label = f.Segment(0, 0x2000, s.SegmentStatus.OK, b"</script><script>alert(1)//")
    inline = f.BufferSpec(5, s.BufferKind.SIZED, s.Direction.IN, 6, 255)
    spec = f.CallSpec(pks.READ_OBJECT.number, 1, s.Disposition.FORWARD, 0, 1, -54, -54, (inline,))
    capture.frame(f.Announce(f.Announcement((spec,)), 1, 0), HOSTILE)
    frame = call(pks.READ_OBJECT, 1, label, label=0x2000, label_size=27)
    capture.frame(frame, HOSTILE)
    capture.frame(f.Reply(3, 0, 1, H.NOT_FOUND), HOSTILE, HOSTILE)
    capture.record(Stop(why=HOSTILE), HOSTILE)
    return capture


def test_page_when_all_texts_are_hostile_then_none_is_more_than_text():
    plain, evil = page_of(read_of_db()), page_of(hostile(), HOSTILE)
    assert {tag for tag, _ in evil.tags} <= {tag for tag, _ in plain.tags} | {"code"}
    assert len(evil.named("script")) == 2
    assert not evil.named("img")
    handlers = [name for _, attrs in evil.tags for name in attrs if name.startswith("on")]
    assert handlers == []
    assert "document.title='evil'" in "".join(evil.contents["td"]), "it is there as text"
    assert not any(ord(one) < 32 and one != "\n" for one in evil.text)
    assert "\u202e" not in evil.text
    (bar,) = evil.data["lanes"][0]["bars"]
    assert "</script><script>alert(1)//" in bar[6]


def test_page_when_it_is_looked_into_then_nothing_is_fetched_and_one_script_may_run():
    found = page_of(read_of_db())
    (policy,) = [
        meta["content"] or ""
        for meta in found.named("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, text in (
        ("script", found.contents["script"][1]),
        ("style", found.contents["style"][0]),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    for _, attrs in found.tags:
        assert not {"src", "href", "style", "action"} & set(attrs)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", found.text)


def test_page_when_calls_are_made_then_their_numbers_are_in_the_tables():
    found = page_of(read_of_db())
    (row,) = [attrs for attrs in found.named("tr") if "data-call" in attrs]
    assert row["data-call"] == "H_PKS_READ_OBJECT"
    codes = {
        attrs["data-code"]: attrs["data-count"]
        for attrs in found.named("span")
        if "data-code" in attrs
    }
    assert codes == {"H_NOT_FOUND": "1", "H_SUCCESS": "1"}
    (lane, other) = found.data["lanes"]
    assert (lane["guest"], lane["vcpu"]) == ("lpar7", "cpu3")
    assert (other["guest"], other["bars"][0][:6]) == ("lpar8", [6000, 8000, 0, 2, 1, 1])


def test_page_when_there_is_nothing_in_the_capture_then_it_says_so():
    capture = Capture()
    capture.guest("lpar7")
    text = page_of(capture).text
    assert "There is no call in this capture." in text
    assert 'id="calls"' not in text


def test_page_when_calls_are_merged_then_it_says_how_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hcalld.report.timeline.Timeline.__init__.__defaults__", (10, 8))
    capture = Capture()
    capture.guest("lpar7")
    for seq in range(100):
        capture.frame(call(pks.GET_CONFIG, seq))
        capture.frame(f.Reply(3, 0, seq, 0))
    found = page_of(capture)
    assert "100 of 100 calls" in found.text
    bars = found.data["lanes"][0]["bars"]
    assert len(bars) <= 10
    assert sum(bar[4] for bar in bars) == 100
    assert all(bar[6] == [[0, bar[4]]] for bar in bars)


@pytest.mark.parametrize(
    "data", ["</script>", "<!--", "]]>", "&lt;", "\u2028\u2029", {"a<b": [">"]}]
)
def test_json_when_it_stands_in_a_page_then_no_tag_can_end_it(data: object):
    text = json_block(data)
    assert json.loads(text) == data
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_chart_when_there_are_times_then_each_is_in_a_bar():
    latency = Histogram()
    for value in (1, 3, 900, 1000, 1100, 70_000, 70_000, 5_000_000_000):
        latency.add(value)
    bars = chart(CallSummary("X", "pks", "", latency=latency))
    assert sum(int(bar["text"].rpartition(": ")[2]) for bar in bars) == 8
    heights = [float(bar["height"]) for bar in bars]
    assert max(heights) == page.CHART_HEIGHT
    assert all(0 <= float(bar["x"]) < page.CHART_WIDTH for bar in bars)
    assert chart(CallSummary("X", "pks", "")) == []


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1500, "1.5 µs"),
        (63_000, "63 µs"),
        (1_300_000, "1.3 ms"),
        (2_500_000_000, "2.50 s"),
    ],
)
def test_duration_when_it_is_shown_then_it_has_a_fitting_unit(nanoseconds: int, text: str):
    assert duration(nanoseconds) == text


def test_moment_when_a_file_says_an_impossible_one_then_it_is_a_number():
    assert moment(1_795_285_506_000_001_000) == "2026-11-21 18:25:06.000001"
    assert moment((1 << 64) - 1).endswith("0615") or moment((1 << 64) - 1)
    assert moment(1 << 80) == f"{1 << 80} ns"
