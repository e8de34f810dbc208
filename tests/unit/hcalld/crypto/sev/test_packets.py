# SPDX-License-Identifier: Apache-2.0
"""Packets: what opens, and that nothing else does."""

from __future__ import annotations

import dataclasses
import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sev_platform import API, KEYS, flipped

from hcalld.crypto.sev.errors import MacError
from hcalld.crypto.sev.kdf import TransportKeys
from hcalld.crypto.sev.packets import (
    Packet,
    open_secret,
    open_transport,
    seal_secret,
    seal_transport,
)
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev import Api, PacketContext, PacketHeader, SevFormatError

IV = made_up("iv", 16)
MEASUREMENT = made_up("measurement", 32)
DATA = b"attack at dawn, thirty-two bytes"
BLOCKS = st.binary(min_size=1, max_size=8).map(lambda data: data * 16)
OLD = Api(0, 16)


def sealed(data: bytes = DATA, api: Api = API) -> Packet:
    return seal_secret(KEYS, data, iv=IV, measurement=MEASUREMENT, api=api)


def opened(
    packet: Packet, size: int = len(DATA), measurement: bytes = MEASUREMENT, api: Api = API
) -> bytes:
    return open_secret(KEYS, packet, guest_size=size, measurement=measurement, api=api)


@given(BLOCKS)
def test_secret_when_sealed_then_opened_to_the_same(data: bytes):
    for api in (API, OLD):
        assert opened(sealed(data, api), len(data), api=api) == data


@given(BLOCKS, st.sampled_from([PacketContext.DATA, PacketContext.VMSA]))
def test_page_when_sealed_then_opened_to_the_same(data: bytes, context: PacketContext):
    packet = seal_transport(KEYS, data, iv=IV, context=context)
    assert open_transport(KEYS, packet, guest_size=len(data), context=context) == data


def test_secret_when_the_platform_is_old_then_its_mac_covers_no_measurement():
    packet = sealed(api=OLD)
    covered = b"\1" + bytes(4) + IV + struct.pack("<II", 32, 32) + packet.payload
    assert packet.header.mac == hmac.new(KEYS.tik.reveal(), covered, "sha256").digest()
    assert opened(packet, measurement=bytes(32), api=OLD) == DATA


def test_secret_when_it_is_for_another_launch_then_refused():
    with pytest.raises(MacError, match="secret packet"):
        opened(sealed(), measurement=flipped(MEASUREMENT, 31))
    for made, taken in ((OLD, API), (API, OLD)):
        with pytest.raises(MacError):
            opened(sealed(api=made), api=taken)
    others = TransportKeys(KEYS.tek, KEYS.tek)
    with pytest.raises(MacError):
        open_secret(others, sealed(), guest_size=32, measurement=MEASUREMENT, api=API)


def test_secret_when_any_bit_is_altered_then_refused():
    packet = sealed()
    header, size = packet.header.build(), 52
    for bit in range(8 * (size + len(packet.payload))):
        data = flipped(header + packet.payload, bit // 8, 1 << bit % 8)
        altered = Packet(PacketHeader.parse(data[:size]), data[size:])
        with pytest.raises(SevFormatError if bit < 32 else MacError):
            opened(altered)


@pytest.mark.parametrize("context", [PacketContext.DATA, PacketContext.VMSA])
def test_page_when_any_bit_is_altered_then_refused(context: PacketContext):
    packet = seal_transport(KEYS, DATA, iv=IV, context=context)
    header, size = packet.header.build(), 52
    for bit in range(8 * (size + len(packet.payload))):
        data = flipped(header + packet.payload, bit // 8, 1 << bit % 8)
        altered = Packet(PacketHeader.parse(data[:size]), data[size:])
        with pytest.raises(SevFormatError if bit < 32 else MacError):
            open_transport(KEYS, altered, guest_size=32, context=context)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 2**32 - 1])
def test_packet_when_the_command_names_another_size_then_refused(size: int):
    with pytest.raises(MacError):
        opened(sealed(), size)
    with pytest.raises(MacError):
        open_transport(KEYS, seal_transport(KEYS, DATA, iv=IV), guest_size=size)


def test_packet_when_it_is_for_another_use_then_refused():
    """Contexts keep them apart, even where nothing else does."""
    data = seal_transport(KEYS, DATA, iv=IV)
    vmsa = seal_transport(KEYS, DATA, iv=IV, context=PacketContext.VMSA)
    assert len({data, vmsa, sealed(api=OLD)}) == 3
    for packet in (vmsa, sealed(api=OLD)):
        with pytest.raises(MacError, match="data packet"):
            open_transport(KEYS, packet, guest_size=32)
    for packet in (data, sealed(api=OLD)):
        with pytest.raises(MacError, match="vmsa packet"):
            open_transport(KEYS, packet, guest_size=32, context=PacketContext.VMSA)
    for packet in (data, vmsa):
        with pytest.raises(MacError, match="secret packet"):
            opened(packet, api=OLD)


def test_packet_when_it_is_compressed_then_refused_with_a_good_mac():
    packet = sealed()
    covered = b"\1" + struct.pack("<I", 1) + IV + struct.pack("<II", 32, 32)
    tag = hmac.new(KEYS.tik.reveal(), covered + packet.payload + MEASUREMENT, "sha256").digest()
    header = dataclasses.replace(packet.header, flags=1, mac=tag)
    with pytest.raises(SevFormatError, match="flags is 0x1, expected 0"):
        opened(Packet(header, packet.payload))


def test_packet_when_refused_then_the_error_tells_no_secret():
    with pytest.raises(MacError) as caught:
        opened(sealed(), 0)
    for secret in (DATA, KEYS.tek.reveal(), KEYS.tik.reveal(), sealed().header.mac):
        assert secret.hex() not in str(caught.value)
        assert repr(secret)[2:10] not in str(caught.value)
