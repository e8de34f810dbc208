# SPDX-License-Identifier: Apache-2.0
"""Saying what is going on, and running the long commands.

A build prints thousands of lines that nobody reads until it fails. :func:`run` keeps them in a log
file, condenses them to a line every few seconds, and shows the end of the log on failure.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import ProvisionError

START = time.monotonic()

TICK_S = 10.0
"""Seconds between two lines of progress of one command."""

TAIL_LINES = 40
"""Lines of a failed command's log that are shown."""

LEFT_OUT = frozenset(
    {
        # An outer make's options and job server are not for the makes that are started here.
        *("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"),
        # These would change what is built, and the cache would not know.
        *("CC", "CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "CROSS_COMPILE", "ARCH"),
        *("KBUILD_OUTPUT", "KCFLAGS", "KCONFIG_CONFIG", "O", "V"),
    }
)
"""Variables of this process that commands do not get."""

NINJA_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
COMPILER_STEP = re.compile(r"^\s+(?:CC|AS|LD|AR|HOSTCC|LDS|GEN|UPD|CHK|HOSTLD|AR\s)\s")

Word = str | os.PathLike[str]
"""A word of a command line."""

Condense = Callable[[str], "str | None"]
"""Takes a line of output, gives the progress to show or nothing."""


def say(text: str) -> None:
    """Prints one line for people, with the seconds since the start."""
    seconds = time.monotonic() - START
    print(f"[provision {seconds:6.1f}s] {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Gives a length of time in words, as rough as an estimate is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def ninja_steps(line: str) -> str | None:
    """Condenses ninja's ``[n/m]``."""
    found = NINJA_STEP.match(line)
    return f"{found[1]} of {found[2]} steps" if found else None


def kbuild_steps(expected: int) -> Condense:
    """Counts the steps that the kernel's build names, of which it never tells the total.

    Args:
        expected: About how many there are, from an earlier build.
    """
    count = 0

    def condense(line: str) -> str | None:
        nonlocal count
        if not COMPILER_STEP.match(line):
            return None
        count += 1
        return f"{count} of about {max(expected, count)} steps"

    return condense


def environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """Gives a command's variables: those of this process, without :data:`LEFT_OUT`."""
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    return {**kept, "LC_ALL": "C.UTF-8", **(more or {})}


def run(
    what: str,
    command: Sequence[Word],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    condense: Condense | None = None,
) -> None:
    """Runs a command with its output in a log file.

    Args:
        what: Name of the step, for people.
        command: The program and its arguments.
        log: File that gets the output, appended.
        cwd: Working directory.
        env: Variables set beside those of this process.
        condense: Turns a line of output into progress.

    Raises:
        ProvisionError: The command failed or is not there.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [os.fspath(word) for word in command]
    shown = time.monotonic()
    with log.open("a", encoding="utf-8", errors="replace") as sink:
        sink.write(f"+ {' '.join(words)}\n")
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        # Where a folder of the search path cannot be read, a lacking program is a denied one.
        except (FileNotFoundError, PermissionError) as error:
            raise ProvisionError(
                f"{what}: the program {words[0]!r} is not there; expected one of the packages that "
                "`python3 tests/provision system` installs to bring it"
            ) from error
        assert process.stdout is not None
        with process:
            try:
                for line in process.stdout:
                    sink.write(line)
                    text = condense(line) if condense else None
                    if text and time.monotonic() - shown >= TICK_S:
                        say(f"{what}: {text}")
                        shown = time.monotonic()
            except BaseException:
                process.kill()
                raise
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        ended = (
            f"exit status {process.returncode}"
            if process.returncode > 0
            else f"signal {-process.returncode}"
        )
        shown_tail = "\n".join(f"    {line}" for line in tail)
        raise ProvisionError(
            f"{what}: `{' '.join(words[:6])}` ended with {ended}; the whole log is {log}, "
            f"and this is its end:\n{shown_tail}"
        )


def output(
    command: Sequence[Word],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Gives the standard output of a short command.

    Raises:
        ProvisionError: The command failed or is not there.
    """
    words = [os.fspath(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise ProvisionError(f"the program {words[0]!r} is not there") from error
    if done.returncode:
        raise ProvisionError(
            f"`{' '.join(words)}` ended with exit status {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout
