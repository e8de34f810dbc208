# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar verify``: what a signed update would do, by the daemon's own rules."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from hcalld.cli.options import directory_options
from hcalld.cli.secvar.inputs import certificates_in, path_type, read_whole, variable_argument
from hcalld.cli.state.running import opened, subcommand

if TYPE_CHECKING:
    from hcalld.domain.authvar import Accepted
    from hcalld.domain.secvar_authoring import UpdateFile
    from hcalld.stores.directory import StateDirectory


@subcommand("verify", "Say what a signed update would do.")
@directory_options
@click.option("--partition", "-p", help="Verify against what this guest has.")
@click.option("--pk", type=path_type, help="Verify against this PK.")
@click.option("--kek", type=path_type, help="And this KEK.")
@click.option("--current", type=path_type, help="What the variable holds (default: nothing).")
@click.option("--without-verification", is_flag=True, help="As if the latch for PK were set.")
@variable_argument
@click.argument("file", type=path_type)
def command(
    *,
    directory: StateDirectory,
    partition: str | None,
    pk: pathlib.Path | None,
    kek: pathlib.Path | None,
    current: pathlib.Path | None,
    without_verification: bool,
    variable: str,
    file: pathlib.Path,
) -> None:
    """Say what the update in FILE would do to VARIABLE, or why it would be refused.

    --pk, --kek and --current name stored variables, signature lists or certificates. Lists
    and certificates count as older than any update. Nothing is changed.
    """
    from hcalld.domain.secvars import KEK, PK, encode_name

    update = _read_update(file)
    name = encode_name(variable)
    if partition is not None:
        if pk or kek or current or without_verification:
            raise click.UsageError(
                "--partition excludes --pk, --kek, --current and --without-verification"
            )
        with opened(directory, partition) as (_, keystore):
            accepted = _judge(name, update, keystore.variable, latch=keystore.has_latch)
    else:
        files = {PK.label_name: pk, KEK.label_name: kek}
        if current is not None:
            files[name] = current
        stored = {key: _read_stored(path) for key, path in files.items() if path is not None}
        accepted = _judge(name, update, stored.get, latch=without_verification)
    click.echo(f"{variable}: {_outcome(accepted)}")


def _read_update(path: pathlib.Path) -> UpdateFile:
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar_authoring import FlagsError, parse_update_file

    try:
        return parse_update_file(read_whole(path))
    except FlagsError as error:
        raise ConfigError(
            f"{path}: {error}; an update of another tool may be without flags: put 8 zero bytes "
            "in front, the last one 1 to append"
        ) from None


def _read_stored(path: pathlib.Path) -> bytes:
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar_authoring import certificates_lists, stored_object
    from hcalld.domain.secvar_files import Kind, recognize
    from hcallproto.payloads.efi import EfiTime

    content = read_whole(path)
    oldest = EfiTime(0, 0, 0, 0, 0, 0)
    ders = certificates_in(path, content)
    if ders is not None:
        return stored_object(certificates_lists(ders), oldest)
    try:
        found = recognize(content)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if found.kind is Kind.STORED:
        return content
    if found.kind is Kind.LISTS:
        return stored_object(content, oldest)
    raise ConfigError(
        f"{path}: a {found.kind.value}, expected a stored variable, signature lists or a "
        "certificate"
    )


def _judge(
    name: bytes, update: UpdateFile, lookup: Callable[[bytes], bytes | None], *, latch: bool
) -> Accepted:
    from hcalld.core.errors import ConfigError
    from hcalld.domain.authvar import UpdateRefused, evaluate

    try:
        return evaluate(
            name,
            update.message,
            is_append=update.is_append,
            lookup=lookup,
            without_verification=latch,
        )
    except UpdateRefused as refused:
        raise ConfigError(f"the update would be refused ({refused})") from None


def _outcome(accepted: Accepted) -> str:
    from hcalld.domain.authvar import Store, Wipe

    match accepted.change:
        case Store() as store:
            what = f"would be stored with {store.size} bytes"
        case Wipe():
            what = "would be deleted, with all secure variables"
        case _:
            what = "would be removed"
    return f"{what} ({accepted.authority.value})"
