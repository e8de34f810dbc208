# SPDX-License-Identifier: Apache-2.0
"""A guest's memory as others see it, against XEX written out."""

from __future__ import annotations

import functools
import itertools

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from hcalld.core.secret import Secret
from hcalld.crypto.sev.kdf import kdf
from hcalld.crypto.sev.memory import SPARE_SIZE, UNIT_SIZE, MemoryCipher
from hcalld.testing.sev import made_up

VEK = made_up("vek", 16)
CIPHER = MemoryCipher(Secret(VEK))
PAGE = made_up("page", 4096)


def ecb(key: bytes, block: bytes) -> bytes:
    cipher = Cipher(AES(key), ECB()).encryptor()
    return cipher.update(block)


@functools.cache
def tweaks(unit: int) -> list[int]:
    """Of each block of a unit (IEEE 1619, 5.2): doubled from the unit's number encrypted."""
    value = int.from_bytes(ecb(KEYS[16:], unit.to_bytes(16, "little")), "little")
    found = []
    for _ in range(UNIT_SIZE // 16):
        found.append(value)
        value = (value << 1 & (1 << 128) - 1) ^ (0x87 if value >> 127 else 0)
    return found


KEYS = kdf(VEK, "hcalld-memory", b"", 32)


def written_out(address: int, data: bytes) -> bytes:
    parts = []
    for offset in range(0, len(data), 16):
        unit, at = divmod(address + offset, UNIT_SIZE)
        tweak = tweaks(unit)[at // 16].to_bytes(16, "little")
        block = bytes(a ^ b for a, b in zip(data[offset : offset + 16], tweak, strict=True))
        parts.append(bytes(a ^ b for a, b in zip(ecb(KEYS[:16], block), tweak, strict=True)))
    return b"".join(parts)


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0, 16),
        (0, 4096),
        (0x10, 16),
        (UNIT_SIZE - 16, 16),
        (UNIT_SIZE - 16, 32),
        (UNIT_SIZE, 48),
        (2 * UNIT_SIZE - 512, 1024),
        ((1 << 47) - 4096, 4096),
    ],
)
def test_memory_when_xex_is_written_out_then_the_same(address: int, size: int):
    assert CIPHER.encrypt(address, PAGE[:size]) == written_out(address, PAGE[:size])


ADDRESSES = st.integers(0, (1 << 47) - 1).map(lambda value: value & ~0xF)


@given(address=ADDRESSES, blocks=st.integers(0, 40))
def test_memory_when_encrypted_then_decrypted_to_the_same(address: int, blocks: int):
    data = made_up("data", 16 * blocks)
    encrypted = CIPHER.encrypt(address, data)
    assert len(encrypted) == len(data)
    assert CIPHER.decrypt(address, encrypted) == data
    assert not blocks or encrypted != data


@settings(max_examples=30)
@given(
    start=st.integers(0, 64).map(lambda value: UNIT_SIZE - 512 + 16 * value),
    cuts=st.lists(st.integers(0, 130), max_size=5).map(sorted),
)
def test_memory_when_done_in_parts_then_as_in_one(start: int, cuts: list[int]):
    """Also with decryption, and over the end of a unit."""
    data = made_up("data", 16 * 130)
    whole = CIPHER.encrypt(start, data)
    edges = [0, *(16 * cut for cut in cuts), len(data)]
    for first, last in itertools.pairwise(edges):
        assert CIPHER.encrypt(start + first, data[first:last]) == whole[first:last]
        assert CIPHER.decrypt(start + first, whole[first:last]) == data[first:last]


def test_memory_when_it_is_large_then_each_unit_is_as_alone():
    data = made_up("large", 3 * UNIT_SIZE)
    whole = CIPHER.encrypt(5 * UNIT_SIZE + 32, memoryview(data))
    assert CIPHER.decrypt(5 * UNIT_SIZE + 32, memoryview(whole)) == data
    middle = UNIT_SIZE - 32
    assert whole[middle : middle + 64] == written_out(6 * UNIT_SIZE, data[middle : middle + 64])


@pytest.mark.parametrize("address", [0, 32, UNIT_SIZE - 16])
@pytest.mark.parametrize("size", [0, 16, UNIT_SIZE - 16, 3 * UNIT_SIZE + 48])
def test_memory_when_it_is_put_somewhere_then_the_same_and_nothing_beyond(address: int, size: int):
    data = bytes(n % 251 for n in range(size))
    room = bytearray(b"-" * (size + SPARE_SIZE + 8))
    put = CIPHER.encrypt_into(address, data, memoryview(room))
    assert put == room[:size] == CIPHER.encrypt(address, data)
    assert room[size:] == b"-" * (SPARE_SIZE + 8)


@pytest.mark.parametrize("size", [16, 2 * UNIT_SIZE])
def test_memory_when_there_is_no_room_then_refused_and_nothing_is_put(size: int):
    room = bytearray(size + SPARE_SIZE - 1)
    with pytest.raises(ValueError, match=f"expected {size} and {SPARE_SIZE} more"):
        CIPHER.encrypt_into(0, bytes(range(16)) * (size // 16), memoryview(room))
    assert not any(room)


def test_memory_when_addresses_or_keys_differ_then_other_bytes():
    zeros = bytes(16)
    addresses = [*range(0, 4096, 16), 65536, 1 << 32, 1 << 46, (1 << 46) + 65536]
    seen = {CIPHER.encrypt(address, zeros) for address in addresses}
    other = MemoryCipher(Secret(made_up("other vek", 16)))
    seen |= {other.encrypt(address, zeros) for address in addresses}
    assert len(seen) == 2 * len(addresses)


@pytest.mark.parametrize(
    ("address", "size"), [(1, 16), (8, 16), (15, 16), (0, 1), (0, 15), (0, 17), (16, 4095)]
)
def test_memory_when_it_is_no_whole_block_then_refused(address: int, size: int):
    for carry_out in (CIPHER.encrypt, CIPHER.decrypt):
        with pytest.raises(ValueError, match="expected multiples of 16"):
            carry_out(address, bytes(size))


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_memory_when_the_key_is_of_another_size_then_refused(size: int):
    with pytest.raises(ValueError, match=f"VEK has {size} bytes, expected 16"):
        MemoryCipher(Secret(bytes(size)))


def test_memory_when_shown_then_nothing_is_seen():
    assert VEK.hex() not in repr(CIPHER)
