# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: a run in which a whole tier of tests did not run has failed.

A test that is skipped for want of a tool looks like success, and a tier that lost its marker looks
like nothing at all. ``make test`` loads this with ``-p tests.provision.tiers --tiers=…``: every
named tier, a folder below ``tests/`` or a marker, must have run at least one test, and no test may
be skipped unless :data:`EXPECTED_SKIPS` says so. The check is made inside pytest's session, so that
pytest's closing line stays the last of its output.

Some machines cannot run a tier at all: :data:`UNABLE` says which, and the summary then says that
it did not run and why. On a machine that can, it must.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from . import kvm

if TYPE_CHECKING:
    # This package runs without pytest; only this module is loaded by it.
    import pytest
    from _pytest.terminal import TerminalReporter

EXPECTED_SKIPS: Final[tuple[re.Pattern[str], ...]] = ()
"""Reasons of skips that are right on every machine."""

UNABLE: Final[Mapping[str, Callable[[], str | None]]] = {"kvm": kvm.why_not}
"""Who says why this machine cannot run a tier."""


def unable() -> dict[str, str]:
    """Gives the tiers that this machine cannot run, and why."""
    reasons = {tier: why_not() for tier, why_not in UNABLE.items()}
    return {tier: reason for tier, reason in reasons.items() if reason is not None}


class TierCheck:
    """Counts what ran, and judges it at the end.

    Args:
        required: The tiers that must run.
        unable: Those that need not, and why.
    """

    def __init__(self, required: list[str], unable: Mapping[str, str] | None = None) -> None:
        self.required = required
        self.unable = dict(unable or {})
        self.ran: Counter[str] = Counter()
        self.skipped: list[tuple[str, str]] = []

    def count(self, report: pytest.TestReport) -> None:
        """Counts a test that ran, for its folder and for those of its markers that are tiers."""
        self.ran.update({tier_of(report.nodeid)} | (report.keywords.keys() & set(self.required)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a test that ran, or keeps why it did not."""
        if report.skipped:
            # An expected failure is reported as skipped as well, but it ran.
            if hasattr(report, "wasxfail"):
                self.count(report)
            else:
                self.skipped.append((report.nodeid, reason_of(report.longrepr)))
        elif report.when == "call":
            self.count(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails a run that would have passed."""
        if self.problems() and session.exitstatus == 0:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        """Says how many tests of each tier ran, and what is wrong with that."""
        terminalreporter.section("tiers")
        for tier in [*self.required, *sorted(self.ran.keys() - set(self.required))]:
            if tier in self.unable and not self.ran[tier]:
                terminalreporter.line(f"{tier}: not run: {self.unable[tier]}", yellow=True)
            else:
                terminalreporter.line(f"{tier}: {self.ran[tier]} ran")
        for problem in self.problems():
            terminalreporter.line(f"FAILED {problem}", red=True)

    def problems(self) -> list[str]:
        """Says what makes the run a failure, whatever its tests say."""
        return [
            f"tier {tier}: no test of tests/{tier} or so marked ran; expected at least one"
            for tier in self.required
            if not self.ran[tier] and tier not in self.unable
        ] + [
            f"{name} was skipped ({reason}); expected every test to run. Install what it lacks, or "
            "add the reason to EXPECTED_SKIPS in tests/provision/tiers.py"
            for name, reason in self.skipped
            if not any(expected.search(reason) for expected in EXPECTED_SKIPS)
        ]


def tier_of(nodeid: str) -> str:
    """Names the folder below ``tests/`` that a test lies in."""
    parts = PurePosixPath(nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 2 else "none"


def reason_of(longrepr: object) -> str:
    """Gives the reason of a skip, which pytest reports as path, line and text."""
    if isinstance(longrepr, tuple) and len(longrepr) == 3:
        return str(longrepr[2])
    return str(longrepr)


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of several processes that share a run: the run is judged by the other."""
    return hasattr(config, "workerinput")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that names the tiers."""
    parser.addoption(
        "--tiers", default="", help="folders of tests/ or markers that must have run, by commas"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Starts the check when tiers are named."""
    required = [tier for tier in config.getoption("--tiers").split(",") if tier]
    if required and not is_worker(config):
        config.pluginmanager.register(TierCheck(required, unable()), "hcalld-tiers")
