# SPDX-License-Identifier: Apache-2.0
"""A guest on its way: written and read piece by piece, to a file or a socket.

The bytes are those of ``hcallproto.payloads.sev.stream``. That format says neither where a packet
goes nor when it ends, as QEMU knows both of a destination that was started like the source. So do
we (no source has a rule for it; hardware would not see it): memory comes first, from address 0 on,
without a gap, in packets of any size; then, if the policy has ES, one packet for the save area of
each processor, in their order. Whoever receives knows how much memory and how many processors there
are, and so whether all of it has come.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import socket
import struct
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from hcalld.sevvm.errors import SevVmError
from hcallproto.abi.families.sev import BLOB_MAX_SIZE, PACKET_MAX_SIZE
from hcallproto.payloads.sev.blobs import PACKET_HEADER_SIZE, SESSION_SIZE
from hcallproto.payloads.sev.stream import STREAM_HEAD, STREAM_PACKET, TransportPacket

SOCKET: Final = "unix:"
"""What the name of a socket begins with, as QEMU's ``-incoming``."""

_U32 = struct.Struct(">I")
_ARRIVED: Final = b"\1"
"""What a target answers at a socket. It is no part of the stream, which is one-way."""


class StreamHead(NamedTuple):
    """What a stream begins with."""

    policy: int
    pdh: bytes
    """The source's certificate."""
    session: bytes


class StreamWriter:
    """Writes a stream.

    Args:
        file: where it goes.
        sock: the socket that ``file`` writes to, if it is one.
    """

    def __init__(self, file: BinaryIO, sock: socket.socket | None = None) -> None:
        self._file = file
        self._sock = sock

    def head(self, head: StreamHead) -> None:
        """Begin it."""
        self._file.write(STREAM_HEAD.build(head._asdict()))

    def packet(self, packet: TransportPacket) -> None:
        """Go on."""
        self._file.write(STREAM_PACKET.build(packet._asdict()))

    def finish(self) -> None:
        """End it: a file is on the disk then, at a socket the guest has arrived.

        Raises:
            SevVmError: it has not.
        """
        self._file.flush()
        if self._sock is None:
            with contextlib.suppress(io.UnsupportedOperation):
                os.fsync(self._file.fileno())
            return
        self._sock.shutdown(socket.SHUT_WR)
        if self._sock.recv(1) != _ARRIVED:
            raise SevVmError("the target did not take the guest; expected it to say why")


class StreamReader:
    """Reads a stream that somebody else wrote; no piece is larger than it may be.

    Args:
        file: where it comes from.
        sock: the socket that ``file`` reads from, if it is one.
    """

    def __init__(self, file: BinaryIO, sock: socket.socket | None = None) -> None:
        self._file = file
        self._sock = sock
        self._packets = 0

    def confirm(self) -> None:
        """The guest has arrived; its source may forget it."""
        if self._sock is not None:
            self._sock.sendall(_ARRIVED)

    def head(self) -> StreamHead:
        """What it begins with.

        Raises:
            SevVmError: it is malformed, or cut off.
        """
        policy = self._number("the policy")
        pdh = self._blob("the source's certificate", BLOB_MAX_SIZE)
        session = self._blob("the session", SESSION_SIZE, least=SESSION_SIZE)
        return StreamHead(policy, pdh, session)

    def packet(self) -> TransportPacket | None:
        """The next packet; None where the stream ends.

        Raises:
            SevVmError: it is malformed, or cut off.
        """
        what = f"packet {self._packets}"
        first = self._file.read(_U32.size)
        if not first:
            return None
        self._check(first, _U32.size, what)
        header = self._rest(first, f"the header of {what}", PACKET_HEADER_SIZE, PACKET_HEADER_SIZE)
        payload = self._blob(f"the payload of {what}", PACKET_MAX_SIZE)
        self._packets += 1
        return TransportPacket(header, payload)

    def _number(self, what: str) -> int:
        return int(_U32.unpack(self._exactly(_U32.size, what))[0])

    def _blob(self, what: str, most: int, *, least: int = 1) -> bytes:
        return self._rest(self._exactly(_U32.size, what), what, most, least)

    def _rest(self, size_field: bytes, what: str, most: int, least: int) -> bytes:
        (size,) = _U32.unpack(size_field)
        if not least <= size <= most:
            raise SevVmError(
                f"the stream is malformed: {what} has {size} bytes, expected "
                f"{most if least == most else f'{least} to {most}'}"
            )
        return self._exactly(size, what)

    def _exactly(self, size: int, what: str) -> bytes:
        data = self._file.read(size)
        self._check(data, size, what)
        return data

    @staticmethod
    def _check(data: bytes, size: int, what: str) -> None:
        if len(data) < size:
            raise SevVmError(f"the stream is cut off in {what}; nothing after it has come")


# -- where it comes from and goes to --------------------------------------------------------------


@contextlib.contextmanager
def outgoing(name: str) -> Iterator[StreamWriter]:
    """A new file, or a socket where somebody waits for a guest.

    Raises:
        SevVmError: the file is there already, or nobody waits.
    """
    with _named(name):
        if name.startswith(SOCKET):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(name.removeprefix(SOCKET))
                with sock.makefile("wb") as stream:
                    yield StreamWriter(stream, sock)
        else:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    yield StreamWriter(file)
            except BaseException:
                # A part of a guest is nothing; and the next attempt shall find no file.
                os.unlink(name)
                raise


@contextlib.contextmanager
def incoming(name: str) -> Iterator[StreamReader]:
    """A file, or a socket at which to wait for the first who comes.

    Raises:
        SevVmError: there is no such file, or something is where the socket would be.
    """
    with _named(name):
        if not name.startswith(SOCKET):
            with pathlib.Path(name).open("rb") as file:
                yield StreamReader(file)
            return
        with _listening(name.removeprefix(SOCKET)) as listener:
            peer, _ = listener.accept()
        with peer, peer.makefile("rb") as stream:
            yield StreamReader(stream, peer)


@contextlib.contextmanager
def _listening(path: str) -> Iterator[socket.socket]:
    """A socket for one who comes; what has its name can be connected to from the start."""
    with (
        tempfile.TemporaryDirectory(prefix=".", dir=os.path.dirname(path) or ".") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        hidden = os.path.join(folder, "s")
        listener.bind(hidden)
        listener.listen(1)
        os.link(hidden, path)
        try:
            yield listener
        finally:
            os.unlink(path)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of the system as errors of the file."""
    try:
        yield
    except OSError as error:
        raise SevVmError(f"{name}: {error.strerror or error}") from None
