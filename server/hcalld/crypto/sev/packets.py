# SPDX-License-Identifier: Apache-2.0
"""Packets: a guest owner's secrets, and pages on their way to another platform.

Source: 55766 commands LAUNCH_SECRET, SEND_UPDATE_DATA, SEND_UPDATE_VMSA. The payload is
AES-128-CTR under the TEK; the header's MAC, under the TIK, covers it and both lengths.
"""

from __future__ import annotations

from typing import NamedTuple

from hcalld.crypto.sev.errors import MacError
from hcalld.crypto.sev.kdf import TransportKeys, aes_ctr, mac, same
from hcalld.crypto.sev.measurement import BOUND_SINCE
from hcallproto.payloads.sev import Api, PacketContext, PacketHeader, SevFormatError


class Packet(NamedTuple):
    """A header with its payload."""

    header: PacketHeader
    payload: bytes


def seal_secret(
    keys: TransportKeys, data: bytes, *, iv: bytes, measurement: bytes, api: Api
) -> Packet:
    """Encrypt a secret for one launch.

    Args:
        keys: the launch's.
        data: the secret; whole blocks of 16 bytes.
        iv: 16 random bytes.
        measurement: the launch's, 32 bytes.
        api: the platform's; before 0.17 a secret is not tied to its measurement.
    """
    return _seal(keys, PacketContext.SECRET, data, iv, _binding(measurement, api))


def open_secret(
    keys: TransportKeys, packet: Packet, *, guest_size: int, measurement: bytes, api: Api
) -> bytes:
    """A secret, once its MAC fits.

    Args:
        keys: the launch's.
        packet: as it came.
        guest_size: bytes of guest memory that the command names.
        measurement: the launch's.
        api: the platform's.

    Raises:
        SevFormatError: flags that are not known here.
        MacError: altered, or for another launch.
    """
    binding = _binding(measurement, api)
    return _open(keys, PacketContext.SECRET, packet, guest_size, binding)


def seal_transport(
    keys: TransportKeys,
    data: bytes,
    *,
    iv: bytes,
    context: PacketContext = PacketContext.DATA,
) -> Packet:
    """Encrypt a page.

    Args:
        keys: of SEND_START.
        data: the page.
        iv: 16 random bytes.
        context: DATA or VMSA.
    """
    return _seal(keys, context, data, iv, b"")


def open_transport(
    keys: TransportKeys,
    packet: Packet,
    *,
    guest_size: int,
    context: PacketContext = PacketContext.DATA,
) -> bytes:
    """A page, once its MAC fits.

    Args:
        keys: of RECEIVE_START.
        packet: as it came.
        guest_size: bytes of guest memory that the command names.
        context: DATA or VMSA.

    Raises:
        SevFormatError: flags that are not known here.
        MacError: altered, or of another session.
    """
    return _open(keys, context, packet, guest_size, b"")


def _binding(measurement: bytes, api: Api) -> bytes:
    return measurement if api >= BOUND_SINCE else b""


def _seal(
    keys: TransportKeys, context: PacketContext, data: bytes, iv: bytes, binding: bytes
) -> Packet:
    payload = aes_ctr(keys.tek, iv, data)
    unsigned = Packet(PacketHeader(iv=iv, mac=b""), payload)
    tag = _mac(keys, context, unsigned, len(data), binding)
    return Packet(PacketHeader(iv=iv, mac=tag), payload)


def _open(
    keys: TransportKeys, context: PacketContext, packet: Packet, guest_size: int, binding: bytes
) -> bytes:
    header = packet.header
    if header.flags:
        raise SevFormatError("packet header", "flags", hex(header.flags), "0: not compressed")
    if not same(_mac(keys, context, packet, guest_size, binding), header.mac):
        raise MacError(
            f"the MAC of the {context.name.lower()} packet does not fit: it was altered, or is "
            "for another guest"
        )
    return aes_ctr(keys.tek, header.iv, packet.payload)


def _mac(
    keys: TransportKeys, context: PacketContext, packet: Packet, guest_size: int, binding: bytes
) -> bytes:
    header, payload = packet
    return mac(
        keys.tik,
        bytes((context,)),
        header.flags.to_bytes(4, "little"),
        header.iv,
        guest_size.to_bytes(4, "little"),
        len(payload).to_bytes(4, "little"),
        payload,
        binding,
    )
