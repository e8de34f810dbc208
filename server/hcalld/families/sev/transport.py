# SPDX-License-Identifier: Apache-2.0
"""SEND_* and RECEIVE_*: a guest goes to another platform.

The source makes transport keys and wraps them for the target's PDH; each packet has its own first
counter block and MAC. In what order packets come, and for which addresses, is the clients' matter.
"""

from __future__ import annotations

from typing import Final

from hcalld.core.call import Call
from hcalld.core.effects import Entropy, ReadBuffer
from hcalld.core.errors import HcallError
from hcalld.core.outcome import Outcome
from hcalld.crypto.sev.certificates import public_point
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.packets import open_transport, seal_transport
from hcalld.crypto.sev.session import wrap_session
from hcalld.domain.sev.policy import check_command
from hcalld.domain.sev.refusals import check_size, refusing
from hcalld.domain.sev.settings import MAX_VCPUS
from hcalld.domain.sev.target import check_target
from hcalld.domain.sev.vm import SevVm
from hcalld.families.sev.checks import check_lengths, is_query
from hcalld.families.sev.handlerset import DONE, fields, handles, read_platform
from hcalld.families.sev.memory import decrypted, encrypted
from hcalld.families.sev.packets import check_flags, check_memory, parse_packet
from hcalld.families.sev.starting import start
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import (
    CERTIFICATE_SIZE,
    CHAIN_SIZE,
    NONCE_SIZE,
    PACKET_HEADER_SIZE,
    PacketContext,
)

_READ_TARGET: Final = ReadBuffer("pdh_cert_uaddr")
_READ_CHAIN: Final = ReadBuffer("plat_certs_uaddr")
_READ_ROOTS: Final = ReadBuffer("amd_certs_uaddr")
_READ_SOURCE: Final = ReadBuffer("pdh_uaddr")
_READ_SESSION: Final = ReadBuffer("session_uaddr")
_READ_HEADER: Final = ReadBuffer("hdr_uaddr")
_READ_PAYLOAD: Final = ReadBuffer("trans_uaddr")
_READ_GUEST: Final = ReadBuffer("guest_uaddr")
_SESSION_ENTROPY: Final = Entropy(2 * NONCE_SIZE + TransportKeys.SIZE)
_IV: Final = Entropy(NONCE_SIZE)


# -- sending ----------------------------------------------------------------------------


@handles(sev.SEND_START)
async def kvm_sev_send_start(call: Call, vm: SevVm) -> Outcome:
    """Make a session for the target, if the policy lets the guest go there.

    Every one has keys of its own: SEND_CANCEL and another SEND_START begin anew.
    """
    asks = is_query(call)
    target = b"" if asks else await _READ_TARGET
    chain = b"" if asks else await _READ_CHAIN
    roots = b"" if asks else await _READ_ROOTS
    guest, state = vm.begin(call.hcall)
    check_command(call.hcall, guest.policy)
    check_lengths(call, told_when_short=True)
    target = check_size("target's PDH certificate", target, CERTIFICATE_SIZE)
    chain = check_size("target's certificates", chain, CHAIN_SIZE)
    entropy = await _SESSION_ENTROPY
    view = await read_platform()
    identity = view.identity
    nonce, iv = entropy[:NONCE_SIZE], entropy[NONCE_SIZE : 2 * NONCE_SIZE]
    keys = TransportKeys.parse(entropy[2 * NONCE_SIZE :])
    with refusing():
        certificate = check_target(guest.policy, identity, target, chain, roots)
        session = wrap_session(
            identity.pdh_key,
            public_point(certificate),
            keys,
            guest.policy,
            nonce=nonce,
            iv=iv,
        ).build()
    guest.state, guest.keys = state, keys
    return Outcome(
        SevCode.SUCCESS,
        fields(call.hcall, policy=guest.policy, session_len=len(session)),
        ((call["session_uaddr"], session),),
    )


@handles(sev.SEND_UPDATE_DATA)
async def kvm_sev_send_update_data(call: Call, vm: SevVm) -> Outcome:
    """Make a packet of guest memory, which stays as it is."""
    memory = b"" if is_query(call) else await _READ_GUEST
    guest, _ = vm.begin(call.hcall)
    check_lengths_of_packet(call, len(memory))
    address = call["guest_uaddr"]
    check_memory(address, len(memory))
    iv = await _IV
    assert guest.keys is not None, "a guest that is being sent has keys"
    header, payload = seal_transport(guest.keys, decrypted(guest, address, memory), iv=iv)
    return Outcome(
        SevCode.SUCCESS,
        (),
        ((call["hdr_uaddr"], header.build()), (call["trans_uaddr"], payload)),
    )


