# SPDX-License-Identifier: Apache-2.0
"""``hcalld guest``: boot a kernel with a daemon of its own."""

from __future__ import annotations

import click

from hcalld.cli.lazy import LazyGroup

_COMMANDS = {
    "run": "hcalld.cli.guest.run",
    "shell": "hcalld.cli.guest.shell",
}


@click.group(
    name="guest",
    cls=LazyGroup,
    modules=_COMMANDS,
    short_help="Boot a kernel: its selftests, a script, or a shell.",
)
def command() -> None:
    """Boot a kernel under QEMU, with a daemon of its own: run selftests, or use a shell."""
