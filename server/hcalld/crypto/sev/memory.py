# SPDX-License-Identifier: Apache-2.0
"""A guest's memory as others see it: encrypted with its key, each address in its own way.

XEX with AES-128 in blocks of 16 bytes, as XTS (IEEE 1619) has it: of a data unit, its number
is encrypted with a second key, multiplied for each block, and added before and after the
block is. A unit is 64 KiB of addresses. No client can see how large a unit is; it is a choice
between the cost of starting a unit, some microseconds in Python, and of reaching a block in
its middle, where all blocks before it are computed too, 64 KiB in some microseconds. So no
code of ours computes in AES's field.

Whoever encrypts much does it some MiB at a time: the memory of one result serves for the next
then, and pages that the kernel has to give anew cost more than the cipher does.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from hcalld.core.secret import Secret
from hcalld.crypto.sev.kdf import KEY_SIZE, kdf

BLOCK_SIZE: Final = 16
UNIT_SIZE: Final = 65536
VEK_SIZE: Final = KEY_SIZE


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

    def decrypt(self, address: int, data: bytes | memoryview) -> bytes:
        """What the guest reads when ``data`` is in memory; as ``encrypt``."""
        return self._carry_out(address, data, is_encryption=False)

    def _carry_out(self, address: int, data: bytes | memoryview, *, is_encryption: bool) -> bytes:
        if address % BLOCK_SIZE or len(data) % BLOCK_SIZE:
            raise ValueError(
                f"{len(data)} bytes at {address:#x}, expected multiples of {BLOCK_SIZE}"
            )
        view = memoryview(data)
        parts: list[bytes] = []
        unit, skipped = divmod(address, UNIT_SIZE)
        offset = 0
        while offset < len(view):
            piece = view[offset : offset + UNIT_SIZE - skipped]
            context = self._start(unit, is_encryption=is_encryption)
            if skipped:
                parts.append(context.update(bytes(skipped) + piece)[skipped:])
            else:
                parts.append(context.update(piece))
            offset += len(piece)
            unit, skipped = unit + 1, 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _start(self, unit: int, *, is_encryption: bool) -> CipherContext:
        cipher = Cipher(self._aes, XTS(unit.to_bytes(BLOCK_SIZE, "little")))
        return cipher.encryptor() if is_encryption else cipher.decryptor()
