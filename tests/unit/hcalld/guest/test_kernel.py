# SPDX-License-Identifier: Apache-2.0
"""What file is a kernel that a guest can boot, and what is said of others."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
from pathlib import Path

import pytest
from tests.esm import Section, elf

from hcalld.core.errors import ConfigError
from hcalld.guest import kernel

VMLINUX = elf([Section(0, b"abc"), Section(0x1000, b"", bss=0x2000)])


def altered(offset: int, layout: str, value: int) -> bytes:
    data = bytearray(VMLINUX)
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


def test_kernel_when_it_has_symbols_then_they_take_no_memory(tmp_path: Path):
    path = tmp_path / "vmlinux"
    path.write_bytes(VMLINUX + bytes(1 << 20))
    seen = kernel.looked_at(path)
    assert seen == kernel.Kernel(path, seen.memory_bytes, is_zimage=False, page_shift=None)
    assert 0x3000 <= seen.memory_bytes < 1 << 20
    program = kernel.program_of(path)
    assert len(program) < len(VMLINUX)
    assert b"abc" in program
    path.write_bytes(program)
    assert kernel.looked_at(path) == seen


def test_zimage_when_it_is_unpacked_then_that_takes_memory_too(tmp_path: Path):
    path = tmp_path / "zImage"
    path.write_bytes(VMLINUX)
    bare = kernel.looked_at(path).memory_bytes
    path.write_bytes(VMLINUX + b"\0.kernel:vmlinux.strip\0")
    seen = kernel.looked_at(path)
    assert seen.is_zimage
    assert seen.memory_bytes > bare


@pytest.mark.parametrize(
    ("config", "shift"),
    [
        (gzip.compress(b"CONFIG_A=y\nCONFIG_PPC_4K_PAGES=y\n"), 12),
        (gzip.compress(b"# CONFIG_PPC_4K_PAGES is not set\nCONFIG_PPC_64K_PAGES=y\n"), 16),
        (gzip.compress(b"CONFIG_A=y\n"), None),
        (gzip.compress(bytes(2 * kernel.MAX_CONFIG) + b"\nCONFIG_PPC_64K_PAGES=y\n"), None),
        (b"no archive", None),
    ],
    # Workers are to give the tests the same names: an archive has the time in it.
    ids=["4k", "64k", "unsaid", "huge", "none"],
)
def test_kernel_when_it_has_its_configuration_then_its_pages_are_known(
    config: bytes, shift: int | None, tmp_path: Path
):
    path = tmp_path / "vmlinux"
    path.write_bytes(VMLINUX + b"IKCFG_ST" + config + b"IKCFG_ED")
    assert kernel.looked_at(path).page_shift == shift
    path.write_bytes(VMLINUX)
    assert kernel.looked_at(path).page_shift is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"text", "is no ELF file"),
        (gzip.compress(VMLINUX, mtime=0), "is compressed by gzip; unpack it with gunzip"),
        (lzma.compress(VMLINUX), "is compressed by xz; unpack it with unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "is compressed by zstd"),
        (bytes(0x202) + b"HdrS" + bytes(100), "is a bzImage, which was built for another machine"),
        (bytes(0x38) + b"ARM\x64" + bytes(100), "is an Image, which was built for another"),
        (b"\x27\x05\x19\x56" + bytes(100), "is a uImage"),
        (altered(4, "B", 1), "is a 32-bit program"),
        (altered(18, "<H", 62), "is built for another machine (x86)"),
        (altered(18, "<H", 999), "is built for another machine (ELF machine 999)"),
        (altered(16, "<H", 1), "is not linked: an object file or a module"),
        (altered(56, "<H", 0), "is not linked"),
        (altered(32, "<Q", 1 << 60), "is damaged: its ELF headers are malformed"),
        (elf([Section(0, b"abc")], ">"), "is a big-endian kernel"),
    ],
)
def test_file_when_it_is_no_kernel_then_it_is_said_what_it_is_and_what_is_expected(
    content: bytes, message: str, tmp_path: Path
):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        kernel.looked_at(path)
    assert "expected the file vmlinux at the top of a built kernel tree" in str(error.value)


def test_file_when_it_is_cut_off_then_it_cannot_be_started_by_kexec(tmp_path: Path):
    path = tmp_path / "vmlinux"
    path.write_bytes(VMLINUX[:100] + bytes(40))
    with pytest.raises(ConfigError, match="is damaged"):
        kernel.program_of(path)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        kernel.looked_at(path)
