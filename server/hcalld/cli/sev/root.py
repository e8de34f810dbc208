# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev root``: test roots, which stand where AMD's ARK and ASK stand."""

from __future__ import annotations

import base64
import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.ctl.daemon import daemon_options
from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.lazy import LazyGroup
from hcalld.cli.sev.chains import certificate_fields, read_root
from hcalld.cli.sev.options import about, path_type, platform_option
from hcalld.cli.state.running import json_option, subcommand

if TYPE_CHECKING:
    from hcallproto.payloads.sev.certificates import AmdCertificate

command = LazyGroup(
    name="root",
    short_help="Make, show and fetch test roots.",
    help="Make, show and fetch test roots: an ARK and an ASK of your own, which no AMD part "
    "trusts.",
    modules={
        "make": "hcalld.cli.sev.root:make",
        "show": "hcalld.cli.sev.root:show",
        "fetch": "hcalld.cli.sev.root:fetch",
        "export": "hcalld.cli.sev.root:export",
    },
)


@subcommand("make", "Make a test root.")
@click.option(
    "--bits",
    type=click.Choice(("2048", "4096")),
    default="2048",
    show_default=True,
    help="Of its RSA keys: 2048 as Naples has them, 4096 as Rome and later.",
)
@click.argument("out", type=path_type)
@force_option
def make(*, bits: str, out: pathlib.Path, force: bool) -> None:
    """Make an ARK and an ASK, with their private keys, in the file OUT.

    A daemon whose profile has root = "OUT" under [sev] makes platforms of it, and --root OUT
    trusts them. The file has private keys: who trusts the root and does not run the platform
    should get what hcalld sev root export writes.
    """
    from hcalld.crypto.sev.roots import Root

    check_target(out, force=force)
    root = Root.generate(int(bits))
    write_file(out, root.to_pem().reveal(), force=force)
    _print(root.ask, root.ark)


@subcommand("show", "Show a root.")
@click.argument("file", type=path_type)
@json_option
def show(*, file: pathlib.Path, as_json: bool) -> None:
    """Show ARK and ASK of a test root, or of AMD's file with ASK and ARK."""
    root = read_root(file)
    assert root is not None
    ask, ark = root
    if as_json:
        from hcalld.cli.state.shown import print_json

        print_json([certificate_fields(one) for one in (ark, ask)])
        return
    _print(ask, ark)


@subcommand("export", "Write a root's certificates.")
@click.argument("file", type=path_type)
@click.argument("out", type=path_type)
@force_option
def export(*, file: pathlib.Path, out: pathlib.Path, force: bool) -> None:
    """Write ASK and ARK of FILE to OUT as AMD publishes its own, without private keys."""
    from hcallproto.payloads.sev.certificates import build_amd_pair

    check_target(out, force=force)
    root = read_root(file)
    assert root is not None
    write_file(out, build_amd_pair(*root), force=force)
    _print(*root)


@subcommand("fetch", "Ask a daemon for its platform's root.")
@daemon_options
@platform_option
@click.argument("out", type=path_type)
@force_option
def fetch(*, control: pathlib.Path, platform: str, out: pathlib.Path, force: bool) -> None:
    """Write ASK and ARK of a daemon's platform to OUT, for --root.

    The daemon's operator is asked, by its control socket, as AMD's web site is for its own:
    whoever trusts the answer trusts him.
    """
    from hcallproto.payloads.sev.certificates import build_amd_pair

    check_target(out, force=force)
    root = fetched(control, platform)
    write_file(out, build_amd_pair(*root), force=force)
    _print(*root)


def fetched(control: pathlib.Path, platform: str) -> tuple[AmdCertificate, AmdCertificate]:
    """ASK and ARK of a daemon's platform.

    Raises:
        HcalldError: the daemon does not answer, has no such platform, or tells of no root.
    """
    from hcalld.control.client import ask
    from hcalld.control.messages import ShowSevRoot
    from hcalld.guestowner.errors import GuestOwnerError
    from hcallproto.payloads.sev.certificates import parse_amd_pair

    found = ask(control, ShowSevRoot(platform=platform))
    with about(f"{control}: what the daemon says"):
        try:
            ask_data, ark_data = (
                base64.b64decode(text, validate=True) for text in (found.ask, found.ark)
            )
        except ValueError:
            raise GuestOwnerError("is no base64; expected its ASK and ARK") from None
        return parse_amd_pair(ask_data + ark_data)


def _print(ask: AmdCertificate, ark: AmdCertificate) -> None:
    for one in (ark, ask):
        fields = certificate_fields(one)
        click.echo(
            f"{fields['usage']}  {fields['key']}  key {fields['key_id']}  SHA-256 of the "
            f"certificate {fields['fingerprint']}"
        )
