# SPDX-License-Identifier: Apache-2.0
"""``hcalld replay guest``: the guest's side of a capture, to a live daemon."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import uuid

import click

from hcalld.cli import exits
from hcalld.cli.replay.options import (
    Reporter,
    Wanted,
    pace_option,
    replay_options,
    socket_option,
)


@click.command(name="guest", short_help="Play the guest to a running daemon.")
@replay_options
@socket_option
@pace_option
@click.option("--name", help="Call the guest so, as QEMU's -name does.")
@click.option(
    "--uuid", "identity", type=click.UUID, help="Give it this UUID, as QEMU's -uuid does."
)
@click.option(
    "--instance",
    metavar="HEX",
    help="Be this instance of QEMU, 32 digits; by default a new one, as after power-on.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Wait so long for each answer (default: as the daemon announces for the call).",
)
def command(
    *,
    wanted: Wanted,
    socket_path: pathlib.Path,
    pace: float,
    name: str | None,
    identity: uuid.UUID | None,
    instance: str | None,
    deadline: float | None,
) -> None:
    """Play the guest's side of a CAPTURE (- for standard input) to a running daemon.

    What the guest did is done again, in the same order: boots, resets, calls. The daemon's
    answers are compared with the capture's. Passwords, tokens and wrapped keys that the daemon
    makes anew are passed on in the place of the captured ones, and are no differences.
    """
    import trio

    from hcalld.replay.differences import Comparer
    from hcalld.replay.errors import Stopped
    from hcalld.replay.guest import GuestPlayer
    from hcalld.replay.guest_frames import Identity
    from hcalld.replay.link import connect
    from hcalld.replay.pace import Pace
    from hcalld.replay.script import Script

    comparer = Comparer(wanted.ignored, is_blanked=wanted.is_blanked, is_live=True)
    reporter = Reporter(as_json=wanted.as_json, stop=wanted.stop)
    with wanted.broken_is_2():
        events = wanted.events()
        player = GuestPlayer(
            Script(events, wanted.guest),
            lambda: connect(socket_path),
            comparer,
            reporter,
            identity=Identity(
                name=name,
                uuid=None if identity is None else identity.bytes,
                instance=None if instance is None else _instance(instance),
            ),
            pace=Pace(pace),
            deadline=deadline,
            is_blanked=wanted.is_blanked,
        )
        is_played = False
        try:
            with contextlib.suppress(Stopped):
                trio.run(player.play)
            is_played = True
        finally:
            figures = player.figures
            for remark in events.remarks:
                reporter.note(remark)
            why = ", for the capture has no secrets" if wanted.is_blanked else ""
            for field, times in sorted(comparer.left_out.items()):
                reporter.note(f"left out{why}: {field}, {times} times")
            if figures.unknown_bytes:
                reporter.note(
                    f"{figures.unknown_bytes} bytes of guest memory that the capture does not have "
                    "were read as zeros"
                )
            # "no differences" of nothing, in front of the reason, would be a false word.
            if is_played or figures.calls or reporter.differences:
                reporter.summary(
                    calls=figures.calls,
                    different_by_nature=figures.by_nature,
                    values_passed_on=figures.replaced,
                )
    if reporter.differences:
        sys.exit(exits.DIFFERENT)


def _instance(digits: str) -> bytes:
    try:
        found = bytes.fromhex(digits)
    except ValueError:
        found = b""
    if len(found) != 16:
        raise click.BadParameter(
            f"{digits!r} is no instance; expected 32 hexadecimal digits", param_hint="--instance"
        )
    return found
