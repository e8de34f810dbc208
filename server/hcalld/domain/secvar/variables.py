# SPDX-License-Identifier: Apache-2.0
"""The secure variables: one table from which rules, tools and documents derive.

Sources: Linux 7.2 ``plpks-secvar.c`` (names, policies, which are shown in which mode),
IBM libstb-secvar ``pseries.c`` (vendor GUIDs, signers, what append does), the user's
guide of secvarctl (content). The firmware does not limit names to these nine: anything
else is ``OTHER``, whose content nobody looks at.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from hcallproto.payloads import efi
from hcallproto.payloads.efi import GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, POWER_VENDOR
from hcallproto.payloads.pks import Policy


class Signer(enum.Enum):
    """Which variable's keys may sign an update."""

    PK = "PK"
    KEK = "KEK"


class Append(enum.Enum):
    """What an append update does to what is there."""

    REFUSED = "refused"
    CONCATENATED = "put behind what is there"
    MERGED = "merged, without what is there already"


class Content(enum.Enum):
    """What a variable may hold."""

    ONE_CERTIFICATE = "one certificate"
    CERTIFICATES = "certificates"
    CA_CERTIFICATES = "CAs' certificates"
    ALLOWED = "certificates and hashes"
    REVOKED = "certificates, hashes and certificates' hashes"
    SBAT = "SBAT levels"
    OPAQUE = "anything"


CERTIFICATE_TYPES: Final = frozenset({efi.CERT_X509})

DIGEST_SIZES: Final[dict[bytes, int]] = {
    efi.CERT_SHA1: 20,
    efi.CERT_SHA224: 28,
    efi.CERT_SHA256: 32,
    efi.CERT_SHA384: 48,
    efi.CERT_SHA512: 64,
}
"""Hashes of images and files, with their sizes."""

CERTIFICATE_DIGEST_SIZES: Final[dict[bytes, int]] = {
    efi.CERT_X509_SHA256: 32,
    efi.CERT_X509_SHA384: 48,
    efi.CERT_X509_SHA512: 64,
}
"""Hashes of certificates' signed part. UEFI has a time of revocation behind them,
secvarctl has none; Linux takes all bytes for the hash, so none is what works."""

CONTENT_TYPES: Final[dict[Content, frozenset[bytes]]] = {
    Content.ONE_CERTIFICATE: CERTIFICATE_TYPES,
    Content.CERTIFICATES: CERTIFICATE_TYPES,
    Content.CA_CERTIFICATES: CERTIFICATE_TYPES,
    Content.ALLOWED: CERTIFICATE_TYPES | DIGEST_SIZES.keys(),
    Content.REVOKED: CERTIFICATE_TYPES | DIGEST_SIZES.keys() | CERTIFICATE_DIGEST_SIZES.keys(),
    Content.SBAT: frozenset({efi.SBAT}),
}
"""Types of signatures; OPAQUE is not made of signature lists."""


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """What is fixed about a secure variable.

    Attributes:
        name: as in ``/sys/firmware/secvar/vars``; empty for all others together.
        vendor: GUID that is part of what is signed.
        policy: what Linux gives with an update.
        signers: whose keys may sign it, in the order in which they are tried.
        content: what it may hold.
        append: what an append update does.
        is_static: whether Linux shows it in static key mode too.
    """

    name: str
    vendor: bytes
    policy: Policy
    signers: tuple[Signer, ...]
    content: Content
    append: Append
    is_static: bool = False

    @property
    def label_name(self) -> bytes:
        """The name as its label has it."""
        return encode_name(self.name)


def encode_name(name: str) -> bytes:
    """A variable's name as labels and signatures have it: UTF-16LE without terminator."""
    return name.encode("utf-16-le")


_SECRET: Final = Policy.SIGNEDUPDATE
_PUBLIC: Final = Policy.SIGNEDUPDATE | Policy.WORLDREADABLE
_BOTH: Final = (Signer.PK, Signer.KEK)


def _database(name: str, policy: Policy, content: Content, *, is_static: bool = False) -> Variable:
    return Variable(name, IMAGE_SECURITY_DATABASE, policy, _BOTH, content, Append.MERGED, is_static)


PK: Final = Variable(
    "PK",
    GLOBAL_VARIABLE,
    _SECRET,
    (Signer.PK,),
    Content.ONE_CERTIFICATE,
    Append.REFUSED,
    is_static=True,
)
KEK: Final = Variable(
    "KEK",
    GLOBAL_VARIABLE,
    _SECRET,
    (Signer.PK,),
    Content.CERTIFICATES,
    Append.CONCATENATED,
)

VARIABLES: Final[tuple[Variable, ...]] = (
    PK,
    KEK,
    _database("db", _PUBLIC, Content.ALLOWED),
    _database("dbx", _PUBLIC, Content.REVOKED),
    _database("grubdb", _PUBLIC, Content.ALLOWED),
    _database("grubdbx", _PUBLIC, Content.REVOKED),
    _database("sbat", _PUBLIC, Content.SBAT),
    _database("moduledb", _SECRET, Content.CERTIFICATES, is_static=True),
    _database("trustedcadb", _SECRET, Content.CA_CERTIFICATES, is_static=True),
)
"""Every variable that Linux shows, in its order."""

OTHER: Final = Variable("", POWER_VENDOR, _SECRET, _BOTH, Content.OPAQUE, Append.CONCATENATED)
"""Any other name. Its policy is the guest's choice, as long as SIGNEDUPDATE is in it."""

BY_NAME: Final[dict[str, Variable]] = {variable.name: variable for variable in VARIABLES}
_BY_LABEL_NAME: Final = {variable.label_name: variable for variable in VARIABLES}


def variable_of(label_name: bytes) -> Variable:
    """The variable that a label's name is of."""
    return _BY_LABEL_NAME.get(label_name, OTHER)
