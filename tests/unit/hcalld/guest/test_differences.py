# SPDX-License-Identifier: Apache-2.0
"""How another kernel's results differ: written by a run, taken by the next."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.core.errors import ConfigError
from hcalld.guest import differences, ktap, plan
from hcalld.guest.verdict import NOT_SAID, judge

SUITES = [
    plan.Suite(name="one", about="b", test=(plan.Expected(name="a:b"), plan.Expected(name="a:c"))),
    plan.Suite(name="two", about="b", test=(plan.Expected(name="a:b"),)),
]
B_SKIPS = '[[test]]\nsuite = "two"\nname = "a:b"\nresult = "skip"\nwhy = "no device"\n'


def applied(text: str) -> list[plan.Suite]:
    where = "here"
    return differences.applied(SUITES, differences.parse(text, where), where)


def test_differences_when_a_suite_is_named_then_only_its_test_is_another():
    one, two = applied(f'about = "c"\n{B_SKIPS}')
    assert one == SUITES[0]
    (test,) = two.test
    assert (test.result, test.why) == ("skip", "no device")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing required field `about`"),
        ('about = "c"\n[[test]]\nname = "a:b"\n', "missing required field `suite`"),
        ('about = "c"\n' + B_SKIPS.replace("why", "hwy"), "unknown field `hwy`"),
        ('about = "c"\n' + B_SKIPS.replace("why", "# why"), "expected the key `why` to say why"),
        ('about = "c"\n' + B_SKIPS.replace("a:b", "a:d"), "the suite two has no test a:d"),
        ('about = "c"\n' + B_SKIPS.replace("two", "three"), "the suite three has no test a:b"),
        ('about = "c"\n' + B_SKIPS * 2, "a test is there twice"),
    ],
)
def test_differences_when_they_are_wrong_then_it_says_what_was_expected(text: str, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        applied(text)
    assert str(error.value).startswith("here: ")


TEXT = st.text(st.characters(codec="utf-8"), min_size=1)
RESULT = st.sampled_from(["pass", "fail", "skip", "xfail", "timeout"])


@given(TEXT, TEXT, RESULT, TEXT, st.dictionaries(TEXT, RESULT))
def test_written_when_it_is_read_then_nothing_is_lost(
    about: str, name: str, result: plan.Expectation, why: str, parts: dict[str, plan.Expectation]
):
    test = plan.Expected(name=name, result=result, why=why, parts=parts)
    read = differences.parse(differences.written(about, [("one", test)]), "here")
    (found,) = read.test
    assert (read.about, found.suite) == (about, "one")
    assert (found.name, found.result, found.why, found.parts) == (name, result, why, parts)


PRINTED = [
    "ok 1 selftests: a: b",
    "not ok 1 selftests: a: b # exit=1",
    "ok 1 selftests: a: b # SKIP no device",
    "not ok 1 selftests: a: b # TIMEOUT 45 seconds",
    "# KTAP version 1\n# 1..2\n# ok 1 one\n# not ok 2 two\nnot ok 1 selftests: a: b",
    "# KTAP version 1\n# 1..2\n# ok 1 one\n# ok 2 two # SKIP\nok 1 selftests: a: b",
    "# KTAP version 1\n# 1..1\n# ok 1 one # SKIP\nok 1 selftests: a: b",
]


@pytest.mark.parametrize("text", PRINTED)
@pytest.mark.parametrize("expected", ["pass", "fail"])
def test_found_when_a_test_changed_then_what_is_written_of_it_is_met(
    text: str, expected: plan.Expectation
):
    report = ktap.parse(f"TAP version 13\n1..1\n{text}".splitlines())
    wanted = plan.Expected(name="a:b", result=expected, why="so", parts={"other": "fail"})
    (verdict,) = judge([wanted], report)
    assert verdict.is_changed
    assert verdict.found is not None
    (again,) = judge([verdict.found], report)
    assert not again.is_changed, again.changes


def test_found_when_a_test_was_cut_off_or_did_not_run_then_nothing_is_written_of_it():
    report = ktap.parse(["TAP version 13", "1..1", "# selftests: a: b", "# going on"])
    verdicts = judge([plan.Expected(name="a:b"), plan.Expected(name="a:c")], report)
    assert [verdict.found for verdict in verdicts] == [None, None]


def test_found_when_parts_end_as_the_test_does_then_only_the_others_are_written():
    report = ktap.parse(f"TAP version 13\n{PRINTED[4]}".splitlines())
    (verdict,) = judge([plan.Expected(name="a:b")], report)
    assert verdict.found is not None
    assert verdict.found.parts == {"two": "fail"}


def test_found_when_nothing_says_why_then_that_is_said():
    report = ktap.parse(["TAP version 13", "not ok 1 selftests: a: b"])
    (verdict,) = judge([plan.Expected(name="a:b")], report)
    assert verdict.found == plan.Expected(name="a:b", result="fail", why=NOT_SAID)
