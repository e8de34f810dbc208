# SPDX-License-Identifier: Apache-2.0
"""The kernel that a guest boots: what file is one, and how much memory it takes.

QEMU's pseries machine loads an ELF file for PowerPC (hw/ppc/spapr.c): the ``vmlinux`` at the top
of a built tree, or the zImage that ``arch/powerpc/boot`` makes of it. Most other files it would
load too, and the guest would then say nothing for ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hcalld.core import elf
from hcalld.core.errors import ConfigError

EXPECTED: Final = (
    "expected the file vmlinux at the top of a built kernel tree (ARCH=powerpc, little-endian, "
    "with CONFIG_PPC_PSERIES), or arch/powerpc/boot/zImage.pseries there"
)

UNPACKED_FACTOR: Final = 4
"""How much larger than itself what a zImage unpacks is assumed to be."""

_ZIMAGE: Final = b".kernel:vmlinux.strip\0"
"""The section that arch/powerpc/boot/wrapper puts the kernel in, in the table of names."""

_CONFIG: Final = b"IKCFG_ST"
"""What kernel/configs.c puts before the configuration, which gzip has packed."""

MAX_CONFIG: Final = 1 << 20
_PAGE_SHIFTS: Final = {b"CONFIG_PPC_4K_PAGES=y": 12, b"CONFIG_PPC_64K_PAGES=y": 16}

_TO_OTHER: Final = "which was built for another machine"
_SIGNS: Final = (
    (0, b"\x1f\x8b", "is compressed by gzip; unpack it with gunzip"),
    (0, b"\xfd7zXZ\0", "is compressed by xz; unpack it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it with unzstd"),
    (0, b"\x27\x05\x19\x56", "is a uImage of U-Boot"),
    (0x202, b"HdrS", f"is a bzImage, {_TO_OTHER} (x86)"),
    (0x38, b"ARM\x64", f"is an Image, {_TO_OTHER} (arm64)"),
)
"""Where a file has which sign, and what that says."""

_MACHINES: Final = {3: "x86", 22: "s390", 40: "arm", 62: "x86", 183: "arm64", 243: "riscv"}


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """What is known of a kernel's file."""

    path: Path
    memory_bytes: int
    """What it takes when it is loaded; a file with what debuggers read is larger by far."""
    is_zimage: bool
    page_shift: int | None = None
    """Of its pages, if it has its configuration in it (CONFIG_IKCONFIG)."""


def looked_at(path: Path) -> Kernel:
    """Looks whether a file is a kernel that the machine can boot.

    Raises:
        ConfigError: It is not.
    """
    with _mapped(path) as data:
        try:
            header = elf.header_of(data)
            segments = elf.segments_of(data, header)
        except elf.ElfError as error:
            raise _no_kernel(path, _what_it_is(data) or f"is damaged: {error}") from None
        is_zimage = data.find(_ZIMAGE) >= 0
        page_shift = _page_shift(data)
        if header.machine != elf.EM_PPC64:
            name = _MACHINES.get(header.machine, f"ELF machine {header.machine}")
            raise _no_kernel(path, f"is {_TO_OTHER.removeprefix('which was ')} ({name})")
        if header.kind not in (elf.ET_EXEC, elf.ET_DYN) or not segments:
            raise _no_kernel(path, "is not linked: an object file or a module")
        if header.order == ">":
            raise _no_kernel(
                path,
                "is a big-endian kernel, and the programs of the initramfs are little-endian; set "
                "CONFIG_CPU_LITTLE_ENDIAN=y",
            )
    start = min(segment.paddr for segment in segments)
    size = max(segment.paddr + segment.memory_size for segment in segments) - start
    packed = sum(segment.file_size for segment in segments)
    size += UNPACKED_FACTOR * packed if is_zimage else 0
    return Kernel(path, size, is_zimage, page_shift)


def program_of(path: Path) -> bytes:
    """Gives a kernel without what is not loaded: the guest starts it by kexec.

    Raises:
        ConfigError: It is none.
    """
    with _mapped(path) as data:
        try:
            return elf.without_sections(data, elf.header_of(data))
        except elf.ElfError as error:
            raise _no_kernel(path, f"is damaged: {error}") from None


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file's content, not read before it is looked at: a kernel with symbols is large."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except ValueError:
        raise _no_kernel(path, "is empty") from None
    except OSError as error:
        raise ConfigError(f"the kernel {path} cannot be read: {error.strerror}") from None


def _page_shift(data: mmap.mmap) -> int | None:
    """Looks for it in the configuration that a kernel may have in itself."""
    start = data.find(_CONFIG)
    if start < 0:
        return None
    start += len(_CONFIG)
    try:
        unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        config = unpacking.decompress(data[start : start + MAX_CONFIG], MAX_CONFIG)
    except zlib.error:
        return None
    lines = config.splitlines()
    return next((shift for line, shift in _PAGE_SHIFTS.items() if line in lines), None)


def _what_it_is(data: mmap.mmap) -> str | None:
    for place, sign, what in _SIGNS:
        if data[place : place + len(sign)] == sign:
            return what
    if data[:4] == elf.MAGIC and data[4] == 1:
        return "is a 32-bit program"
    return None if data[:4] == elf.MAGIC else "is no ELF file"


def _no_kernel(path: Path, what: str) -> ConfigError:
    return ConfigError(f"the kernel {path} {what}; {EXPECTED}")
