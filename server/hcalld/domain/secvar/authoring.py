# SPDX-License-Identifier: Apache-2.0
"""Making signature lists and signed updates: the other side of ``authvar.py``.

Pure, as that: times and keys are arguments. An update's file is what is written to
``/sys/firmware/secvar/vars/<name>/update`` in one write: 8 bytes of flags, which Linux
passes in a register, then the message. secvarctl reads and writes the same files.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from hcalld.crypto.signing import sign_detached
from hcalld.domain.secvar.authvar import WIPE_TEXT, signed_bytes
from hcalld.domain.secvar.variables import PK, encode_name
from hcallproto.payloads.efi import (
    CERT_X509,
    NO_GUID,
    SBAT,
    EfiTime,
    Signature,
    SignatureList,
    SignedUpdate,
    StoredVariable,
)

FLAGS_SIZE: Final = 8
FLAG_APPEND: Final = 1
"""The flags' only bit (H_PKS_SIGNED_UPDATE, r8)."""


class FlagsError(ValueError):
    """An update's file has no flags in front, or unknown ones; the text says so."""


@dataclasses.dataclass(frozen=True, slots=True)
class UpdateFile:
    """The file of a signed update: flags and message."""

    is_append: bool
    message: bytes

    def build(self) -> bytes:
        """The file's bytes."""
        return (FLAG_APPEND * self.is_append).to_bytes(FLAGS_SIZE, "big") + self.message


def parse_update_file(data: bytes) -> UpdateFile:
    """Split the file of an update.

    Raises:
        FlagsError: it is too short, or its first 8 bytes are not 0 or 1.
    """
    flags = int.from_bytes(data[:FLAGS_SIZE], "big")
    if len(data) <= FLAGS_SIZE:
        raise FlagsError(f"an update of {len(data)} bytes, expected more than {FLAGS_SIZE}")
    if flags & ~FLAG_APPEND:
        raise FlagsError(f"flags 0x{flags:016x} in the first 8 bytes, expected 0 or 1")
    return UpdateFile(bool(flags & FLAG_APPEND), data[FLAGS_SIZE:])


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """An update that is not signed yet."""

    name: str
    data: bytes
    time: EfiTime
    is_append: bool = False

    def to_be_signed(self) -> bytes:
        """What the signature covers; a signer elsewhere hashes it with SHA-256."""
        return signed_bytes(encode_name(self.name), self.time, self.data, is_append=self.is_append)

    def sign(self, certificate: x509.Certificate, key: RSAPrivateKey) -> UpdateFile:
        """The update, signed.

        Raises:
            ValueError: key and certificate do not belong together.
        """
        return self.with_signature(sign_detached(self.to_be_signed(), certificate, key))

    def with_signature(self, pkcs7: bytes) -> UpdateFile:
        """The update with a PKCS#7 that was made elsewhere; not verified here."""
        return UpdateFile(self.is_append, SignedUpdate(self.time, pkcs7, self.data).build())


def wipe(time: EfiTime) -> Draft:
    """The update of PK that deletes every secure variable, under the latch.

    The head of the list is as secvarctl's: no type, one signature, no owner.
    """
    text = SignatureList(NO_GUID, 16 + len(WIPE_TEXT), (Signature(WIPE_TEXT),))
    return Draft(PK.name, text.build(), time)


def list_of(type_guid: bytes, data: bytes, owner: bytes = NO_GUID) -> SignatureList:
    """A list of one signature."""
    return SignatureList(type_guid, len(owner) + len(data), (Signature(data, owner),))


def certificates_lists(ders: list[bytes], owner: bytes = NO_GUID) -> bytes:
    """A list for each certificate: their sizes differ, and appending compares lists."""
    return b"".join(list_of(CERT_X509, der, owner).build() for der in ders)


def digests_list(type_guid: bytes, digests: list[bytes], owner: bytes = NO_GUID) -> bytes:
    """One list of all digests, which have one size, without repetitions."""
    signatures = tuple(Signature(digest, owner) for digest in dict.fromkeys(digests))
    return SignatureList(type_guid, len(owner) + len(digests[0]), signatures).build()


def sbat_list(csv: bytes, owner: bytes = NO_GUID) -> bytes:
    """The list of SBAT levels."""
    return list_of(SBAT, csv, owner).build()


def stored_object(data: bytes, time: EfiTime) -> bytes:
    """The object of a variable that holds ``data`` since ``time``."""
    return StoredVariable(time, data).build()
