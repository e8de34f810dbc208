# SPDX-License-Identifier: Apache-2.0
"""``hcalld state export`` and ``import``: a partition as one encrypted file."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.options import directory_options
from hcalld.cli.state.files import check_target, force_option, read_file, write_file
from hcalld.cli.state.running import keystore_of, subcommand

if TYPE_CHECKING:
    from hcalld.stores.directory import StateDirectory
    from hcalld.stores.export import Lock, Unlock
    from hcalld.stores.keys.passphrase import PassphraseFrom

_PASSPHRASES = "passphrase: (asked for), passphrase-file:PATH, passphrase-credential:NAME, "
_PASSPHRASES += "passphrase-fd:N"


@subcommand("export", "Write a partition to an encrypted file.")
@directory_options
@click.option(
    "--with",
    "how",
    default="passphrase:",
    show_default=True,
    metavar="HOW",
    help=f"What opens it: {_PASSPHRASES} or recipient:FILE (X25519 public key, PEM).",
)
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
    lock = _lock(how)
    export = take_export(directory, partition)
    write_file(file, pack(export, lock), force=force)
    click.echo(
        f"{partition}: exported (records: {len(export.records)}, generation: {export.generation})"
    )


@subcommand("import", "Read a partition from an encrypted file.")
@directory_options
@click.option(
    "--with",
    "how",
    default="passphrase:",
    show_default=True,
    metavar="HOW",
    help=f"What opens it: {_PASSPHRASES} or identity:FILE (X25519 private key, PEM).",
)
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
        export = unpack(data, _unlock(how))
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


def _passphrase(how: str) -> PassphraseFrom | None:
    from hcalld.core.errors import ConfigError
    from hcalld.stores.keys.describe import passphrase_from

    try:
        return passphrase_from(how, "passphrase of the export")
    except ConfigError as error:
        raise ConfigError(f"--with: {error}") from None


def _lock(how: str) -> Lock:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from hcalld.core.errors import ConfigError
    from hcalld.stores.export import Passphrase, Recipient

    passphrase = _passphrase(how)
    if passphrase is not None:
        return Passphrase(passphrase.get(is_new=True))
    kind, _, where = how.partition(":")
    if kind != "recipient" or not where:
        raise ConfigError(f"--with: expected {_PASSPHRASES} or recipient:FILE")
    try:
        public = load_pem_public_key(read_file(pathlib.Path(where), _MAX_PEM_SIZE))
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, X25519PublicKey):
        raise ConfigError(
            f"{where}: no X25519 public key in PEM; make one: openssl pkey -in PRIVATE -pubout"
        )
    return Recipient(public)


_MAX_PEM_SIZE = 65536


def _unlock(how: str) -> Unlock:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from hcalld.core.errors import ConfigError
    from hcalld.stores.export import Identity, Passphrase

    passphrase = _passphrase(how)
    if passphrase is not None:
        return Passphrase(passphrase.get())
    kind, _, where = how.partition(":")
    if kind != "identity" or not where:
        raise ConfigError(f"--with: expected {_PASSPHRASES} or identity:FILE")
    try:
        private = load_pem_private_key(read_file(pathlib.Path(where), _MAX_PEM_SIZE), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, X25519PrivateKey):
        raise ConfigError(
            f"{where}: no X25519 private key in PEM without a passphrase; make one: openssl "
            "genpkey -algorithm x25519"
        )
    return Identity(private)
