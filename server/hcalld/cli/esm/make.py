# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm make``: a blob for a kernel, an initrd and a command line."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Final

import click

from hcalld.cli.esm.inputs import (
    about,
    cmdline_option,
    digests_of_files,
    kernel_option,
    path_type,
    read_initrd,
    read_recipient,
)
from hcalld.cli.files import check_target, force_option, read_whole, write_file
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.domain.esm.authoring import Attachment

LINUX_WORDS: Final = {
    "svm=1": "Linux does not ask for secure mode without it",
    "swiotlb=force": "Linux makes no bounce buffers without it, and devices are refused",
}
"""What a blob for Linux is of no use without."""


@subcommand("make", "Make a blob.")
@kernel_option
@click.option("--initrd", type=path_type, required=True, help="The initrd, without a blob.")
@cmdline_option
@click.option(
    "--owner", type=path_type, required=True, help="Public key of who may authorize others later."
)
@click.option(
    "--recipient",
    "recipients",
    type=path_type,
    multiple=True,
    help="Public key of a machine that may run the guest; more than once for more.",
)
@click.option(
    "--attach",
    "attachments",
    metavar="[NAME=]PATH",
    multiple=True,
    help="A file that only the secure guest may read; more than once for more.",
)
@click.option("--comment", default="", help="For people; not protected.")
@click.option("--output", "-o", type=path_type, required=True, help="The blob to make.")
@force_option
def command(
    *,
    kernel: pathlib.Path,
    initrd: pathlib.Path,
    cmdline: str,
    owner: pathlib.Path,
    recipients: tuple[pathlib.Path, ...],
    attachments: tuple[str, ...],
    comment: str,
    output: pathlib.Path,
    force: bool,
) -> None:
    """Make a blob: what a guest must be, and files for it, encrypted for some machines.

    Public keys are RSA in PEM; hcalld esm pubkey gives a TPM's. Put the blob before the
    initrd with hcalld esm add.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.esm.authoring import make

    check_target(output, force=force)
    digests = digests_of_files(kernel, read_initrd(initrd), cmdline)
    files = dict(map(_attachment, attachments))
    if len(files) < len(attachments):
        raise ConfigError("two files of one name are attached; give one another with NAME=PATH")
    with about(output):
        blob = make(
            digests,
            read_recipient(owner),
            [read_recipient(path, path.name) for path in recipients],
            files,
            os.urandom,
            comment,
        )
    write_file(output, blob.build(), force=force)
    click.echo(
        f"{output}: recipients: {len(recipients)}, files: {len(files)}, kernel: "
        f"{digests.kernel_size} bytes"
    )
    if not recipients:
        click.echo("no machine may run it yet; see hcalld esm authorize", err=True)
    for word, otherwise in LINUX_WORDS.items():
        if word not in cmdline.split():
            click.echo(f"the command line has no {word}: {otherwise}", err=True)


def _attachment(words: str) -> tuple[str, Attachment]:
    from hcalld.domain.esm.authoring import Attachment
    from hcalld.domain.esm.blob import MAX_FILE_SIZE

    name, _, rest = words.partition("=")
    path = pathlib.Path(rest or name)
    return name if rest else path.name, Attachment(read_whole(path, MAX_FILE_SIZE))
