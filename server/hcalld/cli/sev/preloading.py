# SPDX-License-Identifier: Apache-2.0
"""What subcommands of ``hcalld sev`` share that tell how QEMU is started: where the library is."""

from __future__ import annotations

import pathlib
from typing import Final

import click

from hcalld.cli.sev.options import path_type

LIBRARY: Final = "libhcalld-sev.so"
_SEPARATORS: Final = frozenset(": \t\n")
"""Of the names in LD_PRELOAD; nothing quotes them (ld.so(8))."""
_IN_TREE: Final = pathlib.Path(__file__).parents[4] / "ioctl_shim" / "build" / LIBRARY

library_option = click.option(
    "--library",
    type=path_type,
    envvar="HCALLD_SEV_LIBRARY",
    help=f"The library of ioctl_shim (default: the one that was built, or {LIBRARY} where the "
    "system looks for libraries).",
)


def find_library(path: pathlib.Path | None) -> pathlib.Path:
    """What LD_PRELOAD names; a name without a slash is looked for by the loader.

    Raises:
        ConfigError: the loader cannot be told of it.
    """
    from hcalld.core.errors import ConfigError

    if path is None and _IN_TREE.exists():
        path = _IN_TREE
    if path is not None:
        path = path.absolute()
        if _SEPARATORS.intersection(str(path)):
            raise ConfigError(
                f"{path}: LD_PRELOAD parts names at blanks and colons, expected a path without; "
                "copy the library to one, and give --library"
            )
        return path
    # The loader only warns of a library that it does not find, and QEMU then of /dev/sev.
    click.echo(
        f"hcalld: {LIBRARY} is not built here, so it must be where the system looks for libraries; "
        "else run 'make sev', or give --library",
        err=True,
    )
    return pathlib.Path(LIBRARY)
