# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm extract``: a file that is attached to a blob."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.esm.inputs import about, path_type, read_blob
from hcalld.cli.esm.openers import opener_options
from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.cli.esm.openers import Opener


@subcommand("extract", "Decrypt a file of a blob.")
@click.argument("file", type=path_type)
@click.argument("name")
@opener_options(required=True)
@click.option("--output", "-o", type=path_type, required=True, help="The file to make.")
@force_option
def command(
    *, file: pathlib.Path, name: str, opener: Opener, output: pathlib.Path, force: bool
) -> None:
    """Decrypt the file NAME of FILE, a blob or an initrd with one."""
    from hcalld.domain.esm.digests import open_file

    check_target(output, force=force)
    found = read_blob(file)
    unlocked = opener.unlock(found)
    with about(file):
        data = open_file(found.blob, name, unlocked.key)
    write_file(output, data, force=force)
