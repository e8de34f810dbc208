# SPDX-License-Identifier: Apache-2.0
"""Who signed whom, up to AMD's root or a test root.

Sources: 55766 appendices B and C, AMDESE/sev-tool ``sevcert.cpp`` and ``amdcert.cpp``::

    ARK <- ARK      RSA-PSS, 2048 bits with SHA-256 (Naples) or 4096 with SHA-384
    ASK <- ARK
    CEK <- ASK
    PEK <- CEK      ECDSA on P-384 with SHA-256
    OCA <- OCA
    PEK <- OCA
    PDH <- PEK
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from hcalld.crypto.sev.certificates import check_key, check_role, name_of
from hcalld.crypto.sev.errors import SignatureError
from hcalld.crypto.sev.keys import is_signature
from hcallproto.payloads.sev import (
    AMD_CERTIFICATE_SIZES,
    CERTIFICATE_SIZE,
    CHAIN_SIZE,
    Algorithm,
    AmdCertificate,
    CertificateError,
    EcPublicKey,
    SevCertificate,
    Slot,
    Usage,
    build_amd_pair,
    build_chain,
    parse_amd_pair,
    parse_chain,
)

AnyCertificate = SevCertificate | AmdCertificate

# -- one link -------------------------------------------------------------------------------


def verify(child: SevCertificate, parent: AnyCertificate) -> int:
    """See that one certificate's key signed another, and in which slot.

    Args:
        child: what is signed; both slots are tried, for their order is not certain.
        parent: the signer's; a slot must name its usage and algorithm.

    Raises:
        SignatureError: no slot names the signer, or the signature is wrong.
        CertificateError: the signer's key signs nothing, or cannot be used.
    """
    what, signer = name_of(child.usage), parent.usage.name
    if parent.algorithm.is_ecdh:
        expected = "that of a key that signs"
        raise CertificateError(name_of(parent.usage), "algorithm", parent.algorithm.name, expected)
    named = [
        index
        for index, slot in enumerate(child.slots)
        if slot.usage == parent.usage and slot.algorithm == parent.algorithm
    ]
    signed = child.signed()
    for index in named:
        slot = child.slots[index]
        if is_signature(parent.key, parent.algorithm, slot, signed, name_of(parent.usage)):
            return index
    field = f"signature of the {signer}"
    if not named:
        expected = f"one with usage {parent.usage:#x} and algorithm {parent.algorithm:#x}"
        raise SignatureError(what, field, "missing", expected)
    raise SignatureError(what, field, "wrong", f"one by the key of this {signer}")


def verify_amd(child: AmdCertificate, parent: AmdCertificate) -> None:
    """See that one root certificate's key signed another, or itself.

    Raises:
        SignatureError: it did not.
        CertificateError: the signer's key cannot be used.
    """
    what, signer = name_of(child.usage), parent.usage.name
    if child.certifying_id != parent.key_id:
        raise SignatureError(
            what,
            "certifying id",
            child.certifying_id.hex(),
            f"{parent.key_id.hex()}, the {signer}'s",
        )
    field = f"signature of the {signer}"
    if child.signature is None:
        raise SignatureError(
            what, field, "missing", f"{AMD_CERTIFICATE_SIZES[child.key.size]} bytes"
        )
    slot = Slot.of_rsa(parent.usage, parent.algorithm, child.signature)
    if not is_signature(parent.key, parent.algorithm, slot, child.signed(), name_of(parent.usage)):
        raise SignatureError(what, field, "wrong", f"one by the key of this {signer}")


class Chain(NamedTuple):
    """All certificates of a platform, from its own to the root."""

    pdh: SevCertificate
    pek: SevCertificate
    oca: SevCertificate
    cek: SevCertificate
    ask: AmdCertificate
    ark: AmdCertificate

    @classmethod
    def parse(cls, pdh: bytes, chain: bytes, amd: bytes) -> Chain:
        """As SEND_START takes them: PDH; PEK, OCA, CEK; ASK, ARK.

        Raises:
            CertificateError: malformed, or others.
        """
        parsed = SevCertificate.parse(pdh, name_of(Usage.PDH))
        return cls(parsed, *parse_chain(chain), *parse_amd_pair(amd))

    @classmethod
    def parse_export(cls, data: bytes) -> Chain:
        """One after the other, as in the file of ``sevctl export --full``.

        Raises:
            CertificateError: malformed, or others.
        """
        end = CERTIFICATE_SIZE + CHAIN_SIZE
        return cls.parse(data[:CERTIFICATE_SIZE], data[CERTIFICATE_SIZE:end], data[end:])

    @property
    def export(self) -> bytes:
        """What ``parse_export`` takes."""
        return self.pdh.build() + self.platform + self.amd

    @property
    def platform(self) -> bytes:
        """PEK, OCA, CEK, as PDH_CERT_EXPORT gives them."""
        return build_chain(self.pek, self.oca, self.cek)

    @property
    def amd(self) -> bytes:
        """ASK, ARK, as AMD publishes them."""
        return build_amd_pair(self.ask, self.ark)


class Link(NamedTuple):
    """A link of a chain, and what is wrong with it."""

    child: Usage
    parent: Usage
    error: CertificateError | None

    def __str__(self) -> str:
        found = self.error or "good"
        return f"{self.child.name} <- {self.parent.name}: {found}"


def links(chain: Chain) -> Iterator[Link]:
    """Every link from the root down, good or not.

    That the root is the one that is trusted is not among them.
    """
    pdh, pek, oca, cek, ask, ark = chain
    found: dict[Usage, AnyCertificate] = {
        Usage.PDH: pdh,
        Usage.PEK: pek,
        Usage.OCA: oca,
        Usage.CEK: cek,
        Usage.ASK: ask,
        Usage.ARK: ark,
    }
    checks: tuple[tuple[Usage, Usage, Callable[[], object]], ...] = (
        (Usage.ARK, Usage.ARK, partial(verify_amd, ark, ark)),
        (Usage.ASK, Usage.ARK, partial(verify_amd, ask, ark)),
        (Usage.CEK, Usage.ASK, partial(verify, cek, ask)),
        (Usage.PEK, Usage.CEK, partial(verify, pek, cek)),
        (Usage.OCA, Usage.OCA, partial(verify, oca, oca)),
        (Usage.PEK, Usage.OCA, partial(verify, pek, oca)),
        (Usage.PDH, Usage.PEK, partial(verify, pdh, pek)),
    )
    for child, parent, check in checks:
        try:
            for usage in (child, parent):
                _check(found[usage], usage)
            check()
        except CertificateError as error:
            yield Link(child, parent, error)
        else:
            yield Link(child, parent, None)


def _check(certificate: AnyCertificate, usage: Usage) -> None:
    if isinstance(certificate, SevCertificate):
        check_role(certificate, usage)
        return
    if certificate.usage is not usage:
        raise CertificateError(name_of(usage), "usage", certificate.usage.name, usage.name)
    check_key(certificate, name_of(usage))


# -- ownership ------------------------------------------------------------------------------


def check_import(pek: SevCertificate, oca: SevCertificate, current: EcPublicKey) -> None:
    """See that PEK_CERT_IMPORT may take these two.

    Args:
        pek: the platform's PEK, signed by its new owner alone.
        oca: the new owner's.
        current: the platform's PEK.

    Raises:
        SignatureError: the owner did not sign one of them.
        CertificateError: another key than the platform's, or a certificate of another kind.
    """
    check_role(pek, Usage.PEK)
    check_role(oca, Usage.OCA)
    what = name_of(Usage.PEK)
    if pek.algorithm is not Algorithm.ECDSA_SHA256:
        expected = Algorithm.ECDSA_SHA256.name
        raise CertificateError(what, "algorithm", pek.algorithm.name, expected)
    if pek.key != current:
        raise CertificateError(what, "public key", "another's", "this platform's (PEK_CSR)")
    verify(oca, oca)
    used = verify(pek, oca)
    if not pek.slots[1 - used].is_empty:
        field = f"signature {2 - used}"
        raise CertificateError(what, field, "in use", "empty, for the CEK's signature")
