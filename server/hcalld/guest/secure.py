# SPDX-License-Identifier: Apache-2.0
"""What a guest needs to become a secure VM: a key in its TPM, and a blob for what it boots."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hcalld.guest.processes import hcalld

FILE: Final = "selftest"
FILE_CONTENT: Final = b"only the secure guest may read this\n"
"""What the blob carries for the guest."""

_PROFILE: Final = """\
[tpm]
backend = "swtpm"

[pef]
enabled = true
page_shift = {}
"""

USUAL_PAGE_SHIFT: Final = 12
"""Of a kernel that does not say how large its pages are; our own has 4 KiB."""


def profile_for(page_shift: int | None) -> str:
    """The profile of a partition whose guest may become secure.

    Args:
        page_shift: Of its kernel's pages; None: not known.
    """
    return _PROFILE.format(page_shift or USUAL_PAGE_SHIFT)


async def prepared(folder: Path, partition: str, kernel: Path, initrd: Path, cmdline: str) -> Path:
    """Makes a blob for a boot; gives the initrd with the blob before it.

    Raises:
        GuestError: A command of ours failed.
    """
    machine, owner = folder / "machine.pem", folder / "owner.pem"
    await hcalld(
        *("esm", "provision-tpm", "--state-dir", folder / "state"),
        *("--partition", partition, "--pubkey", machine),
    )
    # Nobody is authorized later: the private key is not kept.
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    owner.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    attached = folder / FILE
    attached.write_bytes(FILE_CONTENT)
    blob, whole = folder / "blob", folder / "initrd.esm"
    await hcalld(
        *("esm", "make", "--kernel", kernel, "--initrd", initrd, "--cmdline", cmdline),
        *("--owner", owner, "--recipient", machine, "--attach", f"{FILE}={attached}", "-o", blob),
    )
    await hcalld("esm", "add", blob, initrd, "-o", whole)
    return whole
