# SPDX-License-Identifier: Apache-2.0
"""A host on a guest's Ethernet: it answers ARP and serves files by TFTP, and knows no QEMU.

QEMU's ``-netdev stream`` connects to it; each frame has its size before it. The guest's own
network is then all that is needed to bring data in and out: ``tftp`` of busybox does.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

GUEST_ADDRESS: Final = "10.0.0.2"
HOST_ADDRESS: Final = "10.0.0.1"
GUEST_MAC: Final = "52:54:00:00:00:02"
_HOST_MAC: Final = bytes.fromhex("525400000001")
_IP: Final = socket.inet_aton(HOST_ADDRESS)

_SIZE: Final = struct.Struct(">I")
_ARP: Final = struct.Struct(">HHBBH6s4s6s4s")
_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")
_UDP: Final = struct.Struct(">HHHH")
_ETHERTYPE_IP: Final = 0x0800
_ETHERTYPE_ARP: Final = 0x0806
_PROTOCOL_UDP: Final = 17
_TFTP_PORT: Final = 69
_RRQ, _WRQ, _DATA, _ACK, _OACK = 1, 2, 3, 4, 6
"""Opcodes of RFC 1350 and RFC 2347."""


def checksum(header: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class EtherHost:
    """A host behind a guest's network interface.

    As a context manager it serves inside.

    Args:
        path: The unix socket to listen on.
        files: What the guest may get.
    """

    def __init__(self, path: Path, files: Mapping[str, bytes]) -> None:
        self.path = path
        self.files = dict(files)
        self.received: dict[str, bytes] = {}
        """What the guest has put, once it is whole."""
        self._sessions: dict[tuple[int, int], _Session] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="ether", daemon=True)

    def options(self, device: str) -> list[str]:
        """QEMU's options for an interface that leads here."""
        backend = f"stream,id=ether,server=off,addr.type=unix,addr.path={self.path}"
        return ["-netdev", backend, "-device", f"{device},netdev=ether,mac={GUEST_MAC}"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sock in (self._listener, self._peer):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._peer, _ = self._listener.accept()
            with self._peer:
                for frame in _frames(self._peer):
                    for answer in self._answers(frame):
                        self._peer.sendall(_SIZE.pack(len(answer)) + answer)

    def _answers(self, frame: bytes) -> Iterator[bytes]:
        sender, ethertype = frame[6:12], int.from_bytes(frame[12:14], "big")
        if ethertype == _ETHERTYPE_ARP:
            *head, operation, mac, address, _, target = _ARP.unpack_from(frame, 14)
            if operation == 1 and target == _IP:
                body = _ARP.pack(*head, 2, _HOST_MAC, _IP, mac, address)
                yield _ethernet(sender, _ETHERTYPE_ARP, body)
        elif ethertype == _ETHERTYPE_IP:
            fields = _IPV4.unpack_from(frame, 14)
            if fields[6] == _PROTOCOL_UDP and fields[9] == _IP:
                end = 14 + fields[2]
                start = 14 + (fields[0] & 15) * 4
                source, port, *_ = _UDP.unpack_from(frame, start)
                answer = self._tftp(source, port, frame[start + _UDP.size : end])
                if answer is not None:
                    yield _ethernet(sender, _ETHERTYPE_IP, _datagram(fields[8], *answer))

    def _tftp(self, source: int, port: int, data: bytes) -> tuple[int, int, bytes] | None:
        """Gives from which port to which one what is to be sent."""
        opcode = int.from_bytes(data[:2], "big")
        if port == _TFTP_PORT and opcode in (_RRQ, _WRQ):
            words = data[2:].split(b"\0")
            options = dict(zip(words[2::2], words[3::2], strict=False))
            session = _Session(words[0].decode(), int(options[b"blksize"]))
            # The client's next transfer has another port.
            port = 1024 + len(self._sessions)
            self._sessions[source, port] = session
            text = b"blksize\0%d\0" % session.size
            return port, source, struct.pack(">H", _OACK) + text
        known = self._sessions.get((source, port))
        if known is None:
            return None
        block = int.from_bytes(data[2:4], "big")
        if opcode == _ACK:
            content = self.files[known.name][block * known.size :][: known.size]
            is_over = block * known.size > len(self.files[known.name])
            sent = struct.pack(">HH", _DATA, block + 1) + content
            return None if is_over else (port, source, sent)
        if opcode == _DATA:
            known.blocks[block] = data[4:]
            if len(data) - 4 < known.size:
                self.received[known.name] = b"".join(v for _, v in sorted(known.blocks.items()))
            return port, source, struct.pack(">HH", _ACK, block)
        return None


class _Session:
    """One transfer; what is sent again is answered again."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.blocks: dict[int, bytes] = {}


def _frames(peer: socket.socket) -> Iterator[bytes]:
    with peer.makefile("rb") as stream:
        while len(head := stream.read(_SIZE.size)) == _SIZE.size:
            yield stream.read(_SIZE.unpack(head)[0])


def _ethernet(destination: bytes, ethertype: int, body: bytes) -> bytes:
    frame = destination + _HOST_MAC + ethertype.to_bytes(2, "big") + body
    return frame.ljust(60, b"\0")


def _datagram(destination: bytes, source: int, port: int, data: bytes) -> bytes:
    udp = _UDP.pack(source, port, _UDP.size + len(data), 0) + data
    size = _IPV4.size + len(udp)
    head = _IPV4.pack(0x45, 0, size, 0, 0, 64, _PROTOCOL_UDP, 0, _IP, destination)
    head = _IPV4.pack(0x45, 0, size, 0, 0, 64, _PROTOCOL_UDP, checksum(head), _IP, destination)
    return head + udp
