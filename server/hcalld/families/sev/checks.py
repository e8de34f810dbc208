# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses before the firmware is asked, and what is only a question for lengths.

``KERNEL_CHECKS`` has, by command, what Linux 7.2 ``svm/sev.c`` and ``sev-dev.c`` look at, in their
order; all of it gives -EINVAL. ``RANGES`` has its pointers, which are looked at next: -EFAULT.
A command that is a question for lengths (the table's ``query``) is answered INVALID_LEN by the
firmware, and the lengths come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from hcalld.core.call import Call, buffer_max_size
from hcalld.core.errors import HcallError
from hcalld.domain.sev.settings import MAX_GHCB_VERSION, VMSA_FEATURES
from hcalld.domain.sev.vm import SevVm, is_beyond
from hcallproto.abi.families import sev
from hcallproto.abi.registers import U64_MAX
from hcallproto.abi.returns import SevCode
from hcallproto.abi.spec import ArgKind, Hcall, Query
from hcallproto.payloads.sev.constants import PAGE_SIZE

Check = Callable[[Call, SevVm], str]
"""Says what is wrong; "" if nothing is."""


def _blob(address: str, size: str) -> Check:
    """A blob that must be there (``psp_copy_user_blob()``)."""

    def check(call: Call, vm: SevVm) -> str:
        if not call[address]:
            return f"{address} is 0, expected a pointer"
        if not 1 <= call[size] <= sev.BLOB_MAX_SIZE:
            return f"{size} {call[size]} is not between 1 and {sev.BLOB_MAX_SIZE}"
        return ""

    return check


def _optional_blob(address: str, size: str) -> Check:
    blob = _blob(address, size)

    def check(call: Call, vm: SevVm) -> str:
        return blob(call, vm) if call[address] else ""

    return check


def _short_answer(address: str, size: str) -> Check:
    """Room for an answer, if any is given."""

    def check(call: Call, vm: SevVm) -> str:
        if call.args[size] > sev.BLOB_MAX_SIZE and call.args[address]:
            return f"{size} {call[size]} exceeds {sev.BLOB_MAX_SIZE}"
        return ""

    return check


def _not_zero(*names: str) -> Check:
    def check(call: Call, vm: SevVm) -> str:
        for name in names:
            if not call[name]:
                return f"{name} is 0"
        return ""

    return check


def _range(address: str, size: str) -> Check:
    """Guest memory is within what addresses there are."""

    def check(call: Call, vm: SevVm) -> str:
        if is_beyond(call[address], call[size]):
            return f"{address} 0x{call[address]:x} + {call[size]} is beyond all addresses"
        return ""

    return check


def _packet(address: str, size: str) -> Check:
    """The memory of one packet: a page of it, or a part, unless the platform takes more."""

    def check(call: Call, vm: SevVm) -> str:
        if not vm.is_strict:
            if call[size] > sev.PACKET_MAX_SIZE:
                return f"{size} {call[size]} exceeds {sev.PACKET_MAX_SIZE}"
        elif call[address] % PAGE_SIZE + call[size] > PAGE_SIZE:
            return f"{address} 0x{call[address]:x} + {call[size]} crosses a page"
        return ""

    return check


def _payload(size: str) -> Check:
    """A packet's payload: a blob, unless the platform takes larger packets."""

    def check(call: Call, vm: SevVm) -> str:
        most = sev.BLOB_MAX_SIZE if vm.is_strict else sev.PACKET_MAX_SIZE
        return f"{size} {call[size]} exceeds {most}" if call[size] > most else ""

    return check


def _never_in_mainline(call: Call, vm: SevVm) -> str:
    return "mainline's KVM does not have this command" if vm.is_strict else ""


def _init2(call: Call, vm: SevVm) -> str:
    if call["flags"]:
        return f"flags 0x{call['flags']:x}, expected 0"
    if call["vmsa_features"] & ~VMSA_FEATURES:
        return f"vmsa_features 0x{call['vmsa_features']:x} are not supported"
    if call["ghcb_version"] > MAX_GHCB_VERSION:
        return f"ghcb_version {call['ghcb_version']} exceeds {MAX_GHCB_VERSION}"
    return ""


_COPY: Final = (
    _not_zero("len", "src_uaddr", "dst_uaddr"),
    _range("src_uaddr", "len"),
    _range("dst_uaddr", "len"),
)

KERNEL_CHECKS: Final[Mapping[str, tuple[Check, ...]]] = MappingProxyType(
    {
        hcall.name: checks
        for hcall, checks in (
            (sev.INIT2, (_init2,)),
            (
                sev.LAUNCH_START,
                (
                    _optional_blob("dh_uaddr", "dh_len"),
                    _optional_blob("session_uaddr", "session_len"),
                ),
            ),
            (sev.LAUNCH_UPDATE_DATA, (_not_zero("len"), _range("uaddr", "len"))),
            (sev.LAUNCH_MEASURE, (_short_answer("uaddr", "len"),)),
            (
                sev.LAUNCH_SECRET,
                (
                    _not_zero("guest_len"),
                    _range("guest_uaddr", "guest_len"),
                    _blob("hdr_uaddr", "hdr_len"),
                    _blob("trans_uaddr", "trans_len"),
                ),
            ),
            (
                sev.SEND_START,
                (
                    _blob("pdh_cert_uaddr", "pdh_cert_len"),
                    _blob("session_uaddr", "session_len"),
                    _blob("plat_certs_uaddr", "plat_certs_len"),
                    _blob("amd_certs_uaddr", "amd_certs_len"),
                ),
            ),
            (
                sev.SEND_UPDATE_DATA,
                (
                    _not_zero("hdr_uaddr", "trans_uaddr", "guest_uaddr", "guest_len"),
                    _packet("guest_uaddr", "guest_len"),
                    _range("guest_uaddr", "guest_len"),
                ),
            ),
            (
                sev.SEND_UPDATE_VMSA,
                (_never_in_mainline, _not_zero("hdr_uaddr", "trans_uaddr")),
            ),
            (
                sev.RECEIVE_START,
                (_blob("pdh_uaddr", "pdh_len"), _blob("session_uaddr", "session_len")),
            ),
            (
                sev.RECEIVE_UPDATE_DATA,
                (
                    _not_zero("hdr_uaddr", "hdr_len", "guest_uaddr", "guest_len"),
                    _not_zero("trans_uaddr", "trans_len"),
                    _packet("guest_uaddr", "guest_len"),
                    _blob("hdr_uaddr", "hdr_len"),
                    _payload("trans_len"),
                    _range("guest_uaddr", "guest_len"),
                ),
            ),
            (
                sev.RECEIVE_UPDATE_VMSA,
                (
                    _never_in_mainline,
                    _blob("hdr_uaddr", "hdr_len"),
                    _blob("trans_uaddr", "trans_len"),
                ),
            ),
            (sev.DBG_DECRYPT, _COPY),
            (sev.DBG_ENCRYPT, _COPY),
            (sev.CERT_EXPORT, (_never_in_mainline,)),
            (sev.GET_ATTESTATION_REPORT, (_short_answer("uaddr", "len"),)),
            (
                sev.PEK_CERT_IMPORT,
                (
                    _blob("pek_cert_address", "pek_cert_len"),
                    _blob("oca_cert_address", "oca_cert_len"),
                ),
            ),
        )
    }
)


def _field_ends(hcall: Hcall) -> tuple[tuple[str, int], ...]:
    """(argument, first value that its field does not hold) of those of less than eight bytes."""
    if hcall.structure is None or not hcall.args:
        return ()
    sizes = {part.name: part.sizeof() for part in hcall.structure.subcons if part.name}
    return tuple(
        (arg.name, 1 << 8 * sizes[arg.name])
        for arg in hcall.args
        # Sizes are bounded by the table.
        if arg.kind is not ArgKind.SIZE and sizes[arg.name] < 8
    )


FIELD_ENDS: Final[Mapping[str, tuple[tuple[str, int], ...]]] = MappingProxyType(
    {hcall.name: _field_ends(hcall) for hcall in sev.FAMILY.calls}
)
"""A register holds more than a structure's field: what no client's structure can say."""

RANGES: Final[Mapping[str, tuple[tuple[str, str, int], ...]]] = MappingProxyType(
    {
        hcall.name: tuple(
            (buffer.address, buffer.size or "", buffer_max_size(buffer, {}))
            for buffer in hcall.buffers
        )
        for hcall in sev.FAMILY.calls
    }
)
"""(address, its size's argument or "", its size then) of what a command points at."""


TOO_LARGE_IS_EFAULT: Final = frozenset({sev.PEK_CSR.name, sev.PDH_CERT_EXPORT.name})
"""Commands for whose answer the kernel makes no room beyond BLOB_MAX_SIZE. It says -EFAULT, and
-EINVAL of all other blobs (sev-dev.c ``sev_ioctl_do_pek_csr()``)."""


QUERIES: Final[Mapping[str, Query]] = MappingProxyType(
    {hcall.name: hcall.query for hcall in sev.FAMILY.calls if hcall.query is not None}
)
"""By command."""


def is_query(call: Call) -> bool:
    """Whether a command only asks for lengths."""
    query = call.hcall.query
    return query is not None and query.is_asked(call.args)


def kernel_checks(hcall: Hcall) -> Callable[[Call, SevVm], None]:
    """What the kernel checks of a command; a question for lengths has no more that matters.

    Returns:
        A function that raises HcallError: EINVAL, or EFAULT of a pointer to where no client has
        memory.
    """
    ends, checks, ranges = (
        FIELD_ENDS[hcall.name],
        KERNEL_CHECKS.get(hcall.name, ()),
        RANGES[hcall.name],
    )
    most = sev.BLOB_MAX_SIZE if hcall.name in TOO_LARGE_IS_EFAULT else U64_MAX

    def check_kernel(call: Call, vm: SevVm) -> None:
        args = call.args
        for field, end in ends:
            if args[field] >= end:
                raise HcallError(
                    SevCode.EINVAL, f"{field} 0x{args[field]:x} is more than its field holds"
                )
        for check in checks:
            why = check(call, vm)
            if why and (check is _never_in_mainline or not is_query(call)):
                raise HcallError(SevCode.EINVAL, why)
        for address, length, fixed in ranges:
            size = args[length] if length else fixed
            if size > most and not is_query(call):
                raise call.refuse(address, f"{size} bytes of room, expected at most {most}")
            if not call.ram.contains(args[address], size) and not is_query(call):
                raise call.refuse(
                    address, f"{address} 0x{args[address]:x} + {size} is not in memory"
                )

    return check_kernel


def check_lengths(call: Call, *, told_when_short: bool) -> None:
    """Refuse a question for lengths, and buffers that are too short, with INVALID_LEN.

    Args:
        call: the command, one of QUERIES.
        told_when_short: the lengths come back for a buffer that is too short, too.

    Raises:
        HcallError: INVALID_LEN.
    """
    query = QUERIES[call.hcall.name]
    args = call.args
    asks = query.is_asked(args)
    short = [name for name, least in query.lengths if args[name] < least]
    if not asks and not short:
        return
    why = "asked for lengths" if asks else f"{short[0]} {call[short[0]]} is too small"
    needed = ", ".join(f"{name} {least}" for name, least in query.lengths)
    raise HcallError(
        query.code,
        f"{why}: {needed} needed",
        length_fields(call.hcall, dict(query.lengths)) if asks or told_when_short else (),
    )


def length_fields(hcall: Hcall, lengths: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """Registers that stand for lengths of the command's structure."""
    return tuple(sorted((hcall.arg(name).register, value) for name, value in lengths.items()))
