# SPDX-License-Identifier: Apache-2.0
"""SEV's certificates, which are not X.509: a platform's own, and AMD's roots.

Sources: 55766 appendix C and sevapi.h ``sev_cert`` for a platform's; 55766 appendix B and
sevapi.h ``amd_cert`` for the roots. Numbers are little-endian here, the big ones too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from construct import Bytes, BytesInteger, Int8ul, Int16ul, Int32ul, Struct, this

from hcallproto.payloads.sev.constants import Algorithm, Api, Curve, Usage
from hcallproto.payloads.sev.errors import CertificateError

_KEY_SIZE: Final = 0x404
_EC_FIELD_SIZE: Final = 72
_RSA_FIELD_SIZE: Final = 512
_SIGNATURE_SIZE: Final = 512

SLOT = Struct(
    "usage" / Int32ul * "whose signature; 0x1000 if there is none",
    "algorithm" / Int32ul * "of the signer's key; 0 if there is none",
    "signature" / Bytes(_SIGNATURE_SIZE) * "r and s of 72 bytes each, or one number",
)
EC_PUBLIC_KEY = Struct(
    "curve" / Int32ul * "2: P-384",
    "qx" / BytesInteger(_EC_FIELD_SIZE, swapped=True) * "a point",
    "qy" / BytesInteger(_EC_FIELD_SIZE, swapped=True) * "its other half",
    "reserved" / Bytes(_KEY_SIZE - 4 - 2 * _EC_FIELD_SIZE) * "zero",
)
RSA_PUBLIC_KEY = Struct(
    "modulus_size" / Int32ul * "bits",
    "exponent" / BytesInteger(_RSA_FIELD_SIZE, swapped=True),
    "modulus" / BytesInteger(_RSA_FIELD_SIZE, swapped=True),
)
EC_SIGNATURE = Struct(
    "r" / BytesInteger(_EC_FIELD_SIZE, swapped=True),
    "s" / BytesInteger(_EC_FIELD_SIZE, swapped=True),
    "reserved" / Bytes(_SIGNATURE_SIZE - 2 * _EC_FIELD_SIZE) * "zero",
)

SEV_CERTIFICATE = Struct(
    "version" / Int32ul * "1",
    "api_major" / Int8ul * "of the platform that made it",
    "api_minor" / Int8ul * "its other half",
    "reserved" / Int16ul * "0",
    "usage" / Int32ul * "whose key it is",
    "algorithm" / Int32ul * "what the key is for",
    "pub_key" / Bytes(_KEY_SIZE) * "EC_PUBLIC_KEY or RSA_PUBLIC_KEY",
    "sig1" / SLOT * "a signature of what stands before: usage, algorithm, 512 bytes",
    "sig2" / SLOT * "another",
)
"""A certificate of a platform, its owner, or a guest's owner (sevapi.h ``sev_cert``)."""
CERTIFICATE_SIZE: Final = 2084
SIGNED_SIZE: Final = 0x414
"""A signature covers the bytes before the slots."""
CHAIN_SIZE: Final = 3 * CERTIFICATE_SIZE
"""PEK, OCA, CEK: what PDH_CERT_EXPORT calls a certificate chain."""
CERTIFICATE_VERSION: Final = 1

