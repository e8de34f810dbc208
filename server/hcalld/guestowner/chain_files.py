# SPDX-License-Identifier: Apache-2.0
"""Files with certificates, and whether what they hold is to be believed.

A platform's file is sevctl's: PDH, PEK, OCA, CEK, and with a full export ASK and ARK. A root's is
AMD's: ASK and ARK; or a test root of ``hcalld sev root``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final, NamedTuple

from hcalld.crypto.sev.chains import Chain, Link, links
from hcalld.crypto.sev.errors import KeyFormatError
from hcalld.crypto.sev.roots import Root
from hcalld.guestowner.errors import GuestOwnerError
from hcallproto.payloads.sev.certificates import (
    AMD_CERTIFICATE_SIZES,
    CERTIFICATE_SIZE,
    CHAIN_SIZE,
    AmdCertificate,
    SevCertificate,
    parse_amd_pair,
    parse_chain,
)

PLATFORM_SIZE: Final = CERTIFICATE_SIZE + CHAIN_SIZE
_LEAST_AMD_SIZE: Final = min(AMD_CERTIFICATE_SIZES.values())
MAX_FILE_SIZE: Final = 1 << 16
_PEM: Final = b"-----BEGIN "


class PlatformFile(NamedTuple):
    """What a platform says of itself, with AMD's part or without."""

    pdh: SevCertificate
    pek: SevCertificate
    oca: SevCertificate
    cek: SevCertificate
    amd: tuple[AmdCertificate, AmdCertificate] | None
    """ASK and ARK."""


def parse_platform(data: bytes) -> PlatformFile:
    """A platform's file.

    Raises:
        GuestOwnerError: it has another size.
        CertificateError: a certificate is malformed, or another than its place says.
    """
    if len(data) < PLATFORM_SIZE:
        raise GuestOwnerError(
            f"{len(data)} bytes; expected {PLATFORM_SIZE} with PDH, PEK, OCA and CEK, or more with "
            "ASK and ARK, as hcalld sev export writes them"
        )
    pdh = SevCertificate.parse(data[:CERTIFICATE_SIZE], "PDH certificate")
    chain = parse_chain(data[CERTIFICATE_SIZE:PLATFORM_SIZE])
    amd = data[PLATFORM_SIZE:]
    return PlatformFile(pdh, *chain, parse_amd_pair(amd) if amd else None)


def parse_root(data: bytes) -> tuple[AmdCertificate, AmdCertificate]:
    """ASK and ARK of a root's file; private keys in it are not kept.

    Raises:
        GuestOwnerError: it is none.
        CertificateError: a certificate is malformed.
    """
    if data.lstrip()[:1] in (b"-", b"A") and _PEM in data:
        try:
            root = Root.from_pem(data)
        except KeyFormatError as error:
            raise GuestOwnerError(str(error)) from None
        return root.ask, root.ark
    if len(data) < _LEAST_AMD_SIZE:
        raise GuestOwnerError(
            f"{len(data)} bytes and no PEM; expected a file of hcalld sev root, or ASK and ARK as "
            "AMD publishes them"
        )
    return parse_amd_pair(data)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What is found out about a platform.

    Attributes:
        chain: its certificates up to the root.
        links: each link, good or not.
        is_trusted: the ARK is the one that the guest's owner trusts; None: it was not said which.
    """

    chain: Chain
    links: tuple[Link, ...]
    is_trusted: bool | None

    @property
    def is_good(self) -> bool:
        """Whether all links hold, up to the root that is trusted."""
        return self.is_whole and bool(self.is_trusted)

    @property
    def is_whole(self) -> bool:
        """Whether all links hold, whatever the root."""
        return not any(link.error for link in self.links)

    @property
    def problem(self) -> str:
        """The first thing that is wrong, from the root down; "" if nothing is."""
        for link in self.links:
            if link.error:
                return str(link.error)
        ark = fingerprint(self.chain.ark)
        if self.is_trusted is None:
            return (
                f"nothing says that the platform's ARK ({ark}) is to be trusted; give the root "
                "that you trust by --root"
            )
        if not self.is_trusted:
            return f"the platform's ARK ({ark}) is not the one that --root has"
        return ""


def verify(
    found: PlatformFile, root: tuple[AmdCertificate, AmdCertificate] | None = None
) -> Verdict:
    """Look at every link of a platform's certificates.

    Args:
        found: the platform's.
        root: ASK and ARK that are trusted; None: the platform's own are looked at.

    Raises:
        GuestOwnerError: there is no ASK and ARK on either side.
    """
    amd = found.amd or root
    if amd is None:
        raise GuestOwnerError(
            "has no ASK and ARK, so nothing says whose chip it is; give the root that you trust "
            "by --root, or the file of hcalld sev export --full"
        )
    ask, ark = amd
    chain = Chain(found.pdh, found.pek, found.oca, found.cek, ask, ark)
    is_trusted = None if root is None else ark.build() == root[1].build()
    return Verdict(chain, tuple(links(chain)), is_trusted)


def fingerprint(certificate: SevCertificate | AmdCertificate) -> str:
    """SHA-256 of a certificate, to be compared by people."""
    return hashlib.sha256(certificate.build()).hexdigest()


__all__ = [
    "MAX_FILE_SIZE",
    "PlatformFile",
    "Verdict",
    "fingerprint",
    "parse_platform",
    "parse_root",
    "verify",
]
