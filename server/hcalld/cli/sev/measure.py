# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev measure``: what a launch must have measured."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import click

from hcalld.cli.sev.launching import key_options, launch_options
from hcalld.cli.sev.options import hex_option, nonce_option, optional_policy_option, version_options
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcalld.cli.sev.launching import Keys, LaunchOptions
    from hcallproto.payloads.sev.constants import Version


@subcommand("measure", "Compute what a launch must have measured.")
@launch_options
@hex_option("--launch-digest", size=32, help="A launch digest, instead of --firmware.")
@optional_policy_option
@version_options(required=False)
@key_options
@nonce_option("--mnonce", "--nonce", "mnonce", help="The nonce of the measurement.")
@click.option(
    "--output-format",
    type=click.Choice(("hex", "base64")),
    default="hex",
    show_default=True,
    help="How to print it.",
)
def command(
    *,
    files: LaunchOptions,
    launch_digest: bytes | None,
    policy: int | None,
    version: Version | None,
    keys: Keys,
    mnonce: bytes | None,
    output_format: str,
) -> None:
    """Compute the launch digest of a guest; with keys and a nonce, its measurement.

    The digest is SHA-256 of the firmware, then of the table of hashes if there is a --kernel,
    then of the state of each processor if the guest is one of SEV-ES. It is the
    same for each launch. The measurement is another for each: it depends on the platform's
    version, the policy, the owner's TIK and a nonce. What query-sev-launch-measure gives is the
    measurement with the nonce; with --output-format base64 the same is printed.
    """
    if launch_digest is not None and files.firmware is not None:
        raise click.UsageError("--launch-digest is what --firmware would give; give one of them")
    digest = files.read(policy).digest if launch_digest is None else launch_digest
    result = digest
    wanted = {"--policy": policy, "--api-major": version, "--mnonce": mnonce}
    if keys.tik is not None:
        missing = [name for name, value in wanted.items() if value is None]
        if missing:
            raise click.UsageError(f"a measurement needs {', '.join(missing)} too")
        result = _measurement(keys, policy, version, digest, mnonce)
    elif version is not None or mnonce is not None:
        raise click.UsageError("a measurement needs --tik or --tk too")
    click.echo(result.hex() if output_format == "hex" else base64.b64encode(result).decode())


def _measurement(
    keys: Keys,
    policy: int | None,
    version: Version | None,
    digest: bytes,
    mnonce: bytes | None,
) -> bytes:
    """The blob of LAUNCH_MEASURE."""
    from hcalld.guestowner.validation import Claim
    from hcallproto.payloads.sev.blobs import MeasurementBlob

    assert keys.tik is not None
    assert policy is not None
    assert version is not None
    assert mnonce is not None
    claim = Claim(version=version, policy=policy, digest=digest)
    measurement = claim.measurement(keys.tik, mnonce)
    return MeasurementBlob(measurement=measurement, mnonce=mnonce).build()
