# SPDX-License-Identifier: Apache-2.0
"""Every change of a result is one, for the better too."""

from __future__ import annotations

import pytest

from hcalld.guest import ktap
from hcalld.guest.ktap import Outcome
from hcalld.guest.plan import Expectation, Expected
from hcalld.guest.verdict import MAX_CHANGED_PARTS, Verdict, judge

ENDS = {
    "pass": "ok 1 selftests: a: b",
    "fail": "not ok 1 selftests: a: b # exit=1",
    "skip": "ok 1 selftests: a: b # SKIP",
    "xfail": "ok 1 selftests: a: b # XFAIL",
    "timeout": "not ok 1 selftests: a: b # TIMEOUT 45 seconds",
}


def verdicts(text: str, *expected: Expected) -> list[Verdict]:
    return judge(expected, ktap.parse(f"TAP version 13\n{text}".splitlines()))


@pytest.mark.parametrize("got", ENDS)
@pytest.mark.parametrize("wanted", ENDS)
def test_judge_when_a_test_ends_in_any_way_then_only_the_expected_one_is_none(
    wanted: Expectation, got: str
):
    (verdict,) = verdicts(ENDS[got], Expected(name="a:b", result=wanted, why="so"))
    assert (verdict.name, verdict.got, verdict.expected) == ("a:b", got, wanted)
    assert verdict.is_changed == (wanted != got)


def test_judge_when_a_test_did_not_run_then_it_is_missing():
    first, second = verdicts(ENDS["pass"], Expected(name="a:b"), Expected(name="a:c"))
    assert not first.is_changed
    assert (second.got, second.changes) == ("missing", ("expected pass, and it did not run",))


@pytest.mark.parametrize(("end", "is_changed"), [("pass", False), ("skip", False), ("fail", True)])
def test_judge_when_nobody_expects_a_test_then_it_must_not_fail(end: str, is_changed: bool):
    (verdict,) = verdicts(ENDS[end])
    assert verdict.is_changed == is_changed


def test_judge_when_a_test_runs_twice_then_it_is_a_change():
    text = f"{ENDS['pass']}\n{ENDS['pass'].replace('ok 1', 'ok 2')}"
    assert [verdict.changes for verdict in verdicts(text, Expected(name="a:b"))] == [
        ("it ran twice",),
        (),
    ]


PARTS = "# KTAP version 1\n# 1..2\n# {} 1 one\n# {} 2 two\n{} 1 selftests: a: b"


def test_judge_when_a_part_is_expected_to_fail_then_only_it_may():
    expected = Expected(name="a:b", result="fail", why="so", parts={"two": "fail"})
    assert not verdicts(PARTS.format("ok", "not ok", "not ok"), expected)[0].is_changed
    (verdict,) = verdicts(PARTS.format("not ok", "ok", "not ok"), expected)
    assert verdict.changes == (
        "its part two was expected to fail, was pass",
        "its part one was fail",
    )
    (verdict,) = verdicts(ENDS["fail"], expected)
    assert verdict.changes == ("its part two was expected to fail, and did not run",)


def test_judge_when_a_part_of_a_passing_test_skips_then_it_is_a_change():
    text = "# KTAP version 1\n# 1..2\n# ok 1 one # SKIP\n# ok 2 two\nok 1 selftests: a: b"
    assert verdicts(text, Expected(name="a:b"))[0].changes == ("its part one was skip",)
    allowed = Expected(name="a:b", why="so", parts={"one": "skip"})
    assert not verdicts(text, allowed)[0].is_changed


def test_judge_when_many_parts_change_then_some_are_named():
    lines = [f"# not ok {n} part{n}" for n in range(1, 101)]
    text = "\n".join(["# KTAP version 1", "# 1..100", *lines, "not ok 1 selftests: a: b"])
    (verdict,) = verdicts(text, Expected(name="a:b"))
    assert len(verdict.changes) == MAX_CHANGED_PARTS + 1
    assert verdict.changes[-1] == "and 91 more"


def test_judge_when_the_output_was_cut_off_then_the_test_did_not_pass():
    text = "1..1\n# selftests: a: b\n# says something"
    (verdict,) = verdicts(text, Expected(name="a:b"))
    assert verdict.got == Outcome.CUT_OFF
    assert verdict.is_changed
