# SPDX-License-Identifier: Apache-2.0
"""``hcalld esm show``: what is in a blob, or in an initrd with one."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.esm.inputs import about, path_type, read_blob
from hcalld.cli.esm.openers import opener_options
from hcalld.cli.state.running import json_option, subcommand

if TYPE_CHECKING:
    from hcalld.cli.esm.inputs import BlobFile
    from hcalld.cli.esm.openers import Opener


@subcommand("show", "Show what is in a blob.")
@click.argument("file", type=path_type)
@opener_options(required=False)
@json_option
def command(*, file: pathlib.Path, opener: Opener, as_json: bool) -> None:
    """Show the lockboxes and files of a blob, or of an initrd with one.

    With something that opens it, the digests too. Comments are not protected: anybody can
    have written them.
    """
    found = read_blob(file)
    fields = _fields(found)
    if opener.is_given:
        fields |= _opened(found, opener)
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    _print(fields)


def _fields(found: BlobFile) -> dict[str, Any]:
    blob = found.blob
    fields: dict[str, Any] = {
        "lockboxes": [
            {
                "name": box.name,
                "fingerprint": box.fingerprint.hex(),
                "bits": 8 * len(box.sealed_key),
                "comment": box.comment,
            }
            for box in blob.lockboxes
        ],
        "has_digests": blob.digests is not None,
        "files": [
            {"name": name, "bytes": len(sealed.ciphertext), "comment": sealed.comment}
            for name, sealed in blob.files.items()
        ],
    }
    if found.located is not None:
        place, initrd = found.located.place, found.located.initrd
        fields["archive_bytes"] = place.size
        fields["initrd_bytes"] = initrd.size
    return fields


def _opened(found: BlobFile, opener: Opener) -> dict[str, Any]:
    from hcalld.domain.esm.digests import MEASURED, open_digests

    unlocked = opener.unlock(found)
    with about(found.path):
        digests = open_digests(found.blob, unlocked.key)
    return {
        "opened": unlocked.lockbox.name,
        "digests": {name: getattr(digests, name).hex() for name in MEASURED},
        "kernel_bytes": digests.kernel_size,
    }


def _print(fields: dict[str, Any]) -> None:
    for box in fields["lockboxes"]:
        # A comment is anybody's: a terminal must not act on it.
        comment = json.dumps(box["comment"]) if box["comment"] else ""
        click.echo(f"lockbox    {box['name']} {box['fingerprint']} {comment}".rstrip())
    if not fields["has_digests"]:
        click.echo("digests    none: the blob is not finished")
    for file in fields["files"]:
        comment = json.dumps(file["comment"]) if file["comment"] else ""
        click.echo(f"file       {file['name']} {file['bytes']} bytes {comment}".rstrip())
    if "archive_bytes" in fields:
        click.echo(f"archive    {fields['archive_bytes']} bytes before the initrd")
    if "opened" in fields:
        click.echo(f"opened     {fields['opened']}")
        for name, digest in fields["digests"].items():
            click.echo(f"{name:<10} {digest}")
        click.echo(f"{'kernel':<10} {fields['kernel_bytes']} bytes")
