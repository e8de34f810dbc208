# SPDX-License-Identifier: Apache-2.0
"""Whether a guest is what its blob says, in one coroutine: ``hcalld.domain.esm`` put together.

Source: open-power/ultravisor ``svm/svm-esm.c``, steps 5 to 10 of what it does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from hcalld.core.effects import GuestMemoryError
from hcalld.core.secret import Secret
from hcalld.domain.esm import blob as esm_blob
from hcalld.domain.esm.blob import Blob
from hcalld.domain.esm.boot_tree import Range, Read, read_boot_tree
from hcalld.domain.esm.digests import open_digests, open_file
from hcalld.domain.esm.errors import EsmError, MismatchError
from hcalld.domain.esm.locate import locate
from hcalld.domain.esm.measure import measure
from hcalld.domain.ultravisor.files import MAX_NAME_SIZE
from hcallproto.abi.families import uv
from hcallproto.payloads import fdt

Key = Callable[[Blob], Awaitable[Secret]]
"""Gives a blob's key, or raises KeyUnavailableError."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """What became of a guest's verification."""

    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What is not as the blob says, and why; empty: all is."""
    files: Mapping[bytes, Secret | None] = dataclasses.field(default_factory=dict)
    """The blob's files by name; None for one that cannot be decrypted."""
    measured: tuple[Range, ...] = ()
    """What of the guest's memory is as the blob says."""


Verify = Callable[[Read, bytes, int, Key], Awaitable[Verified]]
"""Takes a memory reader, the device tree, the kernel's address, and what gives the key."""

MAX_TREE: Final = fdt.MAX_SIZE
"""Bytes of a device tree, rounded up to 64 KiB (``svm/svm-fdt.c``)."""


async def verify(read: Read, tree: bytes, kernel_base: int, key: Key) -> Verified:
    """Find, open and check a guest's blob.

    Raises:
        EsmError: it does not come to a comparison.
    """
    try:
        boot = read_boot_tree(fdt.parse(tree, MAX_TREE))
    except fdt.FdtError as error:
        raise EsmError(f"device tree: {error}") from None
    try:
        located = await locate(read, boot)
        blob = esm_blob.parse(located.blob)
        secret = await key(blob)
        digests = open_digests(blob, secret)
        measured = await measure(read, boot, kernel_base, located.initrd, digests)
    except MismatchError as error:
        return Verified(failures=error.failed)
    except GuestMemoryError as error:
        raise EsmError(str(error)) from None
    return Verified(files=_files(blob, secret), measured=measured)


def _files(blob: Blob, secret: Secret) -> dict[bytes, Secret | None]:
    files: dict[bytes, Secret | None] = {}
    for name in blob.files:
        packed = name.encode()
        if len(packed) > MAX_NAME_SIZE:
            continue
        try:
            content = open_file(blob, name, secret)
        except EsmError:
            files[packed] = None
            continue
        files[packed] = Secret(content) if len(content) <= uv.MAX_FILE_SIZE else None
    return files
