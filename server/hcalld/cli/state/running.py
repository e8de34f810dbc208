# SPDX-License-Identifier: Apache-2.0
"""What every subcommand of ``hcalld state`` does: errors in one line, a store opened."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hcalld.core.records import Record
    from hcalld.domain.keystore import Keystore
    from hcalld.stores.directory import StateDirectory
    from hcalld.stores.sqlite import SqliteStore

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
partition_option = click.option("--partition", "-p", required=True, help="The guest's name.")


def subcommand(name: str, help_line: str) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand; errors of hcalld end as one line and exit status 1."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            from hcalld.core.errors import HcalldError, HcallError

            try:
                return function(*args, **kwargs)
            except HcalldError as error:
                click.echo(f"hcalld: {error}", err=True)
            except HcallError as error:
                click.echo(f"hcalld: {error.why}", err=True)
            sys.exit(1)

        return click.command(name=name, short_help=help_line)(run)

    return decorate


def keystore_of(records: Any) -> Keystore:
    """A model of these records, under the attributes in force.

    A partition that was never powered on has none yet: its keystore is as large as can
    be, and its profile must fit what is put into it.

    Raises:
        HcalldError: a record is not as it must be.
    """
    from hcalld.domain.attribute_records import load
    from hcalld.domain.attributes import MAX_KEYSTORE_KBYTES, PartitionAttributes, PksAttributes
    from hcalld.domain.keystore import Keystore

    found: list[Record] = list(records)
    held = load(found)
    if held is not None:
        return Keystore(held.attributes, found)
    attributes = PartitionAttributes(
        keystore_kbytes=MAX_KEYSTORE_KBYTES, pks=PksAttributes(object_overhead=0)
    )
    return Keystore(attributes, found)


@contextmanager
def opened(
    directory: StateDirectory, partition: str, *, create: bool = False
) -> Iterator[tuple[SqliteStore, Keystore]]:
    """A partition's store and keystore."""
    store = directory.open(partition, create=create)
    try:
        yield store, keystore_of(store.load().records)
    finally:
        store.close()


def commit(store: SqliteStore, keystore: Keystore) -> None:
    """Make what was changed in the keystore durable."""
    store.commit(keystore.take_changes(), None)
    store.flush()
