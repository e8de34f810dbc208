# SPDX-License-Identifier: Apache-2.0
"""Guest memory that a command reads and writes in pieces, all or nothing.

A page that is gone, or cannot be written, is found when its piece's turn comes. What was written
before is put back then; only a client that unmaps memory under its own command can make that fail.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
from collections.abc import Callable, Iterator, Sequence

from hcalld.core.effects import GuestMemoryError, ReadGuest, WriteGuest
from hcalld.crypto.sev.memory import BLOCK_SIZE, SPARE_SIZE, MemoryCipher
from hcalld.domain.sev.settings import PIECE_SIZE
from hcalld.domain.sev.vm import Guest

Piece = tuple[int, bytes]
"""Address and content."""
Held = tuple[int, memoryview]
"""The same, in a ``Room``."""


class Room:
    """Memory for pieces that are held; large pages, for the kernel takes long to give many.

    Args:
        size: bytes that are held at most.
    """

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size + SPARE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):
            # A kernel may have none.
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._room = memoryview(memory)
        self._used = 0

    def encrypted(self, memory: MemoryCipher, address: int, data: bytes) -> memoryview:
        """What is in memory when the guest writes data, held here."""
        room = self._room[self._used :]
        self._used += len(data)
        return memory.encrypt_into(address, data, room)


def pieces(address: int, size: int) -> Iterator[tuple[int, int]]:
    """(address, size) of each piece of a range; all but the last end at a multiple of a piece."""
    end = address + size
    while address < end:
        cut = min(end, (address // PIECE_SIZE + 1) * PIECE_SIZE)
        yield address, cut - address
        address = cut


def reads(address: int, size: int) -> Iterator[tuple[int, ReadGuest]]:
    """Address and effect of each piece of a range; whoever awaits one awaits the next."""
    ahead = itertools.chain(itertools.islice(pieces(address, size), 1, None), (None,))
    for piece, then in zip(pieces(address, size), ahead, strict=True):
        yield piece[0], ReadGuest(*piece, then)


def blocks(address: int, size: int) -> tuple[int, int]:
    """(address, size) of the whole blocks that a range lies in."""
    start = address - address % BLOCK_SIZE
    end = -(-(address + size) // BLOCK_SIZE) * BLOCK_SIZE
    return start, end - start


async def read_all(address: int, size: int) -> list[Piece]:
    """All of a range.

    Raises:
        GuestMemoryError: a part of it is not there.
    """
    return [(at, await read) for at, read in reads(address, size)]


async def write_all(new: Sequence[Piece] | Sequence[Held], old: Callable[[int], bytes]) -> None:
    """Write pieces; put back those that are written if one cannot be.

    Args:
        new: the pieces.
        old: gives what was there before, by the piece's number.

    Raises:
        GuestMemoryError: a part of it is not there.
    """
    done = 0
    try:
        for at, data in new:
            await WriteGuest(at, bytes(data))
            done += 1
    except GuestMemoryError:
        for number in range(done):
            with contextlib.suppress(GuestMemoryError):
                await WriteGuest(new[number][0], old(number))
        raise


def encrypted(guest: Guest, address: int, data: bytes) -> bytes:
    """What is in memory when the guest has ``data`` there."""
    return data if guest.memory is None else guest.memory.encrypt(address, data)


def decrypted(guest: Guest, address: int, data: bytes) -> bytes:
    """What the guest has where ``data`` is in memory."""
    return data if guest.memory is None else guest.memory.decrypt(address, data)
