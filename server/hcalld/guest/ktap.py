# SPDX-License-Identifier: Apache-2.0
"""Reads KTAP, the kernel's test protocol, out of a guest's console. Pure.

Documentation/dev-tools/ktap.rst of Linux is what is followed, and what kselftest does besides:

* The results of a test's parts are nested by two spaces, or, by kselftest's runner, by ``# ``
  before every line that a test prints.
* Its older tests and the powerpc collection's harness print subunit instead: ``success: NAME``,
  ``failure: NAME``, ``skip: NAME``. Each is a part.
* ``[    1.234567] `` before a line is the kernel's own, as KUnit's are.

Results that are nested count below a version line or a plan only, so that a diagnostic line which
looks like a result is none. Whatever else the console shows is kept as notes of the test it comes
before. A guest may print what it likes: lines, names, notes, depth and the number of results are
bounded, and what is over is said.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

MAX_LINE: Final = 4096
"""Characters of a line that are looked at."""

MAX_NAME: Final = 300
MAX_DEPTH: Final = 8
MAX_RESULTS: Final = 50_000
MAX_NOTES: Final = 60
"""Lines before a result that are kept: the last ones."""

MAX_PROBLEMS: Final = 100


class Outcome(enum.StrEnum):
    """How a test ended."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    XFAIL = "xfail"
    """It failed as its author expects, directive XFAIL or TODO."""
    TIMEOUT = "timeout"
    CUT_OFF = "cut off"
    """It began, and its result was never printed."""


BAD: Final = frozenset({Outcome.FAIL, Outcome.TIMEOUT, Outcome.CUT_OFF})


@dataclasses.dataclass(slots=True)
class Result:
    """One test and the parts it consists of."""

    name: str
    outcome: Outcome
    reason: str = ""
    """What follows the directive, or the hash sign without one."""
    parts: list[Result] = dataclasses.field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def is_bad(self) -> bool:
        """Whether it failed."""
        return self.outcome in BAD

    def walk(self) -> Iterator[Result]:
        """This one, then all parts."""
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclasses.dataclass(slots=True)
class Report:
    """All that was read."""

    planned: int | None = None
    """How many tests the plan says; None: there was none."""
    tests: list[Result] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    """What is wrong with the output itself, whatever the results."""
    bail_out: str | None = None
    skip_all: str | None = None
    """Why a plan of no tests leaves all of them out."""


_VERSION: Final = re.compile(r"(?:K?TAP) version \d+$")
_PLAN: Final = re.compile(r"1\.\.(\d{1,9})(?:\s*#\s*SKIP\b\s*(.*))?\s*$", re.IGNORECASE)
_RESULT: Final = re.compile(r"(ok|not ok)\s+(\d{1,9})(?:\s+(.*))?$")
UNNAMED: Final = "(unnamed)"
"""What a test is called that never came to its own line."""
_DIRECTIVE: Final = re.compile(r"(SKIP|TODO|XFAIL|TIMEOUT|ERROR)\b:?\s*(.*)$", re.IGNORECASE)
_BAIL_OUT: Final = re.compile(r"Bail out!\s*(.*)$")
_SUBUNIT: Final = re.compile(r"(success|failure|error|skip|xfail): (.+)$")
_STARTED: Final = re.compile(r"selftests: (.+)$")
_TIMESTAMP: Final = re.compile(r"\[ *\d+\.\d{6}\] ")
_INDENT: Final = 2

_SUBUNIT_OUTCOMES: Final = {
    "success": Outcome.PASS,
    "failure": Outcome.FAIL,
    "error": Outcome.FAIL,
    "skip": Outcome.SKIP,
    "xfail": Outcome.XFAIL,
}


@dataclasses.dataclass(slots=True)
class _Level:
    """One depth of nesting, as far as it was read."""

    planned: int | None = None
    next_number: int = 1
    results: list[Result] = dataclasses.field(default_factory=list)
    is_open: bool = False
    """A version line or a plan has begun it."""
    skip_all: str | None = None


