# SPDX-License-Identifier: Apache-2.0
"""A console as it comes, in whatever pieces."""

from __future__ import annotations

import pytest

from hcalld.guest import boot, console
from hcalld.guest.console import Reading
from hcalld.guest.ktap import Outcome
from hcalld.guest.machine import LINUX_FAILURES

WHOLE = f"""\
[    0.000000] Linux version 7.2
ok 1 is what a kernel may say
{boot.READY}
TAP version 13
1..1
# selftests: a: b
ok 1 selftests: a: b

{boot.KERNEL_LOG}
ok 2 says the kernel's log
EXIT: STATUS=0
"""


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10000])
def test_feed_when_it_comes_in_pieces_then_it_reads_the_same(size: int):
    reading = Reading(LINUX_FAILURES)
    ended = []
    text = WHOLE.replace("\n", "\r\n")
    for start in range(0, len(text), size):
        ended += reading.feed(text[start : start + size])
    report = reading.finish()
    assert [result.name for result in ended] == ["selftests: a: b"]
    assert report.tests == ended
    assert report.problems == []
    assert (reading.is_up, reading.status, reading.failure) == (True, 0, None)


@pytest.mark.parametrize(
    "line",
    [
        "Kernel panic - not syncing: Attempted to kill init!",
        "[   12.345678] Oops: Kernel access of bad area, sig: 11 [#1]",
        "kernel BUG at mm/slub.c:500!",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 26s!",
        "rcu: INFO: rcu_sched self-detected stall on CPU",
    ],
)
@pytest.mark.parametrize("where", [0, WHOLE.index("TAP"), WHOLE.index("EXIT")])
def test_feed_when_the_kernel_breaks_then_it_is_a_failure_at_once(line: str, where: int):
    reading = Reading(LINUX_FAILURES)
    reading.feed(WHOLE[:where])
    assert reading.failure is None
    reading.feed(f"{line}\n")
    assert reading.failure == line
    reading.feed("Oops: another\n")
    assert reading.failure == line


def test_feed_when_a_line_never_ends_then_it_is_taken_in_pieces():
    reading = Reading(LINUX_FAILURES)
    for _ in range(100):
        reading.feed("x" * console.MAX_LINE)
    assert len("".join(reading.tail())) <= (console.TAIL_LINES + 1) * console.MAX_LINE


def test_tail_when_asked_then_it_has_the_last_lines_without_empty_ones():
    reading = Reading(LINUX_FAILURES)
    reading.feed("".join(f"line {n}\n\n" for n in range(100)) + "the rest")
    assert reading.tail()[-2:] == ["line 99", "the rest"]
    assert len(reading.tail()) == console.TAIL_LINES


def test_finish_when_a_test_runs_then_it_is_cut_off_and_current_names_it():
    reading = Reading(LINUX_FAILURES)
    reading.feed(WHOLE.partition("ok 1 selftests")[0])
    assert reading.current == "a: b"
    assert [test.outcome for test in reading.finish().tests] == [Outcome.CUT_OFF]
