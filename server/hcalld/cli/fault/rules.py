# SPDX-License-Identifier: Apache-2.0
"""``hcalld fault list``, ``remove`` and ``clear``: the rules in force."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.ctl.daemon import daemon_options

if TYPE_CHECKING:
    from hcalld.control.messages import Fault


@click.command(name="list", short_help="Show the rules in force.")
@daemon_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def list_rules(*, control: pathlib.Path, as_json: bool) -> None:
    """Show the rules in force, how many calls matched each, and how many went wrong."""
    from hcalld.cli.state.shown import print_json
    from hcalld.control.client import ask
    from hcalld.control.messages import ListFaults

    found = ask(control, ListFaults()).faults
    if as_json:
        import msgspec

        print_json({"faults": msgspec.to_builtins(found)})
    elif not found:
        click.echo("no rules are in force")
    else:
        for fault in found:
            click.echo(_line(fault))


@click.command(name="remove", short_help="Take a rule out of force.")
@daemon_options
@click.argument("number", type=click.IntRange(1))
def remove(*, control: pathlib.Path, number: int) -> None:
    """Take the rule with this NUMBER out of force."""
    from hcalld.control.client import ask
    from hcalld.control.messages import RemoveFault

    _say_ended(ask(control, RemoveFault(number=number)).faults)


@click.command(name="clear", short_help="Take all rules out of force.")
@daemon_options
def clear(*, control: pathlib.Path) -> None:
    """Take all rules out of force."""
    from hcalld.control.client import ask
    from hcalld.control.messages import ClearFaults

    ended = ask(control, ClearFaults()).faults
    if ended:
        _say_ended(ended)
    else:
        click.echo("no rules were in force")


def _say_ended(ended: list[Fault]) -> None:
    for fault in ended:
        click.echo(f"removed {_line(fault)}")
        if not fault.matched:
            click.echo(f"hcalld: no call has ever matched rule {fault.number}", err=True)


def _line(fault: Fault) -> str:
    from hcallproto.payloads.quoting import printable

    counts = f"matched {fault.matched}, met {fault.met}" + (", spent" if fault.spent else "")
    return printable(f"{fault.number}: {fault.rule.summary()} ({counts})")
