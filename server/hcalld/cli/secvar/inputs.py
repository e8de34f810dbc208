# SPDX-License-Identifier: Apache-2.0
"""What the subcommands of ``hcalld secvar`` read: lists, certificates, keys, times."""

from __future__ import annotations

import datetime
import pathlib
import re
from typing import TYPE_CHECKING

import click

from hcalld.cli import files
from hcalld.cli.private_keys import read_private_key

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from hcalld.domain.secvar.variables import Variable
    from hcallproto.payloads.efi import EfiTime

MAX_FILE_SIZE = 65536

path_type = click.Path(path_type=pathlib.Path)


# -- options ------------------------------------------------------------------------------


def _time(_ctx: click.Context, _param: click.Parameter, value: str | None) -> EfiTime:
    from hcallproto.payloads.efi import EfiTime

    if value is None:
        moment = datetime.datetime.now(datetime.UTC)
    else:
        found = re.fullmatch(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)Z?", value)
        try:
            moment = datetime.datetime.fromisoformat(f"{found[1]} {found[2]}" if found else "")
        except ValueError:
            raise click.BadParameter(
                f"{value!r}: expected a time in UTC such as 2026-01-31T23:59:58Z"
            ) from None
    return EfiTime(*moment.timetuple()[:6])


time_option = click.option(
    "--time",
    metavar="UTC",
    callback=_time,
    help="The update's time, such as 2026-01-31T23:59:58Z (default: now).",
)


def _owner(_ctx: click.Context, _param: click.Parameter, value: str | None) -> bytes:
    from hcallproto.payloads.efi import NO_GUID, guid

    if value is None:
        return NO_GUID
    try:
        return guid(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: expected a GUID such as 8be4df61-93ca-11d2-aa0d-00e098032b8c"
        ) from None


owner_option = click.option(
    "--owner", metavar="GUID", callback=_owner, help="Owner of the signatures (default: zero)."
)


def check_variable_name(value: str) -> str:
    """A variable's name that a label can have.

    Raises:
        click.BadParameter: it is none.
    """
    if not value or "\0" in value:
        raise click.BadParameter("expected a variable's name, such as db")
    try:
        value.encode("utf-16-le")
    except UnicodeEncodeError:
        raise click.BadParameter(f"{value!r}: expected a name in the terminal's encoding") from None
    return value


variable_argument = click.argument(
    "variable", callback=lambda _ctx, _param, value: check_variable_name(value)
)


# -- files --------------------------------------------------------------------------------


def read_whole(path: pathlib.Path) -> bytes:
    """A file of at most 64 KiB.

    Raises:
        ConfigError: it cannot be read, or is longer.
    """
    return files.read_whole(path, MAX_FILE_SIZE)


def read_certificates(path: pathlib.Path) -> list[bytes]:
    """The certificates of a PEM file, or the one of a DER file, in DER.

    Raises:
        ConfigError: none is there, or one that a secure variable cannot hold.
    """
    from hcalld.core.errors import ConfigError

    found = certificates_in(path, read_whole(path))
    if found is None:
        raise ConfigError(f"{path}: not a certificate, expected X.509 in PEM or DER")
    return found


def certificates_in(path: pathlib.Path, data: bytes) -> list[bytes] | None:
    """The certificates of a file's content, in DER; None if it is something else.

    Raises:
        ConfigError: one that a secure variable cannot hold.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from hcalld.core.errors import ConfigError
    from hcalld.crypto.certificates import CertificateError, load_certificate

    if b"-----BEGIN CERTIFICATE-----" in data:
        try:
            ders = [
                certificate.public_bytes(Encoding.DER)
                for certificate in x509.load_pem_x509_certificates(data)
            ]
        except ValueError as error:
            raise ConfigError(f"{path}: not X.509 certificates in PEM ({error})") from None
    elif data[:2] == b"\x30\x82":
        ders = [data]
    else:
        return None
    try:
        for der in ders:
            load_certificate(der)
    except CertificateError as error:
        raise ConfigError(f"{path}: {error}") from None
    return ders


def read_content(variable: Variable, path: pathlib.Path, owner: bytes) -> bytes:
    """What a variable is to hold: lists, or what is made one: a certificate, or SBAT's CSV.

    Raises:
        ConfigError: it is not what the variable may hold.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.secvar.authoring import certificates_lists, sbat_list
    from hcalld.domain.secvar.content import ContentError, check_content
    from hcalld.domain.secvar.variables import Content

    data = read_whole(path)
    if variable.content is Content.OPAQUE:
        return data
    if not data:
        raise ConfigError(f"{path}: empty; use --reset to empty a variable")
    ders = certificates_in(path, data)
    if ders is not None:
        data = certificates_lists(ders, owner)
    elif variable.content is Content.SBAT and data.isascii() and b"," in data[:64]:
        data = sbat_list(data, owner)
    try:
        check_content(variable, data)
    except ContentError as error:
        raise ConfigError(f"{path}: not for {variable.name}: {error}") from None
    return data


def read_signer(
    key_path: pathlib.Path, certificate_path: pathlib.Path, passphrase_file: pathlib.Path | None
) -> tuple[x509.Certificate, RSAPrivateKey]:
    """A signer's certificate, the first of its file, and private key.

    Raises:
        ConfigError: one cannot be used, or they do not belong together.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.crypto.certificates import load_certificate

    certificate = load_certificate(read_certificates(certificate_path)[0])
    key = read_private_key(key_path, passphrase_file)
    if certificate.key != key.public_key():
        raise ConfigError(
            f"{key_path}: not the private key of {certificate_path}; give the two that were made "
            "together"
        )
    return certificate.x509, key
