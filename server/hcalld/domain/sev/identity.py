# SPDX-License-Identifier: Apache-2.0
"""Who a platform is: its keys, their certificates, and its owner.

The CEK is the chip's, and stays; AMD's root has signed it, which here is a test root. The OCA is
the owner's: until one comes, the platform's own. OCA and CEK sign the PEK, the PEK signs the PDH.

What changes an identity gives a new one. Keys are made of the entropy that is given, so that the
same command with the same entropy makes the same certificates.

Sources: AMD publication 55766, commands PEK_GEN, PDH_GEN, PEK_CERT_IMPORT, PLATFORM_RESET;
AMDESE/sev-tool ``tests.cpp`` and ``sevcert.cpp`` (what a signing request and an import look like).
"""

from __future__ import annotations

import functools
import weakref
import zlib
from typing import Final

import msgspec

from hcalld.core.errors import HcallError, StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.sev.certificates import make_csr, make_oca, make_pdh, make_pek, sign
from hcalld.crypto.sev.chains import check_import
from hcalld.crypto.sev.keys import KEY_ENTROPY_SIZE, EcPrivateKey
from hcalld.crypto.sev.roots import Root
from hcalld.domain.sev.refusals import check_size, refusing
from hcallproto.abi.families.sev import CHIP_ID_SIZE
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import (
    AMD_CERTIFICATE_SIZES,
    CERTIFICATE_SIZE,
    AmdCertificate,
    Api,
    CertificateError,
    SevCertificate,
    Usage,
)

CREATION_ENTROPY: Final = CHIP_ID_SIZE + 4 * KEY_ENTROPY_SIZE
"""Bytes that a new identity is made of: the chip's id, CEK, OCA, PEK, PDH."""
OWN_ENTROPY: Final = 3 * KEY_ENTROPY_SIZE
"""Of OCA, PEK and PDH."""
PDH_ENTROPY: Final = KEY_ENTROPY_SIZE

_COMPRESSION: Final = 1
_MAX_PACKED: Final = 1 << 16


class Identity(msgspec.Struct, array_like=True, frozen=True, dict=True, weakref=True):
    """Keys and certificates. Certificates are bytes, as they are given out.

    Keys that were made of the numbers end with it: making one takes as long as using it.
    """

    chip_id: bytes
    ark: bytes
    ask: bytes
    cek: bytes
    oca: bytes
    pek: bytes
    pdh: bytes
    cek_scalar: bytes
    oca_scalar: bytes
    """Empty: the owner has it."""
    pek_scalar: bytes
    pdh_scalar: bytes

    def __repr__(self) -> str:
        return f"Identity(chip_id={self.chip_id.hex()}, is_owned={self.is_owned})"

    # -- making -----------------------------------------------------------------------------

    @classmethod
    def create(cls, entropy: bytes, root: Root, api: Api) -> Identity:
        """A new chip, which owns itself.

        Args:
            entropy: CREATION_ENTROPY bytes.
            root: signs the CEK.
            api: the platform's version, which its certificates tell.
        """
        chip_id, cek_entropy, rest = _split(entropy, CHIP_ID_SIZE, KEY_ENTROPY_SIZE, OWN_ENTROPY)
        cek = EcPrivateKey.from_entropy(cek_entropy)
        blank = cls(
            chip_id=chip_id,
            ark=root.ark.build(),
            ask=root.ask.build(),
            cek=root.make_cek(cek.public, api).build(),
            oca=b"",
            pek=b"",
            pdh=b"",
            cek_scalar=cek.scalar.reveal(),
            oca_scalar=b"",
            pek_scalar=b"",
            pdh_scalar=b"",
        )
        return blank.reset(rest, api)

    def reset(self, entropy: bytes, api: Api) -> Identity:
        """As FACTORY_RESET leaves it: new OCA, PEK and PDH, and no owner but itself."""
        oca_entropy, pek_entropy, pdh_entropy = _split(entropy, *[KEY_ENTROPY_SIZE] * 3)
        oca = EcPrivateKey.from_entropy(oca_entropy)
        pek = EcPrivateKey.from_entropy(pek_entropy)
        changed = msgspec.structs.replace(
            self,
            oca=make_oca(oca, api).build(),
            pek=make_pek(pek, oca, self._cek_key, api).build(),
            oca_scalar=oca.scalar.reveal(),
            pek_scalar=pek.scalar.reveal(),
        )
        return changed.with_new_pdh(pdh_entropy, api)

    def with_new_pek(self, entropy: bytes, api: Api) -> Identity:
        """As PEK_GEN leaves it: a new PEK and PDH, and a new OCA if it is the platform's own.

        An owner's OCA stays, and has not signed the new PEK: only the CEK has.
        """
        if not self.is_owned:
            return self.reset(entropy, api)
        _, pek_entropy, pdh_entropy = _split(entropy, *[KEY_ENTROPY_SIZE] * 3)
        pek = EcPrivateKey.from_entropy(pek_entropy)
        signed = sign(make_csr(pek, api), Usage.CEK, self._cek_key)
        changed = msgspec.structs.replace(self, pek=signed.build(), pek_scalar=pek.scalar.reveal())
        return changed.with_new_pdh(pdh_entropy, api)

    def with_new_pdh(self, entropy: bytes, api: Api) -> Identity:
        """As PDH_GEN leaves it."""
        pdh = EcPrivateKey.from_entropy(entropy)
        return msgspec.structs.replace(
            self,
            pdh=make_pdh(pdh, self.pek_key, api).build(),
            pdh_scalar=pdh.scalar.reveal(),
        )

    def with_owner(self, pek_data: bytes, oca_data: bytes, entropy: bytes, api: Api) -> Identity:
        """As PEK_CERT_IMPORT leaves it: with an owner, the CEK's signature added, and a new PDH.

        Args:
            pek_data: the signing request, signed by the owner.
            oca_data: the owner's certificate.
            entropy: PDH_ENTROPY bytes.
            api: the platform's version.

        Raises:
            HcallError: they are not what they must be.
        """
        if self.is_owned:
            raise HcallError(
                SevCode.ALREADY_OWNED, "the platform has an owner: FACTORY_RESET ends that"
            )
        pek_data = check_size("PEK certificate", pek_data, CERTIFICATE_SIZE)
        oca_data = check_size("OCA certificate", oca_data, CERTIFICATE_SIZE)
        with refusing():
            pek = SevCertificate.parse(pek_data, "PEK certificate")
            oca = SevCertificate.parse(oca_data, "OCA certificate")
            check_import(pek, oca, self.pek_key.public)
            if pek.api != (own := SevCertificate.parse(self.pek).api):
                # The CEK would vouch for what the owner says of the platform.
                raise CertificateError(
                    "PEK certificate", "API version", pek.api, f"{own}, as PEK_CSR gave it"
                )
        complete = sign(pek, Usage.CEK, self._cek_key)
        changed = msgspec.structs.replace(self, pek=complete.build(), oca=oca_data, oca_scalar=b"")
        return changed.with_new_pdh(entropy, api)

    # -- what it is -------------------------------------------------------------------------

    @property
    def is_owned(self) -> bool:
        """Whether someone else owns the platform."""
        return not self.oca_scalar

    @property
    def chain(self) -> bytes:
        """PEK, OCA, CEK, as PDH_CERT_EXPORT gives them."""
        return self.pek + self.oca + self.cek

    @property
    def roots(self) -> bytes:
        """ASK, ARK, as SEND_START takes them."""
        return self.ask + self.ark

    @property
    def csr(self) -> bytes:
        """The PEK's certificate without a signature, as PEK_CSR gives it."""
        return make_csr(self.pek_key, SevCertificate.parse(self.pek).api).build()

    @property
    def oca_certificate(self) -> SevCertificate:
        """The owner's."""
        return SevCertificate.parse(self.oca)

    @property
    def ark_certificate(self) -> AmdCertificate:
        """The root that the platform trusts."""
        return AmdCertificate.parse(self.ark)

    @functools.cached_property
    def pek_key(self) -> EcPrivateKey:
        """Signs reports."""
        return EcPrivateKey(Secret(self.pek_scalar))

    @functools.cached_property
    def pdh_key(self) -> EcPrivateKey:
        """Agrees with guests' owners and other platforms."""
        return EcPrivateKey(Secret(self.pdh_scalar))

    @functools.cached_property
    def _cek_key(self) -> EcPrivateKey:
        return EcPrivateKey(Secret(self.cek_scalar))


