# SPDX-License-Identifier: Apache-2.0
"""Bars of calls: one each while there is room, and never more than there is room for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hcalld.report.timeline import OTHERS, Bar, Kind, Timeline

LANE = ("lpar7", 0)


def add(timeline: Timeline, start: int, end: int, *, vcpu: int = 0, **more: object) -> None:
    what = {"name": "X", "kind": Kind.DONE, "text": lambda: f"call at {start}", **more}
    timeline.add(("lpar7", vcpu), start, end, **what)  # type: ignore[arg-type]


def test_bars_when_there_is_room_then_each_call_has_one():
    timeline = Timeline(max_bars=10)
    for start in range(0, 100, 10):
        add(timeline, start, start + 5)
    assert [(bar.start, bar.end, bar.text) for bar in timeline.lanes[LANE]] == [
        (start, start + 5, f"call at {start}") for start in range(0, 100, 10)
    ]
    assert (timeline.cell, timeline.merged) == (0, 0)


def test_bars_when_there_is_no_room_then_neighbours_are_merged_and_others_are_not():
    timeline = Timeline(max_bars=10)
    add(timeline, 0, 1)
    for start in range(1_000_000, 1_000_020):
        kind = Kind.REFUSED if start == 1_000_003 else Kind.DONE
        add(timeline, start, start + 1, kind=kind, name="Y" if start % 4 else "X")
    add(timeline, 9_000_000, 9_000_001)
    first, *middle, last = timeline.lanes[LANE]
    assert (first.count, first.text) == (1, "call at 0")
    assert (last.count, last.text) == (1, "call at 9000000")
    assert sum(bar.count for bar in middle) == timeline.merged == 20
    assert sum(bar.refused for bar in middle) == 1
    (worst,) = [bar for bar in middle if bar.refused]
    assert (worst.kind, worst.text, worst.most) == (Kind.REFUSED, "", "Y")


def test_bars_when_calls_are_merged_then_nobody_asks_what_is_said_of_them():
    timeline = Timeline(max_bars=10)
    asked: list[int] = []

    def said(start: int) -> str:
        asked.append(start)
        return ""

    for start in range(10_000):
        add(timeline, start, start + 1, text=lambda start=start: said(start))
    assert len(asked) < 200


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 63), st.integers(0, 1 << 63), st.integers(0, 5)), max_size=80
    )
)
def test_bars_when_times_are_any_then_they_are_few_and_no_call_is_lost(
    calls: list[tuple[int, int, int]],
):
    timeline = Timeline(max_bars=8, max_lanes=3)
    for start, end, vcpu in calls:
        add(timeline, start, end, vcpu=vcpu)
    bars = [bar for lane in timeline.lanes.values() for bar in lane]
    assert len(bars) <= 8
    assert sum(bar.count for bar in bars) == len(calls)
    assert all(bar.start <= bar.end for bar in bars)
    assert len(timeline.lanes) <= 4


def test_lanes_when_there_are_too_many_then_the_others_share_one():
    timeline = Timeline(max_lanes=2)
    for vcpu in range(5):
        add(timeline, vcpu, vcpu + 1, vcpu=vcpu)
    assert {lane: len(bars) for lane, bars in timeline.lanes.items()} == {
        ("lpar7", 0): 1,
        ("lpar7", 1): 1,
        OTHERS: 3,
    }


def test_bar_when_others_are_taken_in_then_it_spans_and_counts_them():
    bar = Bar(10, 20, "X", Kind.BUSY, "said")
    bar.add(5, 30, Kind.DONE, 2, {"Y": 3})
    assert (bar.start, bar.end, bar.count, bar.refused) == (5, 30, 4, 2)
    assert (bar.kind, bar.names, bar.most, bar.text) == (Kind.BUSY, {"X": 1, "Y": 3}, "Y", "")
