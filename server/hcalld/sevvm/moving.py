# SPDX-License-Identifier: Apache-2.0
"""A guest's way from one platform to another."""

from __future__ import annotations

import contextlib
from typing import Final

from hcalld.guestowner.chain_files import PlatformFile
from hcalld.guestowner.client import CommandRefused, ConnectionFailed
from hcalld.guestowner.platform import Platform
from hcalld.sevvm.errors import SevVmError
from hcalld.sevvm.machine import Machine, Target
from hcalld.sevvm.streams import StreamHead, StreamReader, StreamWriter
from hcallproto.abi.families import sev
from hcallproto.payloads.sev.certificates import build_amd_pair, build_chain
from hcallproto.payloads.sev.constants import PAGE_SIZE, Policy

NO_ROOTS: Final = bytes(16)
"""In place of ASK and ARK where they are not known: the kernel demands that there is something, and
the firmware looks at it only if the policy has SEV."""


def target_of(found: PlatformFile) -> Target:
    """A platform's file as SEND_START takes it."""
    return Target(
        pdh=found.pdh.build(),
        chain=build_chain(found.pek, found.oca, found.cek),
        roots=NO_ROOTS if found.amd is None else build_amd_pair(*found.amd),
    )


def send(
    machine: Machine, writer: StreamWriter, target: Target, *, packet_size: int, vcpus: int = 0
) -> int:
    """Send a guest, all of its memory and its processors; gives the number of packets.

    Args:
        machine: runs the guest, which is SENT afterwards; if anything fails it stays.
        writer: takes the stream.
        target: the platform that it goes to.
        packet_size: bytes of memory in a packet: a page, or more where the platform allows.
        vcpus: its processors, if it is a guest of SEV-ES.

    Raises:
        SevVmError: the target's root is missing, or the target did not take all.
        CommandRefused: the platform refuses.
    """
    if not 1 <= packet_size <= sev.PACKET_MAX_SIZE or packet_size % PAGE_SIZE:
        raise ValueError(
            f"packets of {packet_size} bytes, expected pages up to {sev.PACKET_MAX_SIZE}"
        )
    if machine.status().policy & Policy.SEV and target.roots == NO_ROOTS:
        raise SevVmError(
            "the policy has SEV, so the target's ASK and ARK are needed; expected its file of "
            "hcalld sev export --full"
        )
    source = Platform(machine.client).export().pdh
    policy, session = machine.send_start(target)
    count = 0
    try:
        writer.head(StreamHead(policy, source, session))
        for gpa in range(0, machine.size, packet_size):
            size = min(packet_size, machine.size - gpa)
            writer.packet(machine.send_update_data(gpa, size))
            count += 1
        for vcpu in range(vcpus if policy & Policy.ES else 0):
            writer.packet(machine.send_update_vmsa(vcpu))
            count += 1
        writer.finish()
    except BaseException:
        # Whoever has the packets cannot use them: the next SEND_START makes other keys.
        with contextlib.suppress(CommandRefused, ConnectionFailed):
            machine.send_cancel()
        raise
    machine.send_finish()
    return count


def receive(machine: Machine, reader: StreamReader, *, vcpus: int = 1) -> int:
    """Receive a guest; gives the number of packets.

    Args:
        machine: has as much memory as the source, and no guest.
        reader: gives the stream.
        vcpus: processors that the guest has, if it is one of SEV-ES.

    Raises:
        SevVmError: the stream is malformed, or has less or more than the whole guest.
        CommandRefused: the platform refuses; the guest does not run here.
    """
    head = reader.head()
    is_es = bool(head.policy & Policy.ES)
    machine.init(sev.ES_INIT if is_es else sev.INIT)
    machine.receive_start(head.policy, head.pdh, head.session)
    count = gpa = vcpu = 0
    areas = vcpus if is_es else 0
    while (packet := reader.packet()) is not None:
        if gpa < machine.size:
            machine.receive_update_data(gpa, packet)
            gpa += len(packet.payload)
        elif vcpu < areas and len(packet.payload) == sev.VMSA_SIZE:
            machine.receive_update_vmsa(vcpu, packet)
            vcpu += 1
        else:
            raise SevVmError(
                f"the stream goes on after {machine.size} bytes of memory and {areas} processors; "
                "expected a VM like the source's: give as much memory, and as many processors"
            )
        count += 1
    if gpa < machine.size or vcpu < areas:
        raise SevVmError(
            f"the stream ends with {gpa} bytes of memory and {vcpu} processors; expected "
            f"{machine.size} and {areas}: it was cut off, or the source is smaller"
        )
    machine.receive_finish()
    reader.confirm()
    return count
