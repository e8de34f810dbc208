# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev emulator``: a program that libvirt takes for QEMU, with SEV by the daemon."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Final

import click

from hcalld.cli import paths
from hcalld.cli.files import check_target, force_option, read_file, write_file
from hcalld.cli.sev.options import path_type, platform_option, socket_option
from hcalld.cli.sev.preloading import find_library, library_option
from hcalld.cli.state.running import subcommand

MODE: Final = 0o755
"""Whoever starts guests runs it: for a libvirt of the system's, another user."""


@subcommand("emulator", "Write a program that libvirt takes for QEMU.")
@socket_option
@platform_option
@library_option
@click.option(
    "--qemu",
    default="qemu-system-x86_64",
    show_default=True,
    help="The QEMU that it starts: a path, or a name to look for in PATH.",
)
@click.argument("out", type=path_type)
@force_option
def command(
    *,
    socket: pathlib.Path | None,
    platform: str,
    library: pathlib.Path | None,
    qemu: str,
    out: pathlib.Path,
    force: bool,
) -> None:
    """Write OUT, a program that starts QEMU with the library of ioctl_shim.

    libvirt takes it from a domain's <emulator>, or as the first qemu-system-x86_64 in its PATH.
    Guests without SEV run by it as they do without it. Written anew, it is asked anew what it can
    do: libvirt keeps what an emulator has answered.
    """
    from hcalld.guest.sevhost import emulator_script, sev_environment

    check_target(out, force=force)
    variables = sev_environment(
        find_library(library),
        (socket or paths.socket_path()).absolute(),
        platform_name=platform or None,
    )
    program = _find_qemu(qemu, out)
    write_file(out, emulator_script(program, variables).encode(), force=force)
    out.chmod(MODE)
    click.echo(f"{out}: {program}, with SEV by {variables['HCALLD_SEV_SOCKET']}")


def _find_qemu(name: str, out: pathlib.Path) -> pathlib.Path:
    """The first program of the name that is no such program itself, for they start each other."""
    from hcalld.core.errors import ConfigError
    from hcalld.guest.sevhost import EMULATOR_HEAD

    # With a slash it is a path, and the folder does not count.
    for folder in os.get_exec_path():
        found = shutil.which(name, path=folder)
        if found is None or (out.exists() and out.samefile(found)):
            continue
        path = pathlib.Path(found).absolute()
        if not read_file(path, len(EMULATOR_HEAD)).startswith(EMULATOR_HEAD.encode()):
            return path
    raise ConfigError(
        f"{name}: no such program, or only what this command has written; expected a QEMU: install "
        "qemu-system-x86, or give --qemu its path"
    )
