# SPDX-License-Identifier: Apache-2.0
"""What a guest must be: the digests in the encrypted half of a blob.

Source: open-power/svm-tools, ``svm_tool/esm_digest/esm_digest.py``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

from hcalld.core.secret import Secret
from hcalld.crypto.lockbox import LockboxError, decrypt
from hcalld.domain.esm.blob import MAX_SIZE, Blob, Sealed
from hcalld.domain.esm.errors import BlobError, EsmError
from hcallproto.payloads import fdt
from hcallproto.payloads.fdt import Fdt, FdtError

ALGORITHM: Final = "SHA512"
COMPATIBLE: Final = "ibm,esm"
DIGEST_SIZE: Final = 64

RTAS_TEXT: Final = bytes.fromhex("7c641b783c6000006063f000440000224e800020")
"""RTAS of a pseries machine, which SLOF and VOF install: mr r4,r3; lis r3,0; ori
r3,r3,0xf000 (KVMPPC_H_RTAS); sc 1; blr."""

MEASURED: Final = ("rtas", "kernel", "initrd", "bootargs")
"""What is measured, in the firmware's order (``svm/svm-esmb.c``)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Digests:
    """SHA-512 of each thing that is measured."""

    rtas: bytes
    kernel: bytes
    kernel_size: int
    """Bytes of the kernel that are measured, and kept."""
    initrd: bytes
    bootargs: bytes

    def build(self) -> bytes:
        """The tree that is encrypted."""
        tree = Fdt()
        tree.root.properties["compatible"] = fdt.string(COMPATIBLE)
        tree.root.add(
            "digests",
            {
                "algorithm": fdt.string(ALGORITHM),
                "rtas": self.rtas,
                "kernel": self.kernel,
                "kernel-size": fdt.cell(self.kernel_size),
                "initrd": self.initrd,
                "bootargs": self.bootargs,
            },
        )
        return tree.build()


def digests_of(kernel: bytes, initrd: bytes, bootargs: str, rtas: bytes = RTAS_TEXT) -> Digests:
    """The digests of a guest.

    Args:
        kernel: its flat image, see ``flat_kernel``.
        initrd: its initrd, without a blob before it.
        bootargs: its command line, to the letter.
        rtas: its RTAS.
    """
    return Digests(
        sha512(rtas), sha512(kernel), len(kernel), sha512(initrd), sha512(bootargs.encode())
    )


def sha512(data: bytes) -> bytes:
    """The digest that is used everywhere here."""
    return hashlib.sha512(data).digest()


def parse(data: bytes) -> Digests:
    """Read the decrypted tree.

    Raises:
        BlobError: it is malformed.
    """
    try:
        node = fdt.parse(data, MAX_SIZE).node("/digests")
        algorithm = node.text("algorithm")
        if algorithm != ALGORITHM:
            raise BlobError(f"digests of algorithm {algorithm!r}, expected {ALGORITHM}")
        rtas, kernel, initrd, bootargs = (node.sized(name, DIGEST_SIZE) for name in MEASURED)
        return Digests(rtas, kernel, node.u32("kernel-size"), initrd, bootargs)
    except FdtError as error:
        raise BlobError(f"digests: {error}") from None


def open_digests(blob: Blob, key: Secret) -> Digests:
    """Decrypt a blob's digests.

    Raises:
        BlobError: there are none, or they were altered.
    """
    if blob.digests is None:
        raise BlobError("ESM blob: it has no digests; it was not finished")
    return parse(_open(blob.digests, key, "digests"))


def open_file(blob: Blob, name: str, key: Secret) -> bytes:
    """Decrypt one of a blob's files.

    Raises:
        EsmError: there is none of this name.
        BlobError: it was altered.
    """
    sealed = blob.files.get(name)
    if sealed is None:
        raise EsmError(f"the blob has no file {name!r}")
    return _open(sealed, key, f"file {name}")


def _open(sealed: Sealed, key: Secret, what: str) -> bytes:
    try:
        return decrypt(key, sealed.iv, sealed.mac, sealed.ciphertext)
    except LockboxError as error:
        raise BlobError(f"{what}: {error}") from None