@handles(sev.SEND_UPDATE_VMSA)
async def kvm_sev_send_update_vmsa(call: Call, vm: SevVm) -> Outcome:
    """Make a packet of a vCPU's save area."""
    guest, _ = vm.begin(call.hcall)
    check_lengths_of_packet(call, sev.VMSA_SIZE)
    area = guest.vmsas.get(call["vcpu_id"])
    if area is None:
        raise HcallError(
            SevCode.INVALID_PARAM, f"vCPU {call['vcpu_id']} has no save area: it was not launched"
        )
    iv = await _IV
    assert guest.keys is not None, "a guest that is being sent has keys"
    header, payload = seal_transport(guest.keys, area, iv=iv, context=PacketContext.VMSA)
    return Outcome(
        SevCode.SUCCESS,
        (),
        ((call["hdr_uaddr"], header.build()), (call["trans_uaddr"], payload)),
    )


def check_lengths_of_packet(call: Call, size: int) -> None:
    """Refuse a question for lengths, and too little room for a packet of ``size`` bytes.

    Raises:
        HcallError: INVALID_LEN.
    """
    if is_query(call) or call["hdr_len"] < PACKET_HEADER_SIZE:
        check_lengths(call, told_when_short=False)
    if call["trans_len"] < size:
        raise HcallError(
            SevCode.INVALID_LEN, f"trans_len {call['trans_len']} is too small: {size} needed"
        )


@handles(sev.SEND_FINISH)
async def kvm_sev_send_finish(call: Call, vm: SevVm) -> Outcome:
    """The guest is elsewhere; there is no way back."""
    guest, state = vm.begin(call.hcall)
    guest.state, guest.keys = state, None
    return DONE


@handles(sev.SEND_CANCEL)
async def kvm_sev_send_cancel(call: Call, vm: SevVm) -> Outcome:
    """The guest stays."""
    guest, state = vm.begin(call.hcall)
    guest.state, guest.keys = state, None
    return DONE


# -- receiving --------------------------------------------------------------------------


@handles(sev.RECEIVE_START)
async def kvm_sev_receive_start(call: Call, vm: SevVm) -> Outcome:
    """Begin to receive a guest: as a launch, with the source in the owner's place."""
    source, session = await _READ_SOURCE, await _READ_SESSION
    return await start(call, vm, source, session)


@handles(sev.RECEIVE_UPDATE_DATA)
async def kvm_sev_receive_update_data(call: Call, vm: SevVm) -> Outcome:
    """Put a packet into guest memory, once it is proven."""
    header, payload = await _READ_HEADER, await _READ_PAYLOAD
    guest, _ = vm.begin(call.hcall)
    address, size = call["guest_uaddr"], call["guest_len"]
    packet = parse_packet(header, payload, guest_size=size)
    check_memory(address, size)
    check_flags(packet)
    assert guest.keys is not None, "a guest that is being received has keys"
    with refusing():
        data = open_transport(guest.keys, packet, guest_size=size)
    return Outcome(SevCode.SUCCESS, (), ((address, encrypted(guest, address, data)),))


@handles(sev.RECEIVE_UPDATE_VMSA)
async def kvm_sev_receive_update_vmsa(call: Call, vm: SevVm) -> Outcome:
    """Take a vCPU's save area, once its packet is proven."""
    header, payload = await _READ_HEADER, await _READ_PAYLOAD
    guest, _ = vm.begin(call.hcall)
    packet = parse_packet(header, payload, guest_size=sev.VMSA_SIZE)
    check_flags(packet)
    if call["vcpu_id"] >= MAX_VCPUS:
        raise HcallError(
            SevCode.INVALID_PARAM, f"vCPU {call['vcpu_id']}, expected 0 to {MAX_VCPUS - 1}"
        )
    assert guest.keys is not None, "a guest that is being received has keys"
    with refusing():
        area = open_transport(
            guest.keys, packet, guest_size=sev.VMSA_SIZE, context=PacketContext.VMSA
        )
    guest.vmsas[call["vcpu_id"]] = area
    return DONE


@handles(sev.RECEIVE_FINISH)
async def kvm_sev_receive_finish(call: Call, vm: SevVm) -> Outcome:
    """The guest is whole, and can run."""
    guest, state = vm.begin(call.hcall)
    guest.state, guest.keys = state, None
    return DONE
