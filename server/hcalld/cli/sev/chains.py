# SPDX-License-Identifier: Apache-2.0
"""Certificates for the subcommands of ``hcalld sev``: read, judged, shown."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any, Final

import click

from hcalld.cli.files import read_whole
from hcalld.cli.sev.options import about

if TYPE_CHECKING:
    from hcalld.crypto.sev.chains import Link
    from hcalld.guestowner.chain_files import PlatformFile, Verdict
    from hcallproto.payloads.sev.certificates import AmdCertificate, SevCertificate

    AnyCertificate = SevCertificate | AmdCertificate

_WIDTH: Final = 160
"""Columns of the widest line."""


def read_platform(path: pathlib.Path) -> PlatformFile:
    """A platform's certificates.

    Raises:
        ConfigError: the file has none.
    """
    from hcalld.guestowner.chain_files import MAX_FILE_SIZE, parse_platform

    data = read_whole(path, MAX_FILE_SIZE)
    with about(path):
        return parse_platform(data)


def read_root(path: pathlib.Path | None) -> tuple[AmdCertificate, AmdCertificate] | None:
    """ASK and ARK of a root's file, if one is given.

    Raises:
        ConfigError: the file has none.
    """
    from hcalld.guestowner.chain_files import MAX_FILE_SIZE, parse_root

    if path is None:
        return None
    data = read_whole(path, MAX_FILE_SIZE)
    with about(path):
        return parse_root(data)


def judge(path: pathlib.Path, root: pathlib.Path | None) -> Verdict:
    """Whether a file's platform is to be trusted.

    Raises:
        ConfigError: a file is not what it must be, or there is no root at all.
    """
    from hcalld.guestowner.chain_files import verify

    found, trusted = read_platform(path), read_root(root)
    with about(path):
        return verify(found, trusted)


# -- shown --------------------------------------------------------------------------------------


def describe_key(certificate: AnyCertificate) -> str:
    """What a certificate's key is."""
    from hcallproto.payloads.sev.certificates import RsaPublicKey
    from hcallproto.payloads.sev.constants import Curve

    algorithm = certificate.algorithm
    digest = "SHA-384" if algorithm.is_sha384 else "SHA-256"
    if isinstance(certificate.key, RsaPublicKey):
        return f"RSA-{certificate.key.size} {digest}"
    curve = {Curve.P256: "P-256", Curve.P384: "P-384"}.get(Curve(certificate.key.curve), "?")
    return f"{'ECDH' if algorithm.is_ecdh else 'ECDSA'} {curve} {digest}"


def certificate_fields(certificate: AnyCertificate) -> dict[str, Any]:
    """A certificate for scripts."""
    from hcalld.guestowner.chain_files import fingerprint
    from hcallproto.payloads.sev.certificates import AmdCertificate

    fields: dict[str, Any] = {
        "usage": certificate.usage.name,
        "key": describe_key(certificate),
        "fingerprint": fingerprint(certificate),
    }
    if isinstance(certificate, AmdCertificate):
        fields["key_id"] = certificate.key_id.hex()
    else:
        fields["api"] = str(certificate.api)
    return fields


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """A verdict for scripts."""
    return {
        "certificates": [certificate_fields(one) for one in reversed(verdict.chain)],
        "links": [
            {
                "certificate": link.child.name,
                "signer": link.parent.name,
                "ok": link.error is None,
                "problem": None if link.error is None else str(link.error),
            }
            for link in verdict.links
        ],
        "root_is_trusted": verdict.is_trusted,
        "ok": verdict.is_good,
    }


def print_verdict(verdict: Verdict) -> None:
    """Print the certificates as a tree, from the root down, each with its signers."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    chain = verdict.chain

    def line(certificate: AnyCertificate) -> Text:
        usage = certificate.usage
        fields = certificate_fields(certificate)
        version = f"API {fields['api']}" if "api" in fields else f"key {fields['key_id'][:8]}"
        text = Text(f"{usage.name}  {fields['key']}  {version}")
        for link in verdict.links:
            if link.child is usage:
                text.append("  ")
                text.append(_signed(link), style="red" if link.error else "green")
        if certificate is chain.ark:
            text.append("  " + _trust(verdict))
        return text

    tree = Tree(line(chain.ark))
    pek = tree.add(line(chain.ask)).add(line(chain.cek)).add(line(chain.pek))
    pek.add(line(chain.pdh))
    # A tree is cut where the terminal ends, a line of it is not.
    console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
    console.print(tree)
    # It signs the PEK too, and nobody signs it: the root of a tree of its own.
    console.print(Tree(line(chain.oca)))


def _signed(link: Link) -> str:
    who = "itself" if link.parent is link.child else link.parent.name
    return f"signed by {who}: {'FAILED' if link.error else 'ok'}"


def _trust(verdict: Verdict) -> str:
    match verdict.is_trusted:
        case None:
            return "(trusted by nobody's word)"
        case True:
            return "(the trusted root)"
        case _:
            return "(NOT the trusted root)"


def print_problem(problem: str) -> None:
    """Say on stderr what is wrong."""
    click.echo(f"hcalld: {problem}", err=True)
