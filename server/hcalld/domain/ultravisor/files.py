# SPDX-License-Identifier: Apache-2.0
"""The files that a VM's blob carries: read once, by one process, in one direction.

Source: open-power/ultravisor ``svm/svm-esmb.c``; svm-tools ``svm-password-agent``. The
firmware's -1 for an unknown name is libfdt's and not copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from hcalld.core.errors import HcallError
from hcalld.core.secret import Secret
from hcallproto.abi.families import uv
from hcallproto.abi.returns import U

CHUNK_SIZE: Final = 8 * uv.FILE_CHUNK_REGISTERS
MAX_NAME_SIZE: Final = 8 * uv.FILE_NAME_REGISTERS
MAX_READERS: Final = 1024
"""Names that were asked for, known or not; each is remembered until the VM is gone."""


class Reader(NamedTuple):
    """Who has read from a file, and how far."""

    pidr: int
    end: int


def file_name(registers: Iterable[int]) -> bytes:
    """The name in r5 to r12, first byte most significant, NUL padded.

    Raises:
        HcallError: U_PARAMETER, it is none.
    """
    packed = b"".join(register.to_bytes(8, "big") for register in registers)
    name, _, rest = packed.partition(b"\0")
    if any(rest):
        raise HcallError(U.PARAMETER, "the file's name goes on after its NUL")
    if not name or b"/" in name:
        raise HcallError(U.PARAMETER, "the file's name is empty, or has a slash")
    return name


class Files:
    """One VM's files.

    Args:
        contents: by name; None for a file that is there and cannot be decrypted.
    """

    def __init__(self, contents: Mapping[bytes, Secret | None] | None = None) -> None:
        self.contents = dict(contents or {})
        self.readers: dict[bytes, Reader] = {}

    def read(self, name: bytes, offset: int, pidr: int) -> bytes:
        """The next piece of a file; b"" at its end.

        The first call for a name, even of a file that is not there, decides whose it is.

        Raises:
            HcallError: U_PARAMETER. ``readers`` may have changed all the same.
        """
        reader = self.readers.get(name)
        if reader is None:
            if len(self.readers) >= MAX_READERS:
                raise HcallError(U.PARAMETER, f"{MAX_READERS} names have been asked for already")
            reader = self.readers[name] = Reader(pidr, 0)
        elif reader.pidr != pidr:
            raise HcallError(U.PARAMETER, "another process has read from this file")
        if offset > uv.MAX_FILE_SIZE:
            raise HcallError(U.PARAMETER, f"offset {offset} is above {uv.MAX_FILE_SIZE}")
        if offset < reader.end:
            raise HcallError(
                U.PARAMETER, f"offset {offset} was read already, the next is {reader.end}"
            )
        if name not in self.contents:
            raise HcallError(U.PARAMETER, "the blob has no file of this name")
        content = self.contents[name]
        if content is None:
            raise HcallError(U.PARAMETER, "the file cannot be decrypted")
        piece = content.reveal()[offset : offset + CHUNK_SIZE]
        if piece:
            self.readers[name] = Reader(pidr, offset + len(piece))
        return piece


def pack_chunk(piece: bytes) -> tuple[int, ...]:
    """A piece as r4 to r11."""
    padded = piece.ljust(CHUNK_SIZE, b"\0")
    return tuple(int.from_bytes(padded[at : at + 8], "big") for at in range(0, CHUNK_SIZE, 8))
