# SPDX-License-Identifier: Apache-2.0
"""Options that are declared once for several commands."""

from __future__ import annotations

import dataclasses

import click
from click.testing import CliRunner

from hcalld.cli.bundle import bundle


@dataclasses.dataclass
class Place:
    x: int
    y: int


place_options = bundle(
    "place", Place, (click.option("--x", type=int), click.option("--y", type=int, default=2))
)


@click.command()
@place_options
@click.option("--name", default="here")
def command(*, place: Place, name: str) -> None:
    """Says what it got."""
    click.echo(f"{place} {name}")


def test_bundle_when_options_are_given_then_the_command_gets_what_is_made_of_them():
    done = CliRunner().invoke(command, ["--name", "there", "--x", "1"])
    assert done.stdout == "Place(x=1, y=2) there\n"


def test_bundle_when_help_is_asked_then_its_options_are_in_their_order():
    assert [param.name for param in command.params] == ["x", "y", "name"]
    assert command.help == "Says what it got."
