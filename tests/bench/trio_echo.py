# SPDX-License-Identifier: Apache-2.0
"""The floor of a trio daemon: an echo over ``trio.socket`` and nothing else."""

from __future__ import annotations

import socket
import sys

import trio


async def echo(fd: int) -> None:
    """Send back what comes until end of file."""
    sock = trio.socket.from_stdlib_socket(socket.socket(fileno=fd))
    while data := await sock.recv(65536):
        await sock.send(data)


if __name__ == "__main__":
    trio.run(echo, int(sys.argv[1]))
