# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev export``: a platform's certificates, as a file."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

from hcalld.cli.sev.chains import read_root
from hcalld.cli.sev.options import about, path_type, platform_options, root_option
from hcalld.cli.state.files import check_target, force_option, write_file
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.guestowner.platform import Platform


@subcommand("export", "Write a platform's certificates to a file.")
@platform_options
@click.option("--full", is_flag=True, help="With ASK and ARK, which --root has.")
@root_option
@click.argument("out", type=path_type)
@force_option
def command(
    *,
    connect: Callable[[], AbstractContextManager[Platform]],
    full: bool,
    root: pathlib.Path | None,
    out: pathlib.Path,
    force: bool,
) -> None:
    """Write PDH, PEK, OCA and CEK of the daemon's platform to OUT, as sevctl export does.

    A platform does not know its ASK and ARK: AMD publishes them, and for a test root
    hcalld sev root does. With --full they are put behind the others, so that one file has all.
    """
    from hcalld.guestowner.chain_files import parse_platform, verify

    if full != (root is not None):
        raise click.UsageError("--full and --root go together: the platform has no ASK and ARK")
    check_target(out, force=force)
    trusted = read_root(root)
    with connect() as platform:
        data = platform.export().whole
    with about("the platform"):
        found = parse_platform(data)
    if trusted is not None:
        verdict = verify(found, trusted)
        if verdict.problem:
            # A file that claims a root which is not this platform's would only confuse later.
            from hcalld.core.errors import ConfigError

            raise ConfigError(f"{root}: not the root of this platform: {verdict.problem}")
        data += verdict.chain.amd
    write_file(out, data, force=force)
    click.echo(f"{out}: PDH, PEK, OCA, CEK{', ASK, ARK' if full else ''}: {len(data)} bytes")
