# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev session``: what a launch is given, and what its owner keeps."""

from __future__ import annotations

import base64
import os
import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.sev.chains import judge, print_problem, read_platform
from hcalld.cli.sev.options import path_type, policy_argument, root_option
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcallproto.payloads.sev.certificates import SevCertificate


@subcommand("session", "Make a session for a launch.")
@click.option("--name", default="vm", show_default=True, help="What the files' names begin with.")
@click.option(
    "--directory",
    "-d",
    type=path_type,
    default=pathlib.Path(),
    help="Where the files go (default: here).",
)
@root_option
@click.option(
    "--unverified",
    is_flag=True,
    help="Make it for whoever has the PDH, without looking at the certificates.",
)
@click.argument("chain", type=path_type)
@policy_argument
@force_option
def command(
    *,
    name: str,
    directory: pathlib.Path,
    root: pathlib.Path | None,
    unverified: bool,
    chain: pathlib.Path,
    policy: int,
    force: bool,
) -> None:
    """Make a session for the platform whose certificates are in CHAIN, for a guest of POLICY.

    POLICY is a number, or names such as nodbg,noks,es,nosend,domain,sev, with the least
    API version of the platform, such as 1.51.

    The certificates are verified first, up to the ARK of --root. For QEMU's sev-guest are
    NAME_godh.b64 (dh-cert-file) and NAME_session.b64 (session-file). For you alone are
    NAME_tek.bin, NAME_tik.bin and NAME_tk.bin, which has both: whoever has them can read the
    secrets that you send, and pretend to be the platform. The files are sevctl's.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.guestowner.policies import describe
    from hcalld.guestowner.sessions import make_session

    if os.sep in name or not name:
        raise click.UsageError("--name is the begin of a file's name; --directory says where")
    names = ("godh.b64", "session.b64", "tek.bin", "tik.bin", "tk.bin")
    paths = {suffix: directory / f"{name}_{suffix}" for suffix in names}
    for path in paths.values():
        check_target(path, force=force)
    if unverified:
        if root is not None:
            raise click.UsageError("--unverified looks at nothing; leave out --root")
        pdh = read_platform(chain).pdh
        print_problem(f"warning: {chain}: nothing says that this is a platform to be trusted")
    else:
        verdict = judge(chain, root)
        if verdict.problem:
            raise ConfigError(
                f"{chain}: {verdict.problem}; --unverified makes a session for it in spite of that"
            )
        pdh = verdict.chain.pdh
    _warn_of_api(pdh, policy)
    made = make_session(pdh, policy, os.urandom)
    keys = made.keys
    contents = {
        "godh.b64": _text(made.certificate.build()),
        "session.b64": _text(made.session.build()),
        "tek.bin": keys.tek.reveal(),
        "tik.bin": keys.tik.reveal(),
        "tk.bin": keys.build(),
    }
    for suffix, path in paths.items():
        write_file(path, contents[suffix], force=force)
    click.echo(f"policy {describe(policy)}")
    click.echo(f"for QEMU: {paths['godh.b64']}, {paths['session.b64']}")
    click.echo(f"for you: {paths['tek.bin']}, {paths['tik.bin']}, {paths['tk.bin']}")


def _warn_of_api(pdh: SevCertificate, policy: int) -> None:
    from hcallproto.payloads.sev.constants import Policy

    if Policy(policy).api > pdh.api:
        print_problem(
            f"warning: the policy asks for API {Policy(policy).api} at least, and the platform's "
            f"certificate says {pdh.api}: it will refuse the launch"
        )


def _text(data: bytes) -> bytes:
    return base64.b64encode(data) + b"\n"
