# SPDX-License-Identifier: Apache-2.0
"""``hcalld decode``: the calls of a capture, for people and programs."""

from __future__ import annotations

import datetime
import sys
from typing import IO, TYPE_CHECKING

import click

from hcalld.cli.capturefiles import Progress, chunks
from hcalld.cli.output import NO_ROOM

if TYPE_CHECKING:
    from hcallproto.capture.exchanges import Exchange


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
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since // datetime.timedelta(microseconds=1) * 1000


@click.command(name="decode", short_help="Print the calls of a capture.")
@click.option("--guest", "guests", multiple=True, help="Only this guest's calls.")
@click.option("--vcpu", "vcpus", multiple=True, type=int, help="Only this virtual CPU's calls.")
@click.option(
    "--call",
    "calls",
    multiple=True,
    help="Only calls with this in their names, of this family, or with this number.",
)
@click.option("--return", "returns", multiple=True, help="Only calls with this return code.")
@click.option("--refused", "is_refused", is_flag=True, help="Only calls that got an error code.")
@click.option("--since", metavar="TIME", callback=_time, help="Only calls answered from then on.")
@click.option("--until", metavar="TIME", callback=_time, help="Only calls made until then.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object on each line.")
@click.option(
    "--follow", "is_followed", is_flag=True, help="Wait for more at the end, until Ctrl-C."
)
@click.argument("capture", type=click.File("rb"))
def command(
    *,
    guests: tuple[str, ...],
    vcpus: tuple[int, ...],
    calls: tuple[str, ...],
    returns: tuple[str, ...],
    is_refused: bool,
    since: int | None,
    until: int | None,
    as_json: bool,
    is_followed: bool,
    capture: IO[bytes],
) -> None:
    """Print the calls of a CAPTURE, which gzip may have compressed; - for standard input.

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
            vcpus=frozenset(vcpus),
            calls=parse_calls(calls),
            returns=parse_returns(returns),
            is_refused=is_refused,
            since_ns=since,
            until_ns=until,
        )
    except SelectionError as error:
        raise click.UsageError(str(error)) from None
    name = getattr(capture, "name", "standard input")
    show = json_line if as_json else call_line
    lines: list[str] = []
    progress = Progress(capture, name)

    def write() -> None:
        """A write for each call would take longer than all else."""
        if lines:
            text = "".join(lines)
            lines.clear()
            sys.stdout.write(text)
            sys.stdout.flush()
        progress.show()

    reader = CaptureReader(chunks(capture, is_followed=is_followed, before_wait=write))
    wants = selection.wants
    others: set[str] = set()
    missing = set(guests)
    try:
        for entry, exchange in exchanges(reader):
            if wants(entry.guest, exchange):
                lines.append(show(entry.guest, exchange) + "\n")
            if missing:
                missing.discard(entry.guest)
                others.add(entry.guest)
    except CaptureError as error:
        raise HcalldError(f"{name}: {error}") from None
    except OSError as error:
        # What a write has met is the output's, which is for main() to tell.
        is_read = error.filename is None and error.strerror and error.errno not in NO_ROOM
        if is_read and not isinstance(error, BrokenPipeError):
            raise HcalldError(f"{name}: cannot be read: {error.strerror}") from None
        raise
    finally:
        write()
        progress.end()
    if reader.dropped:
        click.echo(
            f"hcalld: {name}: {reader.dropped} frames were dropped: the disk was too slow",
            err=True,
        )
    for guest in sorted(missing):
        has = ", ".join(map(repr, sorted(others))) or "no calls at all"
        click.echo(f"hcalld: {name}: no calls of a guest {guest!r}; there are: {has}", err=True)
    for problem in reader.problems:
        click.echo(f"hcalld: {name}: {problem}", err=True)
    if reader.problems:
        sys.exit(1)


def call_line(guest: str, exchange: Exchange) -> str:
    """A call of a capture as one line: that of a live trace, with the time in front."""
    from hcallproto.capture.lines import line_of

    call = exchange.call
    seconds, nanoseconds = divmod(exchange.start_ns, 1_000_000_000)
    minutes, seconds = divmod(seconds % 86_400, 60)
    hours, minutes = divmod(minutes, 60)
    return line_of(
        exchange,
        where=f"{hours:02}:{minutes:02}:{seconds:02}.{nanoseconds // 1000:06} {guest} "
        f"cpu{call.vcpu} #{call.seq}",
    )


def json_line(guest: str, exchange: Exchange) -> str:
    """A call of a capture as a JSON object; docs/capture.md has its members."""
    import msgspec

    from hcallproto.render import describe_call

    call, reply = exchange.call, exchange.reply
    return msgspec.json.encode(
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
    ).decode()
