# SPDX-License-Identifier: Apache-2.0
"""Formats of SEV's firmware interface: certificates, sessions, packets, reports, tables.

Sources, as they are named in this package: AMD publication 55766 (SEV API), Linux 7.2
``include/linux/psp-sev.h`` and ``include/uapi/linux/psp-sev.h``, AMDESE/sev-tool
``sevapi.h``, QEMU 10.0 ``target/i386/sev.c``. All numbers are little-endian.

Each format is a construct ``Struct``, which is the layout, and a frozen dataclass with
``parse`` and ``build``, which is what others use. Nothing here computes a signature or a
MAC: see ``hcalld.crypto.sev``.
"""

from __future__ import annotations

from hcallproto.payloads.sev.blobs import (
    ATTESTATION_REPORT,
    ATTESTATION_REPORT_SIZE,
    MEASUREMENT_BLOB,
    MEASUREMENT_BLOB_SIZE,
    NONCE_SIZE,
    PACKET_HEADER,
    PACKET_HEADER_SIZE,
    SESSION,
    SESSION_SIZE,
    AttestationReport,
    MeasurementBlob,
    PacketHeader,
    PlatformStatus,
    Session,
)
from hcallproto.payloads.sev.certificates import (
    AMD_CERTIFICATE_SIZES,
    CERTIFICATE_SIZE,
    CHAIN_SIZE,
    EMPTY_SLOT,
    SEV_CERTIFICATE,
    SIGNED_SIZE,
    AmdCertificate,
    EcPublicKey,
    RsaPublicKey,
    SevCertificate,
    Slot,
    build_amd_pair,
    build_chain,
    parse_amd_pair,
    parse_chain,
)
from hcallproto.payloads.sev.constants import (
    ANY_API,
    Algorithm,
    Api,
    Curve,
    GuestState,
    PacketContext,
    PacketFlag,
    PlatformFlag,
    PlatformState,
    Policy,
    Usage,
    Version,
)
from hcallproto.payloads.sev.errors import CertificateError, SevFormatError
from hcallproto.payloads.sev.footer import Footer, parse_footer
from hcallproto.payloads.sev.stream import TransportPacket
from hcallproto.payloads.sev.tables import (
    HASHES_TABLE,
    HASHES_TABLE_SIZE,
    HashesTable,
    SecretEntry,
    build_secrets,
    parse_secrets,
)

__all__ = [
    # constants
    "Algorithm",
    "ANY_API",
    "Api",
    "Curve",
    "GuestState",
    "PacketContext",
    "PacketFlag",
    "PlatformFlag",
    "PlatformState",
    "Policy",
    "Usage",
    "Version",
    # certificates
    "AMD_CERTIFICATE_SIZES",
    "CERTIFICATE_SIZE",
    "CHAIN_SIZE",
    "EMPTY_SLOT",
    "SEV_CERTIFICATE",
    "SIGNED_SIZE",
    "AmdCertificate",
    "EcPublicKey",
    "RsaPublicKey",
    "SevCertificate",
    "Slot",
    "build_amd_pair",
    "build_chain",
    "parse_amd_pair",
    "parse_chain",
    # blobs
    "ATTESTATION_REPORT",
    "ATTESTATION_REPORT_SIZE",
    "MEASUREMENT_BLOB",
    "MEASUREMENT_BLOB_SIZE",
    "NONCE_SIZE",
    "PACKET_HEADER",
    "PACKET_HEADER_SIZE",
    "SESSION",
    "SESSION_SIZE",
    "AttestationReport",
    "MeasurementBlob",
    "PacketHeader",
    "PlatformStatus",
    "Session",
    # tables in guest memory and in firmware images
    "HASHES_TABLE",
    "HASHES_TABLE_SIZE",
    "Footer",
    "HashesTable",
    "SecretEntry",
    "build_secrets",
    "parse_footer",
    "parse_secrets",
    # migration
    "TransportPacket",
    # errors
    "CertificateError",
    "SevFormatError",
]
