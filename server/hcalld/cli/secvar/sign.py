# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar sign``: make signed updates, here or with a signature made elsewhere."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.secvar.inputs import (
    owner_option,
    path_type,
    read_content,
    read_signer,
    read_whole,
    time_option,
    variable_argument,
)
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.domain.secvar.authoring import Draft
    from hcallproto.payloads.efi import EfiTime

_SYSFS_SIZE = 4096
"""What one write to ``update`` passes with 4 KiB pages (Linux kernfs)."""


@subcommand("sign", "Make a signed update.")
@variable_argument
@click.argument("file", type=path_type, required=False)
@click.option("--append", is_flag=True, help="Append to what is there; without, replace it.")
@click.option("--reset", is_flag=True, help="Empty the variable.")
@click.option("--wipe", "is_wipe", is_flag=True, help="Delete all variables (PK, latch needed).")
@time_option
@owner_option
@click.option("--key", type=path_type, help="The signer's private key, PEM.")
@click.option("--cert", type=path_type, help="The signer's certificate, PEM or DER.")
@click.option("--passphrase-file", type=path_type, help="Has the private key's passphrase.")
@click.option(
    "--to-be-signed", is_flag=True, help="Write what is to be signed, for a signer elsewhere."
)
@click.option(
    "--signature", type=path_type, help="Signature made elsewhere: PKCS#7, detached, DER."
)
@click.option("--output", "-o", type=path_type, required=True, help="The file to make.")
@force_option
def command(
    *,
    variable: str,
    file: pathlib.Path | None,
    append: bool,
    reset: bool,
    is_wipe: bool,
    time: EfiTime,
    owner: bytes,
    key: pathlib.Path | None,
    cert: pathlib.Path | None,
    passphrase_file: pathlib.Path | None,
    to_be_signed: bool,
    signature: pathlib.Path | None,
    output: pathlib.Path,
    force: bool,
) -> None:
    """Make the update of VARIABLE with what is in FILE.

    FILE has signature lists, or a certificate (PEM or DER), or for sbat its CSV. The output
    is what to write to /sys/firmware/secvar/vars/VARIABLE/update in one write.

    To sign elsewhere, run once with --to-be-signed and --time, have its output signed with
    SHA-256 and no signed attributes, and run again with --signature and the same --time.
    """
    ways = (key is not None, to_be_signed, signature is not None)
    if sum(ways) != 1 or (key is None) != (cert is None):
        raise click.UsageError("sign with --key and --cert, or use --to-be-signed or --signature")
    if passphrase_file is not None and key is None:
        raise click.UsageError("--passphrase-file goes with --key")
    explicit = click.get_current_context().get_parameter_source("time")
    if key is None and explicit is click.core.ParameterSource.DEFAULT:
        raise click.UsageError(
            "--to-be-signed and --signature need --time, the same both times: it is signed too"
        )
    check_target(output, force=force)
    draft = _draft(variable, file, append, reset, is_wipe, time, owner)
    if to_be_signed:
        write_file(output, draft.to_be_signed(), force=force)
        return
    if signature is not None:
        update = draft.with_signature(_read_signature(signature))
    else:
        assert key is not None
        assert cert is not None
        update = draft.sign(*read_signer(key, cert, passphrase_file))
    content = update.build()
    write_file(output, content, force=force)
    if len(content) > _SYSFS_SIZE:
        click.echo(
            f"hcalld: warning: {output} has {len(content)} bytes; a kernel with 4 KiB pages "
            f"passes only {_SYSFS_SIZE} of them on: use one with 64 KiB pages, or several updates "
            "with --append",
            err=True,
        )


def _draft(
    name: str,
    file: pathlib.Path | None,
    append: bool,
    reset: bool,
    is_wipe: bool,
    time: EfiTime,
    owner: bytes,
) -> Draft:
    from hcalld.domain.secvar.authoring import Draft, wipe
    from hcalld.domain.secvar.variables import PK, Append, encode_name, variable_of

    if (file is not None) + reset + is_wipe != 1:
        raise click.UsageError("give FILE, or --reset, or --wipe")
    if append and file is None:
        raise click.UsageError("--append goes with FILE")
    variable = variable_of(encode_name(name))
    if is_wipe:
        if variable is not PK:
            raise click.UsageError("--wipe is an update of PK")
        return wipe(time)
    if append and variable.append is Append.REFUSED:
        raise click.UsageError(f"{name} cannot be appended to, only replaced")
    if reset and variable is PK:
        raise click.UsageError("PK cannot be emptied; --wipe deletes it with all variables")
    data = b"" if file is None else read_content(variable, file, owner)
    return Draft(name, data, time, append)


def _read_signature(path: pathlib.Path) -> bytes:
    from hcalld.core.errors import ConfigError
    from hcalld.crypto.cms import CmsError, parse_signed_data

    data = read_whole(path)
    try:
        signed = parse_signed_data(data)
    except CmsError as error:
        raise ConfigError(f"{path}: {error}") from None
    if signed.has_signed_attributes:
        raise ConfigError(
            f"{path}: has signed attributes, which the firmware does not use; sign without them "
            "(openssl cms -sign -binary -noattr -md sha256 -outform DER)"
        )
    return data
