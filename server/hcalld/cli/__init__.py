# SPDX-License-Identifier: Apache-2.0
"""The command line: one file a subcommand, loaded when it is used.

Errors that a user can act on are one line on stderr and exit status 1; a wrong use of the
command line is exit status 2. Ctrl-C is never a traceback: it ends a command by its signal.
"""

from __future__ import annotations

import sys

import click

from hcalld import __version__
from hcalld.cli.exits import FAILED, end_by_interrupt, is_interrupt
from hcalld.cli.lazy import LazyGroup
from hcalld.cli.output import NO_ROOM, drop_output
from hcalld.core.errors import HcalldError
from hcalld.runtime import coredumps

COMMANDS = {
    "serve": "hcalld.cli.serve",
    "list": "hcalld.cli.list_calls",
    "qemu-args": "hcalld.cli.qemu_args",
    "state": "hcalld.cli.state",
    "ctl": "hcalld.cli.ctl",
    "top": "hcalld.cli.top",
    "secvar": "hcalld.cli.secvar",
    "esm": "hcalld.cli.esm",
    "sev": "hcalld.cli.sev",
    "decode": "hcalld.cli.decode",
    "diff": "hcalld.cli.diff",
    "report": "hcalld.cli.report",
    "replay": "hcalld.cli.replay",
    "dissector": "hcalld.cli.dissector",
    "fault": "hcalld.cli.fault",
    "guest": "hcalld.cli.guest",
}
"""Subcommand to the module that holds it, as an attribute named ``command``."""


@click.group(
    cls=LazyGroup, modules=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__)
@click.option(
    "--print-capabilities",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda ctx, _param, value: _print_capabilities(ctx) if value else None,
    help="Print what this daemon can do as JSON, and end.",
)
def cli() -> None:
    """Answers sPAPR hypercalls for pseries guests under QEMU TCG."""


def _print_capabilities(ctx: click.Context) -> None:
    import json

    from hcallproto.codegen.capabilities import capabilities

    click.echo(json.dumps(capabilities(), indent=2))
    ctx.exit()


def main() -> None:
    """Run the command line; the entry point of ``hcalld``."""
    try:
        sys.exit(_run())
    except KeyboardInterrupt:
        end_by_interrupt()


def _run() -> int:
    """Run the command line; gives its exit status."""
    try:
        if sys.argv[1:2] != ["serve"]:  # which has an option for it
            coredumps.forbid()
        # Not standalone: click would have Ctrl-C end with 1.
        return cli(prog_name="hcalld", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except HcalldError as error:
        click.echo(f"hcalld: {error}", err=True)
        return FAILED
    except OSError as error:
        # One with a file's name is not of the output.
        if error.filename is not None or error.errno not in NO_ROOM:
            raise
        what = f"the output cannot be written: {error.strerror}; make room, or write elsewhere"
        click.echo(f"hcalld: {what}", err=True)
        drop_output()
        return FAILED
    except (click.Abort, BaseExceptionGroup) as error:
        if is_interrupt(error):
            raise KeyboardInterrupt from None
        if not isinstance(error, click.Abort):
            raise
        click.echo("Aborted!", err=True)
        return FAILED
