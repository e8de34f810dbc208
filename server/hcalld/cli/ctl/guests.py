# SPDX-License-Identifier: Apache-2.0
"""``hcalld ctl guests``: who is connected, and what secure VMs have where."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.ctl.daemon import daemon_options

if TYPE_CHECKING:
    from hcalld.control.messages import Guest

HEAD = (
    *("partition", "peer", "vCPUs", "calls", "waiting", "TPM"),
    *("state", "secure", "shared", "out"),
)


@click.command(name="guests", short_help="List a daemon's guests.")
@daemon_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def command(*, control: pathlib.Path, as_json: bool) -> None:
    """List the guests that are connected to the daemon.

    Of a secure VM also how many pages of 64 KiB it has in secure memory, shares, and has
    paged out.
    """
    from hcalld.cli.state.shown import print_json
    from hcalld.control.client import ask
    from hcalld.control.messages import ListGuests

    found = ask(control, ListGuests()).guests
    if as_json:
        import msgspec

        print_json({"guests": msgspec.to_builtins(found)})
    elif not found:
        click.echo("no guest is connected")
    else:
        _print(found)


def _print(guests: list[Guest]) -> None:
    from hcallproto.payloads.quoting import printable

    rows = [HEAD, *map(_row, guests)]
    # A guest's name is the guest's own; nothing in it steers a terminal.
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
    for guest in guests:
        if guest.problem:
            click.echo(f"hcalld: partition {guest.partition!r}: {guest.problem}", err=True)


def _row(guest: Guest) -> tuple[str, ...]:
    pef = guest.pef
    state: str = pef.state
    pages = ("-", "-", "-")
    if guest.problem:
        state = "?"
    elif pef.state == "none":
        state = "normal"
    elif pef.state == "secure":
        secure = str(pef.secure) if pef.limit is None else f"{pef.secure}/{pef.limit}"
        pages = (secure, str(pef.shared), str(pef.out))
    counts = (str(guest.vcpus), str(guest.calls), str(guest.waiting))
    return (guest.partition, guest.peer, *counts, guest.tpm, state, *pages)
