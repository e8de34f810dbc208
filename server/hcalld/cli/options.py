# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share: which state directory, and where its key is."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli import paths
from hcalld.cli.bundle import bundle

if TYPE_CHECKING:
    from hcalld.stores.directory import StateDirectory
    from hcalld.stores.keys import KeySource

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=pathlib.Path),
    envvar="HCALLD_STATE_DIR",
    help="Where partitions' stores are kept (default: the user's state directory).",
)
key_option = click.option(
    "--key",
    metavar="SOURCE",
    envvar="HCALLD_KEY",
    help="Where the master key is: file:PATH, credential:NAME, tpm:[TCTI], passphrase: (asked "
    "for), passphrase-file:PATH, passphrase-credential:NAME or passphrase-fd:N (default: the "
    "file 'key' in the state directory).",
)


def source_of(
    key: str | None, option: str = "--key", what: str = "passphrase of the state directory"
) -> KeySource | None:
    """The key source that an option describes; None for the default one.

    Args:
        key: the description.
        option: which option has it, for messages.
        what: what to ask for on the terminal, if it is a passphrase.

    Raises:
        ConfigError: it cannot be understood.
    """
    if key is None:
        return None
    from hcalld.core.errors import ConfigError
    from hcalld.stores.keys.describe import key_source

    try:
        return key_source(key, what)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def open_directory(state_dir: pathlib.Path | None, key: str | None) -> StateDirectory:
    """The state directory that ``--state-dir`` and ``--key`` name; nothing is opened yet.

    Raises:
        ConfigError: ``--key`` cannot be understood.
    """
    from hcalld.stores.directory import StateDirectory

    return StateDirectory(state_dir or paths.state_dir(), source_of(key))


directory_options = bundle("directory", open_directory, (state_dir_option, key_option))
"""``--state-dir`` and ``--key``; the command gets them as ``directory``."""
