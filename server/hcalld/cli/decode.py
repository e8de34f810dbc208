# SPDX-License-Identifier: Apache-2.0
"""``hcalld decode``: the calls of a capture, for people and programs."""

from __future__ import annotations

import datetime
import json
import sys
from typing import TYPE_CHECKING, BinaryIO

import click

if TYPE_CHECKING:
    from hcallproto.capture.exchanges import Exchange

CHUNK_SIZE = 1 << 18


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A time as ISO 8601 has it, UTC unless it says otherwise, in nanoseconds since the epoch."""
    if value is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no time; expected one such as 2026-11-21T18:25:06.5"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp() * 1_000_000) * 1000


@click.command(name="decode", short_help="Print the calls of a capture.")
@click.option("--guest", "guests", multiple=True, help="Only this guest's calls.")
@click.option("--call", "calls", multiple=True, help="Only calls with this in their names.")
@click.option("--return", "returns", multiple=True, help="Only calls with this return code.")
@click.option("--since", metavar="TIME", callback=_time, help="Only calls answered from then on.")
@click.option("--until", metavar="TIME", callback=_time, help="Only calls made until then.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object on each line.")
@click.argument("capture", type=click.File("rb"))
def command(
    *,
    guests: tuple[str, ...],
    calls: tuple[str, ...],
    returns: tuple[str, ...],
    since: int | None,
    until: int | None,
    as_json: bool,
    capture: BinaryIO,
) -> None:
    """Print the calls of a CAPTURE; - for standard input.

    What was blanked in it is shown by its size only. A damaged file is read up to the
    damage; then the exit status is 1.
    """
    from hcalld.core.errors import HcalldError
    from hcallproto.capture.reading import CaptureReader, exchanges
    from hcallproto.capture.selection import Selection, SelectionError, parse_calls, parse_returns
    from hcallproto.errors import CaptureError

    try:
        selection = Selection(
            guests=frozenset(guests),
            calls=parse_calls(calls),
            returns=parse_returns(returns),
            since_ns=since,
            until_ns=until,
        )
    except SelectionError as error:
        raise click.UsageError(str(error)) from None
    name = getattr(capture, "name", "standard input")
    reader = CaptureReader(iter(lambda: capture.read(CHUNK_SIZE), b""))
    show = _json_line if as_json else call_line
    try:
        for entry, exchange in exchanges(reader):
            if selection.wants(entry.guest, exchange):
                click.echo(show(entry.guest, exchange))
    except CaptureError as error:
        raise HcalldError(f"{name}: {error}") from None
    if reader.dropped:
        click.echo(
            f"hcalld: {name}: {reader.dropped} frames were dropped: the disk was too slow",
            err=True,
        )
    for problem in reader.problems:
        click.echo(f"hcalld: {name}: {problem}", err=True)
    if reader.problems:
        sys.exit(1)


def call_line(guest: str, exchange: Exchange) -> str:
    """A call of a capture as one line."""
    from hcallproto.render import render_call

    call, reply = exchange.call, exchange.reply
    moment = datetime.datetime.fromtimestamp(exchange.start_ns // 10**9, datetime.UTC)
    return render_call(
        exchange.hcall,
        call.registers(),
        level=call.level,
        buffers=exchange.buffers,
        status=None if reply is None else reply.status,
        outputs=exchange.outputs,
        reason=exchange.reason if reply is not None else exchange.fate.value,
        duration_ns=exchange.end_ns - exchange.start_ns,
        where=f"{moment:%H:%M:%S}.{exchange.start_ns // 1000 % 10**6:06} {guest} cpu{call.vcpu} "
        f"#{call.seq}",
    )


def _json_line(guest: str, exchange: Exchange) -> str:
    from hcallproto.render import describe_call

    call, reply = exchange.call, exchange.reply
    return json.dumps(
        {
            "guest": guest,
            "vcpu": call.vcpu,
            "seq": call.seq,
            "time_ns": exchange.start_ns,
            "fate": exchange.fate.value,
            **describe_call(
                exchange.hcall,
                call.registers(),
                level=call.level,
                buffers=exchange.buffers,
                status=None if reply is None else reply.status,
                outputs=exchange.outputs,
                reason=exchange.reason,
                duration_ns=exchange.end_ns - exchange.start_ns,
            ),
        }
    )
