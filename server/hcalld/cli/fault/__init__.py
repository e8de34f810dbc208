# SPDX-License-Identifier: Apache-2.0
"""``hcalld fault``: have calls fail on purpose, in a daemon that runs."""

from __future__ import annotations

import click

from hcalld.cli.lazy import LazyGroup

_COMMANDS = {
    "add": "hcalld.cli.fault.add",
    "list": "hcalld.cli.fault.rules:list_rules",
    "remove": "hcalld.cli.fault.rules:remove",
    "clear": "hcalld.cli.fault.rules:clear",
    "check": "hcalld.cli.fault.check",
}


@click.group(
    name="fault", cls=LazyGroup, modules=_COMMANDS, short_help="Have calls fail on purpose."
)
def command() -> None:
    """Have calls of a running daemon's guests fail, wait or break on purpose.

    Rules that are there from the start are in a file: 'hcalld serve --faults FILE'.
    """
