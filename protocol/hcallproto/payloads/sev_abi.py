# SPDX-License-Identifier: Apache-2.0
"""The structures that SEV's ioctls pass, as a 64-bit client lays them out.

Sources: Linux 7.2 ``arch/x86/include/uapi/asm/kvm.h`` (``kvm_sev_*``), ``include/uapi/linux/kvm.h``
(``kvm_enc_region``), ``include/uapi/linux/psp-sev.h`` (``sev_*``, which are packed). The header of
the series of 2017 has no padding fields, but the compiler pads to the same offsets. What a pad
holds is ignored: QEMU leaves some uninitialised. Three structures are ours, for commands that
mainline gives none; it refuses two of them.

The fields are named as the kernel's; no pad is a field. ``abi/families/sev.py`` says which command
has which structure.
"""

from __future__ import annotations

from typing import Final

from construct import Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

KVM_SEV_CMD: Final = Struct(
    "id" / Int32ul * "command",
    Padding(4),
    "data" / Int64ul * "address of the command's structure",
    "error" / Int32ul * "firmware status (out)",
    "sev_fd" / Int32ul * "descriptor of /dev/sev",
)
"""``struct kvm_sev_cmd``: the argument of KVM_MEMORY_ENCRYPT_OP."""

SEV_ISSUE_CMD: Final = Struct(
    "cmd" / Int32ul * "command",
    "data" / Int64ul * "address of the command's structure",
    "error" / Int32ul * "firmware status (out)",
)
"""``struct sev_issue_cmd``, packed: the argument of SEV_ISSUE_CMD."""

LAUNCH_START: Final = Struct(
    "handle" / Int32ul * "0, or the guest whose key is shared; the guest's own afterwards",
    "policy" / Int32ul * "guest policy",
    "dh_uaddr" / Int64ul * "guest owner's Diffie-Hellman certificate, or 0",
    "dh_len" / Int32ul * "its bytes",
    Padding(4),
    "session_uaddr" / Int64ul * "guest owner's session, or 0",
    "session_len" / Int32ul * "its bytes",
    Padding(4),
)
"""``struct kvm_sev_launch_start``."""

LAUNCH_UPDATE_DATA: Final = Struct(
    "uaddr" / Int64ul * "guest memory",
    "len" / Int32ul * "bytes",
    Padding(4),
)
"""``struct kvm_sev_launch_update_data``."""

LAUNCH_UPDATE_VMSA: Final = Struct(
    "uaddr" / Int64ul * "the vCPUs' save areas, in the order of the vCPUs",
    "len" / Int32ul * "bytes: 4096 for each",
    Padding(4),
)
"""Ours: KVM owns the vCPUs, and takes no structure; the ioctl library fills this one in."""

LAUNCH_SECRET: Final = Struct(
    "hdr_uaddr" / Int64ul * "packet header",
    "hdr_len" / Int32ul * "its bytes",
    Padding(4),
    "guest_uaddr" / Int64ul * "guest memory",
    "guest_len" / Int32ul * "bytes",
    Padding(4),
    "trans_uaddr" / Int64ul * "packet payload",
    "trans_len" / Int32ul * "its bytes",
    Padding(4),
)
"""``struct kvm_sev_launch_secret``, ``_send_update_data`` and ``_receive_update_data``."""

LAUNCH_MEASURE: Final = Struct(
    "uaddr" / Int64ul * "where the measurement goes",
    "len" / Int32ul * "bytes there are; bytes there must be (out)",
    Padding(4),
)
"""``struct kvm_sev_launch_measure``."""

GUEST_STATUS: Final = Struct(
    "handle" / Int32ul * "guest handle (out)",
    "policy" / Int32ul * "guest policy (out)",
    "state" / Int32ul * "guest state (out)",
)
"""``struct kvm_sev_guest_status``."""

DBG: Final = Struct(
    "src_uaddr" / Int64ul * "where the bytes come from",
    "dst_uaddr" / Int64ul * "where they go",
    "len" / Int32ul * "bytes",
    Padding(4),
)
"""``struct kvm_sev_dbg``."""

ATTESTATION_REPORT: Final = Struct(
    "mnonce_low" / Int64ul * "mnonce[16], the first eight bytes",
    "mnonce_high" / Int64ul * "mnonce[16], the others",
    "uaddr" / Int64ul * "where the report goes",
    "len" / Int32ul * "bytes there are; bytes there must be (out)",
    Padding(4),
)
"""``struct kvm_sev_attestation_report``."""

