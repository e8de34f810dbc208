# SPDX-License-Identifier: Apache-2.0
"""``hcalld state`` as a user types it, and what must come back."""

from __future__ import annotations

from click.testing import CliRunner, Result

from hcalld.cli.state import command


def run(*arguments: str, data: bytes = b"") -> Result:
    return CliRunner().invoke(command, list(arguments), input=data)


def good(*arguments: str, data: bytes = b"") -> str:
    result = run(*arguments, data=data)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def bad(*arguments: str, data: bytes = b"") -> str:
    """One line on stderr, exit status 1."""
    result = run(*arguments, data=data)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("hcalld: ")
    return line


def misused(*arguments: str, data: bytes = b"") -> str:
    result = run(*arguments, data=data)
    assert result.exit_code == 2
    return result.stderr
