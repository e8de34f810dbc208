# SPDX-License-Identifier: Apache-2.0
"""Compare a guest with the digests of its blob.

Source: open-power/ultravisor, ``svm/svm-esmb.c`` (svm_esmb_digest_chk). All four are
evaluated, in its order, so that the log names everything that is wrong. That firmware, as
published, goes on after a failed check; this never does.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from hcalld.core.effects import GuestMemoryError
from hcalld.domain.esm.boot_tree import BootTree, Range, Read
from hcalld.domain.esm.digests import MEASURED, Digests, sha512
from hcalld.domain.esm.errors import MismatchError
from hcalld.domain.esm.locate import CHUNK_SIZE

DIFFERS: Final = "not what the blob was made for"


async def measure(
    read: Read, boot: BootTree, kernel_base: int, initrd: Range, digests: Digests
) -> tuple[Range, ...]:
    """Measure RTAS, kernel, initrd and command line.

    Args:
        read: gives the guest's memory.
        boot: where RTAS is, and the command line.
        kernel_base: where the kernel is.
        initrd: what of the initrd is measured (``Located.initrd``).
        digests: what is expected.

    Returns:
        What of the memory is as the blob says.

    Raises:
        MismatchError: with all that differ, or cannot be read.
    """
    places = {
        "rtas": boot.rtas_text,
        "kernel": Range(kernel_base, digests.kernel_size),
        "initrd": initrd,
    }
    failed: dict[str, str] = {}
    for name in MEASURED:
        place = places.get(name)
        try:
            found = sha512(boot.bootargs) if place is None else await digest_of(read, place)
        except GuestMemoryError as error:
            failed[name] = str(error)
            continue
        if not hmac.compare_digest(found, getattr(digests, name)):
            shown = f"{len(boot.bootargs)} bytes" if place is None else place
            failed[name] = f"{shown} {DIFFERS}"
    if failed:
        raise MismatchError(failed)
    return tuple(places.values())


def compare(found: Digests, expected: Digests) -> None:
    """Compare digests of files on the host with those of a blob.

    Raises:
        MismatchError: with all that differ.
    """
    failed = {name: DIFFERS for name in MEASURED if getattr(found, name) != getattr(expected, name)}
    if found.kernel_size != expected.kernel_size:
        failed["kernel"] = f"has {found.kernel_size} bytes, expected {expected.kernel_size}"
    if failed:
        raise MismatchError(failed)


async def digest_of(read: Read, place: Range) -> bytes:
    """SHA-512 of a range of memory, a part at a time."""
    digest = hashlib.sha512()
    if place.size:  # whatever the size, know that it is memory before much is read
        await read(place.end - 1, 1)
    for position in range(place.start, place.end, CHUNK_SIZE):
        digest.update(await read(position, min(CHUNK_SIZE, place.end - position)))
    return digest.digest()
