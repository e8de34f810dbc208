# SPDX-License-Identifier: Apache-2.0
"""INIT to LAUNCH_FINISH: a VM becomes one of SEV, and its guest is launched and measured."""

from __future__ import annotations

from typing import Final

from hcalld.core.call import Call
from hcalld.core.effects import Entropy, ReadBuffer
from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome
from hcalld.crypto.sev.measurement import covered
from hcalld.crypto.sev.packets import open_secret
from hcalld.crypto.sev.reports import make_report
from hcalld.domain.sev.changes import Initialized
from hcalld.domain.sev.policy import check_command
from hcalld.domain.sev.refusals import refusing
from hcalld.domain.sev.settings import MAX_HELD, MAX_VCPUS
from hcalld.domain.sev.states import INITIALIZES, VmKind, platform_after
from hcalld.domain.sev.vm import SevVm
from hcalld.families.sev.checks import check_lengths
from hcalld.families.sev.handlerset import DONE, change_platform, fields, handles, read_platform
from hcalld.families.sev.memory import Held, Room, encrypted, read_all, reads, write_all
from hcalld.families.sev.packets import check_flags, check_memory, parse_packet
from hcalld.families.sev.starting import start
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import (
    MEASUREMENT_BLOB_SIZE,
    NONCE_SIZE,
    PlatformState,
    Policy,
)

_READ_DH: Final = ReadBuffer("dh_uaddr")
_READ_SESSION: Final = ReadBuffer("session_uaddr")
_READ_HEADER: Final = ReadBuffer("hdr_uaddr")
_READ_PAYLOAD: Final = ReadBuffer("trans_uaddr")
_MNONCE: Final = Entropy(NONCE_SIZE)
_NONCE_HALF: Final = NONCE_SIZE // 2
_MEASURED: Final = fields(sev.LAUNCH_MEASURE, len=MEASUREMENT_BLOB_SIZE)


# -- the VM -----------------------------------------------------------------------------


async def _initialize(call: Call, vm: SevVm, kind: VmKind | None = None) -> Outcome:
    """Make a VM one of SEV; the driver initializes the platform for the first one."""
    view = await read_platform()
    platform_after(call.hcall, view.state)
    kind = kind or INITIALIZES[call.hcall.name]
    if kind is VmKind.SEV_ES and not view.es:
        raise HcallError(SevCode.ENOTTY, "the platform has no SEV-ES: es is false in its profile")
    if view.state is PlatformState.UNINIT:
        await change_platform(Initialized())
    vm.kind = kind
    vm.is_strict = view.strict_mainline
    return DONE


@handles(sev.INIT)
async def kvm_sev_init(call: Call, vm: SevVm) -> Outcome:
    """Make the VM one of SEV (svm/sev.c ``sev_guest_init()``)."""
    return await _initialize(call, vm)


@handles(sev.ES_INIT)
async def kvm_sev_es_init(call: Call, vm: SevVm) -> Outcome:
    """Make the VM one of SEV-ES."""
    return await _initialize(call, vm)


@handles(sev.INIT2)
async def kvm_sev_init2(call: Call, vm: SevVm) -> Outcome:
    """Make the VM what its type says (``sev_guest_init2()``).

    No command tells the type: a GHCB version means SEV-ES, for plain SEV must have none; without
    one the policy of the guest says it.
    """
    return await _initialize(call, vm, VmKind.SEV_ES if call["ghcb_version"] else None)


@handles(sev.REG_REGION)
async def kvm_memory_encrypt_reg_region(call: Call, vm: SevVm) -> Outcome:
    """Memory may come to hold encrypted data; the kernel locks it, here is nothing to lock."""
    vm.register(call["addr"], call["size"])
    return DONE


@handles(sev.UNREG_REGION)
async def kvm_memory_encrypt_unreg_region(call: Call, vm: SevVm) -> Outcome:
    """It does no more."""
    vm.unregister(call["addr"], call["size"])
    return DONE


# -- the launch -------------------------------------------------------------------------


@handles(sev.LAUNCH_START)
async def kvm_sev_launch_start(call: Call, vm: SevVm) -> Outcome:
    """Begin to launch a guest; without a certificate nobody can prove what it is."""
    certificate = await _READ_DH if call["dh_uaddr"] else b""
    session = await _READ_SESSION if call["session_uaddr"] else b""
    return await start(call, vm, certificate, session)


@handles(sev.LAUNCH_UPDATE_DATA)
async def kvm_sev_launch_update_data(call: Call, vm: SevVm) -> Outcome:
    """Measure guest memory as it is, then encrypt it where it is."""
    guest, _ = vm.begin(call.hcall)
    address, size = call["uaddr"], call["len"]
    check_memory(address, size)
    memory = guest.memory
    digest = guest.digest.copy()
    if memory is None:
        for _, read in reads(address, size):
            digest.update(await read)
    else:
        if size > MAX_HELD:
            raise HcallError(
                SevCode.EINVAL, f"{size} bytes at once, expected at most {MAX_HELD}: use more calls"
            )
        room = Room(size)
        held: list[Held] = []
        for at, read in reads(address, size):
            data = await read
            digest.update(data)
            held.append((at, room.encrypted(memory, at, data)))
        await write_all(held, lambda number: memory.decrypt(*held[number]))
    guest.digest = digest
    return DONE