SEND_START: Final = Struct(
    "policy" / Int32ul * "guest policy (out)",
    Padding(4),
    "pdh_cert_uaddr" / Int64ul * "target platform's PDH certificate",
    "pdh_cert_len" / Int32ul * "its bytes",
    Padding(4),
    "plat_certs_uaddr" / Int64ul * "target platform's PEK, OCA and CEK",
    "plat_certs_len" / Int32ul * "their bytes",
    Padding(4),
    "amd_certs_uaddr" / Int64ul * "ASK and ARK",
    "amd_certs_len" / Int32ul * "their bytes",
    Padding(4),
    "session_uaddr" / Int64ul * "where the session goes",
    "session_len" / Int32ul * "bytes there are; bytes there must be (out)",
    Padding(4),
)
"""``struct kvm_sev_send_start``."""

UPDATE_VMSA: Final = Struct(
    "vcpu_id" / Int32ul * "which vCPU's save area",
    Padding(4),
    "hdr_uaddr" / Int64ul * "packet header",
    "hdr_len" / Int32ul * "its bytes",
    Padding(4),
    "trans_uaddr" / Int64ul * "packet payload",
    "trans_len" / Int32ul * "its bytes",
    Padding(4),
)
"""Ours, for SEND_UPDATE_VMSA and RECEIVE_UPDATE_VMSA; the fields are those of Hygon's csv.c."""

RECEIVE_START: Final = Struct(
    "handle" / Int32ul * "0, or the guest whose key is shared; the guest's own afterwards",
    "policy" / Int32ul * "guest policy",
    "pdh_uaddr" / Int64ul * "source platform's PDH certificate",
    "pdh_len" / Int32ul * "its bytes",
    Padding(4),
    "session_uaddr" / Int64ul * "session made by SEND_START",
    "session_len" / Int32ul * "its bytes",
    Padding(4),
)
"""``struct kvm_sev_receive_start``."""

CERT_EXPORT: Final = Struct(
    "pdh_addr" / Int64ul * "where the PDH certificate goes",
    "pdh_len" / Int32ul * "bytes there are; bytes there must be (out)",
    Padding(4),
    "chain_addr" / Int64ul * "where PEK, OCA and CEK go",
    "chain_len" / Int32ul * "bytes there are; bytes there must be (out)",
    Padding(4),
)
"""Ours: KVM has the command's number and nothing else."""

INIT2: Final = Struct(
    "vmsa_features" / Int64ul * "SEV_FEATURES of the save areas",
    "flags" / Int32ul * "must be 0",
    "ghcb_version" / Int16ul * "greatest GHCB protocol version; 0 for SEV",
    Padding(34),
)
"""``struct kvm_sev_init``."""

ENC_REGION: Final = Struct(
    "addr" / Int64ul * "first byte",
    "size" / Int64ul * "bytes",
)
"""``struct kvm_enc_region``."""

PLATFORM_STATUS: Final = Struct(
    "api_major" / Int8ul * "API version (out)",
    "api_minor" / Int8ul * "API version (out)",
    "state" / Int8ul * "platform state (out)",
    "flags" / Int32ul * "bit 0: owned externally; bit 8: SEV-ES is on (out)",
    "build" / Int8ul * "firmware build (out)",
    "guest_count" / Int32ul * "guests that there are (out)",
)
"""``struct sev_user_data_status``, packed."""

PEK_CSR: Final = Struct(
    "address" / Int64ul * "where the signing request goes",
    "length" / Int32ul * "bytes there are; bytes there must be (out)",
)
"""``struct sev_user_data_pek_csr``, packed."""

PDH_CERT_EXPORT: Final = Struct(
    "pdh_cert_address" / Int64ul * "where the PDH certificate goes",
    "pdh_cert_len" / Int32ul * "bytes there are; bytes there must be (out)",
    "cert_chain_address" / Int64ul * "where PEK, OCA and CEK go",
    "cert_chain_len" / Int32ul * "bytes there are; bytes there must be (out)",
)
"""``struct sev_user_data_pdh_cert_export``, packed."""

PEK_CERT_IMPORT: Final = Struct(
    "pek_cert_address" / Int64ul * "PEK certificate, signed by the owner",
    "pek_cert_len" / Int32ul * "its bytes",
    "oca_cert_address" / Int64ul * "the owner's certificate",
    "oca_cert_len" / Int32ul * "its bytes",
)
"""``struct sev_user_data_pek_cert_import``, packed."""

GET_ID2: Final = Struct(
    "address" / Int64ul * "where the sockets' ids go",
    "length" / Int32ul * "bytes there are; bytes there must be (out)",
)
"""``struct sev_user_data_get_id2``, packed."""
