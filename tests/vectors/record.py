# SPDX-License-Identifier: Apache-2.0
"""Record what a shim and a daemon say to each other, for ``tests/vectors/wire/``.

Stands between QEMU and a daemon and writes every frame, as hex, one a line, with ``>``
for the shim's and ``<`` for the daemon's::

    python -m tests.vectors.record LISTEN_PATH DAEMON_PATH OUT

File descriptors are not passed on, so start the guest without shared memory.
"""

from __future__ import annotations

import select
import socket
import sys
from pathlib import Path

from hcallproto.wire.schema import HEADER_SIZE

SHIM, DAEMON = ">", "<"


def frames_of(buffer: bytearray) -> list[bytes]:
    """Take the whole frames from the front of a buffer."""
    frames = []
    while len(buffer) >= HEADER_SIZE:
        size = int.from_bytes(buffer[8:12], "big")
        if len(buffer) < size:
            break
        frames.append(bytes(buffer[:size]))
        del buffer[:size]
    return frames


def record(listen_path: str, daemon_path: str, out: Path) -> None:
    """Pass one connection through and write its frames."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as daemon:
        listener.bind(listen_path)
        listener.listen(1)
        shim, _ = listener.accept()
        daemon.connect(daemon_path)
        with shim, out.open("w", encoding="ascii") as lines:
            ends = {shim: (daemon, SHIM, bytearray()), daemon: (shim, DAEMON, bytearray())}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    other, mark, buffer = ends[end]
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    other.sendall(data)
                    buffer += data
                    for frame in frames_of(buffer):
                        lines.write(f"{mark} {frame.hex()}\n")


if __name__ == "__main__":
    record(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
