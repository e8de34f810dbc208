# SPDX-License-Identifier: Apache-2.0
"""SEV and SEV-ES key management: the commands of KVM and of ``/dev/sev``.

A command is an ``ioctl`` with a number and a structure. On the wire r3 is the low half of the
ioctl's number and the command, and r4 and those after it stand for the structure's fields
(``payloads/sev_abi.py``), or without a structure r4 for the pointer to it.

Sources: Linux 7.2 ``arch/x86/kvm/svm/sev.c``, ``drivers/crypto/ccp/sev-dev.c``, their uapi headers
and ``Documentation/virt/kvm/x86/amd-memory-encryption.rst``; the series of 2017 that introduced
them agrees on 0 to 19. What becomes of a command is AMD publication 55766's, where the kernel does
not refuse it first.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from typing import Final

from construct import Struct

from hcallproto.abi.registers import FIRST_ARGUMENT, U32_MAX, U64_MAX
from hcallproto.abi.returns import SevCode as S
from hcallproto.abi.spec import (
    Arg,
    ArgKind,
    Buffer,
    BufferShape,
    Caller,
    CodeWhen,
    Direction,
    Family,
    Hcall,
    Level,
    Milestone,
    Names,
    Output,
    Query,
)
from hcallproto.payloads import sev_abi as abi
from hcallproto.payloads.sev import (
    ATTESTATION_REPORT_SIZE,
    CERTIFICATE_SIZE,
    CHAIN_SIZE,
    MEASUREMENT_BLOB_SIZE,
    PACKET_HEADER_SIZE,
    SESSION_SIZE,
    GuestState,
    PlatformFlag,
    PlatformState,
    Policy,
)
from hcallproto.payloads.sev.constants import BLOB_MAX_SIZE as BLOB_MAX_SIZE
from hcallproto.payloads.sev.constants import PAGE_SIZE

_KVM = "Linux 7.2 arch/x86/kvm/svm/sev.c"
_CCP = "Linux 7.2 drivers/crypto/ccp/sev-dev.c"
_OURS = "no public source: ours"


class Ioctl(enum.IntEnum):
    """The low half of each ioctl's number: type and nr (uapi ``linux/kvm.h``, ``psp-sev.h``)."""

    KVM_MEMORY_ENCRYPT_OP = 0xAEBA
    KVM_MEMORY_ENCRYPT_REG_REGION = 0xAEBB
    KVM_MEMORY_ENCRYPT_UNREG_REGION = 0xAEBC
    SEV_ISSUE_CMD = 0x5300


COMMAND_SHIFT: Final = 16
"""r3 is the ioctl's low half, shifted by this, and the command."""
COMMAND_MASK: Final = (1 << COMMAND_SHIFT) - 1

VMSA_SIZE: Final = PAGE_SIZE
PACKET_MAX_SIZE: Final = 65536
"""Guest memory in one transport packet. The kernel's limit is a page; a platform can have more."""
CHIP_ID_SIZE: Final = 64
"""Of one socket; GET_ID2 gives as much for each."""
ID_SIZE: Final = 2 * CHIP_ID_SIZE
"""Of GET_ID: two sockets' ids (``struct sev_user_data_get_id``)."""

_COMMON = (
    CodeWhen(S.SUCCESS, "done"),
    CodeWhen(S.HWERROR_PLATFORM, "the platform's keys cannot be read or kept"),
    CodeWhen(S.EFAULT, "a pointer is bad"),
    CodeWhen(S.ETIMEDOUT, "the secure processor does not answer"),
    CodeWhen(S.EINVAL, "there is no such command, or the kernel takes no such argument"),
)
_WHEN: Final[dict[S, str]] = {
    S.INVALID_PLATFORM_STATE: "not in this state of the platform",
    S.INVALID_GUEST_STATE: "not in this state of the guest",
    S.INVALID_CONFIG: "the platform was initialized without SEV-ES",
    S.INVALID_LEN: "a length is wrong, or asked for: the one that is needed comes back",
    S.ALREADY_OWNED: "the platform has an owner",
    S.INVALID_CERTIFICATE: "a certificate is malformed, or not what it must be",
    S.POLICY_FAILURE: "the guest's policy forbids it",
    S.INVALID_ADDRESS: "an address is not aligned",
    S.BAD_SIGNATURE: "a certificate's signature is wrong",
    S.BAD_MEASUREMENT: "a MAC is wrong: of a session, a policy or a packet",
    S.ASID_OWNED: "the VM has a guest already",
    S.INVALID_GUEST: "there is no such guest",
    S.UNSUPPORTED: "a compressed packet",
    S.INVALID_PARAM: "reserved bits are set, or there is no such vCPU",
    S.RESOURCE_LIMIT: "no ASID is free",
    S.EBUSY: "guests exist",
    S.ENOTTY: "the VM is not initialized for SEV, or not for SEV-ES",
}


