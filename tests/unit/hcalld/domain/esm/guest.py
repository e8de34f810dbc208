# SPDX-License-Identifier: Apache-2.0
"""A guest in memory, with a blob before its initrd."""

from __future__ import annotations

import dataclasses
import functools

from tests.esm import (
    CMDLINE,
    INITRD,
    INITRD_BASE,
    KERNEL_BASE,
    RTAS_BASE,
    Memory,
    boot_tree,
    kernel_elf,
    public_pem,
)
from tests.vectors.record_esm import counter

from hcalld.crypto.tpm_session import run
from hcalld.domain.esm.authoring import Attachment, Recipient, archive, make
from hcalld.domain.esm.blob import Blob
from hcalld.domain.esm.boot_tree import BootTree, read_boot_tree
from hcalld.domain.esm.digests import RTAS_TEXT, Digests, digests_of
from hcalld.domain.esm.flat_kernel import flat_kernel

OWNER, MACHINE, OTHER, STRANGER = range(1, 5)


def random(seed: str = "blob"):
    """Random bytes that are the same for a seed."""
    source = counter(seed)

    async def take(size: int) -> bytes:
        return await source(size)

    return lambda size: run(take(size))


@functools.cache
def digests() -> Digests:
    return digests_of(flat_kernel(kernel_elf()), INITRD, CMDLINE)


@functools.cache
def blob() -> Blob:
    return make(
        digests(),
        Recipient(public_pem(OWNER), "the owner"),
        [Recipient(public_pem(MACHINE)), Recipient(public_pem(OTHER))],
        {"rootd": Attachment(b"a passphrase", "for the root disk"), "empty": Attachment(b"")},
        random(),
        "digests",
    )


@dataclasses.dataclass
class Guest:
    """Everything where it should be; tests move and change it."""

    memory: Memory
    tree: BootTree

    @classmethod
    def make(cls, before: bytes | None = None, initrd: bytes = INITRD) -> Guest:
        memory = Memory()
        head = archive(blob().build()) if before is None else before
        memory.put(KERNEL_BASE, flat_kernel(kernel_elf()))
        memory.put(RTAS_BASE, RTAS_TEXT)
        memory.put(INITRD_BASE, head + initrd)
        return cls(memory, read_boot_tree(boot_tree(len(head) + len(initrd))))
