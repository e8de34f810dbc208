# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm authorize``: let another machine open a blob."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.esm.inputs import about, path_type, read_blob, read_recipient
from hcalld.cli.esm.openers import opener_options
from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.cli.esm.openers import Opener


@subcommand("authorize", "Let another machine open a blob.")
@click.argument("blob", type=path_type)
@click.option("--recipient", type=path_type, required=True, help="Public key of the machine, PEM.")
@click.option("--comment", default="", help="For people; not protected.")
@opener_options(required=True)
@click.option("--output", "-o", type=path_type, required=True, help="The blob to make.")
@force_option
def command(
    *,
    blob: pathlib.Path,
    recipient: pathlib.Path,
    comment: str,
    opener: Opener,
    output: pathlib.Path,
    force: bool,
) -> None:
    """Add a lockbox to BLOB for one more machine, by the owner's private key.

    Anything that opens the blob will do. An initrd with the blob is made anew with hcalld
    esm add.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.esm.authoring import authorize

    check_target(output, force=force)
    file = read_blob(blob)
    if file.located is not None:
        raise ConfigError(f"{blob}: an initrd, expected the blob that was added to it")
    wanted = read_recipient(recipient, comment)
    key = opener.unlock(file).key
    with about(blob):
        made = authorize(file.blob, wanted, key)
    write_file(output, made.build(), force=force)
    click.echo(f"{output}: {made.lockboxes[-1].name} added")
