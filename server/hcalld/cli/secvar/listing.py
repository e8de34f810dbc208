# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar list``: the secure variables of a partition."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.options import directory_options
from hcalld.cli.state.running import json_option, opened, partition_option, subcommand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hcalld.domain.keystore import Keystore
    from hcalld.stores.directory import StateDirectory


@subcommand("list", "List a partition's variables.")
@directory_options
@partition_option
@json_option
def command(*, directory: StateDirectory, partition: str, as_json: bool) -> None:
    """List the secure variables of a partition, with what they hold, while its guest is off."""
    with opened(directory, partition) as (_, keystore):
        found = list(_variables(keystore))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for variable in found:
        click.echo("{name}: {time}, {bytes} bytes".format(**variable))
        for entry in variable["entries"]:
            click.echo(f"  {entry}")


def _variables(keystore: Keystore) -> Iterator[dict[str, Any]]:
    from hcalld.domain.labels import split_os_label
    from hcalld.domain.secvar.files import describe_lists
    from hcalld.domain.secvar.variables import OTHER, variable_of
    from hcallproto.payloads.efi import EfiError, parse_stored
    from hcallproto.payloads.pks import Consumer, Policy
    from hcallproto.payloads.quoting import printable

    for item in keystore.objects():
        parts = split_os_label(item.label)
        if (
            item.consumer is not Consumer.OS
            or parts is None
            or parts[0]
            or not item.stored.policy & Policy.SIGNEDUPDATE
        ):
            continue
        name = parts[2]
        shown: dict[str, Any] = {
            "name": printable(name.decode("utf-16-le", "replace")),
            "time": "no time",
            "bytes": len(item.stored.data),
        }
        try:
            stored = parse_stored(item.stored.data)
        except EfiError as error:
            shown["entries"] = [str(error)]
        else:
            shown["time"] = f"{stored.time} UTC"
            is_other = variable_of(name) is OTHER
            shown["entries"] = [] if is_other else describe_lists(stored.data)
        yield shown
