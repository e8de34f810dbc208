# SPDX-License-Identifier: Apache-2.0
"""EFI structures of signed updates: times, certificates' heads, signature lists.

All little-endian, unlike everything else that an H_PKS call points at. Sources: UEFI 2.10,
8.2.2 (authenticated variables) and 32.4.1 (signature databases); IBM libstb-secvar
``include/secvar/pseries.h`` for the head of a stored variable. What may be in which
variable, and who may sign it, are rules of the firmware and not of these structures.

The construct schemas say what the structures are; parsing goes through ``struct``, held
equal to them by a test, because a guest's update is to cost little more than its
signature. Every length is compared with what there is before it is used.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from typing import Final, NamedTuple

from construct import Bytes, Const, Int8ul, Int16sl, Int16ul, Int32ul, Struct

GUID_SIZE: Final = 16


class EfiError(ValueError):
    """A structure is malformed; the text says how."""


class EfiSizeError(EfiError):
    """A structure is shorter than it must be, or claims more than there is."""


def guid(text: str) -> bytes:
    """The 16 bytes of a GUID: its first three groups are little-endian."""
    return uuid.UUID(text).bytes_le


def guid_text(value: bytes) -> str:
    """A GUID as people write it."""
    return str(uuid.UUID(bytes_le=value))


NO_GUID: Final = bytes(GUID_SIZE)

# -- vendors: part of what is signed -------------------------------------------------------

GLOBAL_VARIABLE: Final = guid("8be4df61-93ca-11d2-aa0d-00e098032b8c")
"""Vendor of PK and KEK (UEFI ``EFI_GLOBAL_VARIABLE``)."""
IMAGE_SECURITY_DATABASE: Final = guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
"""Vendor of db, dbx and what is like them (UEFI ``EFI_IMAGE_SECURITY_DATABASE_GUID``)."""
POWER_VENDOR: Final = guid("36fd7583-986a-4b15-8228-041664342d51")
"""Vendor of every other variable (pseries.h)."""

# -- types of signatures -------------------------------------------------------------------

CERT_X509: Final = guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
CERT_SHA1: Final = guid("826ca512-cf10-4ac9-b187-be01496631bd")
CERT_SHA224: Final = guid("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd")
CERT_SHA256: Final = guid("c1c41626-504c-4092-aca9-41f936934328")
CERT_SHA384: Final = guid("ff3e5307-9fd0-48c9-85f1-8ad56c701e01")
CERT_SHA512: Final = guid("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a")
CERT_X509_SHA256: Final = guid("3bd2a492-96c0-4079-b420-fcf98ef103ed")
CERT_X509_SHA384: Final = guid("7076876e-80c2-4ee6-aad2-28b349a6865b")
CERT_X509_SHA512: Final = guid("446dbf63-2502-4cda-bcfa-2465d2b0fe9d")
SBAT: Final = guid("605dab50-e046-4300-abb6-3dd810dd8b23")
"""SBAT levels as CSV lines; shim's GUID, which PowerVM uses as a type."""

SIGNATURE_TYPES: Final[dict[bytes, str]] = {
    CERT_X509: "X509",
    CERT_SHA1: "SHA1",
    CERT_SHA224: "SHA224",
    CERT_SHA256: "SHA256",
    CERT_SHA384: "SHA384",
    CERT_SHA512: "SHA512",
    CERT_X509_SHA256: "X509_SHA256",
    CERT_X509_SHA384: "X509_SHA384",
    CERT_X509_SHA512: "X509_SHA512",
    SBAT: "SBAT",
}
"""Names as in UEFI, without ``EFI_CERT_`` and ``_GUID``."""


def type_name(value: bytes) -> str:
    """A signature type's name, or its GUID."""
    return SIGNATURE_TYPES.get(value) or guid_text(value)


# -- times -----------------------------------------------------------------------------------

EFI_TIME = Struct(
    "year" / Int16ul * "1900 to 9999; not checked",
    "month" / Int8ul * "1 to 12; not checked",
    "day" / Int8ul * "1 to 31; not checked",
    "hour" / Int8ul * "0 to 23; not checked",
    "minute" / Int8ul * "0 to 59; not checked",
    "second" / Int8ul * "0 to 59; not checked",
    "pad1" / Const(0, Int8ul) * "0",
    "nanosecond" / Const(0, Int32ul) * "0 in an authenticated variable",
    "timezone" / Const(0, Int16sl) * "0 in an authenticated variable",
    "daylight" / Const(0, Int8ul) * "0 in an authenticated variable",
    "pad2" / Const(0, Int8ul) * "0",
)
"""UEFI ``EFI_TIME`` as an authenticated variable must have it."""

EFI_TIME_SIZE: Final = 16
_TIME = struct.Struct("<H5B")
_TIME_REST: Final = bytes(EFI_TIME_SIZE - _TIME.size)


