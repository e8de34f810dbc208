# SPDX-License-Identifier: Apache-2.0
"""``hcalld list``: every call, from the table."""

from __future__ import annotations

import json

import click

from hcallproto.abi.registry import FAMILIES
from hcallproto.abi.spec import Family, Hcall

_ENDLESS = 10_000


def _row(family: Family, call: Hcall) -> dict[str, object]:
    return {
        "family": family.name,
        "number": call.number,
        "name": call.name,
        "level": call.level.value,
        "served": not call.decode_only,
        "arguments": [arg.name for arg in call.args],
        "outputs": [output.name for output in call.outputs],
        "doc": call.doc,
    }


@click.command(name="list", short_help="Show every call that hcalld knows.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, one array.")
@click.option("--served", is_flag=True, help="Only calls that are served.")
@click.argument("family", required=False)
def command(*, as_json: bool, served: bool, family: str | None) -> None:
    """Show every call that hcalld knows, or those of one FAMILY."""
    known = [f.name for f in FAMILIES]
    if family is not None and family not in known:
        raise click.UsageError(f"no family {family!r}; families are: {', '.join(known)}")
    rows = [
        _row(f, call)
        for f in FAMILIES
        if family in (None, f.name)
        for call in f.calls
        if not (served and call.decode_only)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("number", "call", "level", "served", "arguments", box=None, pad_edge=False)
    for row in rows:
        arguments = row["arguments"]
        assert isinstance(arguments, list)
        table.add_row(
            f"0x{row['number']:x}",
            str(row["name"]),
            str(row["level"]),
            "yes" if row["served"] else "-",
            ", ".join(arguments),
        )
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    # One line a call for programs, however long.
    console.width = _ENDLESS
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())
