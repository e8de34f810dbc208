# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev secret``: secrets for a guest whose measurement was validated."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.files import check_target, force_option, read_whole, write_file
from hcalld.cli.sev.launching import key_options, launch_options
from hcalld.cli.sev.options import (
    U64_MAX,
    about,
    hex_option,
    number,
    path_type,
    policy_option,
    version_options,
)
from hcalld.cli.sev.validate import NOT_WANTED, read_measurement, wanted
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.cli.sev.launching import Keys, LaunchOptions
    from hcallproto.payloads.sev.constants import Version
    from hcallproto.payloads.sev.tables import SecretEntry

MAX_SECRET_SIZE = 16384
"""A packet takes no more, all secrets together."""


@subcommand("secret", "Pack secrets for a launched guest.")
@click.argument("measurement")
@click.argument("secrets", metavar="NAME:FILE...", nargs=-1, required=True)
@launch_options
@hex_option("--launch-digest", size=32, help="The wanted launch digest, instead of --firmware.")
@policy_option
@version_options(required=True)
@key_options
@click.option("--header", type=path_type, required=True, help="File for the packet's header.")
@click.option("--payload", type=path_type, required=True, help="File for the packet's payload.")
@click.option(
    "--gpa",
    metavar="ADDRESS",
    help="Where in guest memory it goes (default: where the firmware's footer says).",
)
@force_option
def command(
    *,
    measurement: str,
    secrets: tuple[str, ...],
    files: LaunchOptions,
    launch_digest: bytes | None,
    policy: int,
    version: Version,
    keys: Keys,
    header: pathlib.Path,
    payload: pathlib.Path,
    gpa: str | None,
    force: bool,
) -> None:
    """Validate MEASUREMENT, then pack secrets for that launch: no other one can open them.

    Each secret is NAME:FILE, where NAME is luks-key or a GUID, by which the guest finds it.
    Header and payload are written in base64, as QEMU's sev-inject-launch-secret takes them; the
    command for QMP is printed. Give it before the guest runs (-S).
    """
    from hcalld.crypto.sev.kdf import TransportKeys
    from hcalld.guestowner.secret_packets import pack

    if keys.tik is None or keys.tek is None:
        raise click.UsageError("give --tk, or --tek and --tik: the keys of hcalld sev session")
    if header.absolute() == payload.absolute():
        raise click.UsageError("--header and --payload are one file; name two")
    address = None if gpa is None else number(gpa, "address", U64_MAX)
    for path in (header, payload):
        check_target(path, force=force)
    blob = read_measurement(measurement)
    claim, _ = wanted(files, launch_digest, policy, version)
    if not claim.fits(keys.tik, blob):
        click.echo(
            f"hcalld: {NOT_WANTED}, so no secret is packed; hcalld sev validate looks for why",
            err=True,
        )
        sys.exit(1)
    entries = [_entry(words) for words in secrets]
    with about("the secrets"):
        packet = pack(
            entries,
            TransportKeys(tek=keys.tek, tik=keys.tik),
            measurement=blob.measurement,
            version=version,
            entropy=os.urandom,
        )
    head = base64.b64encode(packet.header.build())
    body = base64.b64encode(packet.payload)
    write_file(header, head + b"\n", force=force)
    write_file(payload, body + b"\n", force=force)
    arguments: dict[str, Any] = {"packet-header": head.decode(), "secret": body.decode()}
    if address is not None:
        arguments["gpa"] = address
    elif not files.has_secret_area:
        click.echo(
            "the firmware names no place for secrets: give --gpa, which QEMU needs then", err=True
        )
    click.echo(json.dumps({"execute": "sev-inject-launch-secret", "arguments": arguments}))


def _entry(words: str) -> SecretEntry:
    from hcalld.core.errors import ConfigError
    from hcalld.guestowner.secret_packets import guid_of
    from hcallproto.payloads.sev.tables import SecretEntry

    name, separator, path = words.partition(":")
    if not separator or not path:
        raise click.UsageError(f"{words!r} is no secret; expected NAME:FILE")
    with about("NAME:FILE"):
        guid = guid_of(name)
    value = read_whole(pathlib.Path(path), MAX_SECRET_SIZE)
    if not value:
        raise ConfigError(f"{path}: empty, expected a secret")
    return SecretEntry(guid, value)