class EfiTime(NamedTuple):
    """A time to the second; times compare field by field, as the firmware does."""

    year: int
    month: int
    day: int
    hour: int
    minute: int
    second: int

    def build(self) -> bytes:
        """The 16 bytes of ``EFI_TIME``."""
        return self.build_short() + _TIME_REST

    def build_short(self) -> bytes:
        """The first 7 bytes, which are what a stored variable keeps."""
        return _TIME.pack(*self)

    def __str__(self) -> str:
        return (
            f"{self.year:04}-{self.month:02}-{self.day:02} "
            f"{self.hour:02}:{self.minute:02}:{self.second:02}"
        )


def parse_time(data: bytes) -> EfiTime:
    """Parse an ``EFI_TIME`` of an authenticated variable.

    Raises:
        EfiError: not 16 bytes, or a field is not 0 that must be.
    """
    if len(data) != EFI_TIME_SIZE:
        raise EfiSizeError(f"EFI_TIME has {len(data)} bytes, expected {EFI_TIME_SIZE}")
    if data[_TIME.size :] != _TIME_REST:
        raise EfiError("pad, nanosecond, timezone or daylight of the EFI_TIME is not 0")
    return EfiTime._make(_TIME.unpack_from(data))


# -- signed updates ----------------------------------------------------------------------------

WIN_CERTIFICATE = Struct(
    "length" / Int32ul * "24 + bytes of the PKCS#7, which follows",
    "revision" / Const(0x0200, Int16ul) * "0x0200",
    "type" / Const(0x0EF1, Int16ul) * "0x0ef1, WIN_CERT_TYPE_EFI_GUID",
    "guid"
    / Const(guid("4aafd29d-68df-49ee-8aa9-347d375665a7"), Bytes(GUID_SIZE))
    * "EFI_CERT_TYPE_PKCS7_GUID",
)
"""Head of UEFI ``WIN_CERTIFICATE_UEFI_GUID``, between the time and the PKCS#7."""

UPDATE_HEAD = Struct("time" / EFI_TIME, "certificate" / WIN_CERTIFICATE)
"""UEFI ``EFI_VARIABLE_AUTHENTICATION_2`` before its PKCS#7; the data come after that."""

WIN_CERTIFICATE_SIZE: Final = 24
UPDATE_HEAD_SIZE: Final = EFI_TIME_SIZE + WIN_CERTIFICATE_SIZE
_CERTIFICATE = struct.Struct("<IHH16s")
_CERTIFICATE_REST: Final = (0x0200, 0x0EF1, guid("4aafd29d-68df-49ee-8aa9-347d375665a7"))
_CERTIFICATE_TAIL: Final = _CERTIFICATE.pack(0, *_CERTIFICATE_REST)[4:]
_CERTIFICATE_LENGTH = struct.Struct("<I")


class SignedUpdate(NamedTuple):
    """A signed update as H_PKS_SIGNED_UPDATE gets it, taken apart."""

    time: EfiTime
    pkcs7: bytes
    data: bytes
    """What the variable is to hold: signature lists, or nothing."""

    def build(self) -> bytes:
        """The update as it travels."""
        size = WIN_CERTIFICATE_SIZE + len(self.pkcs7)
        head = _CERTIFICATE.pack(size, *_CERTIFICATE_REST)
        return self.time.build() + head + self.pkcs7 + self.data


def parse_update(message: bytes) -> SignedUpdate:
    """Take a signed update apart; PKCS#7 and data are not looked at.

    Raises:
        EfiSizeError: it ends within its head, or the PKCS#7 goes beyond its end.
        EfiError: a field has a value that it must not have.
    """
    if len(message) < UPDATE_HEAD_SIZE:
        raise EfiSizeError(
            f"the update has {len(message)} bytes, expected at least {UPDATE_HEAD_SIZE}"
        )
    time = parse_time(message[:EFI_TIME_SIZE])
    (size,) = _CERTIFICATE_LENGTH.unpack_from(message, EFI_TIME_SIZE)
    if message[EFI_TIME_SIZE + 4 : UPDATE_HEAD_SIZE] != _CERTIFICATE_TAIL:
        rest = _CERTIFICATE.unpack_from(message, EFI_TIME_SIZE)[1:]
        raise EfiError(
            f"WIN_CERTIFICATE has revision 0x{rest[0]:04x}, type 0x{rest[1]:04x} and GUID "
            f"{guid_text(rest[2])}, expected 0x0200, 0x0ef1 and EFI_CERT_TYPE_PKCS7_GUID"
        )
    if size <= WIN_CERTIFICATE_SIZE:
        raise EfiError(
            f"WIN_CERTIFICATE has length {size}, expected more than {WIN_CERTIFICATE_SIZE}"
        )
    end = EFI_TIME_SIZE + size
    if end > len(message):
        raise EfiSizeError(
            f"WIN_CERTIFICATE has length {size}, but only {len(message) - EFI_TIME_SIZE} bytes "
            "are left of the update"
        )
    return SignedUpdate(time, message[UPDATE_HEAD_SIZE:end], message[end:])


# -- stored variables ----------------------------------------------------------------------------

