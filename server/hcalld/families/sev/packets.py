# SPDX-License-Identifier: Apache-2.0
"""Packets as commands take and give them: what is looked at before their MAC."""

from __future__ import annotations

from hcalld.core.errors import HcallError
from hcalld.crypto.sev.memory import BLOCK_SIZE
from hcalld.crypto.sev.packets import Packet
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import PACKET_HEADER_SIZE, PacketHeader


def check_memory(address: int, size: int) -> None:
    """See that a range is of whole blocks.

    Raises:
        HcallError: INVALID_LEN, INVALID_ADDRESS.
    """
    if size % BLOCK_SIZE:
        raise HcallError(
            SevCode.INVALID_LEN,
            f"{size} bytes of guest memory, expected a multiple of {BLOCK_SIZE}",
        )
    if address % BLOCK_SIZE:
        raise HcallError(
            SevCode.INVALID_ADDRESS,
            f"guest memory at 0x{address:x}, expected a multiple of {BLOCK_SIZE}",
        )


def parse_packet(header: bytes, payload: bytes, *, guest_size: int) -> Packet:
    """A packet whose sizes and flags are good; its MAC has not been looked at.

    Raises:
        HcallError: INVALID_LEN, UNSUPPORTED, INVALID_PARAM.
    """
    if len(header) < PACKET_HEADER_SIZE:
        raise HcallError(
            SevCode.INVALID_LEN,
            f"packet header has {len(header)} bytes, expected {PACKET_HEADER_SIZE}",
        )
    if len(payload) != guest_size:
        raise HcallError(
            SevCode.INVALID_LEN,
            f"packet has {len(payload)} bytes for {guest_size} of guest memory, expected as many",
        )
    return Packet(PacketHeader.parse(header[:PACKET_HEADER_SIZE]), payload)


def check_flags(packet: Packet) -> None:
    """Refuse what no platform of ours can open.

    Raises:
        HcallError: UNSUPPORTED, INVALID_PARAM.
    """
    if packet.header.is_compressed:
        raise HcallError(SevCode.UNSUPPORTED, "the packet is compressed")
    if packet.header.reserved_flags:
        raise HcallError(
            SevCode.INVALID_PARAM,
            f"packet flags 0x{packet.header.flags:x}: reserved bits are set, expected 0",
        )