@handles(sev.LAUNCH_UPDATE_VMSA)
async def kvm_sev_launch_update_vmsa(call: Call, vm: SevVm) -> Outcome:
    """Measure the vCPUs' save areas, and keep them: no other program sees them again.

    A second command goes on with the vCPUs after those of the first.
    """
    guest, _ = vm.begin(call.hcall)
    view = await read_platform()
    if not view.es:
        raise HcallError(SevCode.INVALID_CONFIG, "the platform was initialized without SEV-ES")
    check_command(call.hcall, guest.policy)
    count, rest = divmod(call["len"], sev.VMSA_SIZE)
    known = len(guest.vmsas)
    if rest or not 1 <= count <= MAX_VCPUS - known:
        raise HcallError(
            SevCode.INVALID_LEN,
            f"{call['len']} bytes of save areas, expected {sev.VMSA_SIZE} for each of 1 to "
            f"{MAX_VCPUS - known} vCPUs",
        )
    data = b"".join([part for _, part in await read_all(call["uaddr"], call["len"])])
    digest = guest.digest.copy()
    digest.update(data)
    for number in range(count):
        area = data[number * sev.VMSA_SIZE : (number + 1) * sev.VMSA_SIZE]
        guest.vmsas[known + number] = area
    guest.digest = digest
    return DONE


@handles(sev.LAUNCH_MEASURE)
async def kvm_sev_launch_measure(call: Call, vm: SevVm) -> Outcome:
    """End the measuring; a question for the length does not.

    What is longer than the measurement is filled with zeros (``sev_launch_measure()``: the kernel
    copies its own buffer, which is as long as the caller's).
    """
    guest, state = vm.begin(call.hcall)
    address, size = call["uaddr"], call["len"]
    if size < MEASUREMENT_BLOB_SIZE:
        check_lengths(call, told_when_short=False)
    if not address:
        raise HcallError(SevCode.INVALID_LEN, "uaddr is 0, so there is no room")
    mnonce = await _MNONCE
    digest = guest.digest.digest()
    assert guest.keys is not None, "a guest has keys until LAUNCH_FINISH"
    measurement = guest.keys.integrity.of(covered(guest.version, guest.policy, digest, mnonce))
    guest.state, guest.launch_digest, guest.measurement = state, digest, measurement
    return Outcome(
        SevCode.SUCCESS,
        _MEASURED,
        ((address, (measurement + mnonce).ljust(size, b"\0")),),
    )


@handles(sev.LAUNCH_SECRET)
async def kvm_sev_launch_secret(call: Call, vm: SevVm) -> Outcome:
    """Put the owner's secret into guest memory, once its packet is proven."""
    header, payload = await _READ_HEADER, await _READ_PAYLOAD
    guest, _ = vm.begin(call.hcall)
    address, size = call["guest_uaddr"], call["guest_len"]
    packet = parse_packet(header, payload, guest_size=size)
    check_memory(address, size)
    check_flags(packet)
    assert guest.keys is not None, "a guest has keys until LAUNCH_FINISH"
    with refusing():
        secret = open_secret(
            guest.keys,
            packet,
            guest_size=size,
            measurement=guest.measurement,
            api=guest.version.api,
        )
    return Outcome(SevCode.SUCCESS, (), ((address, encrypted(guest, address, secret)),))


@handles(sev.LAUNCH_FINISH)
async def kvm_sev_launch_finish(call: Call, vm: SevVm) -> Outcome:
    """Let the guest run; what its owner shares with the platform ends."""
    guest, state = vm.begin(call.hcall)
    guest.state, guest.keys, guest.measurement = state, None, b""
    return DONE


# -- what is said of a guest ------------------------------------------------------------


@handles(sev.GUEST_STATUS)
async def kvm_sev_guest_status(call: Call, vm: SevVm) -> Outcome:
    """Handle, policy and state."""
    guest, state = vm.begin(call.hcall)
    return Outcome(
        SevCode.SUCCESS,
        fields(call.hcall, handle=guest.handle, policy=guest.policy, state=state),
    )


@handles(sev.GET_ATTESTATION_REPORT)
async def kvm_sev_get_attestation_report(call: Call, vm: SevVm) -> Outcome:
    """What was launched, signed by the PEK (``sev_get_attestation_report()``)."""
    guest, _ = vm.begin(call.hcall)
    check_lengths(call, told_when_short=False)
    if not call["uaddr"]:
        raise HcallError(SevCode.INVALID_LEN, "uaddr is 0, so there is no room")
    view = await read_platform()
    mnonce = b"".join(
        call[name].to_bytes(_NONCE_HALF, "little") for name in ("mnonce_low", "mnonce_high")
    )
    report = make_report(
        view.identity.pek_key,
        mnonce=mnonce,
        launch_digest=guest.launch_digest,
        policy=Policy(guest.policy),
    ).build()
    return Outcome(
        SevCode.SUCCESS,
        fields(call.hcall, len=len(report)),
        ((call["uaddr"], report.ljust(call["len"], b"\0")),),
    )