class Parser:
    """Takes a console line by line; :meth:`finish` gives the report."""

    def __init__(self) -> None:
        self._levels = [_Level()]
        self._notes: deque[str] = deque(maxlen=MAX_NOTES)
        self._report = Report()
        self._count = 0
        self._current = ""
        self._is_over = False
        self._has_begun = False

    @property
    def current(self) -> str:
        """The test that kselftest's runner has begun and not ended; empty: none."""
        return self._current

    @property
    def count(self) -> int:
        """How many results were read, parts included."""
        return self._count

    def feed(self, line: str) -> Result | None:
        """Reads a line; gives the result that it ends at the outermost level, if it does."""
        line = line.rstrip("\r\n")
        if self._is_over:
            return None
        if len(line) > MAX_LINE:
            self._problem(f"a line of {len(line)} characters was cut at {MAX_LINE}")
            line = line[:MAX_LINE]
        if found := _TIMESTAMP.match(line):
            line = line[found.end() :]
        depth, content = self._place(line)
        if _VERSION.match(content):
            self._begin(depth)
        elif found := _PLAN.match(content):
            self._plan(depth, int(found[1]), found[2])
        elif found := _RESULT.match(content):
            return self._result(depth, found[1] == "ok", int(found[2]), found[3] or "", line)
        elif found := _BAIL_OUT.match(content):
            self._bail_out(depth, found[1].strip())
        elif depth and (found := _SUBUNIT.match(content)):
            self._part(Result(_name(found[2]), _SUBUNIT_OUTCOMES[found[1]]))
        else:
            if depth and (found := _STARTED.match(content)):
                self._current = _name(found[1])
            if line.strip():
                self._notes.append(line)
        return None

    def finish(self) -> Report:
        """Ends the input: what was begun and has no result is cut off."""
        report = self._report
        parts = self._close_deeper(0)
        # A runner that was ended by Bail out! owes nothing.
        if not self._is_over and (parts or self._current):
            name = f"selftests: {self._current}" if self._current else UNNAMED
            self._levels[0].results.append(
                Result(name, Outcome.CUT_OFF, parts=parts, notes=tuple(self._notes))
            )
            self._problem(f"the output ends within {name}")
        self._end_top()
        if not self._has_begun:
            self._problem("no KTAP was printed: no version line, no plan, no result")
        return report

    # -- places -----------------------------------------------------------------------------

    def _place(self, line: str) -> tuple[int, str]:
        """How deep a line is nested, and the line without that."""
        depth = 0
        content = line
        while depth < MAX_DEPTH:
            if content.startswith("# "):
                content = content[2:]
            elif content.startswith(" " * _INDENT):
                content = content[_INDENT:]
            else:
                break
            depth += 1
        return depth, content

    def _begin(self, depth: int) -> None:
        self._has_begun = True
        if depth == 0:
            # Several in one console: a script that runs more than one program.
            self._end_top()
            self._levels = [_Level(is_open=True)]
            return
        self._open(depth)

    def _open(self, depth: int) -> _Level:
        """Opens a level; what is on it already stays: a program may print two."""
        while len(self._levels) <= depth:
            self._levels.append(_Level())
        level = self._levels[depth]
        if level.is_open and level.results:
            self._check_plan(level, depth)
        level.is_open = True
        level.planned, level.next_number = None, 1
        return level

    def _plan(self, depth: int, count: int, skip: str | None) -> None:
        self._has_begun = True
        level = self._levels[depth] if depth < len(self._levels) else None
        if level is None or not level.is_open:
            level = self._open(depth)
        if level.planned is not None and level.planned != count:
            self._problem(f"two plans: 1..{level.planned} and 1..{count}")
        level.planned = count
        if skip is not None:
            level.skip_all = skip.strip()

    def _is_open(self, depth: int) -> bool:
        return depth == 0 or (depth < len(self._levels) and self._levels[depth].is_open)

    # -- results ----------------------------------------------------------------------------

    def _result(self, depth: int, is_ok: bool, number: int, text: str, line: str) -> Result | None:
        if not self._is_open(depth):
            self._notes.append(line)
            return None
        self._has_begun = True
        name, outcome, reason = _read(is_ok, text)
        result = Result(name, outcome, reason)
        skip_all = self._levels[depth + 1].skip_all if depth + 1 < len(self._levels) else None
        result.parts = self._close_deeper(depth)
        result.notes = tuple(self._notes)
        self._notes.clear()
        if result.outcome is Outcome.PASS:
            self._judge(result, skip_all)
        elif result.outcome is Outcome.SKIP and not reason and skip_all:
            result.reason = skip_all
        level = self._levels[depth]
        if number != level.next_number:
            self._problem(f"{name or UNNAMED} has the number {number}, not {level.next_number}")
        level.next_number = number + 1
        if depth == 0:
            self._current = ""
        if self._keep(level.results, result) and depth == 0:
            return result
        return None

    def _judge(self, result: Result, skip_all: str | None) -> None:
        """Looks whether a test that says ok agrees with its parts."""
        bad = [part.name for part in result.parts if part.is_bad]
        if bad:
            self._problem(f"{result.name} is ok, though not ok is {bad[0]}")
            result.outcome, result.reason = Outcome.FAIL, f"not ok: {bad[0]}"
        elif skip_all is not None and not result.parts:
            result.outcome, result.reason = Outcome.SKIP, skip_all
        elif result.parts and all(part.outcome is Outcome.SKIP for part in result.parts):
            # The powerpc harness ends with 0 for a test that it skipped.
            result.outcome, result.reason = Outcome.SKIP, "all parts were skipped"

    def _part(self, result: Result) -> None:
        """Adds what is not numbered, at the depth below the runner's."""
        while len(self._levels) <= 1:
            self._levels.append(_Level())
        self._keep(self._levels[1].results, result)

    def _keep(self, results: list[Result], result: Result) -> bool:
        if self._count >= MAX_RESULTS:
            self._problem(f"there are more than {MAX_RESULTS} results; the others are left out")
            return False
        self._count += 1
        results.append(result)
        return True

    def _bail_out(self, depth: int, why: str) -> None:
        self._has_begun = True
        if depth == 0:
            self._report.bail_out = why[:MAX_NAME]
            self._is_over = True
            return
        self._part(Result("Bail out!", Outcome.FAIL, why[:MAX_NAME]))

    # -- ends -------------------------------------------------------------------------------

    def _close_deeper(self, depth: int) -> list[Result]:
        """Ends all levels below one; gives the results that belong to its next result."""
        parts: list[Result] = []
        for deeper in range(len(self._levels) - 1, depth, -1):
            level = self._levels[deeper]
            self._check_plan(level, deeper)
            if parts and deeper > depth:
                # The level between has no result for them.
                level.results.append(Result(UNNAMED, Outcome.CUT_OFF, parts=parts))
            parts = level.results
        del self._levels[depth + 1 :]
        return parts

    def _check_plan(self, level: _Level, depth: int) -> None:
        # What subunit says is on the same level, and in no plan.
        if level.planned is not None and level.planned != level.next_number - 1:
            where = "" if depth == 0 else f" of a test's parts at depth {depth}"
            self._problem(
                f"the plan{where} is 1..{level.planned}, and {level.next_number - 1} were reported"
            )

    def _end_top(self) -> None:
        top = self._levels[0]
        report = self._report
        if not (self._is_over and report.bail_out is not None):
            self._check_plan(top, 0)
        if top.planned is not None:
            report.planned = (report.planned or 0) + top.planned
        if top.skip_all is not None:
            report.skip_all = top.skip_all
        report.tests += top.results

    def _problem(self, text: str) -> None:
        if len(self._report.problems) < MAX_PROBLEMS:
            self._report.problems.append(text[: 2 * MAX_NAME])


def _read(is_ok: bool, text: str) -> tuple[str, Outcome, str]:
    """A result's name, outcome and reason, from what follows its number."""
    outcome = Outcome.PASS if is_ok else Outcome.FAIL
    description, _, diagnostic = text.partition("#")
    name = _name(description.strip().removeprefix("- "))
    diagnostic = diagnostic.strip()
    if found := _DIRECTIVE.match(diagnostic):
        reason = found[2].strip()
        match found[1].upper():
            case "SKIP":
                return name, Outcome.SKIP, reason
            case "XFAIL" | "TODO":
                return name, Outcome.XFAIL, reason
            case "TIMEOUT":
                return name, Outcome.TIMEOUT, reason
            case _:
                return name, Outcome.FAIL, reason
    return name, outcome, diagnostic


def _name(text: str) -> str:
    return text.strip()[:MAX_NAME]


def parse(lines: Iterable[str]) -> Report:
    """Reads a whole console."""
    parser = Parser()
    for line in lines:
        parser.feed(line)
    return parser.finish()