def _codes(*codes: S) -> tuple[CodeWhen, ...]:
    return (*_COMMON, *(CodeWhen(code, _WHEN[code]) for code in codes))


_PREFIXES: Final = {
    Ioctl.KVM_MEMORY_ENCRYPT_OP: "KVM_SEV_",
    Ioctl.KVM_MEMORY_ENCRYPT_REG_REGION: "",
    Ioctl.KVM_MEMORY_ENCRYPT_UNREG_REGION: "",
    Ioctl.SEV_ISSUE_CMD: "SEV_",
}
"""How the kernel's headers call the commands of each."""

_KINDS: Final = {
    **dict.fromkeys(("len", "length"), ArgKind.SIZE),
    **dict.fromkeys(("uaddr", "addr", "address"), ArgKind.ADDRESS),
    **dict.fromkeys(("handle", "id", "major", "minor", "build", "count"), ArgKind.VALUE),
}
"""By the last word of a field's name, which the kernel's headers are strict about."""
_NAMES: Final[Mapping[str, Names]] = {"policy": Policy}
_NAMES_OF: Final[Mapping[tuple[str, ...], Mapping[str, Names]]] = {
    ("handle", "policy", "state"): {"state": GuestState},
    ("api_major", "api_minor", "state", "flags", "build", "guest_count"): {
        "state": PlatformState,
        "flags": PlatformFlag,
    },
}
"""How values are spelled, by a structure's fields and a field."""


def _kind(name: str, names: Names | None = None) -> ArgKind:
    if names is not None:
        return ArgKind.FLAGS if issubclass(names, enum.IntFlag) else ArgKind.VALUE
    return _KINDS.get(name.rsplit("_", 1)[-1], ArgKind.OPAQUE)


def _names(structure: Struct, name: str) -> Names | None:
    fields = tuple(field for field, _, _ in _fields(structure))
    return _NAMES_OF.get(fields, {}).get(name, _NAMES.get(name))


def _fields(structure: Struct) -> list[tuple[str, int, str]]:
    """(name, register, meaning) of each field."""
    named = [part for part in structure.subcons if part.name]
    return [(str(part.name), FIRST_ARGUMENT + at, str(part.docs)) for at, part in enumerate(named)]


def _args(structure: Struct | None) -> tuple[Arg, ...]:
    """One argument a field; those that only come back are not looked at."""
    if structure is None:
        return ()
    return tuple(
        Arg(
            name=name,
            register=register,
            kind=_kind(name, _names(structure, name)),
            doc=doc,
            maximum=U32_MAX if _kind(name) is ArgKind.SIZE else U64_MAX,
            names=_names(structure, name),
        )
        for name, register, doc in _fields(structure)
    )


def _outputs(structure: Struct | None, names: tuple[str, ...]) -> tuple[Output, ...]:
    """The fields that come back; a length comes with INVALID_LEN too."""
    if structure is None:
        return ()
    return tuple(
        Output(
            name=name,
            register=register,
            kind=_kind(name, _names(structure, name)),
            doc=doc,
            names=_names(structure, name),
            also_with=(S.INVALID_LEN,) if _kind(name) is ArgKind.SIZE else (),
        )
        for name, register, doc in _fields(structure)
        if name in names
    )


def _in(
    address: str,
    size: str,
    *,
    most: int = BLOB_MAX_SIZE,
    secret: bool = False,
    fresh: bool = False,
) -> Buffer:
    return Buffer(
        address=address,
        direction=Direction.IN,
        shape=BufferShape.SIZED,
        max_size=most,
        size=size,
        secret=secret,
        fresh=fresh,
    )


def _memory(address: str, size: str, *, rewritten: bool = False) -> Buffer:
    """Guest memory of any size: the handler reads it piece by piece."""
    return dataclasses.replace(
        _in(address, size, most=U32_MAX, secret=True), prefetch=False, rewritten=rewritten
    )