AMD_CERTIFICATE = Struct(
    "version" / Int32ul * "1",
    "key_id" / Bytes(16) * "names the key",
    "certifying_id" / Bytes(16) * "names the signer's key",
    "usage" / Int32ul * "0 ARK, 0x13 ASK",
    "reserved" / Bytes(16),
    "exponent_size" / Int32ul * "bits; as many as the modulus",
    "modulus_size" / Int32ul * "bits: 2048 or 4096",
    "exponent" / BytesInteger(this.exponent_size // 8, swapped=True),
    "modulus" / BytesInteger(this.modulus_size // 8, swapped=True),
)
"""A root certificate without its signature, which has as many bytes as the modulus."""
AMD_CERTIFICATE_SIZES: Final = {2048: 832, 4096: 1600}
"""Bytes by bits of the modulus (Naples; Rome and later)."""
_AMD_HEAD_SIZE: Final = 0x40
_AMD_UNSIGNED: Final = {size - bits // 8: bits for bits, size in AMD_CERTIFICATE_SIZES.items()}
"""AMD once published an ARK of 576 bytes, without a signature."""
_AMD_SIZES: Final = {size: bits for bits, size in AMD_CERTIFICATE_SIZES.items()}


# -- keys -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class EcPublicKey:
    """A point, which need not be on its curve: whoever uses it looks."""

    x: int
    y: int
    curve: int = Curve.P384

    def build(self) -> bytes:
        """As in a certificate."""
        return EC_PUBLIC_KEY.build(
            {
                "curve": self.curve,
                "qx": self.x,
                "qy": self.y,
                "reserved": bytes(EC_PUBLIC_KEY.reserved.sizeof()),
            }
        )


@dataclasses.dataclass(frozen=True, slots=True)
class RsaPublicKey:
    """An RSA key."""

    modulus: int
    exponent: int
    size: int
    """Bits of the modulus, as the certificate has them."""

    def build(self) -> bytes:
        """As in a certificate."""
        return RSA_PUBLIC_KEY.build(
            {"modulus_size": self.size, "exponent": self.exponent, "modulus": self.modulus}
        )


PublicKey = EcPublicKey | RsaPublicKey


# -- certificates of a platform -------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A place for a signature; anything may be in one that nobody looks at."""

    usage: int = Usage.INVALID
    algorithm: int = Algorithm.INVALID
    signature: bytes = bytes(_SIGNATURE_SIZE)

    @property
    def is_empty(self) -> bool:
        """Whether there is no signature."""
        return self == EMPTY_SLOT

    @classmethod
    def of_ec(cls, usage: Usage, algorithm: Algorithm, r: int, s: int) -> Slot:
        """An ECDSA signature."""
        rest = bytes(EC_SIGNATURE.reserved.sizeof())
        return cls(usage, algorithm, EC_SIGNATURE.build({"r": r, "s": s, "reserved": rest}))

    @classmethod
    def of_rsa(cls, usage: Usage, algorithm: Algorithm, signature: int) -> Slot:
        """An RSA signature."""
        return cls(usage, algorithm, signature.to_bytes(_SIGNATURE_SIZE, "little"))

    def ec_signature(self) -> tuple[int, int]:
        """The numbers r and s; what follows them is not looked at."""
        read = EC_SIGNATURE.parse(self.signature)
        return read.r, read.s

    def rsa_signature(self) -> int:
        """The signature as a number."""
        return int.from_bytes(self.signature, "little")


EMPTY_SLOT: Final = Slot()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SevCertificate:
    """A certificate, well-formed; nothing of it is proven."""

    api: Api
    usage: Usage
    algorithm: Algorithm
    key: PublicKey
    slots: tuple[Slot, Slot] = (EMPTY_SLOT, EMPTY_SLOT)

    @classmethod
    def parse(cls, data: bytes, what: str = "certificate") -> SevCertificate:
        """From 2084 bytes; ``build`` gives the same bytes again.

        Args:
            data: the certificate.
            what: its name, for errors: "PEK certificate".

        Raises:
            CertificateError: malformed.
        """
        if len(data) != CERTIFICATE_SIZE:
            raise CertificateError(what, "length", len(data), str(CERTIFICATE_SIZE))
        read = SEV_CERTIFICATE.parse(data)
        if read.version != CERTIFICATE_VERSION:
            raise CertificateError(what, "version", read.version, str(CERTIFICATE_VERSION))
        if read.reserved:
            raise CertificateError(what, "reserved field", hex(read.reserved), "0")
        usage = _one_of(Usage, read.usage, what, "usage")
        algorithm = _one_of(Algorithm, read.algorithm, what, "algorithm")
        return cls(
            api=Api(read.api_major, read.api_minor),
            usage=usage,
            algorithm=algorithm,
            key=_parse_key(algorithm, read.pub_key, what),
            slots=(_parse_slot(read.sig1), _parse_slot(read.sig2)),
        )

    def build(self) -> bytes:
        """The 2084 bytes."""
        sig1, sig2 = self.slots
        return SEV_CERTIFICATE.build(
            {
                "version": CERTIFICATE_VERSION,
                "api_major": self.api.major,
                "api_minor": self.api.minor,
                "reserved": 0,
                "usage": self.usage,
                "algorithm": self.algorithm,
                "pub_key": self.key.build(),
                "sig1": dataclasses.asdict(sig1),
                "sig2": dataclasses.asdict(sig2),
            }
        )

    def signed(self) -> bytes:
        """The bytes that a signature covers."""
        return self.build()[:SIGNED_SIZE]


def build_chain(pek: SevCertificate, oca: SevCertificate, cek: SevCertificate) -> bytes:
    """A certificate chain as PDH_CERT_EXPORT gives it."""
    return pek.build() + oca.build() + cek.build()


def parse_chain(data: bytes) -> tuple[SevCertificate, SevCertificate, SevCertificate]:
    """PEK, OCA, CEK of a certificate chain.

    Raises:
        CertificateError: malformed, or others, or in another order.
    """
    if len(data) != CHAIN_SIZE:
        raise CertificateError("certificate chain", "length", len(data), str(CHAIN_SIZE))
    pek, oca, cek = (
        _parse_as(usage, data[index * CERTIFICATE_SIZE : (index + 1) * CERTIFICATE_SIZE])
        for index, usage in enumerate((Usage.PEK, Usage.OCA, Usage.CEK))
    )
    return pek, oca, cek


def _parse_as(usage: Usage, data: bytes) -> SevCertificate:
    what = f"{usage.name} certificate"
    certificate = SevCertificate.parse(data, what)
    if certificate.usage != usage:
        raise CertificateError(what, "usage", certificate.usage.name, usage.name)
    return certificate


def _one_of(kind: Any, value: int, what: str, field: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(f"{member:#x} {member.name}" for member in kind)
        raise CertificateError(what, field, hex(value), f"one of {expected}") from None


def _parse_slot(read: Any) -> Slot:
    return Slot(read.usage, read.algorithm, read.signature)


def _parse_key(algorithm: Algorithm, data: bytes, what: str) -> PublicKey:
    if algorithm is Algorithm.INVALID:
        raise CertificateError(what, "algorithm", "0x0 INVALID", "that of a key")
    if algorithm.is_rsa:
        rsa = RSA_PUBLIC_KEY.parse(data)
        if rsa.modulus_size not in AMD_CERTIFICATE_SIZES:
            raise CertificateError(what, "modulus size", rsa.modulus_size, "2048 or 4096 bits")
        return RsaPublicKey(rsa.modulus, rsa.exponent, rsa.modulus_size)
    ec = EC_PUBLIC_KEY.parse(data)
    curve = _one_of(Curve, ec.curve, what, "curve")
    if any(ec.reserved):
        raise CertificateError(what, "rest of the public key", "not zero", "zero")
    return EcPublicKey(ec.qx, ec.qy, curve)


# -- AMD's certificates -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AmdCertificate:
    """A root certificate, ARK or ASK, well-formed; nothing of it is proven."""

    key_id: bytes
    certifying_id: bytes
    usage: Usage
    key: RsaPublicKey
    reserved: bytes = bytes(16)
    signature: int | None = None
    """None: there is no place for one."""

    @classmethod
    def parse(cls, data: bytes, what: str = "AMD certificate") -> AmdCertificate:
        """From 832 or 1600 bytes, or less without a signature; ``build`` gives them again.

        Args:
            data: the certificate.
            what: its name, for errors.

        Raises:
            CertificateError: malformed.
        """
        bits = _AMD_SIZES.get(len(data)) or _AMD_UNSIGNED.get(len(data))
        if bits is None:
            sizes = ", ".join(str(size) for size in sorted({**_AMD_SIZES, **_AMD_UNSIGNED}))
            raise CertificateError(what, "length", len(data), f"one of {sizes}")
        # Before the sizes in it are used for anything.
        for field, offset in (("exponent size", 0x38), ("modulus size", 0x3C)):
            found = int.from_bytes(data[offset : offset + 4], "little")
            if found != bits:
                raise CertificateError(what, field, found, f"{bits} bits for {len(data)} bytes")
        read = AMD_CERTIFICATE.parse(data)
        if read.version != CERTIFICATE_VERSION:
            raise CertificateError(what, "version", read.version, str(CERTIFICATE_VERSION))
        if read.usage not in (Usage.ARK, Usage.ASK):
            raise CertificateError(what, "usage", hex(read.usage), "0x0 ARK or 0x13 ASK")
        rest = data[_AMD_HEAD_SIZE + 2 * bits // 8 :]
        return cls(
            key_id=read.key_id,
            certifying_id=read.certifying_id,
            usage=Usage(read.usage),
            key=RsaPublicKey(read.modulus, read.exponent, bits),
            reserved=read.reserved,
            signature=int.from_bytes(rest, "little") if rest else None,
        )

    @property
    def algorithm(self) -> Algorithm:
        """What its key signs with: SHA-256 if it has 2048 bits, SHA-384 if 4096."""
        return Algorithm.RSA_SHA256 if self.key.size == 2048 else Algorithm.RSA_SHA384

    def build(self) -> bytes:
        """The certificate's bytes."""
        if self.signature is None:
            return self.signed()
        return self.signed() + self.signature.to_bytes(self.key.size // 8, "little")

    def signed(self) -> bytes:
        """The bytes that the signature covers: all before it."""
        return AMD_CERTIFICATE.build(
            {
                "version": CERTIFICATE_VERSION,
                "key_id": self.key_id,
                "certifying_id": self.certifying_id,
                "usage": self.usage,
                "reserved": self.reserved,
                "exponent_size": self.key.size,
                "modulus_size": self.key.size,
                "exponent": self.key.exponent,
                "modulus": self.key.modulus,
            }
        )


def build_amd_pair(ask: AmdCertificate, ark: AmdCertificate) -> bytes:
    """ASK and ARK as SEND_START takes them, and as AMD publishes them."""
    return ask.build() + ark.build()


def parse_amd_pair(data: bytes) -> tuple[AmdCertificate, AmdCertificate]:
    """ASK and ARK.

    Raises:
        CertificateError: malformed, or others, or in another order.
    """
    size = int.from_bytes(data[0x3C:0x40], "little")
    end = AMD_CERTIFICATE_SIZES.get(size)
    if end is None:
        raise CertificateError("ASK certificate", "modulus size", size, "2048 or 4096 bits")
    pair = []
    for usage, part in ((Usage.ASK, data[:end]), (Usage.ARK, data[end:])):
        what = f"{usage.name} certificate"
        certificate = AmdCertificate.parse(part, what)
        if certificate.usage is not usage:
            raise CertificateError(what, "usage", certificate.usage.name, usage.name)
        pair.append(certificate)
    ask, ark = pair
    return ask, ark
