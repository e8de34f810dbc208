# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm pubkey``: the public key that a blob is made for."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.esm.inputs import path_type
from hcalld.cli.esm.openers import opener_options
from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.cli.esm.openers import Opener


@subcommand("pubkey", "Write a TPM's public key.")
@opener_options(required=True)
@click.option("--output", "-o", type=path_type, help="The file to make (default: stdout).")
@force_option
def command(*, opener: Opener, output: pathlib.Path | None, force: bool) -> None:
    """Write the public key of a TPM's wrapping key, or of a private key, in PEM.

    Blobs name a recipient by the digest of this very file.
    """
    from hcalld.crypto.lockbox import public_key_pem

    if output is not None:
        check_target(output, force=force)
    pem = public_key_pem(opener.public_key())
    if output is None:
        click.echo(pem, nl=False)
    else:
        write_file(output, pem, force=force)
