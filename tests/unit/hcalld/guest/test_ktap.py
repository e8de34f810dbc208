# SPDX-License-Identifier: Apache-2.0
"""What the reader of KTAP makes of the protocol's own examples, of kselftest's, and of anything."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from hcalld.guest import ktap
from hcalld.guest.ktap import Outcome, Parser, Report, Result, parse


def read(text: str) -> Report:
    return parse(text.splitlines())


def outcomes(report: Report) -> dict[str, Outcome]:
    return {result.name: result.outcome for test in report.tests for result in test.walk()}


DOCUMENT = """\
KTAP version 1
1..1
  KTAP version 1
  1..3
    KTAP version 1
    1..1
    # test_1: initializing test_1
    ok 1 test_1
  ok 1 example_test_1
    KTAP version 1
    1..2
    ok 1 test_1 # SKIP test_1 skipped
    ok 2 test_2
  ok 2 example_test_2
    KTAP version 1
    1..3
    ok 1 test_1
    # test_2: FAIL
    not ok 2 test_2
    ok 3 test_3 # SKIP test_3 skipped
  not ok 3 example_test_3
not ok 1 main_test
"""
"""The example of Documentation/dev-tools/ktap.rst, with the hierarchy that it tells."""


def test_parse_when_given_the_protocols_example_then_its_hierarchy_is_read():
    report = read(DOCUMENT)
    (main,) = report.tests
    assert (main.name, main.outcome) == ("main_test", Outcome.FAIL)
    assert [part.name for part in main.parts] == [f"example_test_{n}" for n in (1, 2, 3)]
    first, second, third = (part.parts for part in main.parts)
    assert [part.outcome for part in first] == [Outcome.PASS]
    assert first[0].notes == ("    # test_1: initializing test_1",)
    assert [(part.outcome, part.reason) for part in second] == [
        (Outcome.SKIP, "test_1 skipped"),
        (Outcome.PASS, ""),
    ]
    assert [part.outcome for part in third] == [Outcome.PASS, Outcome.FAIL, Outcome.SKIP]
    assert report.planned == 1
    assert report.problems == []


RUNNER = """\
TAP version 13
1..3
# timeout set to 45
# selftests: powerpc/mm: bad_accesses
# test: bad_accesses
# tags: git_version:unknown
# success: bad_accesses
ok 1 selftests: powerpc/mm: bad_accesses
# selftests: powerpc/tm: tm-fork
# test: tm_fork
# skip: tm_fork
ok 2 selftests: powerpc/tm: tm-fork
# selftests: vtpm: vtpm_sysfs.sh
# TAP version 13
# 1..2
# ok 1 one
# # a note
# not ok 2 two
# # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:0 error:0
not ok 3 selftests: vtpm: vtpm_sysfs.sh # exit=1
# Totals: pass:2 fail:1 xfail:0 xpass:0 skip:0 error:0
"""


def test_parse_when_kselftests_runner_nests_then_parts_belong_to_their_test():
    report = read(RUNNER)
    one, two, three = report.tests
    assert (one.outcome, [part.name for part in one.parts]) == (Outcome.PASS, ["bad_accesses"])
    # The powerpc harness ends with 0 for what it skipped: the runner says ok.
    assert (two.outcome, two.reason) == (Outcome.SKIP, "all parts were skipped")
    assert (three.outcome, three.reason) == (Outcome.FAIL, "exit=1")
    assert [(part.name, part.outcome) for part in three.parts] == [
        ("one", Outcome.PASS),
        ("two", Outcome.FAIL),
    ]
    assert report.problems == []


@pytest.mark.parametrize(
    ("line", "outcome", "reason"),
    [
        ("ok 1 a", Outcome.PASS, ""),
        ("ok 1 - a", Outcome.PASS, ""),
        ("not ok 1 a", Outcome.FAIL, ""),
        ("ok 1 a # SKIP no device", Outcome.SKIP, "no device"),
        ("not ok 1 a # SKIP no device", Outcome.SKIP, "no device"),
        ("ok 1 a # skip no device", Outcome.SKIP, "no device"),
        ("ok 1 a#SKIP", Outcome.SKIP, ""),
        ("not ok 1 a # TODO later", Outcome.XFAIL, "later"),
        ("ok 1 a # XFAIL", Outcome.XFAIL, ""),
        ("not ok 1 a # TIMEOUT 45 seconds", Outcome.TIMEOUT, "45 seconds"),
        ("not ok 1 a # ERROR no memory", Outcome.FAIL, "no memory"),
        ("ok 1 a # rcode=0", Outcome.PASS, "rcode=0"),
        ("ok 1 a # SKIPPED is no directive", Outcome.PASS, "SKIPPED is no directive"),
        ("[    1.234567] not ok 1 a", Outcome.FAIL, ""),
    ],
)
def test_parse_when_a_result_has_a_directive_then_it_counts(
    line: str, outcome: Outcome, reason: str
):
    (result,) = read(f"KTAP version 1\n1..1\n{line}").tests
    assert (result.name, result.outcome, result.reason) == ("a", outcome, reason)


@pytest.mark.parametrize(
    "line",
    ["ok", "ok a", "okay 1 a", "not  ok 1 a", "notok 1 a", "ok -1 a", "ok 9999999999 a", "OK 1 a"],
)
def test_parse_when_a_line_is_nearly_a_result_then_it_is_none(line: str):
    report = read(f"KTAP version 1\n1..1\n{line}")
    assert report.tests == []
    assert report.problems == ["the plan is 1..1, and 0 were reported"]


def test_parse_when_nested_without_version_or_plan_then_it_is_a_note():
    report = read("KTAP version 1\n1..1\n# ok 1 says a program\n  not ok 1 so too\nok 1 a")
    (result,) = report.tests
    assert result.parts == []
    assert result.notes == ("# ok 1 says a program", "  not ok 1 so too")
    assert report.problems == []


def test_parse_when_a_test_is_ok_and_a_part_is_not_then_it_failed():
    report = read("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  not ok 1 part\nok 1 whole")
    assert outcomes(report) == {"whole": Outcome.FAIL, "part": Outcome.FAIL}
    assert report.problems == ["whole is ok, though not ok is part"]


def test_parse_when_numbers_or_plans_do_not_fit_then_it_is_said():
    report = read("KTAP version 1\n1..3\nok 1 a\nok 3 c\nok 3 d")
    assert report.problems == ["c has the number 3, not 2", "d has the number 3, not 4"]
    report = read("KTAP version 1\n1..2\n1..3\nok 1 a")
    assert report.problems == ["two plans: 1..2 and 1..3", "the plan is 1..3, and 1 were reported"]


def test_parse_when_a_parts_plan_does_not_fit_then_it_is_said():
    report = read("KTAP version 1\n1..1\n  KTAP version 1\n  1..2\n  ok 1 part\nok 1 whole")
    assert report.problems == ["the plan of a test's parts at depth 1 is 1..2, and 1 were reported"]


def test_parse_when_a_plan_skips_all_then_the_reason_is_the_tests():
    report = read(
        "TAP version 13\n1..1\n# TAP version 13\n# 1..0 # SKIP no keystore\nok 1 a # SKIP"
    )
    assert [(test.outcome, test.reason) for test in report.tests] == [(Outcome.SKIP, "no keystore")]
    assert read("TAP version 13\n1..0 # SKIP nothing here").skip_all == "nothing here"


def test_parse_when_it_bails_out_then_nothing_after_it_counts():
    report = read("KTAP version 1\n1..3\nok 1 a\nBail out! no more\nok 2 b")
    assert (report.bail_out, [test.name for test in report.tests]) == ("no more", ["a"])
    assert report.problems == []


def test_parse_when_a_nested_program_bails_out_then_its_test_failed_and_others_follow():
    report = read(
        "TAP version 13\n1..2\n# selftests: a: b\n# TAP version 13\n# 1..1\n# Bail out! no\n"
        "not ok 1 selftests: a: b # exit=1\nok 2 c"
    )
    assert report.bail_out is None
    assert outcomes(report)["Bail out!"] is Outcome.FAIL
    assert [test.outcome for test in report.tests] == [Outcome.FAIL, Outcome.PASS]


def test_parse_when_cut_off_within_a_test_then_it_says_which():
    report = read(RUNNER.partition("# not ok 2")[0])
    assert [test.outcome for test in report.tests][-1] is Outcome.CUT_OFF
    assert report.tests[-1].name == "selftests: vtpm: vtpm_sysfs.sh"
    assert [part.name for part in report.tests[-1].parts] == ["one"]
    assert "the output ends within selftests: vtpm: vtpm_sysfs.sh" in report.problems
    assert "the plan is 1..3, and 2 were reported" in report.problems


def test_parse_when_cut_off_between_tests_then_the_plan_tells():
    report = read("KTAP version 1\n1..2\nok 1 a\n")
    assert [test.outcome for test in report.tests] == [Outcome.PASS]
    assert report.problems == ["the plan is 1..2, and 1 were reported"]


def test_parse_when_there_is_no_ktap_then_it_is_said():
    report = read("Linux version 7.2\nall is well\n# fine")
    assert report.tests == []
    assert report.problems == ["no KTAP was printed: no version line, no plan, no result"]


def test_parse_when_two_documents_follow_each_other_then_both_count():
    report = read("KTAP version 1\n1..1\nok 1 a\nTAP version 13\n1..2\nok 1 b\nnot ok 2 c")
    assert outcomes(report) == {"a": Outcome.PASS, "b": Outcome.PASS, "c": Outcome.FAIL}
    assert report.planned == 3
    assert report.problems == []


def test_parse_when_a_level_between_has_no_result_then_nothing_is_lost():
    report = read(
        "KTAP version 1\n1..1\n  KTAP version 1\n    KTAP version 1\n    1..1\n    not ok 1 deep\n"
        "ok 1 whole"
    )
    assert outcomes(report) == {
        "whole": Outcome.FAIL,
        "(unnamed)": Outcome.CUT_OFF,
        "deep": Outcome.FAIL,
    }


def test_feed_when_a_test_ends_then_it_is_given_and_current_tells_which_runs():
    parser = Parser()
    running: list[str] = []
    ended: list[Result] = []
    for line in RUNNER.splitlines():
        result = parser.feed(line)
        running.append(parser.current)
        if result is not None:
            ended.append(result)
    assert [result.name for result in ended] == [test.name for test in parser.finish().tests]
    assert {"powerpc/mm: bad_accesses", "vtpm: vtpm_sysfs.sh", ""} <= set(running)
    assert running[-1] == ""


# -- a guest prints what it likes ----------------------------------------------------------------


def test_parse_when_a_line_is_huge_then_it_is_cut():
    report = read(f"KTAP version 1\n1..1\nok 1 {'x' * (1 << 20)}")
    assert len(report.tests[0].name) == ktap.MAX_NAME
    assert any("was cut" in problem for problem in report.problems)


def test_parse_when_there_are_too_many_results_then_the_rest_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(ktap, "MAX_RESULTS", 100)
    report = read("KTAP version 1\n" + "".join(f"ok {n} a\n" for n in range(1, 1001)))
    assert len(report.tests) == 100
    assert "there are more than 100 results; the others are left out" in report.problems


def test_parse_when_everything_is_wrong_then_what_is_kept_is_bounded():
    lines = "".join(f"ok 7 a\n1..{n}\n{'#' * 500}\n" for n in range(2000))
    report = read(lines)
    assert len(report.problems) == ktap.MAX_PROBLEMS
    assert all(len(test.notes) <= ktap.MAX_NOTES for test in report.tests)


def test_parse_when_nested_too_deep_then_it_stops_descending():
    lines = [f"{'  ' * n}KTAP version 1" for n in range(100)]
    lines += [f"{'  ' * n}ok 1 level" for n in range(99, -1, -1)]
    report = parse(lines)
    deepest = report.tests[0]
    depth = 0
    while deepest.parts:
        deepest = deepest.parts[0]
        depth += 1
    assert depth <= ktap.MAX_DEPTH


_PIECES = st.sampled_from(
    [
        *(
            "# ",
            "  ",
            "ok ",
            "not ok ",
            "1",
            "2",
            " a",
            " # SKIP",
            " # TODO",
            "1..2",
            "\0",
            "\x1b[",
        ),
        *("KTAP version 1", "TAP version 13", "Bail out!", "success: ", "selftests: a: b"),
        *("1..0 # SKIP", "\0", "\x1b["),
    ]
)
_LINES = st.lists(st.one_of(st.lists(_PIECES, max_size=7).map("".join), st.text(max_size=20)))


@hypothesis.given(_LINES)
def test_parse_when_given_anything_then_it_ends_and_keeps_its_bounds(lines: list[str]):
    """No line of a guest's breaks the reader, and no result appears from nothing."""
    report = parse(lines)
    results = [result for test in report.tests for result in test.walk()]
    said = sum("ok " in line or "Bail" in line or "success: " in line for line in lines)
    made_up = sum(result.outcome is Outcome.CUT_OFF for result in results)
    assert len(results) - made_up <= said
    assert made_up <= len(lines)
    assert all(len(result.name) <= ktap.MAX_NAME + len("selftests: ") for result in results)


@hypothesis.given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_parse_when_results_are_written_then_they_are_read_back(passed: list[bool]):
    lines = [f"{'' if ok else 'not '}ok {n} t{n}" for n, ok in enumerate(passed, start=1)]
    report = parse(["KTAP version 1", f"1..{len(passed)}", *lines])
    assert [not test.is_bad for test in report.tests] == passed
    assert report.problems == []
