# SPDX-License-Identifier: Apache-2.0
"""Signed updates of secure variables, written down once more: nothing of hcalld's is used.

Keys, certificates and signatures are openssl's; the structures around them are built here from
the UEFI specification (EFI_VARIABLE_AUTHENTICATION_2, EFI_SIGNATURE_LIST) and from what
plpks-secvar.c takes: eight bytes of flags before them.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import struct
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

GLOBAL: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
PKCS7: Final = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256: Final = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
X509_SHA256: Final = uuid.UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
SBAT: Final = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")

REPLACE: Final = 0
APPEND: Final = 1
ATTRIBUTES: Final = 0x27
APPEND_WRITE: Final = 0x40
"""Non-volatile, boot service, runtime, authenticated by time; and the one of appending."""

WIPE_TEXT: Final = (
    b"Yes, I want to delete all secure variables and reset secure boot to static keys.\n"
)

DYNAMIC: Final = ("PK", "KEK", "db", "dbx", "grubdb", "grubdbx", "sbat", "moduledb", "trustedcadb")
STATIC: Final = ("PK", "moduledb", "trustedcadb")
"""The variables that Linux shows in each of the modes."""

START: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Identity:
    """A key and its certificate."""

    name: str
    key: Path
    certificate: Path
    der: bytes

    @property
    def esl(self) -> bytes:
        """A signature list with this certificate."""
        return x509_list(self.der)


def openssl(*words: str | Path, stdin: bytes = b"") -> bytes:
    """Runs openssl; gives what it prints."""
    command = ["openssl", *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


def identity(
    folder: Path,
    name: str,
    *,
    bits: int = 2048,
    issuer: Identity | None = None,
    is_ca: bool = False,
) -> Identity:
    """Makes a key and a certificate, its own issuer unless another is named."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    usage = "keyCertSign" if is_ca else "digitalSignature"
    words: list[str | Path] = ["req", "-x509", "-newkey", f"rsa:{bits}", "-nodes", "-sha256"]
    words += ["-keyout", key, "-out", certificate, "-days", "36500", "-subj", f"/CN={name}"]
    words += ["-addext", f"keyUsage=critical,{usage}"]
    words += ["-addext", f"basicConstraints=critical,CA:{str(is_ca).upper()}"]
    if issuer is not None:
        # openssl 3.0's req signs for itself only; x509 has another sign.
        request = folder / f"{name}.csr"
        extensions = folder / f"{name}.ext"
        extensions.write_text(
            f"keyUsage=critical,{usage}\nbasicConstraints=critical,CA:{str(is_ca).upper()}\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        openssl(
            *("req", "-new", "-newkey", f"rsa:{bits}", "-nodes", "-keyout", key),
            *("-out", request, "-subj", f"/CN={name}"),
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", issuer.certificate, "-CAkey", issuer.key),
            *("-sha256", "-days", "36500", "-extfile", extensions, "-out", certificate),
        )
    else:
        openssl(*words)
    der = openssl("x509", "-in", certificate, "-outform", "DER")
    return Identity(name, key, certificate, der)


# -- signature lists ------------------------------------------------------------------------


def signature_list(kind: uuid.UUID, entries: Sequence[bytes], owner: bytes = bytes(16)) -> bytes:
    """An EFI_SIGNATURE_LIST; all entries have the same size."""
    size = 16 + len(entries[0])
    body = b"".join(owner + entry for entry in entries)
    return kind.bytes_le + struct.pack("<III", 28 + len(body), 0, size) + body


def x509_list(*ders: bytes) -> bytes:
    """One list for each certificate, as their sizes differ."""
    return b"".join(signature_list(X509, [der]) for der in ders)


def sbat_list(text: bytes) -> bytes:
    """A list with an SBAT revocation, lines of comma-separated values."""
    return signature_list(SBAT, [text])


def wipe_list() -> bytes:
    """The update of PK that asks for static keys: a list's header, then the sentence."""
    return (
        bytes(16)
        + struct.pack("<III", 44 + len(WIPE_TEXT), 0, 16 + len(WIPE_TEXT))
        + bytes(16)
        + WIPE_TEXT
    )


# -- updates --------------------------------------------------------------------------------


def efi_time(when: datetime.datetime) -> bytes:
    """EFI_TIME, all that is no date being zero."""
    date = (when.year, when.month, when.day, when.hour, when.minute, when.second)
    return struct.pack("<H5B9x", *date)


def stored_header(when: datetime.datetime) -> bytes:
    """What ``data`` begins with: a version of 0, and the date as it was signed."""
    return b"\0" + efi_time(when)[:7]


def vendor(variable: str) -> uuid.UUID:
    """The namespace that is signed with a variable's name."""
    return GLOBAL if variable in ("PK", "KEK") else IMAGE_SECURITY


def signed_text(variable: str, data: bytes, when: datetime.datetime, flags: int) -> bytes:
    """What a signature is made of."""
    attributes = ATTRIBUTES | (APPEND_WRITE if flags & APPEND else 0)
    return (
        variable.encode("utf-16-le")
        + vendor(variable).bytes_le
        + struct.pack("<I", attributes)
        + efi_time(when)
        + data
    )


def sign(text: bytes, signer: Identity) -> bytes:
    """A detached PKCS#7 signature without signed attributes."""
    return openssl(
        *("cms", "-sign", "-binary", "-noattr", "-nosmimecap", "-md", "sha256"),
        *("-signer", signer.certificate, "-inkey", signer.key, "-outform", "DER"),
        stdin=text,
    )


def update(
    variable: str,
    data: bytes,
    signer: Identity,
    when: datetime.datetime,
    flags: int = REPLACE,
) -> bytes:
    """A file for a variable's ``update``."""
    signature = sign(signed_text(variable, data, when, flags), signer)
    header = struct.pack("<IHH", 24 + len(signature), 0x0200, 0x0EF1) + PKCS7.bytes_le
    return struct.pack(">Q", flags) + efi_time(when) + header + signature + data


def dates(start: datetime.datetime = START) -> Iterator[datetime.datetime]:
    """Dates, each a second later."""
    return (start + datetime.timedelta(seconds=number) for number in itertools.count())
