# SPDX-License-Identifier: Apache-2.0
"""``hcalld ctl show``, ``set``, ``check``: a partition's attributes, as an HMC has them.

Works on the partition's store, with the same ownership as the daemon: a partition whose
guest is on is refused, and so is what an HMC refuses (``domain/hmc.py``).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.options import directory_options

if TYPE_CHECKING:
    from hcalld.config import Profile
    from hcalld.domain.attribute_records import Orders, Value
    from hcalld.stores.directory import StateDirectory
    from hcalld.stores.sqlite import SqliteStore

POLICIES = "pks.supported_policies"
ALL = "all"
"""Of policies: whatever is served."""


# -- values -------------------------------------------------------------------------------


def _orders(settings: tuple[str, ...]) -> dict[str, Value]:
    """The orders of ``NAME=VALUE`` arguments.

    Raises:
        ConfigError: not of that form, or not a number.
    """
    from hcalld.core.errors import ConfigError

    orders: dict[str, Value] = {}
    for setting in settings:
        name, is_given, text = setting.partition("=")
        if not is_given or not name:
            raise ConfigError(f"{setting!r}: expected NAME=VALUE, such as keystore_kbytes=64")
        if name in orders:
            raise ConfigError(f"{name} is given twice; give it once")
        orders[name] = _value(name, text)
    return orders


def _value(name: str, text: str) -> Value:
    from hcalld.core.errors import ConfigError

    if name == POLICIES:
        if text == ALL:
            return None
        return tuple(part for part in text.upper().split(",") if part)
    try:
        return int(text, 0)
    except ValueError:
        raise ConfigError(f"{name}={text}: expected a whole number") from None


def _shown(value: Value) -> str:
    """A value as ``set`` takes it."""
    if value is None:
        return ALL
    return ",".join(value) if isinstance(value, tuple) else str(value)


# -- stores -------------------------------------------------------------------------------


@contextmanager
def _opened(
    directory: StateDirectory, partition: str, *, create: bool = False
) -> Iterator[SqliteStore]:
    from hcalld.core.errors import StoreError

    try:
        store = directory.open(partition, create=create)
    except StoreError as error:
        if directory.holder_of(partition) is None:
            raise
        raise StoreError(f"{error}. 'hcalld ctl guests' says what its guest does") from None
    try:
        yield store
    finally:
        store.close()


# -- commands -----------------------------------------------------------------------------


@click.command(name="show", short_help="Show a partition's attributes.")
@directory_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.argument("partition")
def show(*, directory: StateDirectory, as_json: bool, partition: str) -> None:
    """Show PARTITION's attributes in force, and what its profile ordered last."""
    from hcalld.domain.attribute_records import Held, flatten, load
    from hcalld.domain.attributes import PartitionAttributes
    from hcalld.domain.hmc import Contents

    with _opened(directory, partition) as store:
        records = store.load().records
    found = load(records)
    held = found or Held(PartitionAttributes())
    contents = Contents.of(records)
    attributes = flatten(held.attributes)
    keystore = {
        "objects": len(contents.sizes),
        "used_space": contents.used_space(held.attributes.pks.object_overhead),
        "total_size": held.attributes.total_size,
    }
    if as_json:
        found_all: dict[str, Any] = {
            "partition": partition,
            "was_powered_on": held.instance is not None,
            "attributes": attributes,
            "profile": dict(held.profile),
            "keystore": keystore,
        }
        click.echo(json.dumps(found_all, indent=2))
        return
    width = max(map(len, attributes))
    click.echo(f"{'attribute':{width}}  {'in force':9} profile")
    for name, value in attributes.items():
        ordered = _shown(held.profile[name]) if name in held.profile else "-"
        click.echo(f"{name:{width}}  {_shown(value):9} {ordered}")
    click.echo("keystore: {objects} objects, {used_space} of {total_size} bytes".format(**keystore))
    if held.instance is None:
        click.echo("never powered on: its profile, if it has one, is still to be carried out")


@click.command(name="set", short_help="Set a partition's attributes.")
@directory_options
@click.option("--create", is_flag=True, help="Make the partition if there is none.")
@click.argument("partition")
@click.argument("settings", metavar="NAME=VALUE...", nargs=-1, required=True)
def set_attributes(
    *, directory: StateDirectory, create: bool, partition: str, settings: tuple[str, ...]
) -> None:
    """Set attributes of PARTITION, whose guest is off.

    All of them are set, or none. They hold until they are set again, or until the
    partition's profile changes.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.attribute_orders import order
    from hcalld.domain.attribute_records import flatten, load, with_orders
    from hcalld.domain.attributes import PartitionAttributes

    orders = _orders(settings)
    # Before a store is made for it.
    with_orders(PartitionAttributes(), orders)
    if not create and not directory.folder(partition).is_dir():
        known = ", ".join(directory.partitions()) or "none"
        raise ConfigError(
            f"no partition {partition!r} in {directory.path}; there are: {known}. Use --create to "
            "make one that was never powered on"
        )
    with _opened(directory, partition, create=create) as store:
        records = store.load().records
        held = load(records)
        carried = order(records, orders)
        if carried.changes:
            store.commit(carried.changes, None)
            store.flush()
    before = {} if held is None else flatten(held.attributes)
    _print_orders(orders, before)


def _origin(profile: Profile) -> str:
    """Which file a profile is from, for people."""
    from hcalld.config import BUILT_IN

    return "no profile" if profile.source == BUILT_IN else profile.source


def _print_orders(orders: Orders, before: Orders) -> None:
    for name, value in orders.items():
        if name not in before:
            click.echo(f"{name}: {_shown(value)}")
        elif before[name] == value:
            click.echo(f"{name}: {_shown(value)} already")
        else:
            click.echo(f"{name}: {_shown(before[name])} -> {_shown(value)}")


@click.command(name="check", short_help="Say what the next power-on would change.")
@directory_options
@click.option(
    "--profile-dir",
    type=click.Path(path_type=pathlib.Path),
    required=True,
    help="Where the profiles are, as for 'hcalld serve'.",
)
@click.argument("partition")
def check(*, directory: StateDirectory, profile_dir: pathlib.Path, partition: str) -> None:
    """Say what PARTITION's profile would change at the next power-on, or why it cannot."""
    from hcalld.config import Profiles
    from hcalld.domain.attribute_orders import connect
    from hcalld.domain.attribute_records import flatten, load

    profile = Profiles(profile_dir).of_partition(partition)
    with _opened(directory, partition) as store:
        records = store.load().records
    # No instance has this id: QEMU's are random.
    carried = connect(records, profile.orders, bytes(16))
    held = load(records)
    if not carried.done:
        click.echo(f"nothing to do ({_origin(profile)})")
        return
    click.echo(f"at the next power-on ({_origin(profile)}):")
    _print_orders(carried.done, {} if held is None else flatten(held.attributes))