def _out(address: str, size: str, *, secret: bool = False, fresh: bool = False) -> Buffer:
    return Buffer(
        address=address,
        direction=Direction.OUT,
        shape=BufferShape.SIZED,
        max_size=U32_MAX,
        size=size,
        secret=secret,
        fresh=fresh,
    )


def _query(*also: str, **lengths: int) -> Query:
    """A command with one of these lengths at 0, or one of the pointers ``also``, asks for them."""
    return Query((*also, *lengths), tuple(lengths.items()), S.INVALID_LEN)


def _command(
    ioctl: Ioctl,
    number: int,
    name: str,
    doc: str,
    *codes: S,
    structure: Struct | None = None,
    args: bool = True,
    outputs: tuple[str, ...] = (),
    buffers: tuple[Buffer, ...] = (),
    source: str = "",
    only_reads: bool = False,
    foreign: S | None = None,
    event: str = "",
    tells: tuple[str, ...] = (),
    query: Query | None = None,
) -> Hcall:
    return Hcall(
        name=_PREFIXES[ioctl] + name,
        number=ioctl << COMMAND_SHIFT | number,
        level=Level.COMMAND,
        doc=doc,
        source=source or (_CCP if ioctl is Ioctl.SEV_ISSUE_CMD else _KVM),
        args=_args(structure) if args else (),
        buffers=buffers,
        outputs=_outputs(structure, outputs),
        codes=_codes(*codes),
        # A guest is gone with its daemon, so nothing waits for one.
        deadline_ms=60_000,
        timeout_code=S.ETIMEDOUT,
        lost_code=S.ETIMEDOUT,
        foreign_code=foreign,
        waits_for_daemon=False,
        effect_may_remain=not only_reads,
        caller=Caller.ANY,
        structure=structure,
        milestone=Milestone(event, tells) if event else None,
        query=query,
    )


# -- commands of a VM -------------------------------------------------------------------


_vm = functools.partial(_command, Ioctl.KVM_MEMORY_ENCRYPT_OP)

_GUEST = (S.ENOTTY, S.INVALID_GUEST, S.INVALID_GUEST_STATE)
"""What a command that is for a guest can give."""

_START = (
    S.ENOTTY,
    S.INVALID_GUEST,
    S.INVALID_PLATFORM_STATE,
    S.INVALID_LEN,
    S.INVALID_CERTIFICATE,
    S.POLICY_FAILURE,
    S.BAD_MEASUREMENT,
    S.ASID_OWNED,
    S.RESOURCE_LIMIT,
)
_PACKET = (S.INVALID_LEN, S.BAD_MEASUREMENT, S.UNSUPPORTED, S.INVALID_PARAM)
"""What a command that takes a packet can give."""

