# SPDX-License-Identifier: Apache-2.0
"""Options that say what opens a blob: a private key, a partition's TPM, or another TPM."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from hcalld.cli.bundle import Decorator, bundle
from hcalld.cli.esm.inputs import (
    BlobFile,
    about,
    path_type,
)
from hcalld.cli.esm.tpms import WHERE, PartitionTpm, TpmSource, tpm_at
from hcalld.cli.files import read_whole
from hcalld.cli.options import key_option, open_directory, state_dir_option
from hcalld.cli.private_keys import MAX_KEY_FILE_SIZE, read_private_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    from hcalld.crypto.wrapping_key import WrappingKey
    from hcalld.domain.esm.unlock import Unlocked
    from hcalld.stores.directory import StateDirectory

tpm_option = click.option("--tpm", metavar="WHERE", help=f"A TPM: {WHERE}.")
partition_option = click.option(
    "--partition", "-p", help="This guest's TPM; the guest must be off."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Opener:
    """What the options name."""

    private_key: pathlib.Path | None
    passphrase_file: pathlib.Path | None
    partition: str | None
    tpm: str | None
    wrapping_key: pathlib.Path | None
    directory: StateDirectory

    @property
    def is_given(self) -> bool:
        """Whether there is any."""
        return bool(self.private_key or self.partition or self.tpm)

    def check(self, *, required: bool) -> None:
        """Refuse what does not go together.

        Raises:
            click.UsageError: it does not.
        """
        is_tpm = self.partition is not None or self.tpm is not None
        if (self.private_key is not None and is_tpm) or (required and not self.is_given):
            raise click.UsageError("give --private-key, or --partition or --tpm")
        if (self.wrapping_key is not None) != (self.tpm is not None and self.partition is None):
            raise click.UsageError(
                "--wrapping-key goes with --tpm, and not with --partition, whose store has it"
            )
        if self.passphrase_file is not None and self.private_key is None:
            raise click.UsageError("--passphrase-file goes with --private-key")

    def unlock(self, file: BlobFile) -> Unlocked:
        """Open a blob.

        Raises:
            HcalldError: it does not open.
        """
        from hcalld.domain.esm.unlock import unlock_with_key, unlock_with_tpm

        if self.private_key is not None:
            private = read_private_key(self.private_key, self.passphrase_file)
            with about(file.path):
                return unlock_with_key(file.blob, private)
        with self._tpm() as (tpm, key), about(file.path):
            return tpm.carry_out(
                lambda transmit: unlock_with_tpm(file.blob, transmit, key, entropy)
            )

    def public_key(self) -> RSAPublicKey:
        """The public half of what opens.

        Raises:
            HcalldError: it cannot be had.
        """
        from hcalld.crypto.wrapping_key import read_public

        if self.private_key is not None:
            return read_private_key(self.private_key, self.passphrase_file).public_key()
        with self._tpm() as (tpm, key), about(tpm.description):
            return tpm.carry_out(lambda transmit: read_public(transmit, key))

    @contextmanager
    def _tpm(self) -> Iterator[tuple[TpmSource, WrappingKey]]:
        """The TPM and its key; a partition's store stays ours meanwhile, so its TPM too."""
        if self.partition is None:
            assert self.tpm is not None
            assert self.wrapping_key is not None
            yield tpm_at(self.tpm), read_wrapping_key(self.wrapping_key)
            return
        from hcalld.core.errors import ConfigError
        from hcalld.domain.esm.key_record import from_records

        store = self.directory.open(self.partition, create=False)
        try:
            key = from_records(store.load().records)
            if key is None:
                raise ConfigError(
                    f"{self.partition}: its TPM has no wrapping key; make one with hcalld esm "
                    "provision-tpm"
                )
            own = PartitionTpm(self.directory, self.partition)
            yield own if self.tpm is None else tpm_at(self.tpm), key
        finally:
            store.close()


def read_wrapping_key(path: pathlib.Path) -> WrappingKey:
    """The file that ``hcalld esm provision-tpm`` made.

    Raises:
        ConfigError: it is none.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.esm.key_record import from_json

    try:
        return from_json(read_whole(path, MAX_KEY_FILE_SIZE))
    except ValueError:
        # The text of the error could show what is in the file.
        raise ConfigError(
            f"{path}: not a wrapping key as hcalld esm provision-tpm --output makes it"
        ) from None


async def entropy(size: int) -> bytes:
    """Random bytes, as the steps of a TPM want them."""
    return os.urandom(size)


def opener_options(*, required: bool) -> Decorator:
    """The options; the command gets them as ``opener``."""

    def opener(
        private_key: pathlib.Path | None,
        passphrase_file: pathlib.Path | None,
        partition: str | None,
        tpm: str | None,
        wrapping_key: pathlib.Path | None,
        state_dir: pathlib.Path | None,
        key: str | None,
    ) -> Opener:
        directory = open_directory(state_dir, key)
        found = Opener(private_key, passphrase_file, partition, tpm, wrapping_key, directory)
        found.check(required=required)
        return found

    return bundle(
        "opener",
        opener,
        (
            click.option("--private-key", type=path_type, help="A private key, RSA, PEM."),
            click.option(
                "--passphrase-file", type=path_type, help="Has the private key's passphrase."
            ),
            partition_option,
            tpm_option,
            click.option(
                "--wrapping-key", type=path_type, help="With --tpm: what is known of its key."
            ),
            state_dir_option,
            key_option,
        ),
    )
