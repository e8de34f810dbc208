# SPDX-License-Identifier: Apache-2.0
"""``hcalld state show``, ``put`` and ``remove``: one object."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.options import directory_options
from hcalld.cli.state.labels import label_of, label_options
from hcalld.cli.state.running import commit, json_option, opened, partition_option, subcommand
from hcalld.cli.state.shown import (
    object_fields,
    print_json,
    shown_bytes,
    shown_label,
    shown_policy,
)

if TYPE_CHECKING:
    from hcalld.domain.keystore import Keystore, NamedObject
    from hcalld.stores.directory import StateDirectory

MAX_INPUT_SIZE = 65536


@subcommand("show", "Show one object.")
@directory_options
@partition_option
@label_options
@click.option("--reveal", is_flag=True, help="Show the data too, in hexadecimal.")
@click.option("--raw", is_flag=True, help="Write the data, and nothing else, to stdout.")
@json_option
def show(
    *,
    directory: StateDirectory,
    partition: str,
    consumer: str,
    reveal: bool,
    raw: bool,
    as_json: bool,
    **label: Any,
) -> None:
    """Show one object: its size and policy, and with --reveal or --raw its data."""
    if raw and (reveal or as_json):
        raise click.UsageError("--raw excludes --reveal and --json")
    wanted = label_of(consumer, **label)
    with opened(directory, partition) as (store, keystore):
        item = _find(keystore, consumer, wanted)
        generation = store.generation
    if raw:
        sys.stdout.buffer.write(item.stored.data)
        return
    if as_json:
        data = {"data_hex": item.stored.data.hex()} if reveal else {}
        print_json({**object_fields(item), "generation": generation, **data})
        return
    click.echo(f"consumer   {item.consumer.name.lower()}")
    click.echo(f"label      {shown_label(item)}")
    click.echo(f"policy     {shown_policy(item.stored.policy)}")
    click.echo(f"bytes      {len(item.stored.data)}")
    click.echo(f"generation {generation}")
    if reveal:
        click.echo(f"data       {item.stored.data.hex()}")


def _consumer(name: str) -> int:
    from hcallproto.payloads.pks import Consumer

    return Consumer[name.upper()]


def _find(keystore: Keystore, consumer: str, label: bytes) -> NamedObject:
    from hcalld.core.errors import ConfigError

    for item in keystore.objects():
        if (item.consumer, item.label) == (_consumer(consumer), label):
            return item
    hint = "see 'hcalld state list'; --secvar names those it shows as u\"...\""
    raise ConfigError(
        f"consumer {consumer} has no object with label "
        f"{shown_bytes(_consumer(consumer), label)} ({label.hex()}); {hint}"
    )


@subcommand("put", "Create an object.")
@directory_options
@partition_option
@label_options
@click.option("--policy", multiple=True, metavar="NAME", help="Policy bit; may be repeated.")
@click.option(
    "--sed-key", type=click.File("rb"), help="Key of a self-encrypting drive, 1-32 bytes."
)
@click.option("--replace", is_flag=True, help="Replace an object that is there.")
@click.argument("file", type=click.File("rb"), required=False)
def put(
    *,
    directory: StateDirectory,
    partition: str,
    consumer: str,
    policy: tuple[str, ...],
    sed_key: Any,
    replace: bool,
    file: Any,
    **label: Any,
) -> None:
    """Create an object with the bytes of FILE (- for stdin).

    With --sed-key the object is the PIN of self-encrypting drives, which Linux reads at
    boot: label and policy follow from that.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.labels import sed_object
    from hcallproto.payloads.pks import Policy

    if (file is None) == (sed_key is None):
        raise click.UsageError("give the data with FILE or with --sed-key, one of them")
    if sed_key is not None:
        label["sed"] = True
    wanted = label_of(consumer, **label)
    bits = _policy(policy)
    if bits & Policy.TRANSIENT:
        raise click.UsageError("a TRANSIENT object would be dropped when the guest starts")
    data = (file or sed_key).read(MAX_INPUT_SIZE + 1)
    if sed_key is not None:
        bits |= Policy.WORLDREADABLE
        try:
            data = sed_object(data)
        except ValueError as error:
            raise ConfigError(f"--sed-key: {error}") from None
    if not 1 <= len(data) <= MAX_INPUT_SIZE:
        raise ConfigError(
            f"the data have {'no' if not data else 'too many'} bytes, expected 1 to "
            f"{MAX_INPUT_SIZE}"
        )
    _check_label_size(wanted)
    with opened(directory, partition, create=True) as (store, keystore):
        largest = keystore.attributes.pks.max_object_size
        if len(data) > largest:
            raise ConfigError(
                f"the data have {len(data)} bytes, but the partition's pks.max_object_size is "
                f"{largest}; set it with 'hcalld ctl set'"
            )
        number = _consumer(consumer)
        if keystore.exists(number, wanted):
            if not replace:
                raise ConfigError("an object with this label is there already; use --replace")
            keystore.discard(number, wanted)
        keystore.create(number, wanted, bits, data)
        commit(store, keystore)


def _check_label_size(label: bytes) -> None:
    from hcalld.core.errors import ConfigError

    if not 1 <= len(label) <= 255:
        raise ConfigError(f"the label has {len(label)} bytes, expected 1 to 255")


def _policy(names: tuple[str, ...]) -> int:
    from hcallproto.payloads.pks import Policy

    bits = 0
    for name in names:
        try:
            bits |= Policy[name.upper()]
        except KeyError:
            known = ", ".join(bit.name or "" for bit in Policy)
            raise click.UsageError(f"no policy {name!r}; policies are: {known}") from None
    return bits


@subcommand("remove", "Remove an object.")
@directory_options
@partition_option
@label_options
def remove(*, directory: StateDirectory, partition: str, consumer: str, **label: Any) -> None:
    """Remove an object, whatever its policy says."""
    wanted = label_of(consumer, **label)
    with opened(directory, partition) as (store, keystore):
        _find(keystore, consumer, wanted)
        keystore.discard(_consumer(consumer), wanted)
        commit(store, keystore)
