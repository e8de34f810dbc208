# SPDX-License-Identifier: Apache-2.0
"""Guests that become secure by blobs which hcalld has not made.

By svm-tool, of a guest that is kept with it; by its steps with other programs (objcopy,
sha512sum, dtc, OpenSSL, cpio), of Linux; and where Linux' own boot wrapper puts a blob.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.e2e.lab import PARTITION
from tests.e2e.secure import PROFILE, SVM, SecureLab, must
from tests.e2e.tpm import listening_swtpm
from tests.provision.kernels import CROSS_COMPILE, WRAPPER

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

BOOTED: Final = Path(__file__).parents[1] / "vectors" / "esm" / "booted"
CMDLINE: Final = "console=hvc0 svm=1 swiotlb=force"

Require = Callable[[str], Path]


def run(*words: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    done = subprocess.run(words, input=stdin, capture_output=True, check=False, cwd=cwd)
    assert done.returncode == 0, f"{words}: {done.stderr.decode()}"
    return done.stdout


# -- svm-tool --------------------------------------------------------------------------------------


@pytest.mark.qemu
@pytest.mark.parametrize("firmware", ["vof", pytest.param("slof", marks=pytest.mark.soak)])
def test_a_guest_becomes_secure_by_a_blob_of_svm_tool(firmware: str, lab: Lab) -> None:
    state = lab.artifacts / "tpm"
    state.mkdir()
    shutil.copy(BOOTED / "tpm2-00.permall", state)
    with listening_swtpm(lab.require("swtpm"), state, lab.socket_dir) as path:
        profiles = lab.artifacts / "profiles"
        profiles.mkdir()
        text = PROFILE.replace('"swtpm"', f'"socket"\npath = "{path}"')
        (profiles / "default.toml").write_text(f"{text}page_shift = 12\n", "utf-8")
        daemon = lab.daemon("--profile-dir", str(profiles), is_started=False)
        pubkey = lab.artifacts / "machine.pem"
        words = ("--state-dir", daemon.state_dir, "-p", PARTITION, "--pubkey", pubkey)
        told = must("esm", "provision-tpm", *words, "--tpm", f"unix:{path}")
        # The key that the blob was made for is there, and stays.
        assert "has a new password" in told
        assert pubkey.read_bytes() == (BOOTED / "machine.pem").read_bytes()
        daemon.start()
        machine = lab.linux_of(
            BOOTED / "guest",
            BOOTED / "svm-tool.initrd",
            "secure_memory secure_files esm=1 require=1",
            daemon,
            firmware=firmware,
            smp=2,
            memory_mib=256,
            failures=("Bail out!",),
        )
        machine.report().must_pass("secure_memory", "secure_files")
        daemon.close()
    assert "guest enters secure mode" in daemon.log_text()


# -- its steps, by other programs ------------------------------------------------------------------


class OtherHands:
    """Blobs for Linux in svm-tool's format, without a line of hcalld's.

    Source: open-power/svm-tools, ``docs/svm-tool-notes.rst``.
    """

    def __init__(self, require: Require, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.objcopy = require(f"{CROSS_COMPILE}objcopy")
        self.sha512sum = require("sha512sum")
        self.sha256sum = require("sha256sum")
        self.dtc = require("dtc")
        self.openssl = require("openssl")
        self.cpio = require("cpio")
        self.key = os.urandom(32)

    def sha512(self, data: bytes) -> bytes:
        return bytes.fromhex(run(self.sha512sum, stdin=data).split()[0].decode())

    def tree(self, source: str) -> bytes:
        return run(self.dtc, "-qq", "-I", "dts", "-O", "dtb", "-", stdin=source.encode())

    def encrypted(self, name: str, data: bytes) -> str:
        """A node with data that the symmetric key opens; its nonce has 16 bytes."""
        nonce = os.urandom(16)
        sealed = AESGCM(self.key).encrypt(nonce, data, None)
        return (
            f'{name} {{ algorithm = "AES256-GCM"; iv = {octets(nonce)}; '
            f"mac = {octets(sealed[-16:])}; ciphertext = {octets(sealed[:-16])}; "
            'untrusted-comment = "by other hands"; };'
        )

    def lockbox(self, name: str, public: Path) -> str:
        """A node with the symmetric key for whoever has a private key."""
        options = ("rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256")
        words: list[str | Path] = [self.openssl, "pkeyutl", "-encrypt", "-pubin", "-inkey", public]
        words += [word for option in options for word in ("-pkeyopt", option)]
        sealed = run(*words, stdin=self.key)
        digest = bytes.fromhex(run(self.sha256sum, public).split()[0].decode())
        return (
            f'{name} {{ untrusted-comment = "by other hands"; encrypted-symkey = {octets(sealed)}; '
            f'pubkey-fingerprint {{ algorithm = "SHA256"; hash = {octets(digest)}; }}; }};'
        )

    def digests(self, vmlinux: Path, initrd: bytes) -> bytes:
        flat = self.folder / "flat"
        run(self.objcopy, "-O", "binary", "-S", vmlinux, flat)
        # mr r4,r3; lis r3,0; ori r3,r3,0xf000; sc 1; blr: all that RTAS is here.
        rtas = bytes.fromhex("7c641b78 3c600000 6063f000 44000022 4e800020")
        return self.tree(
            '/dts-v1/; / { compatible = "ibm,esm"; digests { algorithm = "SHA512"; '
            f"rtas = {octets(self.sha512(rtas))}; "
            f"kernel = {octets(self.sha512(flat.read_bytes()))}; "
            f"kernel-size = <{flat.stat().st_size}>; "
            f"initrd = {octets(self.sha512(initrd))}; "
            f"bootargs = {octets(self.sha512(CMDLINE.encode()))}; }}; }};"
        )

    def blob(self, vmlinux: Path, initrd: bytes, machine: Path, files: Mapping[str, bytes]) -> Path:
        """A blob for a machine, and for an owner that is the same."""
        nodes = "".join(self.encrypted(name, data) for name, data in files.items())
        nested = self.tree(f'/dts-v1/; / {{ compatible = "ibm,esm-file"; files {{ {nodes} }}; }};')
        path = self.folder / "blob"
        path.write_bytes(
            self.tree(
                '/dts-v1/; / { compatible = "ibm,esm"; '
                f"lockboxes {{ {self.lockbox('origin-lockbox', machine)} "
                f"{self.lockbox('lockbox-1', machine)} }}; "
                f"digest {{ {self.encrypted('digests-fdt', self.digests(vmlinux, initrd))} }}; "
                f"file {{ files-fdt = {octets(nested)}; }}; }};"
            )
        )
        return path

    def archive(self, blob: Path) -> bytes:
        """What lies before the initrd."""
        place = self.folder / "root" / "opt" / "ibm" / "pef"
        place.mkdir(parents=True)
        shutil.copy(blob, place / "esmb.bin")
        root = self.folder / "root"
        names = run("find", ".", "-print0", cwd=root)
        words = ("--null", "--create", "--quiet", "--format=newc")
        return run(self.cpio, *words, stdin=names, cwd=root)


def octets(data: bytes) -> str:
    return f"[{data.hex()}]"


SECRET: Final = b"a file by other hands\n" * 7
SCRIPT: Final = f"""\
echo "svm $(cat {SVM})"
echo "file $(esmb-get-file rootd | sha256sum)"
"""


def check(secure: SecureLab, text: str) -> None:
    assert "svm 1" in text
    assert f"file {hashlib.sha256(SECRET).hexdigest()}" in text
    assert "EXIT: STATUS=0" in text
    assert "guest enters secure mode" in secure.daemon.log_text()


def initrd_of(secure: SecureLab) -> Path:
    program = (secure.lab.require("stub") / "esmb-get-file").read_bytes()
    return secure.initrd(SCRIPT, files={"/bin/esmb-get-file": program}, userland="initramfs")


@pytest.mark.kernel
def test_linux_becomes_secure_by_a_blob_of_other_programs(lab: Lab) -> None:
    secure = SecureLab(lab)
    others = OtherHands(lab.require, lab.artifacts / "others")
    vmlinux = lab.require("kernel-own")
    plain = initrd_of(secure)
    blob = others.blob(vmlinux, plain.read_bytes(), secure.pubkey, {"rootd": SECRET})
    whole = lab.artifacts / "initrd.whole"
    whole.write_bytes(others.archive(blob) + plain.read_bytes())
    machine = secure.start(vmlinux, whole, CMDLINE, smp=1)
    check(secure, machine.console.expect_end(180))


# -- where Linux' boot wrapper puts it -------------------------------------------------------------


@pytest.mark.kernel
def test_linux_becomes_secure_by_a_blob_in_its_zimage(lab: Lab) -> None:
    secure = SecureLab(lab, "page_shift = 16\n")
    others = OtherHands(lab.require, lab.artifacts / "others")
    vmlinux = lab.require("kernel-own-64k")
    plain = initrd_of(secure)
    blob = others.blob(vmlinux, plain.read_bytes(), secure.pubkey, {"rootd": SECRET})
    zimage = lab.artifacts / "zImage"
    boot = vmlinux.with_name(WRAPPER)
    assert boot.is_dir(), f"{boot} is not there; expected what `make guest` keeps of the kernel"
    words = ["sh", str(boot / "wrapper"), "-p", "pseries", "-o", str(zimage), "-D", str(boot)]
    words += ["-C", CROSS_COMPILE, "-W", str(lab.artifacts), "-e", str(blob), str(vmlinux)]
    done = subprocess.run(
        words,
        env={**os.environ, "srctree": str(boot), "CONFIG_SHELL": "sh"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    # The whole initrd is measured: there is nothing before it.
    # QEMU's VOF lets nobody set linux,esm-blob-start.
    machine = secure.start(zimage, plain, CMDLINE, smp=2, firmware="slof")
    check(secure, machine.console.expect_end(240))
