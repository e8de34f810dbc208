# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar esl``: make signature lists."""

from __future__ import annotations

import hashlib
import pathlib

import click

from hcalld.cli.files import check_target, force_option, write_file
from hcalld.cli.secvar.inputs import owner_option, path_type, read_certificates, read_whole
from hcalld.cli.state.running import subcommand

ALGORITHMS = ("sha1", "sha224", "sha256", "sha384", "sha512")


@subcommand("esl", "Make signature lists.")
@click.option("--cert", "certs", multiple=True, type=path_type, help="Certificate, PEM or DER.")
@click.option("--file", "files", multiple=True, type=path_type, help="File whose hash to take.")
@click.option("--hash", "digests", multiple=True, metavar="HEX", help="Hash of a file.")
@click.option(
    "--cert-hash",
    "revoked",
    multiple=True,
    type=path_type,
    help="Certificate whose signed part's hash to take (for dbx and grubdbx).",
)
@click.option("--sbat", type=path_type, help="SBAT levels, lines of name,generation.")
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    default="sha256",
    show_default=True,
    help="Of the hashes.",
)
@owner_option
@click.option("--output", "-o", type=path_type, required=True, help="The file to make.")
@force_option
def command(
    *,
    certs: tuple[pathlib.Path, ...],
    files: tuple[pathlib.Path, ...],
    digests: tuple[str, ...],
    revoked: tuple[pathlib.Path, ...],
    sbat: pathlib.Path | None,
    algorithm: str,
    owner: bytes,
    output: pathlib.Path,
    force: bool,
) -> None:
    """Make a file of EFI signature lists.

    A list for each certificate, one for all hashes, one for all certificates' hashes, one
    for SBAT levels. The hash of a file is that of all its bytes.
    """
    from hcalld.domain.secvar.authoring import certificates_lists, digests_list, sbat_list
    from hcallproto.payloads import efi

    if not (certs or files or digests or revoked or sbat):
        raise click.UsageError("give --cert, --file, --hash, --cert-hash or --sbat")
    if revoked and algorithm not in ("sha256", "sha384", "sha512"):
        raise click.UsageError(f"--cert-hash goes with sha256, sha384 or sha512, not {algorithm}")
    check_target(output, force=force)
    data = certificates_lists([der for path in certs for der in read_certificates(path)], owner)
    hashes = [_digest(text, algorithm) for text in digests]
    hashes += [_hash_of(path, algorithm) for path in files]
    if hashes:
        kind = getattr(efi, f"CERT_{algorithm.upper()}")
        data += digests_list(kind, hashes, owner)
    if revoked:
        kind = getattr(efi, f"CERT_X509_{algorithm.upper()}")
        ders = [der for path in revoked for der in read_certificates(path)]
        data += digests_list(kind, [_tbs_hash(der, algorithm) for der in ders], owner)
    if sbat is not None:
        data += _checked_sbat(sbat_list(read_whole(sbat), owner), sbat)
    write_file(output, data, force=force)


def _digest(text: str, algorithm: str) -> bytes:
    from hcalld.core.errors import ConfigError

    size = hashlib.new(algorithm).digest_size
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != size:
        raise ConfigError(
            f"--hash {text}: expected {2 * size} hexadecimal digits; see --algorithm for other "
            "hashes"
        )
    return digest


def _hash_of(path: pathlib.Path, algorithm: str) -> bytes:
    from hcalld.core.errors import ConfigError

    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).digest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _tbs_hash(der: bytes, algorithm: str) -> bytes:
    from hcalld.crypto.certificates import load_certificate

    return hashlib.new(algorithm, load_certificate(der).x509.tbs_certificate_bytes).digest()


def _checked_sbat(data: bytes, path: pathlib.Path) -> bytes:
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar.content import ContentError, check_content
    from hcalld.domain.secvar.variables import BY_NAME

    try:
        check_content(BY_NAME["sbat"], data)
    except ContentError as error:
        raise ConfigError(f"{path}: {error}") from None
    return data
