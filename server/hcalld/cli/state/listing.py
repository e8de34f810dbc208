# SPDX-License-Identifier: Apache-2.0
"""``hcalld state list`` and ``verify``: all partitions, or one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.options import directory_options
from hcalld.cli.state.running import json_option, opened, subcommand
from hcalld.cli.state.shown import object_fields, objects_table, print_json, print_table

if TYPE_CHECKING:
    from hcalld.stores.directory import StateDirectory


@subcommand("list", "List partitions, or one partition's objects.")
@directory_options
@json_option
@click.argument("partition", required=False)
def list_partitions(*, directory: StateDirectory, as_json: bool, partition: str | None) -> None:
    """List all partitions, or the objects of one PARTITION."""
    if partition is not None:
        _list_objects(directory, partition, as_json=as_json)
        return
    errors: dict[str, None] = {}
    found = [_look_at(directory, name, errors) for name in directory.partitions()]
    if as_json:
        print_json({"partitions": found})
    else:
        _print_partitions(found)
    _end(errors)


def _list_objects(directory: StateDirectory, partition: str, *, as_json: bool) -> None:
    with opened(directory, partition) as (store, keystore):
        if as_json:
            objects = [object_fields(item) for item in keystore.objects()]
            print_json({"partition": partition, "generation": store.generation, "objects": objects})
        else:
            print_table(objects_table(keystore))


def _look_at(
    directory: StateDirectory, name: str, errors: dict[str, None], *, is_thorough: bool = False
) -> dict[str, Any]:
    """One partition for scripts: ``state`` is free, in use or not readable."""
    from hcalld.core.errors import HcalldError

    fields: dict[str, Any] = {"partition": name, "objects": None, "generation": None}
    holder = directory.holder_of(name)
    if holder is not None and not is_thorough:
        return {**fields, "state": "in use", "holder": holder}
    try:
        with opened(directory, name) as (store, keystore):
            if is_thorough:
                store.verify()
            fields["objects"] = sum(1 for _ in keystore.objects())
            fields["generation"] = store.generation
    except HcalldError as error:
        errors[f"hcalld: {error}"] = None
        return {**fields, "state": "not readable", "error": str(error)}
    return {**fields, "state": "free"}


def _print_partitions(found: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("partition", "objects", "generation", "state", box=None, pad_edge=False)
    for fields in found:
        state = fields["state"]
        table.add_row(
            Text(fields["partition"]),
            *(
                "?" if fields[key] is None else str(fields[key])
                for key in ("objects", "generation")
            ),
            f"in use by process {fields['holder']}" if state == "in use" else state,
        )
    print_table(table)


def _end(errors: dict[str, None]) -> None:
    """Say each error once; there is only one key for all partitions."""
    if errors:
        click.echo("\n".join(errors), err=True)
        sys.exit(1)


@subcommand("verify", "Check that stores can be read, to the last byte.")
@directory_options
@json_option
@click.argument("partition", required=False)
def verify(*, directory: StateDirectory, as_json: bool, partition: str | None) -> None:
    """Check every page and open every value of PARTITION, or of all partitions."""
    errors: dict[str, None] = {}
    found = []
    for name in directory.partitions() if partition is None else [partition]:
        fields = _look_at(directory, name, errors, is_thorough=True)
        is_good = fields.pop("state") == "free"
        found.append({**fields, "good": is_good})
        if is_good and not as_json:
            click.echo(
                f"{name}: good (objects: {fields['objects']}, generation: {fields['generation']})"
            )
    if as_json:
        print_json({"partitions": found})
    _end(errors)
