# SPDX-License-Identifier: Apache-2.0
"""``hcalld state rekey``: keep the master key in another place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hcalld.cli.options import directory_options, source_of
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.stores.directory import StateDirectory


@subcommand("rekey", "Keep the master key in another place.")
@directory_options
@click.option(
    "--new-key", required=True, metavar="SOURCE", help="Where the key is to be; as --key."
)
@click.option("--keep-old", is_flag=True, help="Leave the old key file where it is.")
def rekey(*, directory: StateDirectory, new_key: str, keep_old: bool) -> None:
    """Keep the master key in another place, or under another passphrase.

    The key itself stays the same: no store is encrypted anew, and a daemon that runs goes
    on. The old key file is removed, unless --keep-old.
    """
    from hcalld.core.errors import ConfigError

    target = source_of(new_key, "--new-key", "new passphrase of the state directory")
    assert target is not None
    if not directory.path.is_dir():
        raise ConfigError(f"{directory.path}: no state directory; name one by --state-dir")
    left = directory.move_key(target, forget=not keep_old)
    click.echo(f"the master key of {directory.path} is kept by: {target.description}")
    if left:
        click.echo(f"hcalld: {left}", err=True)
