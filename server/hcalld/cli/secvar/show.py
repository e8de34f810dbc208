# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar show``: what is in a file."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.secvar.inputs import certificates_in, path_type, read_whole
from hcalld.cli.state.running import json_option, subcommand

if TYPE_CHECKING:
    from hcalld.domain.secvar.files import Recognized


@subcommand("show", "Show what is in a file.")
@click.argument("file", type=path_type)
@json_option
def command(*, file: pathlib.Path, as_json: bool) -> None:
    """Show what FILE is and what is in it.

    FILE is a signed update (with its flags, or without as efitools makes it), a stored
    variable, signature lists, or a certificate. Nothing is verified; see hcalld secvar
    verify.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar.authoring import certificates_lists
    from hcalld.domain.secvar.files import Kind, Recognized, recognize

    content = read_whole(file)
    ders = certificates_in(file, content)
    if ders is not None:
        _print({"kind": "certificate"}, Recognized(Kind.LISTS, certificates_lists(ders)), as_json)
        return
    try:
        found = recognize(content)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None
    _print(_fields(found), found, as_json)


def _fields(found: Recognized) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": found.kind.value}
    if found.is_append is not None:
        fields["mode"] = "append" if found.is_append else "replace"
    if found.time is not None:
        fields["time"] = f"{found.time} UTC"
    if found.pkcs7 is not None:
        fields["signature"] = _signature(found.pkcs7)
    fields["bytes"] = len(found.data)
    return fields


def _signature(pkcs7: bytes) -> str:
    from hcalld.crypto.cms import CmsError, parse_signed_data

    try:
        signed = parse_signed_data(pkcs7)
    except CmsError as error:
        return f"cannot be used: {error}"
    count = len(signed.signatures)
    attributes = ", with signed attributes: of no use" * signed.has_signed_attributes
    return f"PKCS#7 of {len(pkcs7)} bytes, signers: {count}{attributes}"


def _print(fields: dict[str, Any], found: Recognized, as_json: bool) -> None:
    from hcalld.domain.secvar.files import describe_lists

    entries = describe_lists(found.data)
    if as_json:
        click.echo(json.dumps({**fields, "entries": entries}, indent=2))
        return
    for name, value in fields.items():
        click.echo(f"{name:<10} {value}")
    for entry in entries:
        click.echo(f"{'entry':<10} {entry}")
