# SPDX-License-Identifier: Apache-2.0
"""A debugger, as far as needed: gdb's remote protocol to QEMU's stub."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MSR: Final = 65
"""Number of the MSR in gdb's description of the core (gdb-xml/power64-core.xml)."""


def gdb_options(path: Path) -> list[str]:
    """QEMU's options for a debugger that comes later."""
    return ["-chardev", f"socket,id=gdb,path={path},server=on,wait=off", "-gdb", "chardev:gdb"]


class Gdb:
    """A connection; the guest is stopped while it lasts.

    Args:
        path: QEMU's socket.
    """

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(60)
        self._sock.connect(str(path))
        self._file = self._sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, packet: str) -> str:
        """Sends a packet, and gives the answer's text."""
        checksum = sum(packet.encode()) & 0xFF
        self._sock.sendall(f"${packet}#{checksum:02x}".encode())
        while self._file.read(1) != b"$":
            pass
        text = b""
        while (byte := self._file.read(1)) != b"#":
            text += byte
        self._file.read(2)
        self._sock.sendall(b"+")
        return text.decode()

    def register(self, number: int) -> int:
        """A register of a little-endian CPU."""
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}")), "little")

    def set_register(self, number: int, value: int) -> str:
        """Sets one; gives the answer."""
        return self.ask(f"P{number:x}={value.to_bytes(8, 'little').hex()}")

    def memory(self, address: int, size: int) -> bytes:
        """Reads memory, at virtual addresses unless ``physical`` was called."""
        return bytes.fromhex(self.ask(f"m{address:x},{size:x}"))

    def set_memory(self, address: int, data: bytes) -> str:
        """Writes memory; gives the answer, OK or an error."""
        return self.ask(f"M{address:x},{len(data):x}:{data.hex()}")

    def physical(self) -> None:
        """From now on addresses are physical."""
        assert self.ask("Qqemu.PhyMemMode:1") == "OK"

    def close(self) -> None:
        """Lets the guest run on."""
        self.ask("D")
        self._file.close()
        self._sock.close()
