# SPDX-License-Identifier: Apache-2.0
"""``hcalld state backup`` and ``restore``: a partition's store as it is, under its key."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.files import check_target, force_option, read_file, write_file
from hcalld.cli.options import directory_options
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.stores.directory import StateDirectory

MAX_COPY_SIZE = 1 << 30


@subcommand("backup", "Copy a partition's store as it is.")
@directory_options
@force_option
@click.argument("partition")
@click.argument("file", type=click.Path(path_type=pathlib.Path))
def backup(*, directory: StateDirectory, force: bool, partition: str, file: pathlib.Path) -> None:
    """Copy the store of PARTITION to FILE, checked, while its guest is off.

    The copy is encrypted under the state directory's master key, and of no use without it.
    """
    from hcalld.stores.replacing import take_copy

    check_target(file, force=force)
    copy, generation = take_copy(directory, partition)
    write_file(file, copy, force=force)
    click.echo(f"{partition}: copied (bytes: {len(copy)}, generation: {generation})")


@subcommand("restore", "Put a copy of a store back.")
@directory_options
@click.option("--replace", is_flag=True, help="Replace the store that is there.")
@click.argument("partition")
@click.argument("file", type=click.Path(path_type=pathlib.Path))
def restore(
    *, directory: StateDirectory, replace: bool, partition: str, file: pathlib.Path
) -> None:
    """Make FILE, a copy that backup made, the store of PARTITION.

    The keystore is then as it was: what was removed since is back, and signed updates that
    were made since can be played again.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.stores.replacing import put_copy

    copy = read_file(file, MAX_COPY_SIZE)
    if len(copy) > MAX_COPY_SIZE:
        raise ConfigError(f"{file}: larger than any store of hcalld")
    generation = put_copy(directory, partition, copy, replace=replace)
    click.echo(f"{partition}: restored (generation: {generation})")