INIT = _vm(0, "INIT", "Make the VM one of SEV.")
ES_INIT = _vm(
    1,
    "ES_INIT",
    "Make the VM one of SEV-ES.",
    S.ENOTTY,
)
LAUNCH_START = _vm(
    2,
    "LAUNCH_START",
    "Begin to launch a guest: its policy, and the session of its owner.",
    *_START,
    structure=abi.LAUNCH_START,
    outputs=("handle",),
    buffers=(_in("dh_uaddr", "dh_len"), _in("session_uaddr", "session_len")),
    foreign=S.BAD_MEASUREMENT,
    event="launch begun",
    tells=("handle", "policy"),
)
LAUNCH_UPDATE_DATA = _vm(
    3,
    "LAUNCH_UPDATE_DATA",
    "Measure guest memory and encrypt it in place.",
    *_GUEST,
    S.INVALID_LEN,
    S.INVALID_ADDRESS,
    structure=abi.LAUNCH_UPDATE_DATA,
    buffers=(_memory("uaddr", "len", rewritten=True),),
)
LAUNCH_UPDATE_VMSA = _vm(
    4,
    "LAUNCH_UPDATE_VMSA",
    "Measure the save areas of all vCPUs, and encrypt them.",
    *_GUEST,
    S.INVALID_CONFIG,
    S.INVALID_LEN,
    S.POLICY_FAILURE,
    structure=abi.LAUNCH_UPDATE_VMSA,
    buffers=(_memory("uaddr", "len"),),
)
LAUNCH_SECRET = _vm(
    5,
    "LAUNCH_SECRET",
    "Put a packet's secret into guest memory.",
    *_GUEST,
    *_PACKET,
    S.INVALID_ADDRESS,
    structure=abi.LAUNCH_SECRET,
    buffers=(
        # Its MAC covers the measurement, and that has a nonce.
        _in("hdr_uaddr", "hdr_len", fresh=True),
        _out("guest_uaddr", "guest_len", secret=True),
        _in("trans_uaddr", "trans_len"),
    ),
    event="secret injected",
    tells=("guest_uaddr",),
)
LAUNCH_MEASURE = _vm(
    6,
    "LAUNCH_MEASURE",
    "End the measuring, and give the measurement.",
    *_GUEST,
    S.INVALID_LEN,
    structure=abi.LAUNCH_MEASURE,
    outputs=("len",),
    buffers=(_out("uaddr", "len", fresh=True),),
    event="launch measured",
    query=_query(len=MEASUREMENT_BLOB_SIZE),
)
LAUNCH_FINISH = _vm(7, "LAUNCH_FINISH", "Let the guest run.", *_GUEST, event="launch finished")
SEND_START = _vm(
    8,
    "SEND_START",
    "Begin to send the guest to another platform.",
    *_GUEST,
    S.INVALID_LEN,
    S.INVALID_CERTIFICATE,
    S.BAD_SIGNATURE,
    S.POLICY_FAILURE,
    structure=abi.SEND_START,
    outputs=("policy", "session_len"),
    buffers=(
        _in("pdh_cert_uaddr", "pdh_cert_len"),
        _in("plat_certs_uaddr", "plat_certs_len"),
        _in("amd_certs_uaddr", "amd_certs_len"),
        _out("session_uaddr", "session_len", fresh=True),
    ),
    event="sending begun",
    tells=("policy",),
    query=_query(session_len=SESSION_SIZE),
)
SEND_UPDATE_DATA = _vm(
    9,
    "SEND_UPDATE_DATA",
    "Make a packet of guest memory.",
    *_GUEST,
    S.INVALID_LEN,
    S.INVALID_ADDRESS,
    structure=abi.LAUNCH_SECRET,
    outputs=("hdr_len", "trans_len"),
    buffers=(
        _out("hdr_uaddr", "hdr_len", fresh=True),
        _in("guest_uaddr", "guest_len", most=PACKET_MAX_SIZE, secret=True),
        _out("trans_uaddr", "trans_len", fresh=True),
    ),
    query=_query(hdr_len=PACKET_HEADER_SIZE, trans_len=PAGE_SIZE),
)
SEND_UPDATE_VMSA = _vm(
    10,
    "SEND_UPDATE_VMSA",
    "Make a packet of a vCPU's save area.",
    *_GUEST,
    S.INVALID_LEN,
    S.INVALID_PARAM,
    structure=abi.UPDATE_VMSA,
    outputs=("hdr_len", "trans_len"),
    buffers=(
        _out("hdr_uaddr", "hdr_len", fresh=True),
        _out("trans_uaddr", "trans_len", fresh=True),
    ),
    source=_OURS,
    query=_query(hdr_len=PACKET_HEADER_SIZE, trans_len=VMSA_SIZE),
)
SEND_FINISH = _vm(
    11, "SEND_FINISH", "The guest is sent, and runs here no more.", *_GUEST, event="guest sent"
)
RECEIVE_START = _vm(
    12,
    "RECEIVE_START",
    "Begin to receive a guest from another platform.",
    *_START,
    structure=abi.RECEIVE_START,
    outputs=("handle",),
    buffers=(_in("pdh_uaddr", "pdh_len"), _in("session_uaddr", "session_len")),
    foreign=S.BAD_MEASUREMENT,
    event="receiving begun",
    tells=("handle", "policy"),
)
RECEIVE_UPDATE_DATA = _vm(
    13,
    "RECEIVE_UPDATE_DATA",
    "Put a packet into guest memory.",
    # The kernel gives EINVAL of a VM that is not initialized, here alone.
    S.INVALID_GUEST,
    S.INVALID_GUEST_STATE,
    *_PACKET,
    S.INVALID_ADDRESS,
    structure=abi.LAUNCH_SECRET,
    buffers=(
        _in("hdr_uaddr", "hdr_len"),
        _out("guest_uaddr", "guest_len", secret=True),
        _in("trans_uaddr", "trans_len", most=PACKET_MAX_SIZE),
    ),
)
RECEIVE_UPDATE_VMSA = _vm(
    14,
    "RECEIVE_UPDATE_VMSA",
    "Take a vCPU's save area from a packet.",
    *_GUEST,
    *_PACKET,
    structure=abi.UPDATE_VMSA,
    buffers=(_in("hdr_uaddr", "hdr_len"), _in("trans_uaddr", "trans_len")),
    source=_OURS,
)
RECEIVE_FINISH = _vm(
    15, "RECEIVE_FINISH", "The guest is received, and can run.", *_GUEST, event="guest received"
)
GUEST_STATUS = _vm(
    16,
    "GUEST_STATUS",
    "Say what the guest is.",
    S.ENOTTY,
    S.INVALID_GUEST,
    structure=abi.GUEST_STATUS,
    args=False,
    outputs=("handle", "policy", "state"),
    only_reads=True,
)
DBG_DECRYPT = _vm(
    17,
    "DBG_DECRYPT",
    "Copy guest memory, decrypted.",
    *_GUEST,
    S.POLICY_FAILURE,
    structure=abi.DBG,
    buffers=(_memory("src_uaddr", "len"), _out("dst_uaddr", "len", secret=True)),
)
DBG_ENCRYPT = _vm(
    18,
    "DBG_ENCRYPT",
    "Copy into guest memory, encrypted.",
    *_GUEST,
    S.POLICY_FAILURE,
    structure=abi.DBG,
    buffers=(_memory("src_uaddr", "len"), _out("dst_uaddr", "len", secret=True)),
)
CERT_EXPORT = _vm(
    19,
    "CERT_EXPORT",
    "Give the platform's certificates.",
    S.ENOTTY,
    S.INVALID_PLATFORM_STATE,
    S.INVALID_LEN,
    structure=abi.CERT_EXPORT,
    outputs=("pdh_len", "chain_len"),
    buffers=(_out("pdh_addr", "pdh_len"), _out("chain_addr", "chain_len")),
    source=_OURS,
    query=_query("pdh_addr", "chain_addr", pdh_len=CERTIFICATE_SIZE, chain_len=CHAIN_SIZE),
)
GET_ATTESTATION_REPORT = _vm(
    20,
    "GET_ATTESTATION_REPORT",
    "Give a report of the guest, signed by the platform.",
    *_GUEST,
    S.INVALID_LEN,
    structure=abi.ATTESTATION_REPORT,
    outputs=("len",),
    buffers=(_out("uaddr", "len"),),
    query=_query(len=ATTESTATION_REPORT_SIZE),
)
SEND_CANCEL = _vm(
    21, "SEND_CANCEL", "The guest stays, and runs on.", *_GUEST, event="sending cancelled"
)
INIT2 = _vm(
    22,
    "INIT2",
    "Make the VM one of SEV or SEV-ES, as its type says.",
    S.ENOTTY,
    structure=abi.INIT2,
)

