# SPDX-License-Identifier: Apache-2.0
"""Signed updates for tests, made with ``cryptography`` alone.

What is signed is put together here once more, from UEFI and the published library's
words, and not by the code under test: two hands, one format.
"""

from __future__ import annotations

import datetime
import functools
import struct
import uuid

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import (
    PKCS7Options,
    PKCS7SignatureBuilder,
)

Time = tuple[int, int, int, int, int, int]

_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
_POWER = uuid.UUID("36fd7583-986a-4b15-8228-041664342d51").bytes_le
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7").bytes_le
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
_SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
_VENDORS = {"PK": _GLOBAL, "KEK": _GLOBAL} | dict.fromkeys(
    ("db", "dbx", "grubdb", "grubdbx", "sbat", "moduledb", "trustedcadb"), _SECURITY
)

WIPE = (
    bytes(44)
    + b"Yes, I want to delete all secure variables and reset secure boot to static keys.\n"
)
"""Content of the update of PK that deletes every variable."""


BITS = {"PK4096": 4096}
"""Signers whose keys have more than 2048 bits."""


class Signer:
    """An RSA key and its certificate."""

    def __init__(self, name: str) -> None:
        bits = BITS.get(name, 2048)
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        begin = datetime.datetime(2023, 1, 1, tzinfo=datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=1))
            .sign(self.key, SHA256())
        )

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)


@functools.cache
def signer(name: str) -> Signer:
    """The signer of that name, made once in a process."""
    return Signer(name)


def signature_list(kind: bytes, *datas: bytes) -> bytes:
    """An EFI_SIGNATURE_LIST without owners."""
    size = 16 + len(datas[0])
    body = b"".join(bytes(16) + data for data in datas)
    return kind + struct.pack("<III", 28 + len(body), 0, size) + body


def certificates(*names: str) -> bytes:
    """A list for each of these signers' certificates."""
    return b"".join(signature_list(_X509, signer(name).der) for name in names)


def digests(*fillers: int) -> bytes:
    """A list of SHA-256 hashes, each of one repeated byte."""
    return signature_list(_SHA256, *(bytes((filler,)) * 32 for filler in fillers))


def moment(second: int) -> Time:
    """A time; later ones have greater numbers."""
    return (2024, 1, 1 + second // 86400, second // 3600 % 24, second // 60 % 60, second % 60)


def stored(time: Time, data: bytes) -> bytes:
    """What a variable's object is after an update."""
    return b"\0" + struct.pack("<H5B", *time) + data


def update(
    name: str,
    data: bytes,
    by: str,
    time: Time,
    *,
    is_append: bool = False,
    signed_name: str | None = None,
) -> bytes:
    """A signed update of a variable.

    Args:
        name: of the variable.
        data: its new content, or what is appended.
        by: the signer's name.
        time: of the update.
        is_append: what the signer meant it to be.
        signed_name: the variable for which it is signed, if not this one.
    """
    efi_time = struct.pack("<H5B", *time) + bytes(9)
    meant = signed_name or name
    attributes = struct.pack("<I", 0x67 if is_append else 0x27)
    covered = b"".join(
        (meant.encode("utf-16-le"), _VENDORS.get(meant, _POWER), attributes, efi_time, data)
    )
    one = signer(by)
    pkcs7 = (
        PKCS7SignatureBuilder()
        .set_data(covered)
        .add_signer(one.certificate, one.key, SHA256())
        .sign(
            Encoding.DER,
            [PKCS7Options.DetachedSignature, PKCS7Options.Binary, PKCS7Options.NoAttributes],
        )
    )
    head = struct.pack("<IHH", 24 + len(pkcs7), 0x0200, 0x0EF1) + _PKCS7
    return efi_time + head + pkcs7 + data
