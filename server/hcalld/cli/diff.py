# SPDX-License-Identifier: Apache-2.0
"""``hcalld diff``: two captures as sequences of calls."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from hcalld.cli import exits
from hcalld.cli.capturefiles import chunks
from hcalld.replay.ignoring import Ignored, IgnoreError, parse_ignored

if TYPE_CHECKING:
    from hcalld.captures.bycaller import Caller, CallsByCaller
    from hcallproto.capture.compare import Difference

_FILE = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)


def _ignored(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> Ignored:
    """What replays ignore, and arguments, which these do not compare."""
    from hcallproto.abi.registry import CALLS

    arguments = {(hcall.name.lower(), arg.name.lower()) for hcall in CALLS for arg in hcall.args}
    arguments |= {("", name) for _, name in arguments}
    found: set[tuple[str, str]] = set()
    for word in words:
        owner, _, field = word.lower().rpartition(".")
        if (owner, field) in arguments:
            found.add((owner, field))
            continue
        try:
            found |= parse_ignored((word,)).fields
        except IgnoreError as error:
            raise click.BadParameter(str(error)) from None
    return Ignored(frozenset(found))


@click.command(name="diff", short_help="Compare the calls of two captures.")
@click.option(
    "--ignore",
    "ignored",
    multiple=True,
    metavar="FIELD",
    callback=_ignored,
    help="Don't compare this field: FIELD, or CALL.FIELD such as H_PKS_GET_CONFIG.usedspace; "
    "arguments, results and buffers by the table's names, rN, status, reply, pages, nip, msr.",
)
@click.option("--first", is_flag=True, help="Stop at the first difference.")
@click.argument("left", type=_FILE)
@click.argument("right", type=_FILE)
def command(*, ignored: Ignored, first: bool, left: pathlib.Path, right: pathlib.Path) -> None:
    """Compare the calls of two captures, LEFT and RIGHT.

    Each guest's vCPUs are compared one by one; addresses, times and what is random are not. If
    each capture has one guest, its name does not matter. The exit status is 1 if there is a
    difference, and 2 if a capture cannot be read whole.
    """
    from hcalld.captures.bycaller import CallsByCaller
    from hcalld.core.errors import HcalldError
    from hcallproto.capture.compare import compare

    count = 0
    try:
        with CallsByCaller(str(left)) as ours, CallsByCaller(str(right)) as theirs:
            _read(left, ours)
            _read(right, theirs)
            for mine, its in _pairs(ours.callers, theirs.callers):
                for difference in compare(
                    ours.calls(mine),
                    theirs.calls(its),
                    lambda call, names: ignored.covers(call, *names),
                ):
                    count += 1
                    for line in _lines(mine, difference):
                        click.echo(line)
                    if first:
                        sys.exit(exits.DIFFERENT)
    except HcalldError as error:
        click.echo(f"hcalld: {error}", err=True)
        sys.exit(exits.BROKEN)
    if count:
        click.echo(f"{count} calls differ" if count > 1 else "1 call differs")
        sys.exit(exits.DIFFERENT)
    click.echo("no differences")


def _pairs(mine: set[Caller], its: set[Caller]) -> list[tuple[Caller, Caller]]:
    """The callers of both sides that are compared."""
    guests = {guest for guest, _ in mine}, {guest for guest, _ in its}
    name = dict(zip(*guests, strict=True)) if len(guests[0]) == len(guests[1]) == 1 else {}
    renamed = {(name.get(guest, guest), vcpu): (guest, vcpu) for guest, vcpu in mine}
    return [(renamed.get(caller, caller), caller) for caller in sorted(renamed.keys() | its)]


def _read(path: pathlib.Path, calls: CallsByCaller) -> None:
    from hcalld.core.errors import HcalldError
    from hcallproto.capture.reading import CaptureReader, exchanges
    from hcallproto.errors import CaptureError

    with path.open("rb") as file:
        reader = CaptureReader(chunks(file))
        try:
            for entry, exchange in exchanges(reader):
                calls.add((entry.guest, exchange.call.vcpu), exchange)
        except CaptureError as error:
            raise HcalldError(f"{path}: {error}") from None
        if reader.problems:
            raise HcalldError(f"{path}: {reader.problems[0]}")


def _lines(caller: Caller, difference: Difference) -> Iterator[str]:
    from hcalld.cli.decode import call_line

    guest, _ = caller
    for sign, exchange in (("-", difference.left), ("+", difference.right)):
        if exchange is not None and not (difference.changes and sign == "+"):
            yield f"{' ' if difference.changes else sign} {call_line(guest, exchange)}"
    for change in difference.changes:
        yield f"    {change.field}: {change.left} -> {change.right}"