# -- regions ----------------------------------------------------------------------------


def _region(ioctl: Ioctl, doc: str) -> Hcall:
    call = _command(ioctl, 0, ioctl.name, doc, S.ENOTTY, structure=abi.ENC_REGION)
    # Nothing is read or written there.
    args = (dataclasses.replace(arg, kind=ArgKind.OPAQUE) for arg in call.args)
    return dataclasses.replace(call, args=tuple(args))


REG_REGION = _region(Ioctl.KVM_MEMORY_ENCRYPT_REG_REGION, "Memory may come to hold encrypted data.")
UNREG_REGION = _region(
    Ioctl.KVM_MEMORY_ENCRYPT_UNREG_REGION, "Memory holds no encrypted data any more."
)

# -- commands of the platform -----------------------------------------------------------


_platform = functools.partial(_command, Ioctl.SEV_ISSUE_CMD)

FACTORY_RESET = _platform(
    0, "FACTORY_RESET", "New keys, and no owner.", S.EBUSY, event="platform reset"
)
PLATFORM_STATUS = _platform(
    1,
    "PLATFORM_STATUS",
    "Say what the platform is.",
    structure=abi.PLATFORM_STATUS,
    args=False,
    outputs=("api_major", "api_minor", "state", "flags", "build", "guest_count"),
    only_reads=True,
)
PEK_GEN = _platform(
    2,
    "PEK_GEN",
    "New PEK, and what depends on it.",
    S.INVALID_PLATFORM_STATE,
    event="platform has a new PEK",
)
PEK_CSR = _platform(
    3,
    "PEK_CSR",
    "Give the PEK's certificate, to be signed by an owner.",
    S.INVALID_PLATFORM_STATE,
    S.INVALID_LEN,
    structure=abi.PEK_CSR,
    outputs=("length",),
    buffers=(_out("address", "length"),),
    query=_query("address", length=CERTIFICATE_SIZE),
)
PDH_GEN = _platform(4, "PDH_GEN", "New PDH.", event="platform has a new PDH")
PDH_CERT_EXPORT = _platform(
    5,
    "PDH_CERT_EXPORT",
    "Give the platform's certificates.",
    S.INVALID_LEN,
    structure=abi.PDH_CERT_EXPORT,
    outputs=("pdh_cert_len", "cert_chain_len"),
    buffers=(
        _out("pdh_cert_address", "pdh_cert_len"),
        _out("cert_chain_address", "cert_chain_len"),
    ),
    query=_query(
        "pdh_cert_address",
        "cert_chain_address",
        pdh_cert_len=CERTIFICATE_SIZE,
        cert_chain_len=CHAIN_SIZE,
    ),
)
PEK_CERT_IMPORT = _platform(
    6,
    "PEK_CERT_IMPORT",
    "Take the PEK's certificate as an owner has signed it.",
    S.INVALID_PLATFORM_STATE,
    S.ALREADY_OWNED,
    S.INVALID_LEN,
    S.INVALID_CERTIFICATE,
    S.BAD_SIGNATURE,
    structure=abi.PEK_CERT_IMPORT,
    buffers=(
        _in("pek_cert_address", "pek_cert_len"),
        _in("oca_cert_address", "oca_cert_len"),
    ),
    event="platform has an owner",
)
GET_ID = dataclasses.replace(
    _platform(7, "GET_ID", "Give the ids of two sockets."),
    args=(
        Arg(
            name="data",
            register=FIRST_ARGUMENT,
            kind=ArgKind.ADDRESS,
            doc="where the ids go",
        ),
    ),
    buffers=(
        Buffer(
            address="data",
            direction=Direction.OUT,
            shape=BufferShape.FIXED,
            max_size=ID_SIZE,
        ),
    ),
)
GET_ID2 = _platform(
    8,
    "GET_ID2",
    "Give the sockets' ids.",
    S.INVALID_LEN,
    structure=abi.GET_ID2,
    outputs=("length",),
    buffers=(_out("address", "length"),),
    query=_query("address", length=CHIP_ID_SIZE),
)

