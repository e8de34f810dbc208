# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm add``: put a blob before an initrd."""

from __future__ import annotations

import pathlib

import click

from hcalld.cli.esm.inputs import about, path_type, read_initrd
from hcalld.cli.files import check_target, force_option, read_whole, write_file
from hcalld.cli.state.running import subcommand


@subcommand("add", "Put a blob before an initrd.")
@click.argument("blob", type=path_type)
@click.argument("initrd", type=path_type)
@click.option("--output", "-o", type=path_type, required=True, help="The initrd for QEMU.")
@force_option
def command(*, blob: pathlib.Path, initrd: pathlib.Path, output: pathlib.Path, force: bool) -> None:
    """Make the initrd that QEMU is given: an archive with BLOB, and INITRD behind it."""
    from hcalld.domain.esm.authoring import archive
    from hcalld.domain.esm.blob import MAX_SIZE, parse

    check_target(output, force=force)
    content = read_whole(blob, MAX_SIZE)
    with about(blob):
        parse(content)
    rest = read_initrd(initrd)
    write_file(output, archive(content) + rest, force=force)
