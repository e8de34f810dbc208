# SPDX-License-Identifier: Apache-2.0
"""What a guest boots, and what is too large for it."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.esm import kernel_elf

from hcalld.core.errors import ConfigError
from hcalld.guest import boot
from hcalld.guest.cpio import File, archive
from hcalld.guest.kernel import Kernel
from hcalld.guest.plan import Expected, Suite

SUITE = Suite(name="a", about="b", test=(Expected(name="a:b"), Expected(name="c/d:e.sh")))

KERNEL = Kernel(Path("vmlinux"), 12 * boot.MIB, is_zimage=False)


def sized(path: Path, mib: int, content: bytes = b"070701") -> Path:
    with path.open("wb") as file:
        file.write(content)
        file.truncate(mib * boot.MIB)
    return path


def test_script_when_read_by_a_shell_then_it_is_one():
    subprocess.run(["sh", "-n"], input=boot.script(SUITE), check=True)


def names_in(image: bytes, require: Callable[[str], Path]) -> list[str]:
    done = subprocess.run(
        [require("cpio"), "--list", "--quiet"], input=image, capture_output=True, check=True
    )
    return done.stdout.decode().split()


def test_additions_when_made_then_they_have_the_list_and_our_tests_but_not_what_is_expected(
    tmp_path: Path, require: Callable[[str], Path]
):
    for name in ("own/test.sh", "suites/own.toml"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True)
        (tmp_path / "tests" / name).write_text("#!/bin/sh\n")
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(kernel_elf())
    image = boot.additions(SUITE, tmp_path / "tests", kernel, {"/etc/motd": File(b"hello\n")})
    names = names_in(image, require)
    assert {"kselftest/kselftest-list.txt", "kselftest/own/test.sh", "run.sh", "etc/motd"} <= {
        *names
    }
    assert not any("suites" in name or "vmlinux" in name for name in names)
    assert b"a:b\nc/d:e.sh\n" in image
    with_image = Suite(name="a", about="b", boot_image=True)
    assert "boot/vmlinux" in names_in(boot.additions(with_image, None, kernel, {}), require)


def test_must_fit_when_there_is_room_then_nothing_is_said(tmp_path: Path):
    boot.must_fit(KERNEL, sized(tmp_path / "i", 60), 512)


@pytest.mark.parametrize(
    ("mib", "memory", "message"),
    [
        (300, 256, "are loaded below 256 MiB, of which the firmware takes 40"),
        (2030, 8192, "are loaded below 2048 MiB"),
        (200, 500, "which takes about 508 MiB of memory with the kernel; the guest has 500"),
        (600, 1199, "takes about 1308 MiB"),
    ],
)
def test_must_fit_when_there_is_no_room_then_it_is_said_beforehand(
    tmp_path: Path, mib: int, memory: int, message: str
):
    with pytest.raises(ConfigError, match=re.escape(message)):
        boot.must_fit(KERNEL, sized(tmp_path / "i", mib), memory)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_unpacked_size_when_an_archive_is_compressed_then_it_is_that_of_what_is_in_it(
    compress: Callable[[bytes], bytes], tmp_path: Path
):
    image = archive({"/big": bytes(5 * boot.MIB)})
    path = tmp_path / "initrd"
    path.write_bytes(compress(image))
    assert boot.unpacked_size(path) == len(image)
    path.write_bytes(compress(os.urandom(1000))[:-20])
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        boot.unpacked_size(path)


def test_must_fit_when_a_small_archive_unpacks_to_a_large_one_then_it_is_said(tmp_path: Path):
    path = tmp_path / "initrd"
    path.write_bytes(gzip.compress(bytes(400 * boot.MIB)))
    assert path.stat().st_size < boot.MIB
    with pytest.raises(ConfigError, match="400 when it is unpacked"):
        boot.must_fit(KERNEL, path, 512)
