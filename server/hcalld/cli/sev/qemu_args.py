# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev qemu-args``: the command line of a QEMU whose SEV commands go to the daemon."""

from __future__ import annotations

import pathlib
import shlex
from typing import Final

import click

from hcalld.cli import paths
from hcalld.cli.sev.options import (
    about,
    path_type,
    platform_option,
    policy_option,
    socket_option,
)
from hcalld.cli.sev.preloading import find_library, library_option
from hcalld.cli.state.running import subcommand

MAX_C_BIT: Final = 63


@subcommand("qemu-args", "Print the command line of a QEMU that uses the platform.")
@policy_option
@click.option("--dh-cert-file", type=path_type, help="NAME_godh.b64 of hcalld sev session.")
@click.option("--session-file", type=path_type, help="NAME_session.b64 of hcalld sev session.")
@click.option("--firmware", type=path_type, help="The image for the first pflash; it is measured.")
@click.option("--kernel", type=path_type, help="A kernel to boot directly; it is measured.")
@click.option("--initrd", type=path_type, help="Its initrd; it is measured.")
@click.option("--append", metavar="TEXT", help="Its command line; it is measured.")
@socket_option
@platform_option
@library_option
@click.option(
    "--cbitpos",
    type=click.IntRange(0, MAX_C_BIT),
    help="The position of the C-bit (default: what this machine's processor says).",
)
@click.option(
    "--qemu", default="qemu-system-x86_64", show_default=True, help="The program to start."
)
def command(
    *,
    policy: int,
    dh_cert_file: pathlib.Path | None,
    session_file: pathlib.Path | None,
    firmware: pathlib.Path | None,
    kernel: pathlib.Path | None,
    initrd: pathlib.Path | None,
    append: str | None,
    socket: pathlib.Path | None,
    platform: str,
    library: pathlib.Path | None,
    cbitpos: int | None,
    qemu: str,
) -> None:
    """Print how to start QEMU under KVM with a guest of SEV, as one line for a shell.

    Put your own options behind it. The host's processor need not have SEV: a library
    that is loaded into QEMU sends its commands to the daemon. With -S, QEMU waits after the
    launch was measured, for a secret.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.guest.machine import escape
    from hcalld.guest.sevhost import SevHostError, sev_arguments, sev_environment

    if (dh_cert_file is None) != (session_file is None):
        raise click.UsageError("--dh-cert-file and --session-file go together")
    if kernel is None and (initrd is not None or append is not None):
        raise click.UsageError("--initrd and --append go with --kernel")
    if kernel is not None and firmware is not None:
        _check_has_place_for_hashes(firmware)
    try:
        words = sev_arguments(
            policy=policy,
            dh_cert=_absolute(dh_cert_file),
            session=_absolute(session_file),
            kernel_hashes=kernel is not None,
            c_bit=cbitpos,
        )
    except SevHostError as error:
        raise ConfigError(f"{error}; or give --cbitpos") from None
    variables = sev_environment(
        find_library(library),
        (socket or paths.socket_path()).absolute(),
        platform_name=platform or None,
    )
    if firmware is not None:
        image = escape(str(firmware.absolute()))
        words += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={image}"]
    for option, value in (("-kernel", kernel), ("-initrd", initrd)):
        if value is not None:
            words += [option, str(value.absolute())]
    if append is not None:
        words += ["-append", append]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    click.echo(" ".join([*assignments, shlex.join([qemu, "-accel", "kvm", *words])]))


def _check_has_place_for_hashes(firmware: pathlib.Path) -> None:
    """QEMU does not say which image would do."""
    from hcalld.cli.files import read_whole
    from hcalld.cli.sev.launching import MAX_FIRMWARE_SIZE
    from hcalld.guestowner.launch import footer_of, hashes_area

    image = read_whole(firmware, MAX_FIRMWARE_SIZE)
    with about(firmware):
        hashes_area(footer_of(image))


def _absolute(path: pathlib.Path | None) -> pathlib.Path | None:
    return None if path is None else path.absolute()
