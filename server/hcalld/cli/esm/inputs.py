# SPDX-License-Identifier: Apache-2.0
"""What the subcommands of ``hcalld esm`` read: blobs, kernels, public keys."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from hcalld.cli.files import read_whole
from hcalld.cli.private_keys import MAX_KEY_FILE_SIZE

if TYPE_CHECKING:
    from hcalld.domain.esm.authoring import Recipient
    from hcalld.domain.esm.blob import Blob
    from hcalld.domain.esm.digests import Digests
    from hcalld.domain.esm.locate import Located

MAX_IMAGE_SIZE = 1 << 30
"""Bytes of a kernel or an initrd."""

path_type = click.Path(path_type=pathlib.Path)


@contextmanager
def about(path: pathlib.Path | str) -> Iterator[None]:
    """Errors of blobs and their keys as errors of a file."""
    from hcalld.core.errors import ConfigError
    from hcalld.crypto.lockbox import LockboxError
    from hcalld.domain.esm.errors import EsmError
    from hcallproto.payloads.tpm import TpmError

    try:
        yield
    except (EsmError, LockboxError, TpmError) as error:
        raise ConfigError(f"{path}: {error}") from None


# -- blobs ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class BlobFile:
    """A blob from a file, or from the archive before an initrd."""

    path: pathlib.Path
    blob: Blob
    content: bytes = dataclasses.field(repr=False)
    located: Located | None
    """Where in an initrd it is."""

    @property
    def initrd(self) -> bytes | None:
        """What of the initrd is measured."""
        if self.located is None:
            return None
        return self.content[self.located.initrd.start : self.located.initrd.end]


def read_blob(path: pathlib.Path) -> BlobFile:
    """A blob, or an initrd with one before it.

    Raises:
        ConfigError: it is neither.
    """
    from hcalld.domain.esm import blob
    from hcalld.domain.esm.errors import EsmError
    from hcallproto.payloads import cpio

    content = read_whole(path, MAX_IMAGE_SIZE)
    with about(path):
        if not content.startswith(cpio.MAGIC):
            return BlobFile(path, blob.parse(content), content, None)
        try:
            located = locate_in_file(content)
        except EsmError as error:
            raise EsmError(
                f"neither a blob nor an initrd that hcalld esm add made: {error}"
            ) from None
        return BlobFile(path, blob.parse(located.blob), content, located)


def locate_in_file(content: bytes) -> Located:
    """The blob of an initrd in a file, as the ultravisor finds it in memory."""
    from hcalld.crypto.tpm_session import run
    from hcalld.domain.esm.boot_tree import BootTree, Range
    from hcalld.domain.esm.locate import locate

    async def read(position: int, size: int) -> bytes:
        return content[position : position + size]

    nothing = Range(0, 0)
    tree = BootTree(nothing, nothing, Range(0, len(content)), b"", None)
    return run(locate(read, tree))


def read_initrd(path: pathlib.Path) -> bytes:
    """An initrd that has no blob yet.

    Raises:
        ConfigError: it has one, or it is empty.
    """
    from hcalld.core.errors import ConfigError
    from hcalld.domain.esm.errors import EsmError

    content = read_whole(path, MAX_IMAGE_SIZE)
    if not content:
        raise ConfigError(f"{path}: empty, expected an initrd")
    try:
        locate_in_file(content)
    except EsmError:
        return content
    raise ConfigError(f"{path}: has a blob already; give the initrd it was added to")


# -- what is measured -----------------------------------------------------------------------

kernel_option = click.option(
    "--kernel", type=path_type, required=True, help="The vmlinux that QEMU is given."
)
cmdline_option = click.option(
    "--cmdline", required=True, help="The kernel's command line, to the letter."
)


def digests_of_files(kernel: pathlib.Path, initrd: bytes, cmdline: str) -> Digests:
    """The digests of a guest.

    Raises:
        ConfigError: the kernel is none.
    """
    from hcalld.domain.esm.digests import digests_of
    from hcalld.domain.esm.flat_kernel import flat_kernel

    image = read_whole(kernel, MAX_IMAGE_SIZE)
    with about(kernel):
        return digests_of(flat_kernel(image), initrd, cmdline)


# -- keys -----------------------------------------------------------------------------------


def read_recipient(path: pathlib.Path, comment: str = "") -> Recipient:
    """A recipient's public key.

    Raises:
        ConfigError: it is none that can be used.
    """
    from hcalld.crypto.lockbox import load_public_key
    from hcalld.domain.esm.authoring import Recipient

    pem = read_whole(path, MAX_KEY_FILE_SIZE)
    with about(path):
        load_public_key(pem)
    return Recipient(pem, comment)