def _split(entropy: bytes, *sizes: int) -> list[bytes]:
    if len(entropy) != sum(sizes):
        raise ValueError(f"{len(entropy)} bytes of entropy, expected {sum(sizes)}")
    parts, at = [], 0
    for size in sizes:
        parts.append(entropy[at : at + size])
        at += size
    return parts


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Identity)


def pack_identity(identity: Identity) -> bytes:
    """Its bytes; compressed, for certificates are zeros for the most part."""
    return zlib.compress(_ENCODER.encode(identity), _COMPRESSION)


_LIVING: Final[weakref.WeakValueDictionary[bytes, Identity]] = weakref.WeakValueDictionary()
"""By their bytes: each goes, with its bytes and its keys, as soon as nobody has it any more."""


def unpack_identity(packed: bytes) -> Identity:
    """The identity behind ``pack_identity``'s bytes; the same one as long as somebody has it.

    Raises:
        StoreError: there is none.
    """
    identity = _LIVING.get(packed)
    if identity is None:
        identity = _LIVING[packed] = _unpack(packed)
    return identity


def _unpack(packed: bytes) -> Identity:
    try:
        unpacker = zlib.decompressobj()
        encoded = unpacker.decompress(packed, _MAX_PACKED)
        if not unpacker.eof or unpacker.unused_data:
            # Its checksum was not reached, or is not the end.
            raise zlib.error("cut, or longer than it was")
        identity = _DECODER.decode(encoded)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise StoreError(
            f"the SEV platform's keys cannot be read ({type(error).__name__}): restore the state "
            "directory from a backup, or remove the platform for one with new keys"
        ) from None
    sizes = AMD_CERTIFICATE_SIZES.values()
    if (
        len(identity.ark) not in sizes
        or len(identity.ask) not in sizes
        or any(
            len(one) != CERTIFICATE_SIZE
            for one in (identity.cek, identity.oca, identity.pek, identity.pdh)
        )
    ):
        raise StoreError(
            "the SEV platform's certificates have wrong sizes: restore the state directory from a "
            "backup, or remove the platform for one with new keys"
        )
    return identity
