# SPDX-License-Identifier: Apache-2.0
"""``hcalld replay``: captures run again, and what came out differently."""

from __future__ import annotations

import click

from hcalld.cli.lazy import LazyGroup

_COMMANDS = {
    "code": "hcalld.cli.replay.code",
    "guest": "hcalld.cli.replay.guest",
    "machine": "hcalld.cli.replay.machine",
}
"""Subcommand to the module that holds it, as an attribute named ``command``."""


@click.group(
    name="replay",
    cls=LazyGroup,
    modules=_COMMANDS,
    short_help="Run a capture again and compare.",
)
def command() -> None:
    """Run a capture again and say what comes out differently.

    The exit status is 1 if anything does, and 2 if the capture cannot be read or played.
    """
