# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar verify``: what signed updates would do, by the daemon's own rules."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.options import directory_options
from hcalld.cli.secvar.inputs import certificates_in, check_variable_name, path_type, read_whole
from hcalld.cli.state.running import opened, subcommand

if TYPE_CHECKING:
    from hcalld.domain.secvar.answers import Accepted
    from hcalld.domain.secvar.authoring import UpdateFile
    from hcalld.stores.directory import StateDirectory


@subcommand("verify", "Say what signed updates would do.")
@directory_options
@click.option("--partition", "-p", help="Verify against what this guest has.")
@click.option("--pk", type=path_type, help="Verify against this PK.")
@click.option("--kek", type=path_type, help="And this KEK.")
@click.option("--current", type=path_type, help="What the first variable holds.")
@click.option("--without-verification", is_flag=True, help="As if the latch for PK were set.")
@click.argument("updates", metavar="VARIABLE FILE...", nargs=-1, required=True)
def command(
    *,
    directory: StateDirectory,
    partition: str | None,
    pk: pathlib.Path | None,
    kek: pathlib.Path | None,
    current: pathlib.Path | None,
    without_verification: bool,
    updates: tuple[str, ...],
) -> None:
    """Say what the update in FILE would do to VARIABLE, or why it would be refused.

    With several, each sees what those before it did; the first that would be refused ends
    it. --pk, --kek and --current name stored variables, signature lists or certificates;
    lists and certificates count as older than any update. Nothing is changed.
    """
    from hcalld.domain.secvar.variables import KEK, PK, encode_name

    if len(updates) % 2:
        raise click.UsageError("give each update as VARIABLE FILE")
    pairs = [
        (check_variable_name(name), _read_update(pathlib.Path(path)))
        for name, path in zip(updates[::2], updates[1::2], strict=True)
    ]
    stored: dict[bytes, bytes] = {}
    latch = without_verification
    if partition is not None:
        if pk or kek or current or without_verification:
            raise click.UsageError(
                "--partition excludes --pk, --kek, --current and --without-verification"
            )
        with opened(directory, partition) as (_, keystore):
            latch = keystore.has_latch
            names = {encode_name(name) for name, _ in pairs} | {PK.label_name, KEK.label_name}
            found = {name: keystore.variable(name) for name in names}
            stored = {name: data for name, data in found.items() if data is not None}
    else:
        files = {PK.label_name: pk, KEK.label_name: kek}
        if current is not None:
            files[encode_name(pairs[0][0])] = current
        stored = {key: _read_stored(path) for key, path in files.items() if path is not None}
    for name, update in pairs:
        accepted = _judge(name, update, stored, latch=latch)
        latch = latch and not accepted.used_latch
        click.echo(f"{name}: {_carry_out(encode_name(name), accepted, stored)}")


def _read_update(path: pathlib.Path) -> UpdateFile:
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar.authoring import FlagsError, parse_update_file

    try:
        return parse_update_file(read_whole(path))
    except FlagsError as error:
        raise ConfigError(
            f"{path}: {error}; an update of another tool may be without flags: put 8 zero bytes "
            "in front, the last one 1 to append"
        ) from None


def _read_stored(path: pathlib.Path) -> bytes:
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar.authoring import certificates_lists, stored_object
    from hcalld.domain.secvar.files import Kind, recognize
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


def _judge(name: str, update: UpdateFile, stored: dict[bytes, bytes], *, latch: bool) -> Accepted:
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar.answers import UpdateRefused
    from hcalld.domain.secvar.authvar import evaluate
    from hcalld.domain.secvar.variables import encode_name

    try:
        return evaluate(
            encode_name(name),
            update.message,
            is_append=update.is_append,
            lookup=stored.get,
            without_verification=latch,
        )
    except UpdateRefused as refused:
        raise ConfigError(f"{name}: the update would be refused ({refused})") from None


def _carry_out(name: bytes, accepted: Accepted, stored: dict[bytes, bytes]) -> str:
    """Do to ``stored`` what the update does, and say what that is."""
    from hcalld.domain.secvar.answers import Store, Wipe

    match accepted.change:
        case Store() as store:
            stored[name] = store.data
            what = f"would be stored with {store.size} bytes"
        case Wipe():
            stored.clear()
            what = "would be deleted, with all secure variables"
        case _:
            stored.pop(name, None)
            what = "would be removed"
    return f"{what} ({accepted.authority.value})"
