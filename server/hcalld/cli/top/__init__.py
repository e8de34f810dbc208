# SPDX-License-Identifier: Apache-2.0
"""``hcalld top``: what a running daemon's guests do now."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.ctl.daemon import daemon_options

if TYPE_CHECKING:
    from hcalld.cli.top.watch import Watch
    from hcalld.control.messages import Stats

QUIT = "qQ"
HEAD_ROWS = 24
"""What is shown beside the calls, about."""
MIN_ROWS = 5
LONG_LINE = 1000


@click.command(name="top", short_help="Show what a daemon's guests do.")
@daemon_options
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=2,
    show_default=True,
    metavar="SECONDS",
    help="Ask the daemon so often.",
)
@click.option("--once", is_flag=True, help="Print the numbers since the daemon began, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line each time.")
def command(*, control: pathlib.Path, interval: float, once: bool, as_json: bool) -> None:
    """Show guests, their calls and what was refused; q ends it.

    Rates and times are those of the last interval. On what is no terminal, or a dumb one,
    tables are printed one after the other.
    """
    from hcalld.cli.top.watch import Watch

    with Watch(control) as watch:
        if once:
            _print(watch.stats(), None, as_json=as_json)
            return
        try:
            _run(watch, interval, as_json=as_json)
        except KeyboardInterrupt:
            return


def _run(watch: Watch, interval: float, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from hcalld.cli.top.keyboard import Keyboard
    from hcalld.cli.top.view import NARROW, view

    console = Console()
    watch.refresh()
    with Keyboard() as keyboard:
        if as_json or not console.is_terminal or console.is_dumb_terminal:
            while True:
                if watch.now is not None and not watch.problem:
                    _print(watch.now, watch.before, as_json=as_json)
                else:
                    click.echo(f"hcalld: {watch.problem}", err=True)
                if keyboard.wait(interval, QUIT):
                    return
                watch.refresh()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                rows = max(MIN_ROWS, console.height - HEAD_ROWS)
                assert watch.now is not None
                shown = view(
                    watch.now,
                    watch.before,
                    watch.problem,
                    rows=rows,
                    is_narrow=console.width < NARROW,
                )
                live.update(shown, refresh=True)
                if keyboard.wait(interval, QUIT):
                    return
                watch.refresh()


def _print(now: Stats, before: Stats | None, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(now)))
        return
    from rich.console import Console

    from hcalld.cli.top.view import NARROW, view

    console = Console()
    if not console.is_terminal:
        # In a file or a pipe a row is a line, however long.
        console = Console(width=LONG_LINE)
    console.print(view(now, before, is_narrow=console.width < NARROW))
