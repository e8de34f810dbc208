# SPDX-License-Identifier: Apache-2.0
"""What a file of secure boot's keys is, told from its content, and what is in it."""

from __future__ import annotations

import dataclasses
import enum
import hashlib

from hcalld.crypto.certificates import CertificateError, load_certificate
from hcalld.domain.secvar.authoring import FlagsError, parse_update_file
from hcalld.domain.secvar.authvar import is_wipe_message
from hcallproto.payloads.efi import (
    CERT_X509,
    SBAT,
    EfiError,
    EfiTime,
    Signature,
    SignatureList,
    guid_text,
    parse_signature_lists,
    parse_stored,
    parse_update,
    type_name,
)
from hcallproto.payloads.quoting import printable


class Kind(enum.Enum):
    """What a file is."""

    UPDATE = "signed update"
    MESSAGE = "signed update without flags"
    STORED = "stored variable"
    LISTS = "signature lists"


@dataclasses.dataclass(frozen=True, slots=True)
class Recognized:
    """A file, taken apart."""

    kind: Kind
    data: bytes
    """Its signature lists."""
    time: EfiTime | None = None
    pkcs7: bytes | None = None
    is_append: bool | None = None


def recognize(content: bytes) -> Recognized:
    """Tell what a file is.

    Raises:
        ValueError: nothing of that.
    """
    try:
        file = parse_update_file(content)
        update = parse_update(file.message)
    except (FlagsError, EfiError):
        pass
    else:
        return Recognized(Kind.UPDATE, update.data, update.time, update.pkcs7, file.is_append)
    try:
        update = parse_update(content)
    except EfiError:
        pass
    else:
        return Recognized(Kind.MESSAGE, update.data, update.time, update.pkcs7)
    try:
        stored = parse_stored(content)
        parse_signature_lists(stored.data)
    except EfiError:
        pass
    else:
        return Recognized(Kind.STORED, stored.data, stored.time)
    try:
        if not parse_signature_lists(content):
            raise EfiError("empty")
    except EfiError as error:
        raise ValueError(
            "neither a signed update, with or without flags, nor a stored variable, nor "
            f"signature lists ({error})"
        ) from None
    return Recognized(Kind.LISTS, content)


def describe_lists(data: bytes) -> list[str]:
    """Lines that say what signature lists hold, one or more an entry.

    Names in certificates and SBAT levels are somebody's bytes: what a terminal would obey
    is escaped.
    """
    if is_wipe_message(data):
        return ["the message that deletes all secure variables"]
    try:
        lists = parse_signature_lists(data)
    except EfiError as error:
        return [f"{len(data)} bytes that are no signature lists: {error}"]
    return [
        line for each in lists for signature in each.signatures for line in _entry(each, signature)
    ]


def _entry(each: SignatureList, signature: Signature) -> list[str]:
    kind = type_name(each.type)
    owner = f", owner {guid_text(signature.owner)}" if any(signature.owner) else ""
    if each.type == CERT_X509:
        return [f"{kind} {_certificate(signature.data)}{owner}"]
    if each.type == SBAT:
        text = signature.data.decode("ascii", "backslashreplace")
        return [f"{kind} {printable(line)}{owner}" for line in text.splitlines()]
    return [f"{kind} {signature.data.hex()}{owner}"]


def _certificate(der: bytes) -> str:
    try:
        certificate = load_certificate(der)
    except CertificateError as error:
        return f"of {len(der)} bytes that cannot be used: {printable(str(error))}"
    name = printable(certificate.name())
    what = "CA, " if certificate.is_ca() else ""
    return (
        f"{name}, {what}RSA {certificate.key.key_size}, SHA-256 {hashlib.sha256(der).hexdigest()}"
    )
