# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev validate``: is a measurement that of the launch that was wanted?"""

from __future__ import annotations

import base64
import binascii
import sys
from typing import TYPE_CHECKING, Final

import click

from hcalld.cli.sev.launching import key_options, launch_options
from hcalld.cli.sev.options import hex_option, policy_option, version_options
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.cli.sev.launching import Keys, LaunchOptions
    from hcalld.guestowner.launch import Launch
    from hcalld.guestowner.validation import Claim
    from hcallproto.payloads.sev.blobs import MeasurementBlob
    from hcallproto.payloads.sev.constants import Version

NOT_WANTED: Final = "the measurement is not that of the wanted launch"


@subcommand("validate", "Say whether a measurement is that of the wanted launch.")
@click.argument("measurement")
@launch_options
@hex_option("--launch-digest", size=32, help="The wanted launch digest, instead of --firmware.")
@policy_option
@version_options(required=True)
@key_options
@click.option("--diagnose/--no-diagnose", default=True, help="Look for what was different.")
def command(
    *,
    measurement: str,
    files: LaunchOptions,
    launch_digest: bytes | None,
    policy: int,
    version: Version,
    keys: Keys,
    diagnose: bool,
) -> None:
    """Compare MEASUREMENT, as query-sev-launch-measure gives it, with what is expected.

    Exit status 0 if it is that of a launch of exactly these files with this policy on a platform
    of this version, by somebody who has the TIK. Give the guest no secret otherwise. If it is
    not, the usual mistakes are tried, and the first that would explain it is named.
    """
    from hcalld.guestowner.validation import diagnose as look_for_mistake

    if keys.tik is None:
        raise click.UsageError("give --tik or --tk: the keys that hcalld sev session made")
    blob = read_measurement(measurement)
    claim, launch = wanted(files, launch_digest, policy, version)
    if claim.fits(keys.tik, blob):
        click.echo("the measurement is that of the wanted launch")
        return
    click.echo(f"hcalld: {NOT_WANTED}", err=True)
    click.echo(f"wanted launch digest: {claim.digest.hex()}", err=True)
    if diagnose:
        what = look_for_mistake(claim, blob, tik=keys.tik, tek=keys.tek, launch=launch)
        if what is not None:
            click.echo(f"it would be if: {what}", err=True)
        else:
            click.echo(
                "no usual mistake explains it: another firmware, kernel, initrd or command line, "
                "the keys of another session, or a measurement of another launch",
                err=True,
            )
    sys.exit(1)


def wanted(
    files: LaunchOptions, launch_digest: bytes | None, policy: int, version: Version
) -> tuple[Claim, Launch | None]:
    """What a measurement must be of, and the launch if it is known by its files.

    Raises:
        ConfigError: a file is not what it must be.
        click.UsageError: options contradict each other.
    """
    from hcalld.guestowner.validation import Claim

    if launch_digest is not None:
        if files.firmware is not None:
            raise click.UsageError("--launch-digest is what --firmware gives; give one of them")
        return Claim(version=version, policy=policy, digest=launch_digest), None
    launch = files.read(policy)
    return Claim(version=version, policy=policy, digest=launch.digest), launch


def read_measurement(text: str) -> MeasurementBlob:
    """A measurement with its nonce, in base64.

    Raises:
        ConfigError: it is none.
    """
    from hcalld.core.errors import ConfigError
    from hcallproto.payloads.sev.blobs import MEASUREMENT_BLOB_SIZE, MeasurementBlob

    try:
        data = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != MEASUREMENT_BLOB_SIZE:
        raise ConfigError(
            f"{text!r} is no measurement; expected {MEASUREMENT_BLOB_SIZE} bytes in base64, as "
            "query-sev-launch-measure gives them"
        )
    return MeasurementBlob.parse(data)
