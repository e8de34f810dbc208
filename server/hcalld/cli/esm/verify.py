# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm verify``: would the guest become secure?"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.esm.inputs import (
    MAX_IMAGE_SIZE,
    about,
    cmdline_option,
    digests_of_files,
    kernel_option,
    path_type,
    read_blob,
)
from hcalld.cli.esm.openers import opener_options
from hcalld.cli.files import read_whole
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.cli.esm.openers import Opener


@subcommand("verify", "Say whether a guest would become secure.")
@click.argument("file", type=path_type)
@kernel_option
@click.option("--initrd", type=path_type, help="The initrd; not if FILE is one with a blob.")
@cmdline_option
@opener_options(required=True)
def command(
    *,
    file: pathlib.Path,
    kernel: pathlib.Path,
    initrd: pathlib.Path | None,
    cmdline: str,
    opener: Opener,
) -> None:
    """Open FILE, a blob or an initrd with one, and compare with what the guest would be.

    By the same rules as UV_ESM, with pseries' RTAS. All that differs is named. Every file
    in the blob is decrypted too.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.esm.digests import open_digests, open_file
    from hcalld.domain.esm.measure import compare

    found = read_blob(file)
    content = found.initrd
    if (content is None) == (initrd is None):
        raise click.UsageError("--initrd goes with a blob, and not with an initrd that has one")
    if content is None:
        assert initrd is not None
        content = read_whole(initrd, MAX_IMAGE_SIZE)
        if not content:
            raise ConfigError(f"{initrd}: empty, expected an initrd")
    measured = digests_of_files(kernel, content, cmdline)
    unlocked = opener.unlock(found)
    with about(file):
        compare(measured, open_digests(found.blob, unlocked.key))
        for name in found.blob.files:
            open_file(found.blob, name, unlocked.key)
    click.echo(f"{file}: opened by {unlocked.lockbox.name}; the guest is what the blob is for")
