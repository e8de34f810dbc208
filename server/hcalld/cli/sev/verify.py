# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev verify``: are a platform's certificates to be trusted?"""

from __future__ import annotations

import pathlib
import sys

import click

from hcalld.cli.sev.chains import (
    print_problem,
    print_verdict,
    read_platform,
    read_root,
    verdict_fields,
)
from hcalld.cli.sev.options import Connect, about, path_type, platform_options, root_option
from hcalld.cli.state.running import json_option, subcommand


@subcommand("verify", "Verify a platform's certificates.")
@click.option(
    "--sev",
    "chain",
    type=path_type,
    help="The file of hcalld sev export; without, the daemon is asked.",
)
@root_option
@platform_options
@json_option
def command(
    *,
    chain: pathlib.Path | None,
    root: pathlib.Path | None,
    connect: Connect,
    as_json: bool,
) -> None:
    """Verify every link of a platform's certificates, up to the root.

    Exit status 0 if all of them hold and the ARK is that of --root. Without --root they are
    looked at, and the exit status is 1, for anybody can make a root of his own.
    """
    from hcalld.guestowner.chain_files import parse_platform, verify

    if chain is not None:
        where, found = str(chain), read_platform(chain)
    else:
        where = "the platform"
        with connect() as platform:
            data = platform.export().whole
        with about(where):
            found = parse_platform(data)
    trusted = read_root(root)
    with about(where):
        verdict = verify(found, trusted)
    if as_json:
        from hcalld.cli.state.shown import print_json

        print_json(verdict_fields(verdict))
    else:
        print_verdict(verdict)
    if verdict.problem:
        print_problem(f"{where}: {verdict.problem}")
        sys.exit(1)
