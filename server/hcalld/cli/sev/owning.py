# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev csr``, ``oca`` and ``import``: how a platform gets an owner."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

import click

from hcalld.cli.files import check_target, force_option, read_whole, write_file
from hcalld.cli.lazy import LazyGroup
from hcalld.cli.private_keys import MAX_KEY_FILE_SIZE
from hcalld.cli.sev.options import Connect, about, path_type, platform_options
from hcalld.cli.state.running import subcommand

if TYPE_CHECKING:
    from hcallproto.payloads.sev.certificates import SevCertificate

oca = LazyGroup(
    name="oca",
    short_help="Be an owner of platforms: make an OCA, sign requests.",
    help="What an owner of platforms does: make his certificate authority (OCA), sign requests.",
    modules={"make": "hcalld.cli.sev.owning:make", "sign": "hcalld.cli.sev.owning:sign"},
)


@subcommand("csr", "Get a request that an owner signs.")
@platform_options
@click.argument("out", type=path_type)
@force_option
def csr(*, connect: Connect, out: pathlib.Path, force: bool) -> None:
    """Write the platform's PEK without signatures to OUT (PEK_CSR), for an owner to sign."""
    check_target(out, force=force)
    with connect() as platform:
        data = platform.csr()
    write_file(out, data, force=force)
    click.echo(f"{out}: {len(data)} bytes, for hcalld sev oca sign")


@subcommand("make", "Make an owner's certificate authority.")
@click.argument("certificate", type=path_type)
@click.argument("key", type=path_type)
@force_option
def make(*, certificate: pathlib.Path, key: pathlib.Path, force: bool) -> None:
    """Make a certificate authority of platforms' owner: CERTIFICATE, and its private KEY (PEM).

    Whoever has KEY can make himself the owner's platform.
    """
    from hcalld.crypto.sev.certificates import make_oca
    from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
    from hcalld.guestowner.owning import key_to_pem

    if certificate.absolute() == key.absolute():
        raise click.UsageError("CERTIFICATE and KEY are one file; name two")
    for path in (certificate, key):
        check_target(path, force=force)
    private = EcPrivateKey.from_entropy(os.urandom(KEY_ENTROPY_SIZE))
    write_file(key, key_to_pem(private).reveal(), force=force)
    write_file(certificate, make_oca(private).build(), force=force)
    click.echo(f"{certificate}: for hcalld sev import; {key}: for hcalld sev oca sign")


@subcommand("sign", "Sign a platform's request.")
@click.option("--oca", "certificate", type=path_type, required=True, help="The OCA's certificate.")
@click.option("--key", type=path_type, required=True, help="Its private key, PEM.")
@click.argument("request", type=path_type)
@click.argument("out", type=path_type)
@force_option
def sign(
    *,
    certificate: pathlib.Path,
    key: pathlib.Path,
    request: pathlib.Path,
    out: pathlib.Path,
    force: bool,
) -> None:
    """Sign REQUEST, which hcalld sev csr has got from a platform, and write the PEK to OUT."""
    from hcalld.guestowner.owning import key_from_pem, sign_csr

    check_target(out, force=force)
    authority = _read(certificate, "OCA certificate")
    asked = _read(request, "signing request")
    with about(key):
        private = key_from_pem(read_whole(key, MAX_KEY_FILE_SIZE))
    with about(request):
        signed = sign_csr(asked, authority, private)
    write_file(out, signed.build(), force=force)
    click.echo(f"{out}: for hcalld sev import")


@subcommand("import", "Give a platform an owner.")
@platform_options
@click.argument("pek", type=path_type)
@click.argument("certificate", metavar="OCA", type=path_type)
def import_(*, connect: Connect, pek: pathlib.Path, certificate: pathlib.Path) -> None:
    """Make the owner of OCA the platform's (PEK_CERT_IMPORT); PEK is what he has signed.

    The platform gets a new PDH. It keeps its owner until hcalld sev reset.
    """
    signed = _read(pek, "PEK certificate")
    authority = _read(certificate, "OCA certificate")
    with connect() as platform:
        platform.take_owner(signed.build(), authority.build())
    click.echo("the platform has an owner, and a new PDH; export its certificates anew")


def _read(path: pathlib.Path, what: str) -> SevCertificate:
    from hcallproto.payloads.sev.certificates import CERTIFICATE_SIZE, SevCertificate

    data = read_whole(path, CERTIFICATE_SIZE)
    with about(path):
        return SevCertificate.parse(data, what)
