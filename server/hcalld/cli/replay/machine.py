# SPDX-License-Identifier: Apache-2.0
"""``hcalld replay machine``: the daemon's side of a capture, to a real guest."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys

import click

from hcalld.cli import exits
from hcalld.cli.replay.options import (
    Reporter,
    Wanted,
    pace_option,
    replay_options,
    socket_option,
)


def _code(ctx: click.Context, param: click.Parameter, word: str | None) -> int | None:
    if word is None:
        return None
    from hcallproto.capture.selection import SelectionError, parse_returns

    try:
        ((_, value),) = parse_returns([word])
    except SelectionError as error:
        raise click.BadParameter(str(error)) from None
    return value


@click.command(name="machine", short_help="Play the daemon to a guest under QEMU.")
@replay_options
@socket_option
@pace_option
@click.option(
    "--strict-order", is_flag=True, help="Answer a call only if it comes next in the capture."
)
@click.option(
    "--unknown",
    metavar="CODE",
    callback=_code,
    help="Answer calls that the capture has no answer for so (default: H_FUNCTION; EINVAL for "
    "a command).",
)
@click.option("--stay", is_flag=True, help="Wait for another connection when one has ended.")
def command(
    *,
    wanted: Wanted,
    socket_path: pathlib.Path,
    pace: float,
    strict_order: bool,
    unknown: int | None,
    stay: bool,
) -> None:
    """Play the daemon's side of a CAPTURE (- for standard input) to a guest under QEMU.

    Listens on the socket as 'hcalld serve' does; the guest is greeted as the captured one was,
    and each call gets the next answer that the capture has for the same call with the same
    arguments, wherever its buffers are. A call that the capture has no answer for is a
    difference; --ignore CALL.call leaves out those of a call. A guest that became a secure VM
    cannot be played so.
    """
    import trio

    from hcalld.cli.capturefiles import chunks
    from hcalld.replay.errors import Stopped
    from hcalld.replay.machine import MachinePlayer, serve
    from hcalld.replay.matching import Matcher, refuse_secure
    from hcalld.replay.pace import Pace
    from hcalld.replay.script import Script
    from hcallproto.capture.reading import CaptureReader
    from hcallproto.capture.records import Record

    reporter = Reporter(as_json=wanted.as_json, stop=wanted.stop)
    with wanted.broken_is_2():
        if wanted.capture.seekable():
            # Before a guest boots half of its way.
            for entry in CaptureReader(chunks(wanted.capture)):
                if not isinstance(entry.what, Record) and wanted.guest in (None, entry.guest):
                    refuse_secure(entry.what)
            wanted.capture.seek(0)
        events = wanted.events()
        script = Script(events, wanted.guest, joins_clients=True)
        matcher = Matcher(script, is_strict=strict_order)
        player = MachinePlayer(
            matcher, reporter, ignored=wanted.ignored, pace=Pace(pace), unknown=unknown
        )
        try:
            with contextlib.suppress(Stopped, KeyboardInterrupt):
                run = functools.partial(serve, player, socket_path, reporter.note, stay=stay)
                trio.run(run)
        finally:
            for remark in events.remarks:
                reporter.note(remark)
            reporter.summary(
                answered=player.figures.answered,
                not_in_the_capture=player.figures.unknown,
                passed_over=matcher.passed_over,
            )
    if matcher.problem:
        wanted.is_broken(matcher.problem)
    if reporter.differences:
        sys.exit(exits.DIFFERENT)
