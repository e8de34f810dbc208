# SPDX-License-Identifier: Apache-2.0
"""What a boot of the guest stub reported, by KTAP: tests, and the checks that each consists of."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from hcalld.guest import ktap as protocol
from hcalld.guest.boot import EXIT

UNNAMED = protocol.UNNAMED
_EXIT = re.compile(EXIT, re.MULTILINE)


class KtapError(AssertionError):
    """The output is not whole, or a test in it failed."""


@dataclasses.dataclass(slots=True)
class Result:
    """One test, and the checks it consists of."""

    name: str
    passed: bool
    skipped: str | None
    checks: list[Result] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Report:
    """What one boot of the guest stub reported."""

    planned: int | None
    tests: list[Result]
    status: int | None
    """Exit status that the stub told; None: it did not come so far."""
    text: str

    def __getitem__(self, name: str) -> Result:
        for test in self.tests:
            if test.name == name:
                return test
        raise KtapError(f"no test {name!r} ran; there are {[test.name for test in self.tests]}")

    def failures(self) -> Iterator[str]:
        """Says what is wrong."""
        for test in self.tests:
            for check in test.checks:
                if not check.passed:
                    yield f"{test.name}: not ok: {check.name}"
            if not test.passed and all(check.passed for check in test.checks):
                yield f"{test.name}: not ok"
        if self.planned is None:
            yield "no plan was printed"
        elif len(self.tests) != self.planned:
            yield f"{len(self.tests)} of {self.planned} tests were reported"

    def skips(self) -> Iterator[str]:
        """Names what was skipped, with the reason."""
        for test in self.tests:
            for check in (test, *test.checks):
                if check.skipped is not None:
                    yield f"{test.name}: {check.skipped or check.name}"

    def must_pass(self, *names: str, may_skip: bool = False) -> None:
        """Checks that all passed, that tests of these names ran, and none was skipped.

        Raises:
            KtapError: It is not so.
        """
        problems = list(self.failures())
        if not may_skip:
            problems += [f"skipped: {skip}" for skip in self.skips()]
        ran = {test.name for test in self.tests}
        problems += [f"{name} did not run" for name in names if name not in ran]
        if self.status != 0:
            problems.append(f"exit status is {self.status}, expected 0")
        if problems:
            raise KtapError("; ".join(problems))


def parse(text: str) -> Report:
    """Reads the output of one boot: the last ``KTAP version`` at the left margin begins it."""
    lines = text.replace("\r", "").splitlines()
    starts = [number for number, line in enumerate(lines) if line == "KTAP version 1"]
    if not starts:
        return Report(None, [], None, text)
    read = protocol.parse(lines[starts[-1] :])
    tests = [result_of(result) for result in read.tests]
    statuses = _EXIT.findall("\n".join(lines[starts[-1] :]))
    return Report(read.planned, tests, int(statuses[-1]) if statuses else None, text)


def result_of(result: protocol.Result) -> Result:
    """One test, or check."""
    return Result(
        result.name,
        not result.is_bad,
        result.reason if result.outcome is protocol.Outcome.SKIP else None,
        [result_of(part) for part in result.parts],
    )
