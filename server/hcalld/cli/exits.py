# SPDX-License-Identifier: Apache-2.0
"""Exit statuses, and how Ctrl-C ends a command (docs/using.md, "Exit statuses")."""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

import click

from hcalld.cli.output import drop_output

FAILED: Final = 1
"""It could not be done; standard error says why."""
DIFFERENT: Final = 1
"""Something is not as it was."""
BROKEN: Final = 2
"""What was to be compared cannot be read or played; click's for a wrong use of the command line."""


def is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, and nothing else."""
    if isinstance(error, BaseExceptionGroup):
        # From within a nursery.
        return error.split(KeyboardInterrupt)[1] is None
    # Click turns it into its own, and a "no" of the user's as well.
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def end_by_interrupt() -> NoReturn:
    """End by SIGINT, as if it had not been caught.

    A shell stops the script or loop that a command stands in only if the command has died of
    Ctrl-C: to one that exits with 130 it was the command's own business. ``$?`` is 130 for both.
    """
    click.echo("Aborted!", err=True)
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    raise SystemExit(128 + signal.SIGINT)
