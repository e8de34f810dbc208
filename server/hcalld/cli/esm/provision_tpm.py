# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm provision-tpm``: give a TPM the wrapping key that blobs are opened with."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.esm.inputs import about, path_type
from hcalld.cli.esm.openers import entropy, partition_option, tpm_option
from hcalld.cli.esm.tpms import PartitionTpm, TpmSource, tpm_at
from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.options import directory_options
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.crypto.wrapping_key import Provisioned
    from hcalld.stores.directory import StateDirectory


@subcommand("provision-tpm", "Give a TPM its wrapping key.")
@directory_options
@partition_option
@tpm_option
@click.option(
    "--pubkey", type=path_type, help="Write the public key here, in PEM, for hcalld esm make."
)
@click.option(
    "--output",
    "-o",
    type=path_type,
    help="Without --partition: where to keep what is known of the key, its password too.",
)
@force_option
def command(
    *,
    directory: StateDirectory,
    partition: str | None,
    tpm: str | None,
    pubkey: pathlib.Path | None,
    output: pathlib.Path | None,
    force: bool,
) -> None:
    """Make the wrapping key in a TPM, as the firmware does at a machine's start.

    With --partition the guest's own swtpm is made ready, or the one that --tpm names, and
    the key's password is kept in the guest's store. A key that is there stays, with a new
    password: blobs made for it still open. The TPM must be as after power-on: PCR 16 zero,
    the platform hierarchy without a password.
    """
    if partition is None and (tpm is None or output is None):
        raise click.UsageError("give --partition, or --tpm and --output")
    if partition is not None and output is not None:
        raise click.UsageError("--output goes without --partition, whose store keeps the key")
    for path in (pubkey, output):
        if path is not None:
            check_target(path, force=force)
    if partition is None:
        from hcalld.domain.esm.key_record import to_json

        assert tpm is not None
        assert output is not None
        made = _provision(tpm_at(tpm))
        write_file(output, to_json(made.key), force=force)
    else:
        made = _provision_partition(directory, partition, tpm)
    if pubkey is not None:
        from hcalld.crypto.lockbox import public_key_pem

        write_file(pubkey, public_key_pem(made.public), force=force)
    what = "made" if made.is_new else "has a new password"
    click.echo(f"{partition or tpm}: wrapping key 0x{made.key.handle:x} {what}")


def _provision(tpm: TpmSource) -> Provisioned:
    from hcalld.crypto.wrapping_key import provision

    with about(tpm.description):
        return tpm.carry_out(lambda transmit: provision(transmit, entropy))


def _provision_partition(directory: StateDirectory, partition: str, tpm: str | None) -> Provisioned:
    """Provision while the store is ours: neither the daemon nor another command runs it."""
    from hcalld.core.records import Put
    from hcalld.domain.esm.key_record import to_record

    store = directory.open(partition)
    try:
        made = _provision(PartitionTpm(directory, partition) if tpm is None else tpm_at(tpm))
        store.commit([Put(to_record(made.key))], None)
        store.flush()
    finally:
        store.close()
    return made
