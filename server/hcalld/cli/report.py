# SPDX-License-Identifier: Apache-2.0
"""``hcalld report``: a capture as a page to look at."""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
import sys
import tempfile
from collections.abc import Iterable
from typing import IO

import click

from hcalld import __version__

STDIN = "standard input"


@click.command(name="report", short_help="Make an HTML page of a capture.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path, allow_dash=True),
    metavar="FILE",
    help="The page (default: the capture's name with .html; - for standard output).",
)
@click.argument("capture", type=click.File("rb"))
def command(*, output: pathlib.Path | None, capture: IO[bytes]) -> None:
    """Make one HTML page of a CAPTURE, which gzip may have compressed; - for standard input.

    It shows the calls of each virtual CPU over time, how often and how long each was made, what
    was refused and why, and what a secure VM shares. It needs nothing but a browser, and fetches
    nothing. A damaged file is read up to the damage; then the exit status is 1.
    """
    from hcalld.cli.capturefiles import Progress, chunks
    from hcalld.core.errors import ConfigError, HcalldError
    from hcalld.report.gather import Gathered
    from hcalld.report.page import render
    from hcallproto.errors import CaptureError

    path = getattr(capture, "name", None)
    is_stdin = not isinstance(path, str) or path == "<stdin>"
    name = path if isinstance(path, str) and not is_stdin else STDIN
    if output is None:
        if is_stdin or _size_of(capture) is None:
            raise click.UsageError("a capture from a pipe has no name for its page: give -o FILE")
        output = pathlib.Path(name).with_suffix(".html")
    if _is_same(output, capture):
        raise click.UsageError(f"{output}: the page would take the capture's place: give -o FILE")
    progress = Progress(capture, name)
    try:
        gathered = Gathered(chunks(capture, before_wait=progress.show))
    except CaptureError as error:
        raise HcalldError(f"{name}: {error}") from None
    except OSError as error:
        raise HcalldError(f"{name}: cannot be read: {error.strerror}") from None
    finally:
        progress.end()
    pieces = render(
        gathered,
        name=pathlib.Path(name).name,
        made_by=f"hcalld {__version__}",
        size=_size_of(capture),
    )
    try:
        _write(output, pieces)
    except OSError as error:
        raise ConfigError(
            f"{output}: the page cannot be written: {error.strerror}; expected a file in a "
            "directory that exists and that we may write"
        ) from None
    for problem in gathered.reader.problems:
        click.echo(f"hcalld: {name}: {problem}", err=True)
    if gathered.reader.problems:
        sys.exit(1)


def _is_same(path: pathlib.Path, stream: IO[bytes]) -> bool:
    """Whether a path leads to an open file that has a size."""
    try:
        return _size_of(stream) is not None and os.path.samestat(
            path.stat(), os.fstat(stream.fileno())
        )
    except OSError:
        return False


def _size_of(stream: IO[bytes]) -> int | None:
    """Of a file; None: it has none, like a pipe's."""
    try:
        found = os.fstat(stream.fileno())
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _write(output: pathlib.Path, pieces: Iterable[str]) -> None:
    """Write the page whole, or not at all."""
    if str(output) == "-":
        stdout = sys.stdout.buffer
        for piece in pieces:
            stdout.write(piece.encode())
        return
    if output.exists() and not output.is_file():
        with output.open("w", encoding="utf-8") as stream:  # such as /dev/stdout
            stream.writelines(pieces)
        return
    fd, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with open(fd, "w", encoding="utf-8") as stream:
            stream.writelines(pieces)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, output)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