STORED_HEAD = Struct(
    "version" / Const(0, Int8ul) * "0",
    "year" / Int16ul * "of the last update",
    "month" / Int8ul,
    "day" / Int8ul,
    "hour" / Int8ul,
    "minute" / Int8ul,
    "second" / Int8ul,
)
"""Head of a signed variable's object; signature lists follow, or nothing."""

STORED_HEAD_SIZE: Final = 8


class StoredVariable(NamedTuple):
    """A signed variable's object, taken apart."""

    time: EfiTime
    data: bytes

    def build(self) -> bytes:
        """The object's data."""
        return b"\0" + self.time.build_short() + self.data


def parse_stored(data: bytes) -> StoredVariable:
    """Take a signed variable's object apart.

    Raises:
        EfiError: it ends within its head, or is of an unknown version.
    """
    if len(data) < STORED_HEAD_SIZE:
        raise EfiSizeError(
            f"the stored variable has {len(data)} bytes, expected at least {STORED_HEAD_SIZE}"
        )
    if data[0]:
        raise EfiError(f"the stored variable has version {data[0]}, expected 0")
    return StoredVariable(EfiTime._make(_TIME.unpack_from(data, 1)), data[STORED_HEAD_SIZE:])


# -- signature lists -----------------------------------------------------------------------------

SIGNATURE_LIST = Struct(
    "type" / Bytes(GUID_SIZE) * "GUID of what its signatures are",
    "list_size" / Int32ul * "bytes of the list, with these 28",
    "header_size" / Int32ul * "bytes of the type's own header, which follows",
    "signature_size" / Int32ul * "bytes of each signature, with its owner",
)
"""Head of UEFI ``EFI_SIGNATURE_LIST``; header and signatures follow."""

SIGNATURE_LIST_SIZE: Final = 28
_LIST = struct.Struct("<16sIII")


class Signature(NamedTuple):
    """One entry of a list (UEFI ``EFI_SIGNATURE_DATA``)."""

    data: bytes
    owner: bytes = NO_GUID


class SignatureList(NamedTuple):
    """One list: signatures of one type and size."""

    type: bytes
    signature_size: int
    """Bytes of each signature, with its owner's 16."""
    signatures: tuple[Signature, ...]
    header: bytes = b""

    def build(self) -> bytes:
        """The list's bytes.

        Raises:
            ValueError: a signature has another size.
        """
        parts = [self.header]
        for signature in self.signatures:
            if len(signature.owner) + len(signature.data) != self.signature_size:
                raise ValueError(
                    f"a signature of {len(signature.data)} bytes in a list of signatures of "
                    f"{self.signature_size - GUID_SIZE}"
                )
            parts += (signature.owner, signature.data)
        body = b"".join(parts)
        size = SIGNATURE_LIST_SIZE + len(body)
        return _LIST.pack(self.type, size, len(self.header), self.signature_size) + body


def signature_list(type_guid: bytes, data: bytes, *more: bytes) -> SignatureList:
    """A list of one or more signatures without owners, all of one size."""
    signatures = tuple(map(Signature, (data, *more)))
    return SignatureList(type_guid, GUID_SIZE + len(data), signatures)


def each_signature_list(data: bytes) -> Iterator[SignatureList]:
    """Parse lists that stand one after the other, one at a time.

    Raises:
        EfiError: the next list is malformed; those before it have been given.
    """
    offset = 0
    while offset < len(data):
        parsed, size = _parse_list(data, offset)
        yield parsed
        offset += size


def parse_signature_lists(data: bytes) -> tuple[SignatureList, ...]:
    """Parse lists that stand one after the other, to the last byte.

    Raises:
        EfiError: a list is malformed, or something follows the last one.
    """
    return tuple(each_signature_list(data))


def _parse_list(data: bytes, offset: int) -> tuple[SignatureList, int]:
    left = len(data) - offset
    where = f"signature list at byte {offset}"
    if left < SIGNATURE_LIST_SIZE:
        raise EfiError(f"{where}: {left} bytes, expected a head of {SIGNATURE_LIST_SIZE}")
    type_guid, list_size, header_size, signature_size = _LIST.unpack_from(data, offset)
    if not SIGNATURE_LIST_SIZE <= list_size <= left:
        raise EfiError(f"{where}: list size {list_size}, expected {SIGNATURE_LIST_SIZE} to {left}")
    body_size = list_size - SIGNATURE_LIST_SIZE
    if header_size > body_size:
        raise EfiError(f"{where}: header size {header_size}, expected at most {body_size}")
    if signature_size <= GUID_SIZE:
        raise EfiError(f"{where}: signature size {signature_size}, expected more than {GUID_SIZE}")
    if (body_size - header_size) % signature_size:
        raise EfiError(
            f"{where}: {body_size - header_size} bytes of signatures are not a multiple of the "
            f"signature size {signature_size}"
        )
    start = offset + SIGNATURE_LIST_SIZE
    first = start + header_size
    end = offset + list_size
    signatures = [
        Signature(
            data[position + GUID_SIZE : position + signature_size],
            data[position : position + GUID_SIZE],
        )
        for position in range(first, end, signature_size)
    ]
    header = data[start:first]
    return SignatureList(type_guid, signature_size, tuple(signatures), header), list_size
