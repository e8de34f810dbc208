# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar enroll``: put secure variables into a partition while its guest is off."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.options import directory_options
from hcalld.cli.secvar.inputs import owner_option, path_type, read_content, time_option
from hcalld.cli.state.running import commit, opened, partition_option, subcommand
from hcalld.domain.secvar.variables import VARIABLES

if TYPE_CHECKING:
    from hcalld.domain.keystore import Keystore
    from hcalld.domain.secvar.variables import Variable
    from hcalld.stores.directory import StateDirectory
    from hcallproto.payloads.efi import EfiTime


def _variable_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for variable in reversed(VARIABLES):
        option = click.option(
            f"--{variable.name.lower()}",
            variable.name,
            type=path_type,
            help=f"File for {variable.name}: {variable.content.value}.",
        )
        function = option(function)
    return function


@subcommand("enroll", "Put variables into a partition's store.")
@directory_options
@partition_option
@_variable_options
@click.option("--replace", is_flag=True, help="Replace variables that are there.")
@time_option
@owner_option
def command(
    *,
    directory: StateDirectory,
    partition: str,
    replace: bool,
    time: EfiTime,
    owner: bytes,
    **files: pathlib.Path | None,
) -> None:
    """Put secure variables into a partition's store, all or none, while its guest is off.

    Each file has signature lists, or a certificate (PEM or DER), or for sbat its CSV.
    Nothing is signed or verified: it is the hypervisor's side that writes. Updates from
    the guest must be later than --time.
    """
    wanted = [
        (variable, read_content(variable, path, owner))
        for variable in VARIABLES
        if (path := files[variable.name]) is not None
    ]
    if not wanted:
        options = ", ".join(f"--{variable.name.lower()}" for variable in VARIABLES)
        raise click.UsageError(f"give a file with {options}")
    with opened(directory, partition, create=True) as (store, keystore):
        for variable, data in wanted:
            _enroll(keystore, variable, data, time, replace=replace)
        commit(store, keystore)
    for variable, data in wanted:
        click.echo(f"{variable.name}: {len(data)} bytes of signature lists, {time} UTC")


def _enroll(
    keystore: Keystore, variable: Variable, data: bytes, time: EfiTime, *, replace: bool
) -> None:
    from hcalld.core.errors import ConfigError, HcallError
    from hcalld.domain.labels import os_label
    from hcalld.domain.secvar.authoring import stored_object
    from hcallproto.payloads.pks import Consumer

    label = os_label(b"", variable.label_name)
    stored = stored_object(data, time)
    largest = keystore.attributes.pks.max_object_size
    if len(stored) > largest:
        raise ConfigError(
            f"{variable.name} would have {len(stored)} bytes, but the partition's "
            f"pks.max_object_size is {largest}; set it with 'hcalld ctl set'"
        )
    if keystore.exists(Consumer.OS, label):
        if not replace:
            raise ConfigError(
                f"{variable.name} is there already; use --replace, or update it from the guest"
            )
        keystore.discard(Consumer.OS, label)
    try:
        keystore.create(Consumer.OS, label, int(variable.policy), stored)
    except HcallError as error:
        raise ConfigError(
            f"{variable.name}: {error.why}; enlarge the keystore with 'hcalld ctl set "
            "keystore_kbytes=...'"
        ) from None
