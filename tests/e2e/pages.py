# SPDX-License-Identifier: Apache-2.0
"""A page of the documents, typed into a shell as somebody does who follows it.

One ``bash`` has the whole page: what a block starts in the background, or sets, is there for the
next one. A command that fails ends it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.e2e.patience import patience, wait_until

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
END: Final = "=== end of block"


class Block(NamedTuple):
    """Commands of a page, and the section that they stand in."""

    section: str
    text: str


def blocks_of(name: str) -> Iterator[Block]:
    """Gives the ``sh`` blocks of a page, in order, each with the last ``##`` heading before it."""
    section = ""
    pattern = r"^## (?P<heading>[^\n]+)$|^```sh\n(?P<text>.*?)^```$"
    for found in re.finditer(pattern, (DOCS / name).read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if found["text"] is None:
            section = found["heading"]
        else:
            yield Block(section, found["text"])


class PageShell:
    """A shell in a folder; at the end nothing of what it has started is left.

    Args:
        folder: Where commands run.
        home: A directory with a short path, for sockets in it.
        before: Words before the shell's, such as those that make it another user's.
        environ: More variables.
    """

    def __init__(
        self, folder: Path, home: Path, *, before: Sequence[str] = (), **environ: str
    ) -> None:
        # A user's: none of the project's variables, and its program in the path.
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HCALLD_", "XDG_"))
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._process = subprocess.Popen(
            [*before, "bash", "-e", "-o", "pipefail"],
            cwd=folder,
            env={**mine, "PATH": path, "HOME": str(home), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._script = home / "block.sh"
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Its children are in its group: daemons too, which would outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._reader.join(patience(30))
        try:
            assert not self._reader.is_alive(), f"something is left:\n{''.join(self._lines)}"
        finally:
            if self._reader.is_alive():
                os.killpg(self._process.pid, signal.SIGKILL)
            with self._process:  # closes the pipes
                self._process.wait(patience(10))

    def _read(self) -> None:
        """Keeps what is printed, until nobody is left who could print."""
        assert self._process.stdout is not None
        self._lines.extend(self._process.stdout)

    def run(self, text: str, seconds: float = 60) -> str:
        """Runs a block; gives what was printed meanwhile.

        Raises:
            AssertionError: A command has failed, or the block does not end.
        """
        assert self._process.stdin is not None
        begun = len(self._lines)
        self._script.write_text(text, "utf-8")
        # No command may take for its input what the shell reads.
        script = shlex.quote(str(self._script))
        self._process.stdin.write(f"source {script} < /dev/null\necho '{END}'\n")
        self._process.stdin.flush()

        def is_over() -> bool:
            return f"{END}\n" in self._lines[begun:] or self._process.poll() is not None

        def said() -> str:
            return "".join(self._lines[begun:])

        try:
            wait_until(is_over, "the block's end", seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{text}\n{said()}") from None
        assert self._process.poll() is None, f"{text}\n{said()}"
        return said().replace(f"{END}\n", "")
