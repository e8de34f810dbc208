# SPDX-License-Identifier: Apache-2.0
"""What the guest kernels and the initramfs are made from."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from tests.provision import initramfs, kernels
from tests.provision.errors import ProvisionError
from tests.provision.fetch import Fetched

from hcalld.guest.cpio import ArchiveError, archive

FRAGMENT = kernels.FRAGMENT.read_text()


def test_lost_options_when_all_survive_then_none_is_named():
    config = "CONFIG_A=y\nCONFIG_N=8\n# CONFIG_C is not set\n"
    assert kernels.lost_options("CONFIG_A=y\nCONFIG_B=n\nCONFIG_N=8\n", config) == []


@pytest.mark.parametrize("config", ["", "# CONFIG_A is not set\n", "CONFIG_A=m\n", "CONFIG_AB=y\n"])
def test_lost_options_when_one_is_lost_or_weakened_then_it_is_named(config: str):
    assert kernels.lost_options("CONFIG_A=y\n", config) == ["CONFIG_A"]


def test_fragment_when_read_then_no_option_is_given_twice():
    names = [line.partition("=")[0] for line in FRAGMENT.splitlines() if line.startswith("CONFIG")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "option", ["PSERIES_PLPKS", "PPC_SECURE_BOOT", "PPC_SVM", "TRUSTED_KEYS_PKWM", "RELOCATABLE"]
)
def test_fragment_when_read_then_what_debians_kernel_lacks_is_there(option: str):
    assert f"CONFIG_{option}=y" in FRAGMENT.splitlines()


def test_fragment_64k_when_made_then_pages_are_larger_and_only_what_was_named_is_left_out():
    smaller = kernels.fragment_64k(FRAGMENT).splitlines()
    lost = set(FRAGMENT.splitlines()) - set(smaller)
    new = {line for lines in kernels.CHANGED_64K.values() for line in lines}
    assert set(smaller) - set(FRAGMENT.splitlines()) == new
    names = {line.partition("=")[0].removeprefix("CONFIG_") for line in lost}
    assert names == {"PPC_4K_PAGES", "NR_CPUS", "MODULES", *kernels.LEFT_OUT_64K}
    assert {"CONFIG_PPC_SVM=y", "CONFIG_PPC_SECVAR_SYSFS=y", "CONFIG_KEXEC_FILE=y"} <= set(smaller)


def test_init_when_read_by_a_shell_then_it_is_a_script():
    subprocess.run(["sh", "-n", initramfs.INIT], check=True)
    assert initramfs.INIT.read_text().startswith("#!/bin/busybox sh\n")


def test_contents_when_made_then_the_kernel_finds_its_console_and_first_process():
    nodes = initramfs.contents(b"\x7fELF", b"#!/bin/busybox sh\n")
    assert nodes["/dev/console"] == initramfs.CharacterDevice(5, 1)
    assert nodes["/init"] == initramfs.File(b"#!/bin/busybox sh\n", 0o755)
    assert b"\x7fELF" in archive(nodes)


def test_overlay_when_path_is_no_path_then_it_is_refused():
    with pytest.raises(ArchiveError, match="no path of a file"):
        initramfs.overlay({"/../run.sh": b""})


def test_placed_when_a_file_has_two_names_then_it_is_there_once(tmp_path: Path):
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/tool").write_bytes(b"tool")
    package = Fetched(tmp_path / "tool.deb", "tool", "1", "", is_pinned=True)
    files = {"/bin/a": "usr/tool", "/bin/b": "usr/tool"}
    made = initramfs.placed(package, files, tmp_path)
    assert made == {"/bin/a": initramfs.File(b"tool"), "/bin/b": initramfs.Symlink("/bin/a")}
    with pytest.raises(ProvisionError, match="has no file usr/gone"):
        initramfs.placed(package, {"/bin/c": "usr/gone"}, tmp_path)


def test_tpm2_tools_when_listed_then_no_path_is_given_twice():
    paths = [path for files in initramfs.TPM2_TOOLS.values() for path in files]
    paths += [path for files in initramfs.TOOLS.values() for path in files]
    assert len(paths) == len(set(paths))
    assert {"/bin/tpm2_getrandom", "/lib/libtss2-tcti-device.so.0"} <= set(paths)


def test_tools_when_listed_then_each_package_gives_what_the_guest_looks_for():
    paths = [path for files in initramfs.TOOLS.values() for path in files]
    assert len(paths) == len(set(paths))
    assert {"/bin/keyctl", "/bin/kexec", "/lib64/ld64.so.2"} <= set(paths)
    assert all(pin.sha256 for pin in initramfs.TOOLS)


ELF = b"\x7fELF and so on " * 100


def bzimage(payload: bytes, magic: bytes = b"HdrS") -> bytes:
    """The parts of a bzImage that say where its payload is."""
    offset = 64
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x202:0x206] = magic
    struct.pack_into("<II", setup, 0x248, offset, len(payload) + 4)
    return bytes(setup) + bytes(offset) + payload + struct.pack("<I", len(ELF)) + b"what follows"


def test_decompress_when_the_kernel_is_debians_then_its_elf_file_is_given():
    packed = subprocess.run(["zstd", "-c"], input=ELF, capture_output=True, check=True).stdout
    assert kernels.decompress(bzimage(packed)) == ELF


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (bzimage(b"", magic=b"none"), "no bzImage"),
        (bzimage(b"\x02\x21\x4c\x18 LZ4"), "begins with 02214c18; expected 28b52ffd"),
        (bzimage(kernels.ZSTD + b"no more"), "zstd did not give an ELF file"),
    ],
)
def test_decompress_when_the_kernel_is_another_then_it_says_what_it_is(image: bytes, says: str):
    with pytest.raises(ProvisionError, match=says):
        kernels.decompress(image)
