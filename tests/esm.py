# SPDX-License-Identifier: Apache-2.0
"""What tests of ESM blobs have in common: a small kernel, keys, a guest in memory."""

from __future__ import annotations

import dataclasses
import functools
import random
import struct

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hcalld.core.effects import GuestMemoryError
from hcalld.crypto.lockbox import public_key_pem
from hcallproto.payloads import fdt
from hcallproto.payloads.fdt import Fdt

CMDLINE = "console=hvc0 svm=1 swiotlb=force"
INITRD = b"070701" + bytes(range(256)) * 21

_SHT_PROGBITS, _SHT_NOBITS = 1, 8
_ALLOC = 2


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of a kernel that ``elf`` makes, at an address from 0 on."""

    address: int
    data: bytes
    is_loaded: bool = True
    bss: int = 0
    """A section without content, so long."""


BASE = 0xC000000000000000


def elf(sections: list[Section], endian: str = "<", base: int = BASE) -> bytes:
    """An ELF executable for 64-bit PowerPC, one segment from the first section on."""
    align = 0x1000
    end = max((s.address + len(s.data) for s in sections if not s.bss and s.is_loaded), default=0)
    memory = max((s.address + len(s.data) + s.bss for s in sections if s.is_loaded), default=0)
    low = min((s.address for s in sections if s.is_loaded and not s.bss), default=0)
    body = bytearray(align + end)
    names = b"\0.s\0.shstrtab\0"
    tail = bytearray()
    rows = [struct.pack(endian + "IIQQQQIIQQ", *[0] * 10)]
    for section in sections:
        if section.is_loaded:
            offset = align + section.address
            body[offset : offset + len(section.data)] = section.data
        else:
            offset = len(body) + len(tail)
            tail += section.data
        kind = _SHT_NOBITS if section.bss else _SHT_PROGBITS
        flags = _ALLOC if section.is_loaded else 0
        address = base + section.address if section.is_loaded else 0
        size = section.bss or len(section.data)
        row = (1, kind, flags, address, offset, size, 0, 0, 1, 0)
        rows.append(struct.pack(endian + "IIQQQQIIQQ", *row))
    strings = len(body) + len(tail)
    rows.append(struct.pack(endian + "IIQQQQIIQQ", 4, 3, 0, 0, strings, len(names), 0, 0, 1, 0))
    content = bytes(body) + bytes(tail) + names
    content += bytes(-len(content) % 8)
    ident = b"\x7fELF" + bytes([2, 1 if endian == "<" else 2, 1]) + bytes(9)
    header = (2, 21, 1, base, 64, len(content), 2, 64, 56, 1, 64, len(rows), len(rows) - 1)
    segment = (1, 7, align + low, base + low, low, end - low, memory - low, align)
    head = ident + struct.pack(endian + "HHIQQQIHHHHHH", *header)
    head += struct.pack(endian + "IIQQQQQQ", *segment)
    return head + content[len(head) :] + b"".join(rows)


@functools.cache
def kernel_elf() -> bytes:
    """A kernel that no machine could run: two sections with a gap, and .bss."""
    data = random.Random(5).randbytes(0x3000)
    return elf(
        [
            Section(0, data[:0x1234]),
            Section(0x2000, data[:0x321]),
            Section(0x3000, b"", bss=0x800),
            Section(0, b"comment", is_loaded=False),
        ]
    )


def private_key(number: int, bits: int = 2048) -> rsa.RSAPrivateKey:
    """A private key; the same number gives the same key within a run."""
    return _private_key(number, bits)


@functools.cache
def _private_key(_number: int, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def public_pem(number: int, bits: int = 2048) -> bytes:
    return public_key_pem(private_key(number, bits).public_key())


def private_pem(number: int) -> bytes:
    return private_key(number).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


# -- a guest ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Memory:
    """A guest's memory: what was put there; anything else is no memory."""

    size: int = 0x400000
    data: bytearray = dataclasses.field(default_factory=bytearray)
    reads: int = 0
    largest: int = 0

    def __post_init__(self) -> None:
        self.data = bytearray(self.size)

    def put(self, address: int, data: bytes) -> None:
        self.data[address : address + len(data)] = data

    async def read(self, gpa: int, size: int) -> bytes:
        self.reads += 1
        self.largest = max(self.largest, size)
        if size < 1 or gpa + size > self.size:
            raise GuestMemoryError(gpa, size, "not in guest RAM")
        return bytes(self.data[gpa : gpa + size])


RTAS_BASE, RTAS_SIZE = 0x1F0000, 0x1000
KERNEL_BASE = 0x10000
INITRD_BASE = 0x200000


def boot_tree(initrd_size: int, cmdline: str = CMDLINE) -> Fdt:
    """A device tree as SLOF leaves it, as far as it matters."""
    tree = Fdt()
    rtas = tree.root.add("rtas")
    rtas.properties |= {
        "linux,rtas-base": fdt.cell(RTAS_BASE),
        "rtas-size": fdt.cell(RTAS_SIZE),
        "slof,rtas-size": fdt.cell(20),
    }
    chosen = tree.root.add("chosen")
    chosen.properties |= {
        "bootargs": fdt.string(cmdline),
        "linux,initrd-start": INITRD_BASE.to_bytes(8, "big"),
        "linux,initrd-end": (INITRD_BASE + initrd_size).to_bytes(8, "big"),
    }
    return tree
