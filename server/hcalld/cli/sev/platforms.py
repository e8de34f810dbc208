# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev status`` and others: what a platform's operator asks of it, over the socket."""

from __future__ import annotations

import click

from hcalld.cli.sev.options import Connect, platform_options
from hcalld.cli.state.running import json_option, subcommand


@subcommand("status", "Show a platform's status.")
@platform_options
@json_option
def status(*, connect: Connect, as_json: bool) -> None:
    """Show version, state, owner and guests of the daemon's platform (PLATFORM_STATUS)."""
    from hcallproto.payloads.sev.constants import PlatformFlag, PlatformState

    with connect() as platform:
        found = platform.status()
    states = {int(state): state.name for state in PlatformState}
    fields = {
        "api_major": found.version.api_major,
        "api_minor": found.version.api_minor,
        "build_id": found.version.build,
        "state": states.get(found.state, str(found.state)),
        "owner": "external" if found.flags & PlatformFlag.OWNER else "self",
        "sev_es": bool(found.flags & PlatformFlag.CONFIG_ES),
        "guests": found.guest_count,
    }
    if as_json:
        from hcalld.cli.state.shown import print_json

        print_json(fields)
        return
    for name, value in fields.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        click.echo(f"{name.replace('_', ' '):<10} {shown}")


@subcommand("id", "Show a platform's chip ids.")
@platform_options
def ids(*, connect: Connect) -> None:
    """Show the id of each socket (GET_ID2), by which AMD's key server would find its CEK."""
    with connect() as platform:
        found = platform.ids()
    for one in found:
        click.echo(one.hex())


@subcommand("reset", "Give a platform new keys, and no owner.")
@platform_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(*, connect: Connect, yes: bool) -> None:
    """Reset the daemon's platform (FACTORY_RESET): new OCA, PEK and PDH, and no owner.

    Sessions that were made for it open nothing any more. It is refused while guests exist.
    """
    if not yes:
        click.confirm("The platform loses its owner and its keys. Go on?", abort=True)
    with connect() as platform:
        platform.factory_reset()
    click.echo("the platform has new keys, and no owner")


@subcommand("pdh-gen", "Give a platform a new PDH.")
@platform_options
def pdh_gen(*, connect: Connect) -> None:
    """Make a new PDH (PDH_GEN): sessions that were made for the old one open nothing any more."""
    with connect() as platform:
        platform.make_pdh()
    click.echo("the platform has a new PDH; export its certificates anew")


@subcommand("pek-gen", "Give a platform a new PEK.")
@platform_options
def pek_gen(*, connect: Connect) -> None:
    """Make a new PEK (PEK_GEN), and the PDH that it signs.

    No owner has signed it: a platform that has one takes his signature after hcalld sev reset.
    """
    with connect() as platform:
        platform.make_pek()
    click.echo("the platform has a new PEK and a new PDH; export its certificates anew")
