# SPDX-License-Identifier: Apache-2.0
"""``hcalld guest shell``: a guest with its console on the terminal."""

from __future__ import annotations

import functools
import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.guest.options import file_type, run_trio, setup_options

if TYPE_CHECKING:
    from hcalld.cli.guest.options import Chosen


@click.command(name="shell", short_help="Use a shell in a guest; Ctrl-A x ends it.")
@setup_options
@click.option("--tpm", is_flag=True, help="The guest has a virtual TPM, with swtpm behind it.")
@click.option("--secure", is_flag=True, help="The guest is a secure VM.")
@click.option("--profile", type=file_type, help="The partition's profile, TOML.")
def command(*, chosen: Chosen, tpm: bool, secure: bool, profile: pathlib.Path | None) -> None:
    """Boot a kernel with a shell on this terminal: Ctrl-A x ends it, Ctrl-A c is the monitor."""
    from hcalld.config import parse_profile
    from hcalld.guest.plan import Suite
    from hcalld.guest.processes import must_have
    from hcalld.guest.run import PARTITION, run_shell

    text = ""
    if profile is not None:
        text = profile.read_text("utf-8")
        parse_profile(text, PARTITION, str(profile))
    if tpm and secure:
        raise click.UsageError("--tpm is not for --secure: QEMU's TPM reaches shared pages only")
    if tpm or secure:
        must_have("swtpm", "is the TPM of a guest")
    suite = Suite(name="shell", about="a shell", tpm=tpm, secure=secure, profile=text)
    made = chosen.setup()
    click.echo(
        "Ctrl-A x ends the guest, and so does poweroff -f in it; its console and logs are in "
        f"{made.output / 'shell'}"
    )
    run_trio(functools.partial(run_shell, made, suite))
