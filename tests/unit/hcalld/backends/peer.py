# SPDX-License-Identifier: Apache-2.0
"""The other end of a channel: a TPM that answers what a test wants, when it wants."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import trio

from hcallproto.payloads import tpm_contexts as tpm

RANDOM = tpm.command(0x17B, struct.pack(">H", 8))


def response(body: bytes = b"", code: int = 0, *, size: int | None = None) -> bytes:
    """A response; ``size`` is what it claims."""
    claimed = tpm.HEADER_SIZE + len(body) if size is None else size
    return struct.pack(">HII", tpm.ST_NO_SESSIONS, claimed, code) + body


def handles(*numbers: int) -> bytes:
    """A response to GetCapability."""
    return response(struct.pack(f">BII{len(numbers)}I", 0, 1, len(numbers), *numbers))


class Contexts:
    """A TPM that knows its contexts, and says "handle" to what is none of them."""

    def __init__(self, *loaded: int) -> None:
        self.loaded = list(loaded)
        self.flushed: list[int] = []
        self.commands: list[bytes] = []

    def __call__(self, command: bytes) -> bytes:
        """Carry out a command."""
        self.commands.append(command)
        (code,) = struct.unpack_from(">I", command, 6)
        if code == tpm.Command.GET_CAPABILITY:
            _, first, _ = struct.unpack_from(">III", command, 10)
            return handles(*(h for h in self.loaded if h >> 24 == first >> 24))
        if code == tpm.Command.FLUSH_CONTEXT:
            (handle,) = struct.unpack_from(">I", command, 10)
            if handle not in self.loaded:
                return response(code=0x18B)
            self.loaded.remove(handle)
            self.flushed.append(handle)
        return response(b"answer")


async def serve(stream: trio.SocketStream, tpm_: Callable[[bytes], bytes | None]) -> None:
    """Answer each command until the other end is gone; None is no answer."""
    async with stream:
        try:
            while command := await stream.receive_some(8192):
                answer = tpm_(bytes(command))
                if answer is not None:
                    await stream.send_all(answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


def pair() -> tuple[int, trio.SocketStream]:
    """A channel's descriptor, and the stream at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return ours.detach(), trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
