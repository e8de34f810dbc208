# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev export``: a platform's certificates, as a file."""

from __future__ import annotations

import pathlib

import click

from hcalld.cli.ctl.daemon import daemon_options
from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.sev.chains import read_root
from hcalld.cli.sev.options import Connect, about, path_type, platform_options, root_option
from hcalld.cli.sev.root import fetched
from hcalld.cli.state.running import subcommand


@subcommand("export", "Write a platform's certificates to a file.")
@platform_options
@click.option(
    "--full", is_flag=True, help="With ASK and ARK: those of --root, or as the operator says."
)
@root_option
@daemon_options
@click.argument("out", type=path_type)
@force_option
def command(
    *,
    connect: Connect,
    full: bool,
    root: pathlib.Path | None,
    control: pathlib.Path,
    out: pathlib.Path,
    force: bool,
) -> None:
    """Write PDH, PEK, OCA and CEK of the daemon's platform to OUT, as sevctl export does.

    A platform does not know its ASK and ARK: AMD publishes them. With --full they are put behind
    the others, so that one file has all: those of --root, or without it those that
    the daemon's operator has made the platform of, who is asked by the control socket.
    """
    from hcalld.guestowner.chain_files import parse_platform, verify

    if root is not None and not full:
        raise click.UsageError("--root goes with --full")
    check_target(out, force=force)
    trusted = read_root(root)
    if full and trusted is None:
        trusted = fetched(control, connect.platform)
    with connect() as platform:
        data = platform.export().whole
    with about("the platform"):
        found = parse_platform(data)
    if trusted is not None:
        verdict = verify(found, trusted)
        if verdict.problem:
            # A file that claims a root which is not this platform's would only confuse later.
            from hcalld.core.errors import ConfigError

            where = root or "the daemon's answer"
            raise ConfigError(f"{where}: not the root of this platform: {verdict.problem}")
        data += verdict.chain.amd
    write_file(out, data, force=force)
    click.echo(f"{out}: PDH, PEK, OCA, CEK{', ASK, ARK' if full else ''}: {len(data)} bytes")
