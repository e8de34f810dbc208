# SPDX-License-Identifier: Apache-2.0
"""``hcalld fault check``: whether a file of rules would be taken."""

from __future__ import annotations

import pathlib

import click


@click.command(name="check", short_help="Check a file of rules.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=pathlib.Path))
def command(*, path: pathlib.Path) -> None:
    """Check a FILE of rules as 'hcalld serve --faults FILE' would, and show them."""
    from hcalld.faults.files import read
    from hcallproto.payloads.quoting import printable

    rules = list(read(path))
    for active in rules:
        click.echo(printable(f"{active.number}: {active.rule.summary()}"))
    if not rules:
        click.echo(f"hcalld: {path}: no rules; each begins with [[fault]]", err=True)