FAMILY = Family(
    name="sev",
    title="SEV key management",
    source=f"{_KVM}, {_CCP}",
    calls=(
        INIT,
        ES_INIT,
        LAUNCH_START,
        LAUNCH_UPDATE_DATA,
        LAUNCH_UPDATE_VMSA,
        LAUNCH_SECRET,
        LAUNCH_MEASURE,
        LAUNCH_FINISH,
        SEND_START,
        SEND_UPDATE_DATA,
        SEND_UPDATE_VMSA,
        SEND_FINISH,
        RECEIVE_START,
        RECEIVE_UPDATE_DATA,
        RECEIVE_UPDATE_VMSA,
        RECEIVE_FINISH,
        GUEST_STATUS,
        DBG_DECRYPT,
        DBG_ENCRYPT,
        CERT_EXPORT,
        GET_ATTESTATION_REPORT,
        SEND_CANCEL,
        INIT2,
        REG_REGION,
        UNREG_REGION,
        FACTORY_RESET,
        PLATFORM_STATUS,
        PEK_GEN,
        PEK_CSR,
        PDH_GEN,
        PDH_CERT_EXPORT,
        PEK_CERT_IMPORT,
        GET_ID,
        GET_ID2,
    ),
    constants=(
        ("SEV_BLOB_MAX_SIZE", BLOB_MAX_SIZE),
        ("SEV_PACKET_MAX_SIZE", PACKET_MAX_SIZE),
        ("SEV_VMSA_SIZE", VMSA_SIZE),
    ),
)
