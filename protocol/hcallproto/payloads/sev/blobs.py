# SPDX-License-Identifier: Apache-2.0
"""Structures of fixed size that commands take and give."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from construct import Bytes, BytesInteger, Construct, Int32ul, Padding, Struct

from hcallproto.payloads.sev.constants import Algorithm, PacketFlag, Policy, Usage, Version
from hcallproto.payloads.sev.errors import SevFormatError

NONCE_SIZE: Final = 16
"""Bytes of every nonce and initial counter block here."""
MAC_SIZE: Final = 32
_EC_FIELD_SIZE: Final = 72

SESSION = Struct(
    "nonce" / Bytes(16) * "context of the master secret",
    "wrap_tk" / Bytes(32) * "TEK and TIK, AES-128-CTR under the KEK",
    "wrap_iv" / Bytes(16) * "first counter block of wrap_tk",
    "wrap_mac" / Bytes(32) * "HMAC-SHA256(KIK, wrap_tk)",
    "policy_mac" / Bytes(32) * "HMAC-SHA256(TIK, policy)",
)
"""Session data (55766 table 50, sevapi.h ``sev_session_buf``)."""
SESSION_SIZE: Final = 128

PACKET_HEADER = Struct(
    "flags" / Int32ul * "bit 0: compressed",
    "iv" / Bytes(16) * "first counter block of the payload",
    "mac" / Bytes(32) * "HMAC-SHA256(TIK, ...)",
)
"""Header of secret and transport packets (55766 table 55, sevapi.h ``sev_hdr_buf``)."""
PACKET_HEADER_SIZE: Final = 52

MEASUREMENT_BLOB = Struct(
    "measurement" / Bytes(32) * "HMAC-SHA256(TIK, ...)",
    "mnonce" / Bytes(16) * "the platform's nonce",
)
"""What LAUNCH_MEASURE gives (55766 table 52)."""
MEASUREMENT_BLOB_SIZE: Final = 48

ATTESTATION_REPORT = Struct(
    "mnonce" / Bytes(16) * "the caller's nonce",
    "launch_digest" / Bytes(32) * "SHA-256 of what was launched",
    "policy" / Int32ul * "the guest's policy",
    "sig_usage" / Int32ul * "who signed: PEK",
    "sig_algo" / Int32ul * "ECDSA with SHA-256",
    "reserved" / Padding(4),
    "sig_r" / BytesInteger(_EC_FIELD_SIZE, swapped=True) * "signature of the first 52 bytes",
    "sig_s" / BytesInteger(_EC_FIELD_SIZE, swapped=True) * "its other half",
)
"""What GET_ATTESTATION_REPORT gives (55766 table 60, virtee/sev ``LegacyAttestationReport``)."""
ATTESTATION_REPORT_SIZE: Final = 208
REPORT_SIGNED_SIZE: Final = 52


def parse_exactly(structure: Construct[Any, Any], data: bytes, what: str) -> Any:
    """Parse a structure of fixed size.

    Raises:
        SevFormatError: it has another size.
    """
    size = structure.sizeof()
    if len(data) != size:
        raise SevFormatError(what, "length", len(data), str(size))
    return structure.parse(data)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Session data: transport keys, wrapped for one platform and one policy."""

    nonce: bytes
    wrap_tk: bytes
    wrap_iv: bytes
    wrap_mac: bytes
    policy_mac: bytes

    @classmethod
    def parse(cls, data: bytes) -> Session:
        """From 128 bytes.

        Raises:
            SevFormatError: it has another size.
        """
        read = parse_exactly(SESSION, data, "session")
        return cls(
            nonce=read.nonce,
            wrap_tk=read.wrap_tk,
            wrap_iv=read.wrap_iv,
            wrap_mac=read.wrap_mac,
            policy_mac=read.policy_mac,
        )

    def build(self) -> bytes:
        """The 128 bytes."""
        return SESSION.build(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PacketHeader:
    """Header of a packet."""

    flags: int = 0
    """``PacketFlag``, with reserved bits."""
    iv: bytes
    mac: bytes

    @classmethod
    def parse(cls, data: bytes) -> PacketHeader:
        """From 52 bytes.

        Raises:
            SevFormatError: it has another size.
        """
        read = parse_exactly(PACKET_HEADER, data, "packet header")
        return cls(flags=read.flags, iv=read.iv, mac=read.mac)

    def build(self) -> bytes:
        """The 52 bytes."""
        return PACKET_HEADER.build(dataclasses.asdict(self))

    @property
    def is_compressed(self) -> bool:
        """Whether the payload is, which nothing here can undo."""
        return bool(self.flags & PacketFlag.COMPRESSED)

    @property
    def reserved_flags(self) -> int:
        """Bits that must be zero."""
        return self.flags & ~int(PacketFlag.COMPRESSED)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementBlob:
    """A launch's measurement with its nonce."""

    measurement: bytes
    mnonce: bytes

    @classmethod
    def parse(cls, data: bytes) -> MeasurementBlob:
        """From 48 bytes.

        Raises:
            SevFormatError: it has another size.
        """
        read = parse_exactly(MEASUREMENT_BLOB, data, "measurement")
        return cls(measurement=read.measurement, mnonce=read.mnonce)

    def build(self) -> bytes:
        """The 48 bytes."""
        return MEASUREMENT_BLOB.build(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttestationReport:
    """What a platform says of a guest, signed by its PEK."""

    mnonce: bytes
    launch_digest: bytes
    policy: Policy
    sig_usage: int = Usage.PEK
    sig_algo: int = Algorithm.ECDSA_SHA256
    sig_r: int = 0
    sig_s: int = 0

    @classmethod
    def parse(cls, data: bytes) -> AttestationReport:
        """From 208 bytes.

        Raises:
            SevFormatError: it has another size.
        """
        read = parse_exactly(ATTESTATION_REPORT, data, "attestation report")
        return cls(
            mnonce=read.mnonce,
            launch_digest=read.launch_digest,
            policy=Policy(read.policy),
            sig_usage=read.sig_usage,
            sig_algo=read.sig_algo,
            sig_r=read.sig_r,
            sig_s=read.sig_s,
        )

    def build(self) -> bytes:
        """The 208 bytes."""
        return ATTESTATION_REPORT.build(dataclasses.asdict(self))

    def signed(self) -> bytes:
        """The bytes that the signature covers."""
        return self.build()[:REPORT_SIGNED_SIZE]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlatformStatus:
    """A platform's status, as the command PLATFORM_STATUS tells it."""

    version: Version
    state: int
    """``PlatformState``."""
    flags: int
    """``PlatformFlag``."""
    guest_count: int
