# SPDX-License-Identifier: Apache-2.0
"""How another kernel's results differ from those that the suites expect.

The suites are about one kernel. For another one, a file names the tests that end in another way,
and the suites hold for the rest. A run writes such a file of whatever changed, so that the next
run, of the same kernel with a change of its developer's, fails for that change alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import msgspec

from hcalld.core.errors import ConfigError
from hcalld.guest import plan


class Difference(plan.Expected, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One test of a suite, as a kernel ends it."""

    suite: str


class Differences(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of them."""

    about: str
    """Which kernel they are of."""
    test: tuple[Difference, ...] = ()


def parse(text: str, where: str) -> Differences:
    """Reads a file.

    Args:
        text: TOML.
        where: Its name, for messages.

    Raises:
        ConfigError: It is none.
    """
    read = plan.decoded(text, Differences, where)
    for test in read.test:
        if test.has_no_reason:
            raise ConfigError(f"{where}: {plan.no_reason(test)}")
    return read


def applied(suites: Sequence[plan.Suite], differences: Differences, where: str) -> list[plan.Suite]:
    """Gives suites that expect what a kernel does.

    Args:
        suites: All of them.
        differences: What replaces their tests.
        where: The file's name, for messages.

    Raises:
        ConfigError: No suite has a test that is named.
    """
    others = {(test.suite, test.name): test for test in differences.test}
    if len(others) < len(differences.test):
        raise ConfigError(f"{where}: a test is there twice; expected each of a suite once")
    there = {(suite.name, test.name) for suite in suites for test in suite.test}
    for suite, name in others.keys() - there:
        raise ConfigError(
            f"{where}: the suite {suite} has no test {name}; expected one that the suite names"
        )
    return [
        msgspec.structs.replace(
            suite, test=tuple(others.get((suite.name, test.name), test) for test in suite.test)
        )
        for suite in suites
    ]


def written(about: str, found: Iterable[tuple[str, plan.Expected]]) -> str:
    """Writes such a file.

    Args:
        about: Which kernel it is of.
        found: The suites' names, and tests as they ended.
    """
    lines = [f"about = {_quoted(about)}"]
    for suite, test in found:
        lines += ["", "[[test]]", f"suite = {_quoted(suite)}", f"name = {_quoted(test.name)}"]
        lines += [f"result = {_quoted(test.result)}"]
        lines += [f"why = {_quoted(test.why)}"] if test.why else []
        parts = ", ".join(f"{_quoted(name)} = {_quoted(end)}" for name, end in test.parts.items())
        lines += [f"parts = {{ {parts} }}"] if parts else []
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A string of TOML's, whose escapes are JSON's but for DEL, which it wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
