# SPDX-License-Identifier: Apache-2.0
"""``hcalld state export`` and ``import``: a partition as one encrypted file."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.files import check_target, force_option, read_file, write_file
from hcalld.cli.locks import LOCKS, UNLOCKS, lock_of, unlock_of, with_option
from hcalld.cli.options import directory_options
from hcalld.cli.state.running import keystore_of, subcommand

if TYPE_CHECKING:
    from hcalld.stores.directory import StateDirectory


_WHAT = "passphrase of the export"


@subcommand("export", "Write a partition to an encrypted file.")
@directory_options
@with_option(LOCKS)
@force_option
@click.argument("partition")
@click.argument("file", type=click.Path(path_type=pathlib.Path))
def export_partition(
    *, directory: StateDirectory, how: str, force: bool, partition: str, file: pathlib.Path
) -> None:
    """Write all lasting objects and attributes of PARTITION to FILE, encrypted.

    Passwords and TRANSIENT objects are not exported: they end with the guest's run.
    """
    from hcalld.stores.export import pack
    from hcalld.stores.replacing import take_export

    check_target(file, force=force)
    lock = lock_of(how, _WHAT)
    export = take_export(directory, partition)
    write_file(file, pack(export, lock), force=force)
    click.echo(
        f"{partition}: exported (records: {len(export.records)}, generation: {export.generation})"
    )


@subcommand("import", "Read a partition from an encrypted file.")
@directory_options
@with_option(UNLOCKS)
@click.option("--partition", "-p", help="Another name than it was exported under.")
@click.option("--replace", is_flag=True, help="Replace what the partition has.")
@click.argument("file", type=click.Path(path_type=pathlib.Path))
def import_partition(
    *,
    directory: StateDirectory,
    how: str,
    partition: str | None,
    replace: bool,
    file: pathlib.Path,
) -> None:
    """Make a partition of what FILE holds: all of it, or nothing.

    With --replace, objects that are not in FILE are gone.
    """
    from hcalld.core.errors import StoreError
    from hcalld.domain import attribute_records
    from hcalld.stores.export import MAX_SIZE, unpack
    from hcalld.stores.replacing import put_records

    data = read_file(file, MAX_SIZE)
    try:
        export = unpack(data, unlock_of(how, _WHAT))
        records = [exported.record() for exported in export.records]
        # What no daemon could load must not take a good partition's place.
        keystore_of(records)
        attribute_records.load(records)
    except StoreError as error:
        raise StoreError(f"{file}: {error}") from None
    name = partition if partition is not None else export.partition
    put_records(directory, name, records, replace=replace)
    click.echo(
        f"{name}: imported (records: {len(records)}, generation when exported: {export.generation})"
    )
