# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev report``: what an attestation report says, and whether a platform says it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import click

from hcalld.cli.files import read_whole
from hcalld.cli.sev.chains import judge, print_problem, read_platform
from hcalld.cli.sev.launching import launch_options
from hcalld.cli.sev.options import (
    about,
    hex_option,
    nonce_option,
    optional_policy_option,
    path_type,
    root_option,
)
from hcalld.cli.state.running import json_option, subcommand

if TYPE_CHECKING:
    from hcalld.cli.sev.launching import LaunchOptions
    from hcallproto.payloads.sev.blobs import AttestationReport

MAX_REPORT_FILE_SIZE = 4096


@subcommand("report", "Show and verify an attestation report.")
@click.argument("file", type=path_type)
@click.option(
    "--sev",
    "chain",
    type=path_type,
    required=True,
    help="The platform's certificates, as hcalld sev export writes them.",
)
@root_option
@click.option(
    "--unverified", is_flag=True, help="Take the PEK for genuine, without looking at its chain."
)
@nonce_option("--mnonce", "--nonce", "mnonce", help="The nonce that was asked with.")
@hex_option("--launch-digest", size=32, help="The wanted launch digest, or --firmware and so on.")
@launch_options
@optional_policy_option
@json_option
def command(
    *,
    file: pathlib.Path,
    chain: pathlib.Path,
    root: pathlib.Path | None,
    unverified: bool,
    mnonce: bytes | None,
    launch_digest: bytes | None,
    files: LaunchOptions,
    policy: int | None,
    as_json: bool,
) -> None:
    """Show the report in FILE, 208 bytes or base64, and verify that the platform's PEK signed it.

    Exit status 0 if it did, the PEK is that of a platform under the ARK of --root, and nonce,
    digest and policy are the ones that were given. A report without a nonce of yours may be an
    old one.
    """
    from hcalld.crypto.sev.reports import verify_report
    from hcallproto.payloads.sev.errors import CertificateError

    if launch_digest is not None and files.firmware is not None:
        raise click.UsageError("--launch-digest is what --firmware gives; give one of them")
    if unverified and root is not None:
        raise click.UsageError("--unverified does not look at the chain; leave out --root")
    report = _read(file)
    problems = []
    if unverified:
        pek = read_platform(chain).pek
    else:
        verdict = judge(chain, root)
        pek = verdict.chain.pek
        if verdict.problem:
            problems.append(f"{chain}: {verdict.problem}")
    try:
        verify_report(report, pek)
    except CertificateError as error:
        problems.append(f"{file}: {error}")
    if files.firmware is not None:
        launch_digest = files.read(policy).digest
    for what, expected, found in (
        ("mnonce", mnonce, report.mnonce),
        ("launch digest", launch_digest, report.launch_digest),
    ):
        if expected is not None and expected != found:
            problems.append(f"{file}: the {what} is {found.hex()}, expected {expected.hex()}")
    if policy is not None and policy != report.policy:
        problems.append(f"{file}: the policy is {int(report.policy):#x}, expected {policy:#x}")
    _show(report, problems, as_json=as_json)
    for problem in problems:
        print_problem(problem)
    if problems:
        sys.exit(1)


def _read(path: pathlib.Path) -> AttestationReport:
    from hcallproto.payloads.sev.blobs import ATTESTATION_REPORT_SIZE, AttestationReport

    data = read_whole(path, MAX_REPORT_FILE_SIZE)
    if len(data) != ATTESTATION_REPORT_SIZE:
        # What is no base64 has a wrong size anyway.
        with contextlib.suppress(binascii.Error, ValueError):
            data = base64.b64decode(data.strip(), validate=True)
    with about(path):
        return AttestationReport.parse(data)


def _show(report: AttestationReport, problems: list[str], *, as_json: bool) -> None:
    from hcalld.guestowner.policies import describe

    fields: dict[str, Any] = {
        "mnonce": report.mnonce.hex(),
        "launch_digest": report.launch_digest.hex(),
        "policy": describe(report.policy),
    }
    if as_json:
        from hcalld.cli.state.shown import print_json

        print_json({**fields, "policy": int(report.policy), "problems": problems})
        return
    for name, value in fields.items():
        click.echo(f"{name.replace('_', ' '):<14} {value}")
    click.echo(f"{'verified':<14} {'no' if problems else 'yes'}")
