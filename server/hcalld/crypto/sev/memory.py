# SPDX-License-Identifier: Apache-2.0
"""A guest's memory as others see it: encrypted with its key, each address in its own way.

XEX with AES-128 in blocks of 16 bytes, as XTS (IEEE 1619) has it: of a data unit, its number
is encrypted with a second key, multiplied for each block, and added before and after the
block is. A unit is 64 KiB of addresses. No client can see how large a unit is; it is a choice
between the cost of starting a unit, some microseconds in Python, and of reaching a block in
its middle, where all blocks before it are computed too, 64 KiB in some microseconds. So no
code of ours computes in AES's field.

What has several units is computed in memory that is kept: pages that the kernel has to give anew
cost several times what the cipher does. Whoever encrypts much does it half a MiB at a time.
"""

from __future__ import annotations

import threading
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from hcalld.core.secret import Secret
from hcalld.crypto.sev.kdf import KEY_SIZE, kdf

BLOCK_SIZE: Final = 16
"""Of AES; addresses and lengths are multiples of it."""
UNIT_SIZE: Final = 65536
VEK_SIZE: Final = KEY_SIZE

SPARE_SIZE: Final = BLOCK_SIZE - 1
"""What ``encrypt_into`` wants beyond its result."""
_KEPT_SIZE: Final = 1 << 20


class _Kept(threading.local):
    """Memory for results, which are copied out of it."""

    def __init__(self) -> None:
        self.room = bytearray(_KEPT_SIZE + SPARE_SIZE)


_KEPT: Final = _Kept()


def _kept(size: int) -> bytearray:
    return _KEPT.room if size <= _KEPT_SIZE else bytearray(size + SPARE_SIZE)


def _blocks(address: int, data: bytes | memoryview) -> memoryview:
    if address % BLOCK_SIZE or len(data) % BLOCK_SIZE:
        raise ValueError(f"{len(data)} bytes at {address:#x}, expected multiples of {BLOCK_SIZE}")
    return memoryview(data)


class MemoryCipher:
    """The memory of all guests that share a key."""

    def __init__(self, vek: Secret) -> None:
        """With a VM encryption key of 16 bytes, from which both keys of XEX are derived."""
        if len(vek) != VEK_SIZE:
            raise ValueError(f"the VEK has {len(vek)} bytes, expected {VEK_SIZE}")
        # OpenSSL takes the two keys of AES-128-XTS as one; what has 32 bytes is AES-128 then.
        self._aes = AES(kdf(vek.reveal(), "hcalld-memory", b"", 2 * KEY_SIZE))

    def encrypt(self, address: int, data: bytes | memoryview) -> bytes:
        """What is in memory when the guest writes ``data``.

        Args:
            address: where, a multiple of 16.
            data: whole blocks of 16 bytes.

        Raises:
            ValueError: they are not.
        """
        return self._carry_out(address, data, is_encryption=True)

    def encrypt_into(self, address: int, data: bytes | memoryview, room: memoryview) -> memoryview:
        """``encrypt``, and put it somewhere.

        Args:
            address: where, a multiple of 16.
            data: whole blocks of 16 bytes.
            room: takes the result, and has ``SPARE_SIZE`` bytes more.

        Returns:
            The first part of ``room``.

        Raises:
            ValueError: they are not, or it has not.
        """
        if len(room) < len(data) + SPARE_SIZE:
            raise ValueError(
                f"room for {len(room)} bytes, expected {len(data)} and {SPARE_SIZE} more"
            )
        self._put(address, _blocks(address, data), room, is_encryption=True)
        return room[: len(data)]

    def decrypt(self, address: int, data: bytes | memoryview) -> bytes:
        """What the guest reads when ``data`` is in memory; as ``encrypt``."""
        return self._carry_out(address, data, is_encryption=False)

    def _carry_out(self, address: int, data: bytes | memoryview, *, is_encryption: bool) -> bytes:
        view = _blocks(address, data)
        if address % UNIT_SIZE + len(view) <= UNIT_SIZE:
            return self._in_unit(address, view, is_encryption=is_encryption)
        room = memoryview(_kept(len(view)))
        self._put(address, view, room, is_encryption=is_encryption)
        return bytes(room[: len(view)])

    def _put(
        self, address: int, view: memoryview, room: memoryview, *, is_encryption: bool
    ) -> None:
        """Put the result of a range into ``room``, a unit after the other."""
        unit, skipped = divmod(address, UNIT_SIZE)
        first = min(len(view), UNIT_SIZE - skipped)
        room[:first] = self._in_unit(address, view[:first], is_encryption=is_encryption)
        for offset in range(first, len(view), UNIT_SIZE):
            unit += 1
            piece = view[offset : offset + UNIT_SIZE]
            context = self._start(unit, is_encryption=is_encryption)
            context.update_into(piece, room[offset : offset + len(piece) + SPARE_SIZE])

    def _in_unit(self, address: int, view: memoryview, *, is_encryption: bool) -> bytes:
        """The result of a range that lies in one unit."""
        if not view:
            return b""
        unit, skipped = divmod(address, UNIT_SIZE)
        context = self._start(unit, is_encryption=is_encryption)
        if skipped:
            return context.update(bytes(skipped) + view)[skipped:]
        return context.update(view)

    def _start(self, unit: int, *, is_encryption: bool) -> CipherContext:
        cipher = Cipher(self._aes, XTS(unit.to_bytes(BLOCK_SIZE, "little")))
        return cipher.encryptor() if is_encryption else cipher.decryptor()
