# SPDX-License-Identifier: Apache-2.0
"""What an act stands on: a folder with a daemon's state, a terminal, and commands."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console as Terminal
from tests.e2e.patience import patience, wait_until

terminal = Terminal(highlight=False, soft_wrap=True, markup=False)


class DemoError(Exception):
    """Something is not as it should be."""


def must(condition: object, text: str) -> None:
    """Stops the act.

    Raises:
        DemoError: The condition does not hold.
    """
    if not condition:
        raise DemoError(text)


def title(text: str) -> None:
    """Announces the next step."""
    terminal.print(f"\n== {text}", style="bold")


def show(text: str, style: str = "") -> None:
    """Prints lines that something else said."""
    for line in text.splitlines():
        terminal.print(f"  {line}", style=style)


def tool(name: str) -> Path:
    """A path that make has put into the environment."""
    value = os.environ.get(name)
    if not value:
        raise DemoError(f"{name} is not set; run it by 'make demo'")
    return Path(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """Where an act happens.

    Attributes:
        folder: Where files are made; commands run in it.
    """

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a user whose files are all in the folder, and hcalld in PATH."""
        programs = Path(sys.executable).parent
        return {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "HCALLD_STATE_DIR": str(self.folder / "daemon.state"),
            "XDG_RUNTIME_DIR": str(self.folder),
        }

    @property
    def socket(self) -> Path:
        """Where commands look for a daemon that nobody has told them of."""
        return self.folder / "hcalld.sock"

    def run(self, command: str, *, status: int = 0) -> None:
        """Shows a command as a user would type it, runs it, and shows what it prints.

        Args:
            command: A line for the shell.
            status: The exit status that is right.

        Raises:
            DemoError: It ended otherwise.
        """
        terminal.print(f"  $ {command}", style="cyan")
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience(60),
            check=False,
        )
        show(done.stdout.decode("utf-8", "replace"))
        if done.returncode != status:
            raise DemoError(f"{command!r} ended with {done.returncode}, expected {status}")

    @contextlib.contextmanager
    def beside(self, command: str, waits_for: str) -> Iterator[None]:
        """Shows a command and runs it beside what follows; shows what it printed when it ends.

        Args:
            command: A line for the shell.
            waits_for: The file of its that what follows needs.

        Raises:
            DemoError: It ended too early, or badly.
        """
        terminal.print(f"  $ {command} &", style="cyan")
        with (self.folder / "beside.log").open("w+b") as log:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

            def is_begun() -> bool:
                path = self.folder / waits_for
                return process.poll() is not None or (path.exists() and path.stat().st_size > 0)

            try:
                wait_until(is_begun, f"{waits_for} of {command!r}", 60)
                if not process.poll():
                    yield
                process.wait(patience(60))
            finally:
                process.kill()
                process.wait()
                log.seek(0)
                show(log.read().decode("utf-8", "replace"))
        if process.returncode != 0:
            raise DemoError(f"{command!r} ended with {process.returncode}, expected 0")

    def words(self, command: str) -> list[str]:
        """The words that a command prints, quoted for a shell."""
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=True,
        )
        return shlex.split(done.stdout)
