# SPDX-License-Identifier: Apache-2.0
"""``hcalld ctl page-out``: take pages out of a secure VM's secure memory."""

from __future__ import annotations

import pathlib

import click

from hcalld.cli.ctl.daemon import daemon_options

PAGES_PER_MIB = 16


@click.command(name="page-out", short_help="Page a secure VM's pages out.")
@daemon_options
@click.option("--pages", type=click.IntRange(1), help="At most so many pages of 64 KiB.")
@click.option("--mib", type=click.IntRange(1), help="At most so many MiB.")
@click.option("--all", "is_all", is_flag=True, help="All that are in secure memory (default).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.argument("partition")
def command(
    *,
    control: pathlib.Path,
    pages: int | None,
    mib: int | None,
    is_all: bool,
    as_json: bool,
    partition: str,
) -> None:
    """Page pages of PARTITION's secure VM out, which runs meanwhile.

    What it touches comes back at once, so with --all each page that is in secure memory at
    the begin goes out once. Ends when they have gone; interrupted, it stops there.
    """
    from hcalld.control.client import ask
    from hcalld.control.messages import PageOut

    if sum((pages is not None, mib is not None, is_all)) > 1:
        raise click.UsageError("--pages, --mib and --all exclude each other")
    if mib is not None:
        pages = mib * PAGES_PER_MIB
    done = ask(control, PageOut(partition=partition, pages=pages), seconds=None)
    if as_json:
        import msgspec

        from hcalld.cli.state.shown import print_json

        print_json(msgspec.to_builtins(done))
        return
    click.echo(f"{done.went} of {done.wanted} pages went out")
    if done.why:
        click.echo(done.why)
    left = done.pef
    click.echo(f"now: {left.secure} in secure memory, {left.out} out, {left.shared} shared")
