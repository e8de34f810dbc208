# SPDX-License-Identifier: Apache-2.0
"""What docs/selftests.md says of our own kernel is what the suites say.

Run as a program (``python -m``) this writes those tables again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from hcalld.guest import plan

ROOT: Final = Path(__file__).resolve().parents[4]
DOCUMENT: Final = ROOT / "docs" / "selftests.md"
SUITES: Final = plan.load(ROOT / "guest_stub" / "linux" / "selftests" / "suites")

RESULTS: Final = ("pass", "fail", "skip", "xfail", "timeout")
NAMED: Final = 6
"""So many tests of a collection are named in a row; of more there is their number."""

COUNTS: Final = "| Suite | Pass | Fail | Skip | Expected failure | Timeout |"
REASONS: Final = "| Suite | Tests | Result | Why |"


def counts(suites: Iterable[plan.Suite]) -> Iterator[str]:
    """The rows of the first table: how many tests of a suite end how."""
    for suite in suites:
        ends = Counter(test.result for test in suite.test)
        cells = [f"`{suite.name}`", *(str(ends[result]) for result in RESULTS)]
        yield f"| {' | '.join(cells)} |"


def reasons(suites: Iterable[plan.Suite]) -> Iterator[str]:
    """The rows of the second table: what does not pass, by its reason, then what is not run."""
    for suite in suites:
        groups: dict[tuple[str, str], list[str]] = {}
        for test in suite.test:
            if test.why:
                groups.setdefault((test.result, test.why), []).append(test.name)
        sizes = Counter(collection_of(test.name) for test in suite.test)
        for (result, why), names in groups.items():
            yield f"| `{suite.name}` | {named(names, sizes)} | {result} | {why} |"
        for out in suite.left_out:
            yield f"| `{suite.name}` | {short(out.name)} | not run | {out.why} |"


def named(names: list[str], sizes: Counter[str]) -> str:
    """Names tests by their collections."""
    collections: dict[str, list[str]] = {}
    for name in names:
        collections.setdefault(collection_of(name), []).append(name.partition(":")[2])
    return "; ".join(
        f"{short(collection)}: {programs_of(programs, sizes[collection])}"
        for collection, programs in collections.items()
    )


def programs_of(programs: list[str], size: int) -> str:
    if len(programs) <= NAMED:
        return ", ".join(programs)
    return f"all {size}" if len(programs) == size else f"{len(programs)} of {size}"


def collection_of(name: str) -> str:
    return name.partition(":")[0]


def short(name: str) -> str:
    return name.removeprefix("powerpc/")


def table(lines: list[str], head: str) -> tuple[int, int]:
    """Where the rows of a table begin and end."""
    start = lines.index(head) + 2
    end = start
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    return start, end


def rows(head: str) -> list[str]:
    lines = DOCUMENT.read_text("utf-8").splitlines()
    start, end = table(lines, head)
    return lines[start:end]


def test_document_when_it_counts_results_then_they_are_the_suites():
    assert rows(COUNTS) == list(counts(SUITES))


def test_document_when_it_says_why_then_it_is_what_the_suites_say():
    assert rows(REASONS) == list(reasons(SUITES))


def test_counts_when_they_are_made_then_every_test_is_in_one():
    numbers = [int(cell) for row in counts(SUITES) for cell in row.split("|")[2:-1]]
    assert sum(numbers) == sum(len(suite.test) for suite in SUITES)


def test_reasons_when_tests_share_one_then_they_share_a_row():
    skips = [
        plan.Expected(name=f"powerpc/a:{number}", result="skip", why="no device")
        for number in range(NAMED + 1)
    ]
    other = plan.Expected(name="b:c.sh", result="skip", why="no device")
    passing = plan.Expected(name="powerpc/a:d")
    left = plan.LeftOut(name="powerpc/e:*", why="too long")
    suite = plan.Suite(name="x", about="y", test=(*skips, other), left_out=(left,))
    assert list(reasons([suite])) == [
        "| `x` | a: all 7; b: c.sh | skip | no device |",
        "| `x` | e:* | not run | too long |",
    ]
    more = plan.Suite(name="x", about="y", test=(*skips, passing))
    assert list(reasons([more])) == ["| `x` | a: 7 of 8 | skip | no device |"]


def main() -> None:
    """Writes the tables."""
    lines = DOCUMENT.read_text("utf-8").splitlines()
    for head, made in ((COUNTS, counts(SUITES)), (REASONS, reasons(SUITES))):
        start, end = table(lines, head)
        lines[start:end] = made
    DOCUMENT.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
