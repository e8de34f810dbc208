# SPDX-License-Identifier: Apache-2.0
"""``hcalld replay code``: a capture against the daemon's code, in this process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from hcalld.cli import exits
from hcalld.cli.replay.options import Reporter, Wanted, replay_options

if TYPE_CHECKING:
    from hcalld.captures.events import Events
    from hcalld.replay.differences import Comparer, Difference
    from hcalld.replay.score import Score, Where


@click.command(name="code", short_help="Play against the code, without a daemon or a guest.")
@replay_options
@click.option("--all", "is_all", is_flag=True, help="Show all fields that were left out.")
def command(*, wanted: Wanted, is_all: bool) -> None:
    """Play a CAPTURE (- for standard input) against this hcalld's own code.

    With --secrets the capture answers for everything that came from outside: entropy, time,
    shared memory, the disk, the TPM, operators. So each reply must be what it was, to the byte;
    if calls are left out because the capture lacks frames, answers or the state before them, the
    exit status is 1. Calls that waited when the capture ended are nothing to that.
    Without, partitions begin empty and what is blanked is left out, with all that hangs on it.
    """
    import trio.testing  # noqa: F401  # not while the clock stands still

    from hcalld.observe import log
    from hcalld.replay.differences import Comparer
    from hcalld.replay.incode import Replay
    from hcalld.replay.score import Score

    is_blanked, guest = wanted.is_blanked, wanted.guest
    # What is not in a capture without secrets ends in what looks like a bug.
    log.configure("text", "critical" if is_blanked else "error")
    reporter = Reporter(as_json=wanted.as_json)

    def tell(where: Where, difference: Difference) -> None:
        reporter.difference(str(where), difference)

    with wanted.broken_is_2():
        events = wanted.events()
        score = Score(tell, stop=wanted.stop)
        comparer = Comparer(wanted.ignored, is_blanked=is_blanked, is_live=is_blanked)
        replay = Replay(events.undecoded(), score, comparer, guest, is_blanked=is_blanked)
        replay.run()
        _report(reporter, score, comparer, events, is_all=is_all, is_blanked=is_blanked)
        if not score.calls:
            what = "calls" if guest is None else f"calls of a guest {guest!r}"
            click.echo(f"hcalld: no {what} in the capture", err=True)
            sys.exit(exits.BROKEN)
        if events.problems:
            # What is missing was not compared, whatever came of the rest.
            sys.exit(exits.BROKEN)
    # Without secrets much cannot be compared: that is known before.
    if score.differences or not score.compared or (score.lacking and not is_blanked):
        sys.exit(exits.DIFFERENT)


_SHOWN = 10


def _report(
    reporter: Reporter,
    score: Score,
    comparer: Comparer,
    events: Events,
    *,
    is_all: bool,
    is_blanked: bool,
) -> None:
    for problem in (*events.problems, *events.remarks):
        reporter.note(problem)
    if not events.says_asked:
        reporter.note(
            "the capture is of version 1, which does not say what was asked of the TPM and read of "
            "shared memory: that may differ unseen"
        )
    for note in score.notes:
        reporter.note(note)
    for why, count in sorted(score.left_out.items()):
        reporter.note(f"{count} calls left out: {why}")
    fields = sorted((score.fields_left_out + comparer.left_out).items())
    for field, count in fields if is_all else fields[:_SHOWN]:
        reporter.note(f"not compared: {field}, {count} times")
    if len(fields) > _SHOWN and not is_all:
        reporter.note(f"not compared: {len(fields) - _SHOWN} fields more, see --all")
    if score.calls and not score.compared:
        reporter.note("nothing was compared")
    for why in () if is_blanked else sorted(score.lacking):
        reporter.note(f"not everything was compared: {why}")
    reporter.summary(
        calls=score.calls,
        compared=score.compared,
        equal=score.equal,
        differ=score.differ,
        left_out=score.left_out.total(),
    )
